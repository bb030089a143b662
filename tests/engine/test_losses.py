"""Losses by forward passes alone: against PEFT and plain PyTorch, one sequence at a time."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from reference import random_targets, sequence_losses, taught, wrapped_in_peft

from selfedit.engine import (
    AdapterBank,
    DecodeRequest,
    LoraSpec,
    SoftTargets,
    TokenSequence,
    UnsupportedModelError,
    decode,
    losses,
)
from selfedit.engine.selftest import copied, random_job

SPEC = LoraSpec(rank=8, alpha=16)
SEQUENCES = taught(random_job(31, sequences=12)).sequences  # every second one with soft targets and a weight


def trained(bank):
    """Adapters that are far from the model, and from each other."""
    for place in range(bank.size):
        bank.reset(place, place)
        for _, b_OR in bank.state(place).values():
            b_OR.copy_(0.1 * torch.randn(b_OR.shape, generator=torch.Generator().manual_seed(place)))
        bank.publish([place])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_losses_equal_those_of_peft(tiny_model, kind, dtype, path):
    model = tiny_model(kind, dtype=dtype)
    generator = random.Random(0)
    measured = [(place, sequence) for place in (2, 0, None) for sequence in SEQUENCES]
    generator.shuffle(measured)
    with AdapterBank(model, SPEC, 3) as bank:
        bank.grouped = path == "grouped" and (model.device.type == "cpu" or bank.grouped)
        trained(bank)
        found = losses(model, measured, bank=bank, token_budget=70)
        states = {k: copied(bank.state(k)) for k in (0, 2)}
    alone = {place: wrapped_in_peft(model, SPEC, state) for place, state in states.items()} | {None: model}
    with torch.no_grad():
        expected = [sequence_losses(alone[place], sequence).mean().item() for place, sequence in measured]
    assert found == pytest.approx(expected, rel=1e-5 if dtype == "float32" else 0.05)
    by_place = {place: [e for e, (p, _) in zip(expected, measured, strict=True) if p == place] for place in alone}
    assert min(abs(a - b) for a, b in zip(sorted(by_place[0]), sorted(by_place[2]), strict=True)) > 1e-4


def test_neighbours_budget_and_weights_do_not_matter(tiny_model):
    model, seen = tiny_model("qwen2"), []
    with AdapterBank(model, SPEC, 2) as bank:
        trained(bank)
        measured = [(k % 2, sequence) for k, sequence in enumerate(SEQUENCES)]
        together = losses(model, measured, bank=bank, on_tokens=seen.append)
        assert sum(seen) == sum(len(sequence.ids) for sequence in SEQUENCES)
        alone = [loss for one in measured for loss in losses(model, [one], bank=bank)]
        assert together == pytest.approx(alone, rel=1e-5)
        heavier = [(place, dataclasses.replace(sequence, weight=3.0)) for place, sequence in measured]
        assert losses(model, heavier, bank=bank) == pytest.approx(together, rel=1e-6)
        assert bank.gradients_NF is None
    assert losses(model, []) == []


@pytest.mark.parametrize(
    ("kind", "rope", "positions"),
    [
        (
            "phi3",
            {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
            {"original_max_position_embeddings": 16},
        ),
        ("llama", {"rope_type": "dynamic"}, {"max_position_embeddings": 16}),
    ],
    ids=["longrope", "dynamic"],
)
def test_lengths_beyond_which_rotations_of_all_change_are_refused(tiny_model, kind, rope, positions):
    """A sequence of 10 tokens beside one of 30 would have another loss than alone."""
    rope = {"rope_theta": 10_000.0, "factor": 4.0, **rope}
    model = tiny_model(kind, num_hidden_layers=2, rope_parameters=rope, **positions)
    short, long = (TokenSequence(tuple(range(5, 5 + length))) for length in (10, 30))
    (alone,) = losses(model, [(None, short)])
    with pytest.raises(UnsupportedModelError, match=r" 16 tokens: one of 30 is not supported"):
        assert losses(model, [(None, short), (None, long)])[0] == pytest.approx(alone, rel=1e-5)
    with pytest.raises(UnsupportedModelError, match="one of 17 is not supported"):
        decode(model, [DecodeRequest(short.ids, 7)])
    assert len(decode(model, [DecodeRequest(short.ids, 6)])[0].ids) == 6


def test_no_gradient_is_computed(tiny_model, monkeypatch):
    """Neither in the layers nor in the head."""
    model, products = tiny_model("llama"), []
    real = torch.mm

    def mm(a, b, **out):
        products.append(b.shape)
        return real(a, b, **out)

    monkeypatch.setattr(torch, "mm", mm)
    losses(model, [(None, SEQUENCES[1])])
    head = model.get_output_embeddings().weight
    assert head.t().shape in products
    assert head.shape not in products


def test_running_out_of_memory_halves_the_rows(tiny_model, monkeypatch):
    from selfedit.engine.backbone import Backbone

    model, real = tiny_model("llama"), Backbone.packed
    measured = [(None, sequence) for sequence in SEQUENCES]
    expected = losses(model, measured)

    def packed(self, layout):
        if len(layout.ids) > 40:
            raise torch.OutOfMemoryError("no memory (made up)")
        return real(self, layout)

    monkeypatch.setattr(Backbone, "packed", packed)
    with pytest.warns(UserWarning, match="losses go on with"):
        assert losses(model, measured) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(torch.OutOfMemoryError, match="a single sequence of 41 tokens"):
        losses(model, [(None, TokenSequence(tuple(range(41))))])


@pytest.mark.parametrize(
    ("place", "sequence", "line"),
    [
        (None, TokenSequence((5,)), "sequence 1: a sequence without a token to learn"),
        (None, TokenSequence((5, 6), 2), "sequence 1: a sequence without a token to learn"),
        (None, TokenSequence((5, 6), 0, SoftTargets.of([], [])), "sequence 1: soft targets of 0 tokens"),
        (
            None,
            TokenSequence((5, 6), 0, random_targets(random.Random(0), 2, 3)),
            "for 2 tokens, where the sequence has 1",
        ),
        (0, TokenSequence((5, 6)), "sequence 1 names adapter 0 of a bank of 0"),
        (2, TokenSequence((5, 6)), "sequence 1 names adapter 2 of a bank of 2"),
        (-1, TokenSequence((5, 6)), "sequence 1 names adapter -1 of a bank of 2"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(tiny_model, place, sequence, line):
    model = tiny_model("llama")
    with AdapterBank(model, SPEC, 2) as bank, pytest.raises(ValueError, match=line):
        losses(model, [(None, SEQUENCES[0]), (place, sequence)], bank=None if "bank of 0" in line else bank)
