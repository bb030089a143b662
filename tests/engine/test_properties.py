"""Any list of jobs, in any bank with any budget: each adapter ends where it ends alone."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis")

import dataclasses
import random

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import random_targets

from selfedit.engine import AdapterBank, FitJob, FitSettings, LoraSpec, TokenSequence, fit


@st.composite
def fit_jobs(draw):
    lengths = draw(st.lists(st.integers(4, 30), min_size=1, max_size=5))
    generator = random.Random(draw(st.integers(0, 10**6)))
    sequences = [
        TokenSequence(tuple(generator.randrange(3, 160) for _ in range(n)), draw(st.integers(0, n // 2)))
        for n in lengths
    ]
    for k, top in enumerate(draw(st.lists(st.sampled_from([0, 0, 1, 20]), min_size=len(sequences)))[: len(sequences)]):
        if top:
            targets = random_targets(generator, sequences[k].labelled, top)
            sequences[k] = dataclasses.replace(sequences[k], targets=targets, weight=generator.choice([0.5, 1.0]))
    chosen = FitSettings(
        learning_rate=draw(st.sampled_from([1e-4, 5e-4])),
        epochs=draw(st.integers(1, 2)),
        batch_size=draw(st.integers(1, 4)),
        steps=draw(st.sampled_from([None, 1, 3, 7])),
        schedule=draw(st.sampled_from(["linear", "cosine", "constant"])),
        max_grad_norm=draw(st.sampled_from([None, 1.0])),
    )
    return FitJob(tuple(sequences), chosen, draw(st.integers(0, 2**40)))


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    jobs=st.lists(fit_jobs(), min_size=1, max_size=4),
    spare=st.integers(0, 2),
    budget=st.sampled_from([8, 64, 2048]),
    grouped=st.booleans(),
    dropout=st.sampled_from([0.0, 0.2]),
)
def test_any_job_list_trains_as_each_job_alone(tiny_model, jobs, spare, budget, grouped, dropout):
    model = tiny_model("qwen2", num_hidden_layers=2)
    spec = LoraSpec(rank=4, alpha=8, dropout=dropout)
    with AdapterBank(model, spec, len(jobs) + spare) as bank:
        bank.grouped = grouped and model.device.type == "cpu"
        results = fit(bank, jobs, token_budget=budget)
        together = bank.parameters_NF.clone()
    assert [r.steps for r in results] == [job.steps for job in jobs]
    assert [r.tokens for r in results] == [job.tokens for job in jobs]
    for k, job in enumerate(jobs):
        with AdapterBank(model, spec, 1) as bank:
            fit(bank, [job])
            alone = bank.parameters_NF[0].clone()
        # Wider than the exactness tests' tolerance: over many drawn jobs, some gradient is all rounding noise.
        assert (together[k] - alone).norm() < 1e-4 * alone.norm()
    assert torch.isfinite(together).all()
