"""A bank gives each adapter what PEFT and torch's AdamW give it alone, under the same settings and data order."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from reference import peft_state, train_alone, trained_alone

from selfedit.engine import AdapterBank, DecodeRequest, LoraSpec, decode, fit
from selfedit.engine.selftest import TOLERANCE, copied, difference, five_jobs, greedy_alone


def assert_equal(own, other, dtype="float32"):
    everything, learned = difference(own, other)
    assert everything < TOLERANCE[dtype][0]
    assert learned < TOLERANCE[dtype][1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3"])
def test_five_adapters_equal_five_separate_runs(tiny_model, kind, dtype, path):
    model = tiny_model(kind, dtype=dtype)
    if path == "grouped" and model.device.type == "cuda" and dtype == "float32":
        pytest.skip("grouped products on CUDA are for bfloat16")
    jobs = five_jobs()
    spec = LoraSpec(rank=8, alpha=16)
    alone = trained_alone(kind, dtype, model, spec, jobs)
    prompts = [(3, 4 + k, *range(20, 24 + k)) for k in range(5)]
    with AdapterBank(model, spec, 5) as bank:
        bank.grouped = path == "grouped"
        results = fit(bank, jobs, token_budget=64)
        for k, wrapped in enumerate(alone):
            assert results[k].error is None
            assert results[k].steps == jobs[k].steps
            assert_equal(bank.state(k), peft_state(wrapped, bank.names), dtype)
        answers = decode(model, [DecodeRequest(prompts[k], 12, adapter=k) for k in range(5)], bank=bank)
    if dtype == "float32":
        assert [a.ids for a in answers] == [greedy_alone(w, p, 12) for w, p in zip(alone, prompts, strict=True)]


@pytest.mark.parametrize(
    "change",
    [
        {"targets": ("q_proj", "v_proj"), "rank": 4},
        {"targets": ("self_attn.o_proj", "model.layers.0.mlp.down_proj")},
        {"layers": (1, 2), "targets": ("k_proj", "gate_proj")},
        {"rslora": True, "rank": 4, "alpha": 8},
    ],
    ids=["names", "suffix-and-whole-name", "layer-range", "rslora"],
)
def test_options_mean_what_they_mean_in_peft(tiny_model, path, change):
    model = tiny_model("qwen3")
    spec = dataclasses.replace(LoraSpec(rank=8, alpha=16), **change)
    jobs = five_jobs()[:2]
    with AdapterBank(model, spec, 2) as bank:
        bank.grouped = path == "grouped" and model.device.type == "cpu"
        fit(bank, jobs)
        states = [copied(bank.state(k)) for k in range(2)]
        names = bank.names
    for job, state in zip(jobs, states, strict=True):
        assert_equal(state, peft_state(train_alone(model, spec, job), names))


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads(tiny_model, tied):
    model = tiny_model("llama", tie_word_embeddings=tied)
    job, spec = five_jobs()[0], LoraSpec(rank=8, alpha=16)
    with AdapterBank(model, spec, 1) as bank:
        fit(bank, [job])
        state = copied(bank.state(0))
        names = bank.names
    assert "lm_head" not in names
    assert_equal(state, peft_state(train_alone(model, spec, job), names))


def test_a_small_budget_changes_nothing(tiny_model):
    """Steps cut into several forward passes, and fits out of step with each other, end where whole steps end."""
    model, jobs, spec = tiny_model("llama"), five_jobs(), LoraSpec(rank=8, alpha=16)
    states = []
    for budget in (16, 4096):
        with AdapterBank(model, spec, 5) as bank:
            fit(bank, jobs, token_budget=budget)
            states.append(bank.parameters_NF.clone())
    assert (states[0] - states[1]).norm() < 1e-5 * states[1].norm()
    assert torch.isfinite(states[0]).all()
