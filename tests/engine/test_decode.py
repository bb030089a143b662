"""Completions: of many adapters in one batch, as each alone; sampled ones depend on their own request only."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch

from selfedit.engine import AdapterBank, DecodeRequest, LoraSpec, decode, fit
from selfedit.engine.decoding import PREFILL_TOKENS, _next_tokens, _uniform
from selfedit.engine.selftest import greedy_alone, random_job


@pytest.fixture(scope="module")
def trained(tiny_model):
    """A bank of four adapters that answer differently."""
    model = tiny_model("qwen3")
    with AdapterBank(model, LoraSpec(rank=8, alpha=16), 4) as bank:
        fit(bank, [random_job(k, sequences=3, epochs=4, learning_rate=5e-3) for k in range(4)])
        yield bank


def sampled_requests(count=24):
    generator = random.Random(0)
    return [
        DecodeRequest(
            tuple(generator.randrange(3, 160) for _ in range(generator.randint(1, 12))),
            max_new_tokens=generator.randint(1, 12),
            stop_ids=(2, 7),
            adapter=k % 4,
            temperature=1.0,
            top_p=0.95,
            seed=1000 + k,
        )
        for k in range(count)
    ]


def test_sampling_depends_on_the_request_alone(trained, monkeypatch):
    requests = sampled_requests()
    together = decode(trained.model, requests, bank=trained)
    passes = []
    with monkeypatch.context() as patch:
        patch.setitem(PREFILL_TOKENS, "cpu", 30)
        patch.setitem(PREFILL_TOKENS, "accelerator", 30)
        hook = trained.model.get_decoder().register_forward_pre_hook(
            lambda _, given, named: passes.append(named["input_ids"].numel()), with_kwargs=True
        )
        assert decode(trained.model, requests, bank=trained) == together
        hook.remove()
    # Prompts went through the model in parts before the first token was drawn.
    assert sum(len(r.prompt) for r in requests) in itertools.accumulate(passes)
    assert max(passes) <= 30
    alone = [decode(trained.model, [request], bank=trained)[0] for request in requests]
    shuffled = random.Random(1).sample(range(len(requests)), len(requests))
    other = decode(trained.model, [requests[k] for k in shuffled], bank=trained, token_budget=60)
    assert together == alone
    assert [other[shuffled.index(k)] for k in range(len(requests))] == alone


def test_another_seed_samples_another_completion(trained):
    request = dataclasses.replace(sampled_requests()[0], max_new_tokens=16, stop_ids=())
    completions = decode(trained.model, [dataclasses.replace(request, seed=k) for k in range(8)], bank=trained)
    assert len({c.ids for c in completions}) == 8


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3"])
def test_greedy_answers_of_the_base_model_are_generates(tiny_model, kind):
    model = tiny_model(kind)
    prompts = [tuple(range(3, 3 + n)) for n in (1, 5, 14, 30)]
    completions = decode(model, [DecodeRequest(p, 10) for p in prompts])
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.ids == greedy_alone(model, prompt, 10)
        ids = torch.tensor([prompt], device=model.device)
        generated = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert completion.ids == tuple(generated[0, len(prompt) :].tolist())


def test_a_stop_token_ends_a_completion_and_is_not_returned(trained):
    free = decode(trained.model, [DecodeRequest((5, 6, 7), 12, adapter=1)], bank=trained)[0]
    assert not free.finished
    assert len(free.ids) == 12
    stop = free.ids[5]
    expected = free.ids[: free.ids.index(stop)]
    stopped = decode(trained.model, [DecodeRequest((5, 6, 7), 12, stop_ids=(stop,), adapter=1)], bank=trained)[0]
    assert stopped.finished
    assert stopped.ids == expected


def test_nucleus_of_nothing_is_greedy_and_frequencies_follow_the_model(tiny_model):
    model = tiny_model("llama")
    greedy = decode(model, [DecodeRequest((5, 6), 6)])[0]
    narrow = decode(model, [DecodeRequest((5, 6), 6, temperature=1.0, top_p=1e-9, seed=4)])[0]
    assert narrow.ids == greedy.ids
    count = 3000
    drawn = decode(
        model, [DecodeRequest((5, 6), 1, temperature=0.7, top_p=0.5, seed=k) for k in range(count)], token_budget=10**6
    )
    with torch.no_grad():
        p = (model(torch.tensor([[5, 6]], device=model.device)).logits[0, -1].double() / 0.7).softmax(-1).cpu()
    values, order = p.sort(descending=True)
    inside = order[: int((values.cumsum(0) < 0.5).sum()) + 1]
    expected = torch.zeros_like(p)
    expected[inside] = p[inside] / p[inside].sum()
    frequencies = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=len(p)) / count
    assert frequencies[expected == 0].sum() == 0
    assert (frequencies - expected).abs().max() < 5 * (0.25 / count) ** 0.5


def test_a_row_of_logits_that_are_no_numbers_leaves_the_others_alone():
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    requests = [DecodeRequest((5,), 1, temperature=1.0, top_p=0.9, seed=k) for k in range(2)]
    (alone,) = _next_tokens(logits[1:], requests[1:], [0])
    logits[0] = torch.nan
    broken, other = _next_tokens(logits, requests, [0, 0])
    assert other == alone
    assert 0 <= broken < 30


def test_progress_counts_every_token(trained):
    seen = []
    requests = [DecodeRequest((3, 4), 7, adapter=0), DecodeRequest((3,), 4, adapter=2)]
    decode(trained.model, requests, bank=trained, on_tokens=seen.append)
    assert sum(seen) == 11


def passes_of(bank, requests):
    """The completions, and how many passes they took."""
    passes = []
    hook = bank.model.get_decoder().register_forward_pre_hook(lambda *_: passes.append(None))
    try:
        return decode(bank.model, requests, bank=bank), len(passes)
    finally:
        hook.remove()


def test_a_draft_changes_how_fast_a_completion_comes_and_not_what_it_says(trained):
    plain = [dataclasses.replace(r, temperature=0.0, max_new_tokens=12, stop_ids=()) for r in sampled_requests(9)]
    said, slow = passes_of(trained, plain)
    texts = [one.ids for one in said]
    # Nothing, all, all and more, a part, a part and something else, something else, and all up to a stop token.
    wrong = tuple((token + 1) % 160 for token in texts[5])
    drafts = [(), texts[1], (*texts[2], 9), texts[3][:5], (*texts[4][:5], *wrong), wrong, texts[6], texts[7], texts[8]]
    drafted = [dataclasses.replace(r, draft=draft) for r, draft in zip(plain, drafts, strict=True)]
    assert decode(trained.model, drafted, bank=trained) == said
    assert passes_of(trained, drafted[1:3]) == (said[1:3], 1)
    assert slow == 12
    stopping = [dataclasses.replace(r, stop_ids=(r.draft[5],)) for r in drafted[6:]]
    undrafted = [dataclasses.replace(r, draft=()) for r in stopping]
    ended, few = passes_of(trained, stopping)
    assert ended == decode(trained.model, undrafted, bank=trained)
    assert all(one.finished for one in ended)
    assert few == 1


def test_progress_counts_what_is_taken_from_a_draft(trained):
    request = DecodeRequest((3, 4), 8, adapter=1)
    ids = decode(trained.model, [request], bank=trained)[0].ids
    counted, told = [], []
    decode(
        trained.model,
        [dataclasses.replace(request, draft=ids[:5])],
        bank=trained,
        on_tokens=counted.append,
        on_token=lambda number, token: told.append(token),
    )
    assert counted == [5, 1, 1, 1]
    assert tuple(told) == ids


def test_requests_that_cannot_be_served_are_refused(trained):
    with pytest.raises(ValueError, match="need a bank"):
        decode(trained.model, [DecodeRequest((3,), 2, adapter=0)])
    with pytest.raises(ValueError, match="cannot be mixed"):
        decode(trained.model, [DecodeRequest((3,), 2, adapter=0), DecodeRequest((3,), 2)], bank=trained)
    with pytest.raises(ValueError, match="prompt is empty"):
        decode(trained.model, [DecodeRequest((), 2, adapter=0)], bank=trained)
    with pytest.raises(ValueError, match="adapter 4"):
        decode(trained.model, [DecodeRequest((3,), 2, adapter=4)], bank=trained)
    for wrong in ({"top_p": 0.0}, {"top_p": 1.5}, {"temperature": -1.0}, {"temperature": float("nan")}):
        with pytest.raises(ValueError, match="temperature must be finite"):
            decode(trained.model, [dataclasses.replace(DecodeRequest((3,), 2, adapter=0), **wrong)], bank=trained)
    with pytest.raises(ValueError, match="a prompt: token 160 is not in the model"):
        decode(trained.model, [DecodeRequest((3, 160), 2, adapter=0)], bank=trained)
    with pytest.raises(ValueError, match="a draft: token 160 is not in the model"):
        decode(trained.model, [DecodeRequest((3,), 2, adapter=0, draft=(160,))], bank=trained)
    with pytest.raises(ValueError, match="greedy decoding, not with temperature"):
        decode(trained.model, [DecodeRequest((3,), 2, adapter=0, temperature=0.5, draft=(4,))], bank=trained)


def test_each_position_is_drawn_anew():
    draws = [_uniform(seed, position) for seed in range(50) for position in range(50)]
    assert len(set(draws)) == len(draws)
    assert all(0 <= draw < 1 for draw in draws)
    assert sum(draws) / len(draws) == pytest.approx(0.5, abs=0.03)  # 5 standard errors
