"""Adapters on disk: PEFT loads them with the same logits, merged or not; the engine reads back what it and PEFT
write."""

from __future__ import annotations

import copy
import json
import shutil

import peft
import pytest
import torch
from reference import lora_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from selfedit.engine import AdapterBank, LoraSpec, fit, load_adapter, merge_adapter
from selfedit.engine.lora import Routing
from selfedit.engine.peft_format import WEIGHTS, files
from selfedit.engine.selftest import random_job

IDS = tuple(range(3, 30))
SPECS = {
    "all-linear": LoraSpec(rank=8, alpha=16),
    "rslora": LoraSpec(rank=4, alpha=8, rslora=True),
    "suffix": LoraSpec(rank=4, alpha=8, targets=("self_attn.q_proj", "down_proj")),
    "layers": LoraSpec(rank=4, alpha=8, layers=(1, 2)),
    "mlp": LoraSpec(rank=4, alpha=8, targets="mlp"),
}


def logits_of(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float()


def trained(model, spec, folder):
    """Trains two adapters, saves the second, and returns its logits on IDS."""
    with AdapterBank(model, spec, 2) as bank:
        fit(bank, [random_job(k, sequences=3, epochs=3, learning_rate=5e-3) for k in range(2)])
        bank.save_pretrained(1, folder)
        routing = Routing.of([1], [len(IDS)], size=2, grouped=False)
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


def files_of(folder):
    """An adapter's files by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_files_by_name_are_as_good_as_a_folder(tiny_model, tmp_path):
    model = tiny_model("llama")
    trained(model, SPECS["layers"], tmp_path)
    merged = copy.deepcopy(model)
    merge_adapter(merged, tmp_path)
    merge_adapter(model, files_of(tmp_path))
    assert torch.equal(logits_of(model), logits_of(merged))
    assert list(load_adapter(files_of(tmp_path))[1]) == list(load_adapter(tmp_path)[1]), "in the same order"
    with pytest.raises(KeyError, match=r"adapter_model\.safetensors"):
        load_adapter({"adapter_config.json": (tmp_path / "adapter_config.json").read_bytes()})


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
    spec, state = load_adapter(str(tmp_path))  # a name is as good as a path, as for `save_pretrained`
    assert (spec.rank, spec.alpha, spec.rslora) == (4, 8, True)
    with AdapterBank(model, spec, 3) as bank:
        bank.load_state(2, state)
        with bank.route(Routing.of([2], [len(IDS)], size=3, grouped=False)):
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


def test_the_same_adapter_is_the_same_bytes_whatever_its_model_is_called(tiny_model, tmp_path):
    model = tiny_model("llama")
    trained(model, SPECS["layers"], tmp_path)
    spec, state = load_adapter(tmp_path)
    for name in ("tiny-7b", "Größe 7 \U0001f40b"):
        written = {files(spec, state, base_model="base", model=name)[WEIGHTS] for _ in range(20)}
        (content,) = written
        (tmp_path / "again").write_bytes(content)
        with safe_open(tmp_path / "again", "pt") as file:
            assert file.metadata() == {"format": "pt", "selfedit_model": name}
        before, after = load_file(tmp_path / WEIGHTS), load_file(tmp_path / "again")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def damaged(folder, *, config=None, tensors=None):
    """Changes a saved adapter: entries of its configuration, and its tensors by a function of their dictionary."""
    file = folder / "adapter_config.json"
    if config is not None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    if tensors is not None:
        weights = folder / "adapter_model.safetensors"
        changed = load_file(weights)
        tensors(changed)
        save_file(changed, weights)


A = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")

CONFIGS = [
    ({"peft_type": "IA3"}, "peft_type is IA3; only LORA"),
    ({"peft_type": None}, "only LORA"),
    ({"use_dora": True}, "adapters with use_dora are not supported"),
    ({"bias": "all"}, "trained biases are not supported"),
    ({"rank_pattern": {"q_proj": 2}}, "adapters with rank_pattern are not supported"),
    ({"alpha_pattern": {"q_proj": 2}}, "adapters with alpha_pattern are not supported"),
    ({"modules_to_save": ["lm_head"]}, "adapters with modules_to_save are not supported"),
    ({"init_lora_weights": "pissa"}, "adapters with init_lora_weights are not supported"),
    ({"layer_replication": [[0, 2]]}, "adapters with layer_replication are not supported"),
    ({"r": 10**9}, "has shapes .* which do not go with r = 1000000000"),
    ({"r": 4}, "which do not go with r = 4"),
    ({"r": 0}, "r must be a whole number from 1, not 0"),
    ({"r": 8.5}, "r must be a whole number from 1, not 8.5"),
    ({"r": "8"}, "r must be a finite number, not '8'"),
    ({"r": True}, "r must be a finite number, not True"),
    ({"r": None}, "r must be a finite number, not None"),
    ({"lora_alpha": "32"}, "lora_alpha must be a finite number, not '32'"),
    ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number, not nan"),
    ({"lora_alpha": 10**400}, "lora_alpha must be a finite number, not 1000"),
    ({"lora_alpha": 1e308}, "not finite, or too large to be used"),
    ({"lora_dropout": 1.5}, r"lora_dropout must be in \[0, 1\), not 1.5"),
    ({"target_modules": ["q_proj"]}, "unexpected tensors for .*, which target_modules does not name"),
]

TENSORS = [
    (lambda t: t.pop(A), "lora_A of 'model.layers.1.mlp.up_proj' is missing"),
    (lambda t: (t.pop(A), t.pop(B)), r"of 21 layers of .*, 1 are missing \(first: model.layers.1.mlp.up_proj\)"),
    (lambda t: t.clear(), "holds no tensors"),
    (lambda t: t.update({"extra": torch.zeros(2)}), "unexpected tensor 'extra'"),
    (lambda t: t.update({A.replace("lora_A", "lora_bias"): torch.zeros(2)}), "unexpected tensor"),
    (
        lambda t: t.update({A.replace("1", "9"): t[A].clone(), B.replace("1", "9"): t[B].clone()}),
        "has no layer",
    ),
    (lambda t: t.update({A: t[A][:, :-1].contiguous()}), "has another shape in"),
    (lambda t: t.update({A: t[A][:4].contiguous()}), "which do not go with r = 8"),
    (lambda t: t.update({A: t[A][None]}), "which do not go with r = 8"),
    (lambda t: t.update({A: t[A].to(torch.int8)}), "has numbers of type int8"),
    (lambda t: t[A].view(-1)[3:4].fill_(float("nan")), "the numbers of .* are not finite"),
    (lambda t: t[B].view(-1)[3:4].fill_(float("-inf")), "the numbers of .* are not finite"),
    (lambda t: (t[A].fill_(1e30), t[B].fill_(1e30)), "too large to be used"),
]


@pytest.fixture(scope="module")
def llama(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def adapter(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    trained(llama, SPECS["all-linear"], folder)
    return folder


@pytest.mark.parametrize(
    ("config", "tensors", "says"),
    [(config, None, says) for config, says in CONFIGS] + [(None, tensors, says) for tensors, says in TENSORS],
)
def test_an_adapter_that_cannot_be_used_is_refused_in_one_line(llama, adapter, tmp_path, config, tensors, says):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    damaged(folder, config=config, tensors=tensors)
    before = logits_of(llama)
    with pytest.raises(ValueError, match=says) as raised:
        merge_adapter(llama, folder)
    assert str(raised.value).startswith(str(folder))
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=says) as raised:
        merge_adapter(llama, files_of(folder))
    assert str(raised.value).startswith("an adapter in memory")
    assert torch.equal(logits_of(llama), before)


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F8_E5M2"])
def test_numbers_of_a_type_that_is_not_used_are_refused_in_one_line(adapter, tmp_path, dtype):
    shutil.copytree(adapter, tmp_path / "adapter")
    shapes = {A: [8, 2], B: [2, 8]}
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [16 * k, 16 * k + 16]}
        for k, (name, shape) in enumerate(shapes.items())
    }
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(32)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"has numbers of type \w+, not float64, float32"):
        load_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"r": ' + b"9" * 5000 + b"}"])
def test_a_configuration_that_is_none_is_refused_in_one_line(adapter, tmp_path, content):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_config\.json") as raised:
        load_adapter(folder)
    assert "\n" not in str(raised.value)


def test_a_narrower_type_is_read_as_float32(llama, adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    damaged(folder, tensors=lambda t: t.update({name: tensor.half() for name, tensor in t.items()}))
    _, state = load_adapter(folder, llama)
    assert {tensor.dtype for pair in state.values() for tensor in pair} == {torch.float32}


def test_an_adapter_of_another_model_is_refused(tiny_model, tmp_path):
    trained(tiny_model("llama"), SPECS["all-linear"], tmp_path)
    with pytest.raises(ValueError, match="belongs to another model"):
        merge_adapter(tiny_model("llama", num_hidden_layers=2), tmp_path)
    with pytest.raises(ValueError, match="belongs to another model"):
        merge_adapter(tiny_model("llama", num_hidden_layers=4), tmp_path)
    with pytest.raises(ValueError, match="belongs to another model"):
        merge_adapter(tiny_model("llama", intermediate_size=64), tmp_path)
