"""Plans: memory, FLOPs, waves and time; and job lists of any length that run through one bank."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from selfedit.engine import (
    AdapterBank,
    DecodeRequest,
    FitJob,
    LoraSpec,
    NotEnoughMemoryError,
    TokenSequence,
    decode,
    fit,
    fit_all,
    load_adapter,
    plan,
)
from selfedit.engine.jobs import FitSettings
from selfedit.engine.lora import Routing
from selfedit.engine.memory import device_kind
from selfedit.engine.planning import TARGET_TOKENS, measure_costs
from selfedit.engine.schedule import simulate
from selfedit.engine.selftest import random_job


def product_flops(_, left, right, **__):
    """Of an addition of a (batched) matrix product, from shapes."""
    return 2 * math.prod(left) * right[-1]


# torch's counter does not know products that add in place.
IN_PLACE = {torch.ops.aten.addmm_: product_flops}
SPEC = LoraSpec(rank=4, alpha=8)
JOBS = [random_job(k, sequences=1 + k % 4, epochs=2, learning_rate=5e-4) for k in range(11)]


def alone(model, job, spec=SPEC):
    with AdapterBank(model, spec, 1) as bank:
        fit(bank, [job])
        return bank.parameters_NF[0].clone()


def test_waves_hold_every_job_once_and_depend_on_the_jobs_and_bank_size_alone(tiny_model):
    model = tiny_model("llama")
    first = plan(model, SPEC, JOBS, bank_size=4, memory=10**9, calibrate=False)
    second = plan(model, SPEC, JOBS, bank_size=4, memory=10**8, token_budget=64, calibrate=False)
    assert first.waves == second.waves
    assert sorted(k for wave in first.waves for k in wave) == list(range(11))
    assert [len(wave) for wave in first.waves] == [4, 4, 3]
    tokens = [JOBS[k].tokens for wave in first.waves for k in wave]
    assert tokens == sorted(tokens, reverse=True), "fits of about one length share a wave"
    assert first.tokens == sum(job.tokens for job in JOBS)
    assert first.steps == sum(job.steps for job in JOBS)


def test_a_job_list_runs_in_waves_and_each_adapter_is_as_alone(tiny_model, tmp_path):
    model = tiny_model("qwen3")
    chosen = plan(model, SPEC, JOBS, bank_size=3, calibrate=False)
    seen, saved = [], {}

    def on_wave(bank, wave):
        assert sorted(place for place, _ in wave.values()) == list(range(len(wave)))
        answers = decode(model, [DecodeRequest((5, 6), 4, adapter=place) for place, _ in wave.values()], bank=bank)
        assert all(len(answer.ids) == 4 for answer in answers)
        for job, (place, result) in wave.items():
            assert result.error is None
            bank.save_pretrained(place, tmp_path / str(job))
            saved[job] = bank.parameters_NF[place].clone()
        seen.append(tuple(wave))

    tokens = []
    results = fit_all(model, SPEC, JOBS, plan=chosen, on_wave=on_wave, on_tokens=tokens.append)
    assert tuple(seen) == chosen.waves
    assert sum(tokens) == chosen.tokens
    assert [r.steps for r in results] == [job.steps for job in JOBS]
    for k in (0, 3, 10):
        expected = alone(model, JOBS[k])
        assert (saved[k] - expected).norm() < 1e-5 * expected.norm()
        spec, _ = load_adapter(tmp_path / str(k))
        assert spec.rank == SPEC.rank


def test_a_plan_foresees_every_pass(tiny_model, monkeypatch):
    import selfedit.engine.fitting as module

    passes = []
    real = module.run_pass
    monkeypatch.setattr(module, "run_pass", lambda *given: passes.append(given) or real(*given))
    model = tiny_model("llama")
    chosen = plan(model, SPEC, JOBS, bank_size=5, token_budget=48, calibrate=False)
    fit_all(model, SPEC, JOBS, plan=chosen)
    assert len(passes) == chosen.passes


def test_a_budget_below_the_longest_sequence_is_no_lack_of_memory(tiny_model):
    """The sequence goes alone, as in `fit`."""
    model = tiny_model("llama")
    longest = max(len(s.ids) for job in JOBS for s in job.sequences)
    chosen = plan(model, SPEC, JOBS, token_budget=longest // 2, memory=10**9, calibrate=False)
    assert chosen.token_budget == longest // 2
    assert chosen.memory < 10**9
    assert sum(result.tokens for result in fit_all(model, SPEC, JOBS, plan=chosen)) == chosen.tokens
    with pytest.raises(NotEnoughMemoryError, match=f"a sequence of {longest} tokens need .* GiB"):
        plan(model, SPEC, JOBS, token_budget=longest // 2, memory=10**4, calibrate=False)


def test_a_plan_of_other_jobs_is_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="the plan is of other jobs than these 2"):
        fit_all(model, SPEC, JOBS[:2], plan=plan(model, SPEC, JOBS[:3], calibrate=False))


def test_steps_are_full(tiny_model):
    """While there is work enough, a step holds at least 85 % of its budget."""
    jobs = [random_job(k, sequences=8, epochs=3) for k in range(40)]
    counts = [sum(tokens) for tokens in simulate(jobs, 128)]
    full = counts[: int(0.8 * len(counts))]
    assert sum(full) / len(full) > 0.85 * 128
    assert max(counts) <= 128


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize(
    "spec", [SPEC, LoraSpec(rank=4, targets=("q_proj", "v_proj")), LoraSpec(rank=4, layers=(2, 2))]
)
def test_flops_are_those_that_run(tiny_model, kind, spec):
    """The floor against torch's own count of the products of one step (attention apart)."""
    model = tiny_model(kind)
    costs = measure_costs(model, spec)
    job = FitJob((TokenSequence(tuple(range(3, 43)), 8),), FitSettings(epochs=1), 0)
    with AdapterBank(model, spec, 1) as bank, FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        fit(bank, [job])
    products = ("aten.mm", "aten.addmm", "aten.addmm_")  # attention runs on others
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if str(op) in products)
    sequence = job.sequences[0]
    attention = 3 * costs.attention * len(sequence.ids) ** 2
    assert costs.flops(sequence) - attention == pytest.approx(counted, rel=0.01)


def test_memory_decides_bank_size_and_then_checkpointing(tiny_model):
    model = tiny_model("llama")
    costs = measure_costs(model, SPEC)
    jobs = [dataclasses.replace(job, seed=k) for k in range(4) for job in JOBS]
    rich = plan(model, SPEC, jobs, memory=10**10, calibrate=False)
    assert not rich.checkpointing
    loss_bytes = costs.loss_bytes(TARGET_TOKENS[device_kind(model.device)])
    poor = plan(model, SPEC, jobs, memory=loss_bytes + 6 * costs.adapter_bytes, calibrate=False)
    assert poor.bank_size < rich.bank_size
    assert poor.memory <= loss_bytes + 6 * costs.adapter_bytes
    longest = max(len(s.ids) for job in jobs for s in job.sequences)
    tight = loss_bytes + costs.adapter_bytes + int(longest * (costs.activation_bytes + costs.checkpointed_bytes) / 2)
    last = plan(model, SPEC, jobs, memory=tight, calibrate=False)
    assert last.checkpointing
    assert last.bank_size == 1
    assert last.flops > last.useful_flops
    with pytest.raises(NotEnoughMemoryError, match=r"need .* GiB"):
        plan(model, SPEC, jobs, memory=loss_bytes, calibrate=False)


def test_checkpointing_begins_where_an_eighth_of_a_step_s_tokens_do_not_fit(tiny_model):
    model, target = tiny_model("llama"), TARGET_TOKENS["cpu"]
    costs = measure_costs(model, SPEC)
    rest, room = costs.loss_bytes(target) + costs.adapter_bytes, target // 8 * costs.activation_bytes
    assert max(len(s.ids) for s in JOBS[0].sequences) < target // 8
    for share, checkpointing in ((0.99, True), (1.01, False)):
        memory = int(rest + share * room)
        assert plan(model, SPEC, JOBS[:1], memory=memory, calibrate=False).checkpointing is checkpointing


def test_kept_activations_are_what_torch_holds(tiny_model):
    """On an accelerator the plan's bytes a token are held against the allocator's; elsewhere against a known
    minimum."""
    model = tiny_model("llama")
    costs = measure_costs(model, SPEC)
    config = model.config
    least = 4 * config.num_hidden_layers * (4 * config.hidden_size + 3 * config.intermediate_size)
    assert least < costs.activation_bytes < 6 * least
    assert costs.checkpointed_bytes < 0.7 * costs.activation_bytes
    if model.device.type == "cuda":
        job = FitJob((TokenSequence(tuple(k % 150 + 3 for k in range(500))),), FitSettings(epochs=1), 0)
        with AdapterBank(model, SPEC, 1) as bank:
            fit(bank, [job])
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            fit(bank, [job])
            used = torch.cuda.max_memory_allocated() - before
        assert used < 1.25 * (500 * costs.activation_bytes + costs.adapter_bytes + costs.loss_bytes(500))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3"])
def test_checkpointing_changes_nothing(tiny_model, kind, path):
    model, spec = tiny_model(kind), LoraSpec(rank=4, alpha=8, dropout=0.1)
    states = []
    for checkpointing in (False, True):
        with AdapterBank(model, spec, 3) as bank:
            bank.grouped = path == "grouped" and (model.device.type == "cpu" or bank.grouped)
            fit(bank, JOBS[:3], checkpointing=checkpointing)
            states.append(bank.parameters_NF.clone())
    assert (states[0] - states[1]).norm() < 1e-6 * states[0].norm()
    assert not model.training


def test_a_bank_that_does_not_fit_is_halved_and_nothing_is_lost(tiny_model, monkeypatch):
    import selfedit.engine.waves as module

    model = tiny_model("llama")
    real = module.AdapterBank

    def scarce(model, spec, size):
        if size > 3:
            raise torch.OutOfMemoryError("no memory (made up)")
        return real(model, spec, size)

    monkeypatch.setattr(module, "AdapterBank", scarce)
    seen = []
    chosen = plan(model, SPEC, JOBS, bank_size=11, calibrate=False)
    with pytest.warns(UserWarning, match="banks of 6 adapters instead of 11") as caught:
        results = fit_all(model, SPEC, JOBS, plan=chosen, on_wave=lambda bank, wave: seen.extend(wave))
    assert len([w for w in caught if "out of memory" in str(w.message)]) == 1
    assert sorted(seen) == list(range(11))
    assert [r.steps for r in results] == [job.steps for job in JOBS]


def test_an_error_in_the_callback_propagates(tiny_model):
    def fails(bank, wave):
        raise torch.OutOfMemoryError("the caller's own")

    with pytest.raises(torch.OutOfMemoryError, match="the caller's own"):
        fit_all(tiny_model("llama"), SPEC, JOBS, on_wave=fails)


def test_time_is_estimated_from_a_trial(tiny_model):
    model = tiny_model("llama")
    assert plan(model, SPEC, JOBS, calibrate=False).seconds is None
    estimate = plan(model, SPEC, JOBS).seconds
    longer = [dataclasses.replace(job, settings=dataclasses.replace(job.settings, epochs=200)) for job in JOBS]
    assert 0 < estimate < plan(model, SPEC, longer).seconds


def test_empty_lists(tiny_model):
    assert fit_all(tiny_model("llama"), SPEC, []) == []
    with pytest.raises(ValueError, match="no jobs"):
        plan(tiny_model("llama"), SPEC, [])


def test_the_model_keeps_no_trace(tiny_model):
    """After a plan and a run the model answers as before, bit for bit, and no bank holds memory."""
    model = tiny_model("gemma3")
    ids = torch.arange(3, 30, device=model.device)[None]
    before = model(input_ids=ids).logits
    fit_all(model, SPEC, JOBS[:2], plan=plan(model, SPEC, JOBS[:2]))
    assert torch.equal(model(input_ids=ids).logits, before)
    with (
        AdapterBank(model, SPEC, 1) as bank,
        bank.route(Routing.of([0], [27], size=1, grouped=False)),
    ):
        assert model(input_ids=ids).logits.shape == before.shape
