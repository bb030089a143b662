"""Fits that are cut off between two steps and go on from what was saved end as they would have, to the last bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from selfedit.engine import (
    AdapterBank,
    DecodeRequest,
    FitJob,
    LoraSpec,
    TokenSequence,
    UnusableStateError,
    decode,
    fit,
    fit_all,
    plan,
)
from selfedit.engine.selftest import random_job
from selfedit.engine.state import digest, read_notes


class Killed(Exception):
    """The end of a process."""


def saving(file, *, after):
    """Saves the state after so many steps, and dies some steps later, with more in memory than on the disk."""
    steps = []

    def on_step(under_way):
        steps.append(list(under_way.done))
        if len(steps) == after:
            file.write_bytes(under_way.save(f"after {after}"))
        if len(steps) == after + 2:
            raise Killed

    return on_step


def trained(bank, jobs, **options):
    results = fit(bank, jobs, **options)
    return results, bank.parameters_NF[: len(jobs)].clone()


# Each moment of an epoch, one fit and several, dropout's masks, the learning rate's warm-up and its decay.
CASES = {
    "alone": (
        LoraSpec(rank=4),
        [{"sequences": 5, "epochs": 3, "batch_size": 2, "schedule": "cosine", "warmup_steps": 2}],
    ),
    "dropout": (LoraSpec(rank=4, dropout=0.3), [{"sequences": 4, "epochs": 3, "weight_decay": 0.1}]),
    "together": (LoraSpec(rank=4), [{"sequences": n, "epochs": 2} for n in (3, 6, 4)]),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("after", [1, 5])
@pytest.mark.parametrize(("spec", "kinds"), CASES.values(), ids=CASES.keys())
def test_a_resumed_fit_ends_like_an_uninterrupted_one(tiny_model, tmp_path, spec, kinds, after, dtype):
    model = tiny_model("qwen2", dtype=dtype)
    jobs = [random_job(k, **kind) for k, kind in enumerate(kinds)]
    file = tmp_path / "state.safetensors"
    with AdapterBank(model, spec, len(jobs)) as bank:
        expected, parameters = trained(bank, jobs, token_budget=90)
        with pytest.raises(Killed):
            fit(bank, jobs, token_budget=90, on_step=saving(file, after=after))
    assert read_notes(file) == f"after {after}"
    told = []
    torch.manual_seed(after)  # nothing hangs on torch's own generator
    with AdapterBank(tiny_model("qwen2", dtype=dtype), spec, len(jobs)) as bank:
        # The budget is the one that the fits began with: it decides how sums are rounded.
        results, again = trained(bank, jobs, token_budget=400, start=file, on_tokens=told.append)
    assert results == expected
    assert torch.equal(again, parameters)
    assert sum(told) == sum(job.tokens for job in jobs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_decoding_between_two_steps_changes_nothing(tiny_model, checkpointing):
    model = tiny_model("llama")
    jobs = [random_job(k, sequences=4, epochs=2) for k in range(2)]
    requests = [DecodeRequest((5, 6, 7), 6, adapter=k, temperature=1.0 * k, seed=k) for k in range(2)]
    answers = []

    def look(under_way):
        answers.append(decode(model, requests, bank=under_way.bank))
        torch.manual_seed(0)

    with AdapterBank(model, LoraSpec(rank=4, dropout=0.1), 2) as bank:
        expected, parameters = trained(bank, jobs, checkpointing=checkpointing)
        results, again = trained(bank, jobs, checkpointing=checkpointing, on_step=look)
        last = decode(model, requests, bank=bank)
    assert results == expected
    assert torch.equal(again, parameters)
    assert len(answers) == 7
    assert answers[0] != last


def test_a_failed_fit_stays_failed(tiny_model, tmp_path):
    bad = random_job(1, sequences=3, epochs=4, learning_rate=1e30)
    jobs = [bad, random_job(2, sequences=6, epochs=2)]
    file = tmp_path / "state.safetensors"
    with AdapterBank(tiny_model("llama"), LoraSpec(rank=4), 2) as bank:
        expected, parameters = trained(bank, jobs)
        with pytest.raises(Killed):
            fit(bank, jobs, on_step=saving(file, after=8))
        results, again = trained(bank, jobs, start=file)
    assert results[0].error is not None
    assert results == expected
    assert torch.equal(again[1], parameters[1])


def test_a_result_has_the_losses_of_all_steps(tiny_model):
    with AdapterBank(tiny_model("llama"), LoraSpec(rank=4), 1) as bank:
        (result,) = fit(bank, [random_job(0, sequences=4, epochs=3)])
    assert len(result.losses) == result.steps == 12
    assert sum(result.losses[:4]) / 4 == result.first_loss


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    file = tmp_path_factory.mktemp("state") / "state.safetensors"
    with AdapterBank(tiny_model("llama"), LoraSpec(rank=4), 1) as bank, pytest.raises(Killed):
        fit(bank, [random_job(0, sequences=4)], on_step=saving(file, after=2))
    return file


def changed_sequence(job):
    first = job.sequences[0]
    return FitJob(
        (TokenSequence((*first.ids[:-1], 1), first.prompt_length), *job.sequences[1:]), job.settings, job.seed
    )


@pytest.mark.parametrize(
    ("changed", "spec", "model"),
    [
        (changed_sequence, LoraSpec(rank=4), {}),
        (lambda job: dataclasses.replace(job, seed=1), LoraSpec(rank=4), {}),
        (
            lambda job: dataclasses.replace(job, settings=dataclasses.replace(job.settings, epochs=9)),
            LoraSpec(rank=4),
            {},
        ),
        (lambda job: job, LoraSpec(rank=4, alpha=8), {}),
        (lambda job: job, LoraSpec(rank=5), {}),
        (lambda job: job, LoraSpec(rank=4), {"seed": 1}),
        (lambda job: job, LoraSpec(rank=4), {"dtype": "bfloat16"}),
    ],
    ids=["a sequence", "the seed", "a setting", "alpha", "rank", "other weights", "another dtype"],
)
def test_the_state_of_other_fits_is_refused(tiny_model, saved, changed, spec, model):
    with (
        AdapterBank(tiny_model("llama", **model), spec, 1) as bank,
        pytest.raises(UnusableStateError, match="the state of other fits: sequences, settings, seed or model differ"),
    ):
        fit(bank, [changed(random_job(0, sequences=4))], start=saved)


def test_the_state_of_a_fit_on_top_of_something_else_is_refused(tiny_model):
    job = random_job(0, sequences=4)
    with AdapterBank(tiny_model("llama"), LoraSpec(rank=4), 1) as bank:
        below = bank.state(0)
        moved = {name: (a, b + 1) for name, (a, b) in below.items()}
        found = {digest(bank, [dataclasses.replace(job, below=held)]) for held in (None, below, moved)}
    assert len(found) == 3


def test_a_damaged_state_is_refused(tiny_model, saved, tmp_path):
    whole = saved.read_bytes()
    contents = [whole[:length] for length in (0, 7, 100, len(whole) // 2, len(whole) - 1)] + [b"x" * 1000]
    with AdapterBank(tiny_model("llama"), LoraSpec(rank=4), 1) as bank:
        for number, content in enumerate(contents):
            file = tmp_path / str(number)
            file.write_bytes(content)
            with pytest.raises(UnusableStateError, match="not a whole safetensors file"):
                fit(bank, [random_job(0, sequences=4)], start=file)
            with pytest.raises(UnusableStateError, match="not a whole safetensors file"):
                read_notes(file)
        with pytest.raises(UnusableStateError, match="nowhere"):
            fit(bank, [random_job(0, sequences=4)], start=tmp_path / "nowhere")
        bank.save_pretrained(0, tmp_path / "adapter")
        with pytest.raises(UnusableStateError, match="not the state of fits that this version reads"):
            fit(bank, [random_job(0, sequences=4)], start=tmp_path / "adapter" / "adapter_model.safetensors")


def test_only_one_wave_has_a_state(tiny_model, saved):
    model, spec = tiny_model("llama"), LoraSpec(rank=4)
    jobs = [random_job(k, sequences=2) for k in range(2)]
    two = plan(model, spec, jobs, bank_size=1, calibrate=False)
    with pytest.raises(ValueError, match="of one wave only, and these jobs take 2"):
        fit_all(model, spec, jobs, plan=two, start=saved)
