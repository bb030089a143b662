"""Adapters on disk: PEFT loads them with the same logits, merged or not; the engine reads back what it and PEFT write."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from reference import lora_config, random_job

from selfedit.engine import AdapterBank, LoraSpec, fit, load_adapter, merge_adapter
from selfedit.engine.lora import Routing

IDS = tuple(range(3, 30))
SPECS = {
    "all-linear": LoraSpec(rank=8, alpha=16),
    "rslora": LoraSpec(rank=4, alpha=8, rslora=True),
    "suffix": LoraSpec(rank=4, alpha=8, targets=("self_attn.q_proj", "down_proj")),
    "layers": LoraSpec(rank=4, alpha=8, layers=(1, 2)),
}


def logits_of(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float()


def trained(model, spec, folder):
    """Trains two adapters, saves the second, and returns its logits on IDS."""
    with AdapterBank(model, spec, 2) as bank:
        fit(bank, [random_job(k, sequences=3, epochs=3, learning_rate=5e-3) for k in range(2)])
        bank.save_pretrained(1, folder)
        routing = Routing.of([1], [len(IDS)], size=2, device=bank.device, grouped=False)
        with bank.route(routing):
            return logits_of(model)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_peft_loads_an_adapter_with_the_same_logits(tiny_model, tmp_path, kind, spec):
    model = tiny_model(kind)
    base = logits_of(model)
    own = trained(model, spec, tmp_path)
    assert (own - base).abs().max() > 0.05
    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    torch.testing.assert_close(logits_of(wrapped), own, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_of(wrapped.merge_and_unload()), own, rtol=1e-4, atol=1e-4)
    merged = copy.deepcopy(model)
    merge_adapter(merged, tmp_path)
    torch.testing.assert_close(logits_of(merged), own, rtol=1e-4, atol=1e-4)
    # The model itself is as it was.
    assert torch.equal(logits_of(model), base)


def test_merging_half_and_taking_it_back(tiny_model, tmp_path):
    model = tiny_model("llama")
    trained(model, SPECS["all-linear"], tmp_path)
    before = logits_of(model)
    merge_adapter(model, tmp_path, scale=0.5)
    assert (logits_of(model) - before).abs().max() > 0.01
    merge_adapter(model, tmp_path, scale=-0.5)
    torch.testing.assert_close(logits_of(model), before, rtol=1e-4, atol=1e-4)


def test_merging_under_a_bank_changes_the_base(tiny_model, tmp_path):
    model = tiny_model("llama")
    own = trained(model, SPECS["all-linear"], tmp_path)
    with AdapterBank(model, SPECS["suffix"], 1):
        merge_adapter(model, tmp_path)
    torch.testing.assert_close(logits_of(model), own, rtol=1e-4, atol=1e-4)


def test_an_adapter_comes_back_into_a_bank(tiny_model, tmp_path):
    model = tiny_model("qwen3")
    own = trained(model, SPECS["rslora"], tmp_path)
    spec, state = load_adapter(tmp_path)
    assert (spec.rank, spec.alpha, spec.rslora) == (4, 8, True)
    with AdapterBank(model, spec, 3) as bank:
        bank.load_state(2, state)
        with bank.route(Routing.of([2], [len(IDS)], size=3, device=bank.device, grouped=False)):
            torch.testing.assert_close(logits_of(model), own, rtol=1e-5, atol=1e-5)
    with AdapterBank(model, LoraSpec(rank=8), 1) as bank, pytest.raises(ValueError, match="another shape"):
        bank.load_state(0, state)
    with (
        AdapterBank(model, LoraSpec(rank=4, layers=(0, 0)), 1) as bank,
        pytest.raises(ValueError, match="layers differ"),
    ):
        bank.load_state(0, state)


def test_an_adapter_that_peft_wrote_is_read(tiny_model, tmp_path):
    model = tiny_model("qwen2")
    wrapped = peft.get_peft_model(copy.deepcopy(model), lora_config(model, SPECS["all-linear"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    wrapped.save_pretrained(tmp_path)
    merge_adapter(model, tmp_path)
    torch.testing.assert_close(logits_of(model), logits_of(wrapped.eval()), rtol=1e-4, atol=1e-4)


def test_the_files_are_peft_files(tiny_model, tmp_path):
    model = tiny_model("llama")
    trained(model, SPECS["layers"], tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"]) == (4, 8)


@pytest.mark.parametrize(
    "change", [{"peft_type": "IA3"}, {"use_dora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj": 2}}]
)
def test_other_adapters_are_refused(tiny_model, tmp_path, change):
    model = tiny_model("llama")
    trained(model, SPECS["all-linear"], tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=str(tmp_path)):
        merge_adapter(model, tmp_path)


def test_an_adapter_of_another_model_is_refused(tiny_model, tmp_path):
    trained(tiny_model("llama"), SPECS["all-linear"], tmp_path)
    with pytest.raises(ValueError, match="belongs to another model"):
        merge_adapter(tiny_model("llama", num_hidden_layers=2), tmp_path)
    with pytest.raises(ValueError, match="belongs to another model"):
        merge_adapter(tiny_model("llama", intermediate_size=64), tmp_path)
