"""What sequences cost a model or its adapters: their losses, by forward passes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from selfedit.engine.attention import Layout
from selfedit.engine.backbone import Backbone
from selfedit.engine.bank import AdapterBank
from selfedit.engine.decoding import routed, routing_of
from selfedit.engine.jobs import TokenSequence, check_sequence
from selfedit.engine.passes import Labels
from selfedit.engine.rows import in_rows

Measured = tuple[int | None, TokenSequence]


def losses(
    model: PreTrainedModel,
    measured: Sequence[Measured],
    *,
    bank: AdapterBank | None = None,
    token_budget: int | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> list[float]:
    """For each (place in the bank, sequence) the mean loss of the sequence's labelled tokens, nats, under that adapter;
    under the model without any for the place None.

    The loss is a fit's: cross-entropy, or the divergence from a sequence's soft targets; weights do not count.  Many
    adapters share a pass.  `token_budget`, memory and `on_tokens` are as in `soft_targets`.  Errors: ValueError for a
    sequence without a token to predict or with unusable targets, and for an adapter that the bank does not have.
    """
    backbone = Backbone(model)
    for number, (adapter, sequence) in enumerate(measured):
        check_sequence(sequence, backbone.vocabulary, f"sequence {number}")
        if adapter is not None and (bank is None or not 0 <= adapter < bank.size):
            raise ValueError(f"sequence {number} names adapter {adapter} of a bank of {bank.size if bank else 0}")
    found: dict[int, float] = {}

    # A row has adapters, those of one adapter together, or none.
    with_adapter = [k for k, (adapter, _) in enumerate(measured) if adapter is not None]
    without = [k for k, (adapter, _) in enumerate(measured) if adapter is None]
    for numbers in (sorted(with_adapter, key=lambda k: (measured[k][0], k)), without):
        results = in_rows(
            backbone,
            numbers,
            lambda k: len(measured[k][1].ids),
            lambda row: _means(backbone, bank, [measured[k] for k in row]),
            what="losses go on",
            token_budget=token_budget,
            on_tokens=on_tokens,
        )
        found.update(zip(numbers, results, strict=True))
    return [found[k] for k in range(len(measured))]


def _means(backbone: Backbone, bank: AdapterBank | None, row: list[Measured]) -> list[float]:
    device = backbone.head_VD.device
    sequences = [sequence for _, sequence in row]
    lengths = [len(sequence.ids) for sequence in sequences]
    every = Labels.of(sequences, lengths, range(len(row)), [1 / sequence.labelled for sequence in sequences])
    routing = routing_of(bank, [adapter for adapter, _ in row], lengths)
    layout = Layout.of([s.ids for s in sequences], device, along=[*every, routing])
    with routed(bank, routing):
        hidden_PD = backbone.packed(layout)[0]
    means = torch.zeros(len(row), device=device)
    for labels in every:
        labels.loss(hidden_PD, backbone, means)
    return [float(mean) for mean in means.tolist()]
