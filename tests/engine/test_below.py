"""An adapter that stands on another, which is held: what is trained is what a merged model would give it."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from selfedit.engine import AdapterBank, LoraSpec, fit, fit_all, merge_adapter
from selfedit.engine.peft_format import files
from selfedit.engine.selftest import copied, five_jobs

SPEC = LoraSpec(rank=4, alpha=8, targets="mlp")


def undecayed():
    return [dataclasses.replace(j, settings=dataclasses.replace(j.settings, weight_decay=0.0)) for j in five_jobs()]


def trained(model, spec, jobs):
    found = {}

    def keep(bank, wave):
        for number, (place, result) in wave.items():
            assert result.error is None
            found[number] = copied(bank.state(place)), result

    fit_all(model, spec, jobs, on_wave=keep)
    return [found[k] for k in range(len(jobs))]


def test_what_is_trained_on_top_is_what_a_merged_model_gives(tiny_model) -> None:
    model = tiny_model("llama")
    jobs = undecayed()[:4]
    below = [state for state, _ in trained(model, SPEC, jobs[:2])]
    wide = dataclasses.replace(SPEC, rank=8, alpha=16)
    held = [dataclasses.replace(job, below=state) for job, state in zip(jobs[2:], below, strict=True)]
    for (state, result), job, under in zip(trained(model, wide, held), jobs[2:], below, strict=True):
        merged = copy.deepcopy(model)
        merge_adapter(merged, files(SPEC, under, base_model="tiny"))
        ((alone, expected),) = trained(merged, SPEC, [job])
        assert result.losses == pytest.approx(expected.losses, rel=1e-4)
        for name, (a, b) in state.items():
            assert torch.equal(a[:4], under[name][0])
            assert torch.equal(b[:, :4], under[name][1]), "held to the last bit"
            torch.testing.assert_close(a[4:], alone[name][0], rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(b[:, 4:], alone[name][1], rtol=1e-3, atol=1e-5)
            assert b[:, 4:].any()


def test_what_would_act_on_what_is_held_is_refused(tiny_model) -> None:
    model = tiny_model("llama")
    job = undecayed()[0]
    ((below, _),) = trained(model, SPEC, [job])
    held = dataclasses.replace(job, below=below)
    with AdapterBank(model, SPEC, 1) as bank, pytest.raises(ValueError, match="need a bank of more rank"):
        fit(bank, [held])
    for targets in ("all-linear", ("up_proj",)):  # more layers than are held, and fewer
        with (
            AdapterBank(model, LoraSpec(rank=8, targets=targets), 1) as bank,
            pytest.raises(ValueError, match="other layers than the bank"),
        ):
            fit(bank, [held])
    decaying = dataclasses.replace(held, settings=dataclasses.replace(job.settings, weight_decay=0.1))
    with AdapterBank(model, dataclasses.replace(SPEC, rank=8), 1) as bank, pytest.raises(ValueError, match="decay"):
        fit(bank, [decaying])
