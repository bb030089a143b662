"""Which layers a bank adapts, what it refuses, and that the base model stays itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfedit.engine import AdapterBank, FitJob, FitSettings, LoraSpec, TokenSequence, UnsupportedModelError, fit
from selfedit.engine.backbone import Backbone
from selfedit.engine.lora import Routing

IDS = torch.arange(3, 25)[None]


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS.to(model.device), use_cache=False).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3"])
def test_without_a_routing_the_model_is_the_base_model_bit_for_bit(tiny_model, kind, dtype):
    model = tiny_model(kind, dtype=dtype)
    before, modules = logits_of(model), dict(model.named_modules())
    with AdapterBank(model, LoraSpec(rank=4), 2) as bank:
        for adapter in range(2):
            bank.reset(adapter, adapter)
            for _, b in bank.state(adapter).values():
                nn.init.normal_(b)
        bank.publish([0, 1])
        assert torch.equal(logits_of(model), before)
        with bank.route(Routing.of([1], [IDS.shape[1]], size=2, grouped=False)):
            assert not torch.equal(logits_of(model), before)
        assert torch.equal(logits_of(model), before)
    assert dict(model.named_modules()) == modules


def test_the_models_own_parameters_get_no_gradient(tiny_model):
    model = tiny_model("llama").requires_grad_(True)
    model.lm_head.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    with AdapterBank(model, LoraSpec(rank=2, targets=("q_proj",)), 1) as bank:
        fit(bank, [FitJob((TokenSequence((5, 6, 7)),), FitSettings(epochs=1), seed=0)])
        assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == before


def test_first_weights_are_pefts_distribution_and_follow_the_seed(tiny_model):
    model = tiny_model("llama")
    with AdapterBank(model, LoraSpec(rank=16), 3) as bank:
        bank.reset(0, 7)
        bank.reset(1, 8)
        bank.reset(2, 7)
        assert torch.equal(bank.parameters_NF[0], bank.parameters_NF[2])
        assert not torch.equal(bank.parameters_NF[0], bank.parameters_NF[1])
        for a, b in bank.state(0).values():
            bound = a.shape[1] ** -0.5  # Kaiming-uniform with a = sqrt(5): sqrt(6 / (1 + 5) / fan_in)
            assert a.abs().max() <= bound
            assert a.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
            assert torch.count_nonzero(b) == 0


@pytest.mark.parametrize(
    ("targets", "layers", "expected"),
    [
        ("all-linear", None, 3 * 7),
        ("all-linear", (1, 2), 2 * 7),
        ("mlp", None, 3 * 3),
        (("q_proj",), None, 3),
        (("self_attn.q_proj", "v_proj"), (0, 0), 2),
        (("model.layers.2.mlp.up_proj",), None, 1),
    ],
)
def test_targets(tiny_model, targets, layers, expected):
    with AdapterBank(tiny_model("llama"), LoraSpec(rank=2, targets=targets, layers=layers), 1) as bank:
        assert len(bank.names) == expected
        assert not any("lm_head" in name for name in bank.names)


@pytest.mark.parametrize("targets", [("query",), ("proj",), ("lm_head",)])
def test_targets_that_match_nothing_name_the_layers_there_are(tiny_model, targets):
    with pytest.raises(UnsupportedModelError, match=r"no layer matches .* q_proj"):
        AdapterBank(tiny_model("llama"), LoraSpec(targets=targets), 1)


def test_layers_that_the_model_lacks_are_refused(tiny_model):
    with pytest.raises(UnsupportedModelError, match=r"layers \[0, 5\]: the model's last decoder layer is 2"):
        AdapterBank(tiny_model("llama"), LoraSpec(layers=(0, 5)), 1)


def test_conv1d_is_refused(tiny_model):
    with pytest.raises(UnsupportedModelError, match="Conv1D"):
        AdapterBank(tiny_model("gpt2"), LoraSpec(), 1)


def test_attention_with_capped_scores_is_refused(tiny_model):
    model = tiny_model("gemma2")
    with AdapterBank(model, LoraSpec(), 1) as bank, pytest.raises(UnsupportedModelError, match=r"Gemma2.* soft-capped"):
        fit(bank, [FitJob((TokenSequence((5, 6, 7)),), FitSettings(epochs=1), seed=0)])


@pytest.mark.parametrize(
    ("drops", "line"), [(True, "got no packed layout"), (False, "keyword argument 'packed_layout'")]
)
def test_decoders_that_drop_or_refuse_the_layout_are_refused(tiny_model, monkeypatch, drops, line):
    model = tiny_model("llama")
    decoder = model.get_decoder()
    forward = decoder.forward

    def refusing(
        input_ids, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, use_cache=0
    ):
        return forward(input_ids=input_ids, position_ids=position_ids, use_cache=False)

    def dropping(input_ids, position_ids=None, **_):
        return refusing(input_ids, position_ids=position_ids)

    monkeypatch.setattr(decoder, "forward", dropping if drops else refusing)
    with pytest.raises(UnsupportedModelError, match=f"LlamaForCausalLM is not supported: .*{line}"):
        Backbone(model)


def test_quantised_layers_are_refused(tiny_model):
    class Linear4bit(nn.Linear):
        """Packs its weights as bitsandbytes does: bytes instead of numbers."""

        def __init__(self, linear):
            super().__init__(linear.in_features, linear.out_features, bias=False)
            self.weight = nn.Parameter(
                torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False
            )

    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    for kind in (Linear4bit, lambda linear: Scaled(linear.in_features, linear.out_features)):
        model = tiny_model("llama")
        attention = model.model.layers[1].self_attn
        attention.q_proj = kind(attention.q_proj)
        with pytest.raises(UnsupportedModelError, match=r"layers\.1\.self_attn\.q_proj .* quantised"):
            AdapterBank(model, LoraSpec(), 1)


def test_two_banks_on_one_model_are_refused(tiny_model):
    model = tiny_model("llama")
    with AdapterBank(model, LoraSpec(rank=2), 1), pytest.raises(UnsupportedModelError, match="another bank"):
        AdapterBank(model, LoraSpec(rank=2), 1)
    with AdapterBank(model, LoraSpec(rank=2), 1) as bank:
        assert len(bank.names) == 21


@pytest.mark.parametrize("change", [{"rank": 0}, {"dropout": 1.0}, {"targets": ()}])
def test_specs_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match="LoraSpec"):
        LoraSpec(**change)


def test_rows_that_were_not_routed_are_an_error(tiny_model):
    model = tiny_model("llama")
    with AdapterBank(model, LoraSpec(rank=2), 2) as bank:
        routing = Routing.of([0], [5], size=2, grouped=False)
        with bank.route(routing), pytest.raises(RuntimeError, match="22 rows, but 5"):
            logits_of(model)
        with pytest.raises(RuntimeError, match="active already"), bank.route(routing), bank.route(routing):
            pass
