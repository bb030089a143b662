"""Labels, data order, schedules and results of fits; the cross-entropy that never holds all logits."""

from __future__ import annotations

import pytest
import torch

from selfedit.engine import AdapterBank, FitJob, FitSettings, LoraSpec, TokenSequence, fit, fitting
from selfedit.engine.lora import Routing
from selfedit.engine.loss import linear_cross_entropy
from selfedit.engine.selftest import random_job


def loss_of(model, sequences):
    """Mean loss over the labelled tokens, from the model's own logits."""
    losses = []
    for sequence in sequences:
        ids = torch.tensor([sequence.ids], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0].float()
        first = max(1, sequence.prompt_length)
        losses.append(torch.nn.functional.cross_entropy(logits[first - 1 : -1], ids[0, first:], reduction="none"))
    return torch.cat(losses).mean().item()


def test_the_first_loss_is_the_models_own_over_the_labelled_tokens(tiny_model):
    model = tiny_model("gemma3")
    sequences = (TokenSequence(tuple(range(3, 40)), 10), TokenSequence((9, 8, 7)), TokenSequence((5, 4), 1))
    assert [s.labelled for s in sequences] == [27, 2, 1]
    job = FitJob(sequences, FitSettings(epochs=1, batch_size=3), seed=0)
    with AdapterBank(model, LoraSpec(rank=4), 1) as bank:
        result = fit(bank, [job])[0]
    assert result.first_loss == pytest.approx(loss_of(model, sequences), rel=1e-4)
    assert (result.steps, result.tokens) == (1, 42)


def test_a_prompt_is_read_but_not_learned(tiny_model):
    """Two jobs that differ in the prompt's length alone learn different things, and the unlearned prompt stays
    unlikely."""
    model = tiny_model("llama")
    ids = tuple(range(10, 40))
    jobs = [
        FitJob((TokenSequence(ids, prompt),), FitSettings(epochs=30, learning_rate=3e-3), seed=1) for prompt in (0, 15)
    ]
    whole, rest = TokenSequence(ids), TokenSequence(ids, 15)
    with AdapterBank(model, LoraSpec(rank=8), 2) as bank:
        results = fit(bank, jobs)
        losses = []
        for adapter in range(2):
            with bank.route(Routing.of([adapter], [len(ids)], size=2, grouped=False)):
                losses.append((loss_of(model, [whole]), loss_of(model, [rest])))
    assert results[0].last_loss < 0.5 * loss_of(model, [whole])
    assert losses[0][0] < 0.3 * losses[1][0]
    assert losses[1][1] < 0.5 * loss_of(model, [rest])


def test_order_shuffles_each_epoch_by_the_jobs_seed():
    job = random_job(3, sequences=9, epochs=3, batch_size=4)
    order = job.order()
    assert len(order) == job.steps == 9
    epochs = [[number for step in order[k : k + 3] for number in step] for k in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order == job.order()
    assert order != FitJob(job.sequences, job.settings, seed=4).order()
    plain = FitJob(job.sequences, FitSettings(epochs=1, batch_size=4, shuffle=False), seed=3)
    assert plain.order() == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


@pytest.mark.parametrize(
    ("sequences", "epochs", "steps", "sizes"),
    [(1, 4, 6, [1] * 6), (5, 4, 4, [5] * 4), (5, 2, 4, [2, 3, 2, 3]), (3, 2, 8, [1] * 8), (3, 1, 2, [1, 2])],
)
def test_steps_deal_out_the_sequences_of_all_epochs(sequences, epochs, steps, sizes):
    job = random_job(3, sequences=sequences, epochs=epochs, steps=steps, batch_size=7)
    order = job.order()
    assert [len(step) for step in order] == sizes
    assert job.steps == len(order) == steps
    assert job.tokens == sum(len(job.sequences[k].ids) for step in order for k in step)
    # Each sequence is seen once per epoch: no two counts differ by more than one.
    counts = job.uses().values()
    assert len(counts) == sequences
    assert min(counts) >= epochs
    assert max(counts) - min(counts) <= 1


def test_a_fit_takes_the_steps_that_are_asked_for(tiny_model):
    """Five sequences and one: the same number of steps, and the rate at its end in the last one."""
    jobs = [random_job(k, sequences=n, epochs=2, steps=4) for k, n in enumerate((5, 1))]
    with AdapterBank(tiny_model("llama"), LoraSpec(rank=2), 2) as bank:
        results = fit(bank, jobs)
    assert [result.steps for result in results] == [4, 4]
    assert [result.tokens for result in results] == [job.tokens for job in jobs]
    assert [len(result.losses) for result in results] == [4, 4]


def test_schedules():
    linear = FitSettings(learning_rate=1.0, schedule="linear", warmup_steps=2)
    assert [linear.rate(k, 6) for k in range(6)] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    assert FitSettings(learning_rate=1.0, schedule="cosine").rate(2, 4) == pytest.approx(0.5)
    assert FitSettings(learning_rate=1.0, schedule="constant").rate(3, 4) == 1.0


def test_progress_counts_every_training_token(tiny_model):
    jobs = [random_job(k, sequences=4, epochs=2) for k in range(3)]
    seen = []
    with AdapterBank(tiny_model("llama"), LoraSpec(rank=2), 3) as bank:
        results = fit(bank, jobs, token_budget=50, on_tokens=seen.append)
    assert sum(seen) == sum(job.tokens for job in jobs) == sum(r.tokens for r in results)


def test_a_bank_is_used_again_after_a_step_that_was_interrupted(tiny_model, monkeypatch):
    jobs = [random_job(k, sequences=2, epochs=1, batch_size=2, shortest=8, longest=8) for k in range(4)]
    model, real, calls = tiny_model("llama"), fitting.run_pass, []

    def run_pass(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    # Two fits step together, in a pass each.
    monkeypatch.setattr(fitting, "choose", lambda active, budget: active)
    with AdapterBank(model, LoraSpec(rank=2), 2) as bank:
        fit(bank, jobs[2:], token_budget=16)
        expected = bank.parameters_NF.clone()
    with AdapterBank(model, LoraSpec(rank=2), 2) as bank:
        monkeypatch.setattr(fitting, "run_pass", run_pass)
        with pytest.raises(KeyboardInterrupt):
            fit(bank, jobs[:2], token_budget=16)
        fit(bank, jobs[2:], token_budget=16)
        assert torch.equal(bank.parameters_NF, expected)


def test_jobs_that_cannot_be_trained_are_refused(tiny_model):
    good = random_job(1, sequences=2)
    with AdapterBank(tiny_model("llama"), LoraSpec(rank=2), 1) as bank:
        with pytest.raises(ValueError, match="2 jobs do not fit a bank of 1"):
            fit(bank, [good, good])
        with pytest.raises(ValueError, match="job 0: no sequences"):
            fit(bank, [FitJob((), good.settings, 0)])
        for nothing in (TokenSequence((5,)), TokenSequence((5, 6), prompt_length=2)):
            with pytest.raises(ValueError, match="job 0: a sequence without a token to learn"):
                fit(bank, [FitJob((nothing,), good.settings, 0)])
        outside = FitJob((TokenSequence((5, 160)),), good.settings, 0)
        with pytest.raises(ValueError, match="job 0: token 160 is not in the model's vocabulary of 160"):
            fit(bank, [outside])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schedule", "polynomial"),
        ("max_grad_norm", 0.0),
        ("steps", 0),
        ("epochs", 0),
        ("batch_size", 0),
        ("warmup_steps", -1),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"FitSettings: {name} must be .*, not {value!r}"):
        FitSettings(**{name: value})


@pytest.mark.parametrize(("softcap", "size"), [(None, 1.0), (5.0, 1.0), (None, 60.0), (300.0, 60.0)])
def test_linear_cross_entropy_equals_torchs(device, softcap, size, monkeypatch):
    import selfedit.engine.loss as module

    monkeypatch.setattr(module, "_BLOCK_NUMBERS", {"cpu": 16 * 50, "accelerator": 16 * 50})  # three blocks
    generator = torch.Generator().manual_seed(0)
    # At the larger size, many targets' probabilities are too small for float32.
    hidden = (size * torch.randn(41, 24, generator=generator)).to(device).requires_grad_()
    head = torch.randn(50, 24, generator=generator).to(device)
    targets = torch.randint(0, 50, (41,), generator=generator).to(device)
    weights = torch.rand(41, generator=generator).to(device)
    total, losses = linear_cross_entropy(hidden, head, targets, weights, softcap)
    (3 * total).backward()
    copied = hidden.detach().clone().requires_grad_()
    logits = copied @ head.t()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (3 * (expected * weights).sum()).backward()
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, (expected * weights).sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.grad, copied.grad, rtol=1e-4, atol=1e-5)
