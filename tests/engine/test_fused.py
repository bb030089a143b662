"""Norms and gated MLPs that run fused: the same numbers and gradients as the modules themselves, which come back
unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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


def test_modules_of_another_form_run_as_they_are(tiny_model):
    class OddRMSNorm(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

        def forward(self, x):
            return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) + 0.01

    model = tiny_model("llama")
    decoder = model.get_decoder()
    decoder.norm = OddRMSNorm(model.config.hidden_size).to(model.device)
    decoder.layers[1].mlp.act_fn = nn.Tanh()
    with fused(known_forms(decoder)):
        assert "forward" not in vars(decoder.norm)
        assert "forward" not in vars(decoder.layers[1].mlp)
        assert "forward" in vars(decoder.layers[0].mlp)
        assert "forward" in vars(decoder.layers[1].input_layernorm)


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
