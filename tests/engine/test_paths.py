"""A fast path that fails, or gives something else, is not used, and one line says so."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from selfedit.engine import AdapterBank, LoraSpec, attention, decoding, fit, fitting, lora, paths
from selfedit.engine.selftest import copied, difference, five_jobs

CPU = torch.device("cpu")
REAL = {
    "grouped products": nn.functional.grouped_mm,
    "fused attention": nn.functional.scaled_dot_product_attention,
    "fused AdamW": fitting.adamw,
}


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch):
    monkeypatch.setattr(paths, "_found", {})


def used(name, bank):
    if name == "grouped products":
        return lora.grouped_works(bank.groups)
    if name == "fused AdamW":
        return fitting._fused_works(CPU)
    q, k = torch.ones(1, 4, 3, 16), torch.ones(1, 2, 3, 16)
    return attention._fused_works(q, k, k)


def refusing(name):
    def refuse(*_, fused=True, **__):
        if fused:
            raise RuntimeError("no kernel is available\nand more lines")
        return REAL[name](*_, fused=fused, **__)

    return refuse


def wrong(name):
    def compute(*given, **named):
        result = REAL[name](*given, **named)
        if name == "fused AdamW":
            given[0][0].mul_(1.001 if named["fused"] else 1.0)
            return result
        return result * 1.001

    return compute


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("broken", [None, refusing, wrong])
def test_a_path_is_used_where_it_gives_what_the_plain_one_gives(tiny_model, monkeypatch, name, broken):
    module, attribute = {
        "grouped products": (nn.functional, "grouped_mm"),
        "fused attention": (nn.functional, "scaled_dot_product_attention"),
        "fused AdamW": (fitting, "adamw"),
    }[name]
    with AdapterBank(tiny_model("llama").to(CPU), LoraSpec(rank=8), 1) as bank:
        if broken is not None:
            monkeypatch.setattr(module, attribute, broken(name))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            answers = [used(name, bank) for _ in range(3)]
    assert answers == [broken is None] * 3
    lines = [str(w.message) for w in said]
    if broken is None:
        assert not lines
    else:
        reason = "no kernel is available" if broken is refusing else "other numbers"
        assert len(lines) == len(set(lines)) >= 1
        assert all("\n" not in line and name in line and reason in line for line in lines)
    assert {(n, fault is None) for (n, *_), fault in paths.chosen().items()} == {(name, broken is None)}


def test_out_of_memory_is_no_lack(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no memory (made up)")

    monkeypatch.setattr(fitting, "adamw", full)
    with pytest.raises(torch.OutOfMemoryError):
        fitting._fused_works(CPU)
    assert not paths.chosen()


def test_the_plain_paths_train_the_same_adapters_and_sample_the_same_tokens(tiny_model, monkeypatch):
    model, states = tiny_model("gemma3"), []
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    requests = [decoding.DecodeRequest((5,), 1, temperature=0.7, top_p=0.9, seed=seed) for seed in range(3)]
    drawn = []
    # Long sequences, so that a CPU too comes to torch's attention.
    monkeypatch.setattr(attention, "_SHORT", 8)
    for works in (True, False):
        monkeypatch.setattr(paths, "works", lambda *_, works=works: works)
        with AdapterBank(model, LoraSpec(rank=8, alpha=16), 5) as bank:
            fit(bank, five_jobs())
            states.append([copied(bank.state(k)) for k in range(5)])
        drawn.append(decoding._next_tokens(logits, requests, [0, 1, 2]))
    assert drawn[0] == drawn[1]
    for one, other in zip(*states, strict=True):
        assert difference(one, other)[0] < 1e-5
