"""Soft targets: the loss against plain PyTorch, adapters against PEFT with that loss, and targets from the model."""

from __future__ import annotations

import dataclasses
import pickle
import random

import pytest
import torch
from reference import divergence, peft_state, random_targets, taught, trained_alone, unpacked

from selfedit.engine import (
    AdapterBank,
    FitJob,
    FitSettings,
    LoraSpec,
    SoftTargets,
    TokenSequence,
    UnusableStateError,
    fit,
    plan,
    soft_targets,
    teach,
)
from selfedit.engine.loss import left_over, linear_divergence
from selfedit.engine.selftest import copied, difference, random_job

SPEC = LoraSpec(rank=8, alpha=16)
JOBS = [
    taught(random_job(21, sequences=4, learning_rate=3e-4, epochs=2, batch_size=2)),
    random_job(22, sequences=3, learning_rate=3e-4, epochs=2),
    taught(random_job(23, sequences=5, learning_rate=2e-4, epochs=1, batch_size=3, weight_decay=0.1), every=1),
    taught(random_job(24, sequences=2, learning_rate=3e-4, epochs=3, max_grad_norm=None)),
]


@pytest.mark.parametrize("top", [1, 7, 49, 50])
@pytest.mark.parametrize(("softcap", "size"), [(None, 1.0), (5.0, 1.0), (None, 60.0), (300.0, 60.0)])
def test_linear_divergence_equals_plain_torch(device, top, softcap, size, monkeypatch):
    import selfedit.engine.loss as module

    monkeypatch.setattr(module, "_BLOCK_NUMBERS", {"cpu": 16 * 50, "accelerator": 16 * 50})  # three blocks
    generator = torch.Generator().manual_seed(0)
    # At the larger size, many probabilities, and many a rest's, are too small for float32.
    hidden = (size * torch.randn(41, 24, generator=generator)).to(device).requires_grad_()
    head = torch.randn(50, 24, generator=generator).to(device)
    ids, log_probs = (x.to(device) for x in unpacked(random_targets(random.Random(0), 41, top, vocabulary=50)))
    weights = torch.rand(41, generator=generator).to(device)
    rest = left_over(log_probs.cpu()).to(device)
    total, losses = linear_divergence(hidden, head, ids, log_probs, rest, weights, softcap)
    (3 * total).backward()
    copied = hidden.detach().cpu().double().requires_grad_()
    logits = copied @ head.cpu().double().t()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = divergence(logits, ids.cpu(), log_probs.cpu())
    (3 * (expected * weights.cpu()).sum()).backward()
    assert torch.isfinite(losses).all()
    torch.testing.assert_close(losses.cpu(), expected.detach().float(), rtol=1e-5, atol=2e-5)
    apart = (hidden.grad.cpu() - copied.grad).norm()
    assert apart < 1e-5 * copied.grad.norm()


def test_a_teacher_that_names_one_token_is_a_label(device):
    """Cross-entropy is the special case, and a teacher that is the model itself is a loss of zero."""
    from selfedit.engine.loss import linear_cross_entropy

    generator = torch.Generator().manual_seed(1)
    hidden, head = (torch.randn(n, 16, generator=generator).to(device) for n in (9, 40))
    tokens, weights = torch.randint(0, 40, (9,), generator=generator).to(device), torch.ones(9, device=device)
    _, hard = linear_cross_entropy(hidden, head, tokens, weights)
    zeros = torch.zeros(9, 1, device=device)
    _, soft = linear_divergence(hidden, head, tokens[:, None], zeros, zeros[:, 0], weights)
    torch.testing.assert_close(soft, hard)
    log_probs, ids = (hidden @ head.t()).log_softmax(-1).topk(6)
    _, same = linear_divergence(hidden, head, ids, log_probs, left_over(log_probs.cpu()).to(device), weights)
    assert same.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_jobs_of_both_kinds_equal_separate_runs_of_peft(tiny_model, kind, dtype, path):
    model = tiny_model(kind, dtype=dtype)
    with AdapterBank(model, SPEC, len(JOBS)) as bank:
        bank.grouped = path == "grouped" and (model.device.type == "cpu" or bank.grouped)
        results = fit(bank, JOBS, token_budget=64)
        states = [copied(bank.state(k)) for k in range(len(JOBS))]
    for alone, state, result in zip(trained_alone(kind, dtype, model, SPEC, JOBS), states, results, strict=True):
        assert result.error is None
        everything, learned = difference(state, peft_state(alone, list(state)))
        assert everything < (1e-5 if dtype == "float32" else 5e-3)
        assert learned < (1e-3 if dtype == "float32" else 0.15)


def test_neighbours_and_budget_do_not_matter(tiny_model):
    model = tiny_model("qwen2")
    with AdapterBank(model, SPEC, 1) as bank:
        (alone,) = fit(bank, JOBS[:1])
        expected = bank.parameters_NF[0].clone()
    with AdapterBank(model, SPEC, 6) as bank:
        result = fit(bank, [*JOBS[1:], JOBS[0]], token_budget=40)[-1]
        assert (bank.parameters_NF[3] - expected).norm() < 1e-5 * expected.norm()
    assert result.losses == pytest.approx(alone.losses, rel=1e-4)


def test_a_weight_of_one_half_is_half_the_gradient(tiny_model):
    """Two sequences with half the weight, and no clipping, are a step with half the loss."""
    job = random_job(3, sequences=2, batch_size=2, epochs=1)
    half = FitJob(tuple(dataclasses.replace(s, weight=0.5) for s in job.sequences), job.settings, job.seed)
    with AdapterBank(tiny_model("llama"), SPEC, 2) as bank:
        whole, halved = fit(bank, [job, half])
    assert halved.losses == pytest.approx([0.5 * loss for loss in whole.losses], rel=1e-6)


def test_a_saved_state_knows_its_targets_and_weights(tiny_model, tmp_path):
    model, file, job = tiny_model("llama"), tmp_path / "state", JOBS[0]

    def save(under_way):
        if under_way.done == [2]:
            file.write_bytes(under_way.save())

    with AdapterBank(model, SPEC, 1) as bank:
        expected = fit(bank, [job], on_step=save)
        parameters = bank.parameters_NF.clone()
        assert fit(bank, [job], start=file) == expected
        assert torch.equal(bank.parameters_NF, parameters)
        first = job.sequences[0]
        others = [
            dataclasses.replace(first, weight=3.0),
            dataclasses.replace(first, targets=None),
            dataclasses.replace(first, targets=random_targets(random.Random(5), first.labelled, 5)),
        ]
        for other in others:
            changed = FitJob((other, *job.sequences[1:]), job.settings, job.seed)
            with pytest.raises(UnusableStateError, match="the state of other fits"):
                fit(bank, [changed], start=file)


def test_a_plan_counts_the_memory_of_targets(tiny_model):
    model = tiny_model("llama")
    memory = []
    for top in (None, 1, 160):
        targets = None if top is None else random_targets(random.Random(0), 29, top)
        job = FitJob((TokenSequence(tuple(range(30)), targets=targets),), FitSettings(), 0)
        memory.append(plan(model, SPEC, [job], memory=10**9, calibrate=False).memory)
    assert memory == sorted(set(memory))


@pytest.mark.parametrize(
    ("targets", "weight", "line"),
    [
        (SoftTargets.of([list(range(161))] * 9, [[-6.0] * 161] * 9), 1.0, "of 161 tokens each, .* vocabulary has 160"),
        (SoftTargets.of([], []), 1.0, "of 0 tokens each"),
        (random_targets(random.Random(0), 8, 3), 1.0, "for 8 tokens, where the sequence has 9 to learn"),
        (SoftTargets.of([[3, 3]] * 9, [[-1.0, -1.0]] * 9), 1.0, "name a token twice"),
        (SoftTargets.of([[160]] * 9, [[-1.0]] * 9), 1.0, "one that is not in the vocabulary"),
        (SoftTargets.of([[3]] * 9, [[float("nan")]] * 9), 1.0, "not finite"),
        (SoftTargets.of([[3, 4]] * 9, [[-0.1, -0.1]] * 9), 1.0, "do not sum up to one"),
        (SoftTargets.of([list(range(160))] * 9, [[-6.0] * 160] * 9), 1.0, "do not sum up to one"),
        (None, 0.0, "a sequence's weight must be a positive number, not 0.0"),
        (None, float("nan"), "a sequence's weight must be a positive number"),
    ],
)
def test_targets_that_cannot_be_used_are_refused_in_one_line(tiny_model, targets, weight, line):
    model = tiny_model("llama")
    job = FitJob((TokenSequence(tuple(range(10)), targets=targets, weight=weight),), FitSettings(), 0)
    with AdapterBank(model, SPEC, 1) as bank, pytest.raises(ValueError, match=f"job 0: .*{line}"):
        fit(bank, [job])
    with pytest.raises(ValueError, match=line):
        plan(model, SPEC, [job], calibrate=False)


def test_ragged_lists_are_no_targets():
    with pytest.raises(ValueError, match="equally many ids"):
        SoftTargets.of([[1, 2], [3]], [[-1.0, -1.0], [-1.0]])


def pairs_of(seed, count):
    generator = random.Random(seed)
    return [
        tuple(tuple(generator.randrange(3, 160) for _ in range(generator.randint(1, 30))) for _ in range(2))
        for _ in range(count)
    ]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_soft_targets_are_the_models_own_probabilities(tiny_model, kind, monkeypatch):
    import selfedit.engine.loss as module

    monkeypatch.setattr(module, "_BLOCK_NUMBERS", {"cpu": 16 * 160, "accelerator": 16 * 160})  # several blocks
    model, pairs, seen = tiny_model(kind), pairs_of(0, 6), []
    pairs.append(pairs[2])
    targets = soft_targets(model, pairs, top=7, token_budget=70, on_tokens=seen.append)
    assert [len(t) for t in targets] == [len(continuation) for _, continuation in pairs]
    assert sum(seen) == sum(len(prefix) + len(continuation) for prefix, continuation in pairs[:-1])  # equal pairs once
    assert targets[-1] == targets[2]
    for (prefix, continuation), target in zip(pairs, targets, strict=True):
        ids = torch.tensor([[*prefix, *continuation]], device=model.device)
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0, len(prefix) - 1 : -1].float().log_softmax(-1).cpu()
        named, values = unpacked(target)
        assert torch.equal(named, log_probs.topk(7).indices)
        torch.testing.assert_close(values, log_probs.gather(1, named), rtol=1e-5, atol=1e-5)


def test_the_teacher_is_the_model_without_adapters(tiny_model):
    """Also under a bank; and a fresh adapter that reads what the teacher read has nothing to learn."""
    model, pairs = tiny_model("qwen2"), pairs_of(1, 4)
    alone = soft_targets(model, pairs)
    with AdapterBank(model, SPEC, 1) as bank:
        bank.parameters_NF.fill_(0.1)
        assert soft_targets(model, pairs) == alone
        sequences = tuple(
            TokenSequence((*prefix, *continuation), len(prefix), targets)
            for (prefix, continuation), targets in zip(pairs, alone, strict=True)
        )
        (result,) = fit(bank, [FitJob(sequences, FitSettings(epochs=1, batch_size=4), 0)])
    assert abs(result.first_loss) < 1e-6


def test_teach_asks_the_model_that_reads_more(tiny_model):
    """Targets are those after the teacher's text; with and without a prompt, and nothing else changes."""
    model, passage = tiny_model("qwen2"), tuple(range(20, 40))
    prompted = TokenSequence((5, 6, 7, 8, 9), 3, teacher=passage)
    whole = TokenSequence((5, 6, 7), teacher=passage)
    plain = TokenSequence((5, 6, 7))
    job = FitJob((prompted, plain, whole), FitSettings(), 4)
    with pytest.raises(ValueError, match="job 0: a sequence's teacher was not asked"):
        plan(model, SPEC, [job], calibrate=False)
    (taught_job,) = teach(model, [job], top=5)
    first, second = soft_targets(model, [(passage, (8, 9)), ((*passage, 5), (6, 7))], top=5)
    assert [s.targets for s in taught_job.sequences] == [first, None, second]
    assert taught_job.sequences[1] == plain
    assert teach(model, [taught_job]) == [taught_job]


def test_an_adapter_learns_to_do_without_the_passage(tiny_model):
    """The divergence from the model that has the passage in its prompt goes down."""
    model = tiny_model("llama")
    passage, question = tuple(range(20, 40)), (5, 6, 7)
    answers = [answer for _, answer in pairs_of(2, 4)]
    targets = soft_targets(model, [(passage + question, answer) for answer in answers])
    sequences = tuple(TokenSequence(question + a, 3, t) for a, t in zip(answers, targets, strict=True))
    settings = FitSettings(learning_rate=3e-3, epochs=20, batch_size=4)
    with AdapterBank(model, SPEC, 1) as bank:
        (result,) = fit(bank, [FitJob(sequences, settings, 0)])
    assert result.last_loss < 0.3 * result.first_loss


def test_questions_to_a_teacher_that_make_no_sense_are_refused(tiny_model):
    model = tiny_model("llama")
    for pair, line in [(((), (5,)), "pair 1 has an empty prefix"), (((5,), ()), "pair 1 has an empty continuation")]:
        with pytest.raises(ValueError, match=line):
            soft_targets(model, [((5,), (6,)), pair])
    for top in (0, 161):
        with pytest.raises(ValueError, match=f"top must be from 1 to 160, the size of the vocabulary, not {top}"):
            soft_targets(model, [((5,), (6,))], top=top)
    assert soft_targets(model, []) == []


def test_running_out_of_memory_halves_the_rows(tiny_model, monkeypatch):
    from selfedit.engine.backbone import Backbone

    model, pairs, real = tiny_model("llama"), pairs_of(3, 8), Backbone.packed
    expected = soft_targets(model, pairs)

    def packed(self, layout):
        if len(layout.ids) > 70:
            raise torch.OutOfMemoryError("no memory (made up)")
        return real(self, layout)

    monkeypatch.setattr(Backbone, "packed", packed)
    with pytest.warns(UserWarning, match="soft targets go on with"):
        smaller = soft_targets(model, pairs)
    assert [t.ids for t in smaller] == [t.ids for t in expected]
    with pytest.raises(torch.OutOfMemoryError, match="a single sequence of 80 tokens"):
        soft_targets(model, [(tuple(range(40)), tuple(range(40)))])


def test_jobs_with_targets_can_be_sent(tiny_model):
    assert pickle.loads(pickle.dumps(JOBS)) == JOBS
    assert hash(JOBS[0].sequences) == hash(pickle.loads(pickle.dumps(JOBS[0].sequences)))
