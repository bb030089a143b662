"""Norms and gated MLPs that run fused: the same numbers and gradients as the modules themselves, which come back
unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfedit.engine import AdapterBank, FitJob, FitSettings, LoraSpec, TokenSequence, fit, losses
from selfedit.engine.fused import fused, known_forms, rotating_files


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3"])
def test_values_and_gradients_are_the_modules_own(tiny_model, kind, dtype):
    model = tiny_model(kind, dtype=dtype)
    decoder = model.get_decoder()
    for module in decoder.modules():
        if type(module).__name__.endswith("RMSNorm"):
            nn.init.normal_(module.weight, mean=0.5, std=0.3)
    layer = decoder.layers[0]
    modules = [layer.mlp, layer.input_layernorm, decoder.norm]
    if hasattr(layer.self_attn, "q_norm"):
        modules.append(layer.self_attn.q_norm)
    generator = torch.Generator().manual_seed(1)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 5e-2, "atol": 5e-2}
    for module in modules:
        width = model.config.head_dim if module is modules[-1] and len(modules) == 4 else model.config.hidden_size
        x = torch.randn(2, 5, width, generator=generator).to(model.device, model.dtype)
        slope = torch.randn(2, 5, width, generator=generator).to(x)
        results = []
        for context in (torch.enable_grad(), fused(known_forms(decoder))):
            with context:
                assert ("forward" in vars(module)) == (len(results) == 1)
                own = x.clone().requires_grad_()
                y = module(own)
                y.backward(slope)
                results.append((y.detach(), own.grad))
        for plain, quick in zip(*results, strict=True):
            torch.testing.assert_close(quick, plain, **tolerance)
    assert not any("forward" in vars(module) for module in decoder.modules())


class OddRMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) + 0.01


class RenamedRMSNorm(OddRMSNorm):
    """Calls its epsilon something else."""

    def __init__(self, width):
        super().__init__(width)
        self.epsilon = vars(self).pop("eps")

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)


@pytest.mark.parametrize("norm", [OddRMSNorm, RenamedRMSNorm, nn.RMSNorm])
def test_modules_of_another_form_run_as_they_are(tiny_model, norm):
    model = tiny_model("llama")
    decoder = model.get_decoder()
    decoder.norm = norm(model.config.hidden_size).to(model.device)
    decoder.layers[1].mlp.act_fn = nn.Tanh()
    with fused(known_forms(decoder)):
        assert "forward" not in vars(decoder.norm)
        assert "forward" not in vars(decoder.layers[1].mlp)
        assert "forward" in vars(decoder.layers[0].mlp)
        assert "forward" in vars(decoder.layers[1].input_layernorm)


def test_norms_of_one_class_with_and_without_a_weight_are_told_apart():
    class ScaledRMSNorm(nn.Module):
        def __init__(self, width, with_scale):
            super().__init__()
            self.eps, self.with_scale = 1e-6, with_scale
            if with_scale:
                self.weight = nn.Parameter(torch.ones(width))

        def forward(self, x):
            y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
            return y * self.weight if self.with_scale else y

    norms = nn.Sequential(ScaledRMSNorm(8, True), ScaledRMSNorm(8, False))
    x = torch.randn(3, 8)
    expected = norms(x)
    with fused(known_forms(norms)):
        assert ["forward" in vars(norm) for norm in norms] == [True, False]
        torch.testing.assert_close(norms(x), expected)


@pytest.mark.parametrize(("kind", "dtype"), [("gpt_neox", "float32"), ("olmo2", "bfloat16")])
def test_rotations_of_a_part_or_in_another_dtype_are_the_models_own(tiny_model, kind, dtype):
    model, sequence = tiny_model(kind, dtype=dtype, num_hidden_layers=2), TokenSequence(tuple(range(5, 25)))
    (file,) = rotating_files(model.get_decoder())
    own = file.apply_rotary_pos_emb
    ids = torch.tensor([sequence.ids], device=model.device)
    expected = model(input_ids=ids, labels=ids).loss.item()
    assert losses(model, [(None, sequence)]) == pytest.approx([expected], rel=1e-5 if dtype == "float32" else 0.02)
    with AdapterBank(model, LoraSpec(rank=2), 1) as bank:
        (result,) = fit(bank, [FitJob((sequence,), FitSettings(epochs=1), 0)])
    assert result.error is None
    assert result.losses[0] == pytest.approx(expected, rel=1e-5 if dtype == "float32" else 0.02)
    assert file.apply_rotary_pos_emb is own


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3"])
def test_rotations_and_their_gradients_are_the_models_own(tiny_model, kind):
    decoder = tiny_model(kind).get_decoder()
    (file,) = rotating_files(decoder)
    own = file.apply_rotary_pos_emb
    generator = torch.Generator().manual_seed(2)
    # As projections leave them: heads after positions in memory.
    q, k, slope_q, slope_k = (
        torch.randn(2, 7, heads, 16, generator=generator).transpose(1, 2) for heads in (4, 2, 4, 2)
    )
    cos, sin = (torch.randn(2, 7, 16, generator=generator) for _ in range(2))
    results = []
    for context in (torch.enable_grad(), fused({}, [file])):
        with context:
            assert (file.apply_rotary_pos_emb is own) == (not results)
            leaves = [x.clone().requires_grad_() for x in (q, k)]
            rotated = file.apply_rotary_pos_emb(*leaves, cos, sin)
            torch.autograd.backward(rotated, (slope_q, slope_k))
            results.append([*(y.detach() for y in rotated), *(leaf.grad for leaf in leaves)])
    assert file.apply_rotary_pos_emb is own
    for plain, quick in zip(*results, strict=True):
        torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-5)
        assert quick.stride() == plain.stride()


@pytest.mark.parametrize(
    "rotate",
    [
        lambda q, k, cos, sin: (q * cos.unsqueeze(1), k * cos.unsqueeze(1)),
        lambda q, k, cos, sin, sections: (q, k),
        lambda q, k, angles: (q, k),
    ],
)
def test_rotations_of_another_form_stay(tiny_model, monkeypatch, rotate):
    decoder = tiny_model("llama").get_decoder()
    (file,) = rotating_files(decoder)
    monkeypatch.setattr(file, "apply_rotary_pos_emb", rotate)
    assert rotating_files(decoder) == []
