"""Steps of one fit in several passes: whoever computes a pass, the fit becomes the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from reference import taught

from selfedit.engine import AdapterBank, LoraSpec, Partner, fit, fit_all
from selfedit.engine.selftest import copied, random_job

KIND = {"sequences": 9, "epochs": 2, "batch_size": 5}
BUDGET = 30  # tokens; steps have two or three times as many

CASES = {
    "float32": (LoraSpec(rank=4), "float32", lambda job: job, {}),
    "bfloat16": (LoraSpec(rank=4), "bfloat16", lambda job: job, {}),
    "dropout": (LoraSpec(rank=4, dropout=0.3), "float32", lambda job: job, {}),
    "soft targets": (LoraSpec(rank=4), "float32", taught, {}),
    "checkpointing": (LoraSpec(rank=4), "float32", lambda job: job, {"checkpointing": True}),
}


def standing(job, model, spec):
    """The job on an adapter of half of the rank."""
    with AdapterBank(model, dataclasses.replace(spec, rank=spec.rank // 2), 1) as bank:
        fit(bank, [random_job(5, sequences=2, epochs=1, learning_rate=1e-2)])
        return dataclasses.replace(job, below=copied(bank.state(0)))


def sharing(model, spec, job, shared):
    """Every second part is computed by a partner, which is made of what can be sent, and all in an odd order."""
    partner = Partner(model, spec, dataclasses.replace(job, below=None))

    def share(parameters, parts, own):
        shared.append(len(parts))
        found = {}
        for k in reversed(range(len(parts))):
            loss, gradient = partner(parts[k], parameters.clone()) if k % 2 else own(parts[k])
            found[k] = loss, gradient.clone()
        return [found[k] for k in range(len(parts))]

    return share


def trained(model, spec, job, **options):
    with AdapterBank(model, spec, 1) as bank:
        (result,) = fit(bank, [job], **options)
        return result, bank.parameters_NF[0].clone()


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize(("spec", "dtype", "change", "options"), CASES.values(), ids=CASES.keys())
def test_a_shared_fit_is_the_same_fit(tiny_model, device, spec, dtype, change, options, below):
    if below and spec.dropout:
        pytest.skip("an adapter that stands on another goes without dropout")
    job = change(random_job(0, **KIND))
    if below:
        job = standing(job, tiny_model("llama", dtype=dtype), spec)
    expected, parameters = trained(tiny_model("llama", dtype=dtype), spec, job, token_budget=BUDGET, **options)
    shared: list[int] = []
    share = sharing(tiny_model("llama", dtype=dtype), spec, job, shared)
    found, again = trained(tiny_model("llama", dtype=dtype), spec, job, token_budget=BUDGET, share=share, **options)
    assert max(shared) > 2
    if device.type == "cpu":
        assert found == expected
        assert torch.equal(again, parameters)
    # Cut otherwise, only sums are rounded otherwise.
    _, whole = trained(tiny_model("llama", dtype=dtype), spec, job, token_budget=10**6, **options)
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    assert (again - whole).norm() <= tolerance * whole.norm()


def test_a_step_of_one_pass_is_not_shared_and_a_resumed_fit_is(tiny_model, tmp_path):
    job, spec, file = random_job(0, **KIND), LoraSpec(rank=4), tmp_path / "state"
    shared: list[int] = []
    expected, parameters = trained(tiny_model("llama"), spec, job, token_budget=BUDGET)
    share = sharing(tiny_model("llama"), spec, job, shared)
    trained(tiny_model("llama"), spec, job, token_budget=10**6, share=share)
    assert not shared

    trained(
        tiny_model("llama"),
        spec,
        job,
        token_budget=BUDGET,
        on_step=lambda under_way: under_way.done == [2] and file.write_bytes(under_way.save()),
    )
    found, again = trained(tiny_model("llama"), spec, job, start=file, share=share)
    assert len(shared) == job.steps - 2
    assert found == expected
    assert torch.equal(again, parameters)


def test_the_steps_of_several_jobs_are_not_shared(tiny_model):
    jobs = [random_job(k, **KIND) for k in range(2)]
    with pytest.raises(ValueError, match="not those of 2"):
        fit_all(tiny_model("llama"), LoraSpec(rank=4), jobs, share=lambda *_: [])
