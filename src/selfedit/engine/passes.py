"""One forward and backward pass over packed sequences, of several fits or of one.

A fit that steps alone may have the passes of a step computed in other processes as well (`Share`, `Partner`): a pass
depends on the adapter's parameters and the job alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfedit.engine.attention import Layout
from selfedit.engine.backbone import Backbone
from selfedit.engine.bank import AdapterBank
from selfedit.engine.jobs import FitJob, LoraSpec, TokenSequence
from selfedit.engine.lora import Routing
from selfedit.engine.loss import left_over, linear_cross_entropy, linear_divergence
from selfedit.engine.schedule import Course, Pass


@dataclass
class Labels:
    """The labelled positions of a packed row: where they are, with which weight in the loss, which fit they belong to,
    and what is to be predicted there: one token, or a teacher's, with their log-probabilities and what these leave."""

    positions_L: Tensor
    weights_L: Tensor
    owners_L: Tensor
    ids_LK: Tensor
    log_probs_LK: Tensor | None = None
    rest_L: Tensor | None = None

    @staticmethod
    def of(
        sequences: Sequence[TokenSequence], lengths: Sequence[int], owners: Sequence[int], weights: Sequence[float]
    ) -> list[Labels]:
        """Those of sequences that take so many places of a row each, apart by how many soft targets a token has (none
        at all are 0).  The tensors lie on the host."""
        kinds: dict[int, list[tuple[TokenSequence, int, int, float]]] = {}
        starts = [end - length for end, length in zip(accumulate(lengths), lengths, strict=True)]
        for placed in zip(sequences, starts, owners, weights, strict=True):
            targets = placed[0].targets
            kinds.setdefault(targets.top if targets else 0, []).append(placed)
        return [Labels._of(top, placed) for top, placed in kinds.items()]

    @staticmethod
    def _of(top: int, placed: Sequence[tuple[TokenSequence, int, int, float]]) -> Labels:
        # A sequence that begins at `start`: its position p predicts its token p + 1.
        spans = [(start, s.first, len(s.ids)) for s, start, _, _ in placed]
        counts = torch.tensor([last - first for _, first, last in spans])
        positions_L = torch.cat([torch.arange(start + first - 1, start + last - 1) for start, first, last in spans])
        weights_L = torch.tensor([weight for *_, weight in placed]).repeat_interleave(counts)
        owners_L = torch.tensor([owner for _, _, owner, _ in placed]).repeat_interleave(counts)
        if not top:
            tokens_L = torch.tensor([token for s, *_ in placed for token in s.ids[s.first :]])
            return Labels(positions_L, weights_L, owners_L, tokens_L[:, None])
        targets = [s.targets for s, *_ in placed if s.targets is not None]
        ids, log_probs = bytearray().join(t.ids for t in targets), bytearray().join(t.log_probs for t in targets)
        ids_LK = torch.frombuffer(ids, dtype=torch.int32).view(-1, top).long()
        log_probs_LK = torch.frombuffer(log_probs, dtype=torch.float32).view(-1, top)
        return Labels(positions_L, weights_L, owners_L, ids_LK, log_probs_LK, left_over(log_probs_LK))

    def loss(self, hidden_PD: Tensor, backbone: Backbone, sums: Tensor) -> Tensor:
        """The weighted sum of the losses; each owner's part is added to its place in `sums`."""
        hidden_LD, head_VD = hidden_PD.index_select(0, self.positions_L), backbone.head_VD
        how = self.weights_L, backbone.softcap
        if self.log_probs_LK is None or self.rest_L is None:
            total, losses_L = linear_cross_entropy(hidden_LD, head_VD, self.ids_LK[:, 0], *how)
        else:
            targets = self.ids_LK, self.log_probs_LK, self.rest_L
            total, losses_L = linear_divergence(hidden_LD, head_VD, *targets, *how)
        sums.index_add_(0, self.owners_L, losses_L * self.weights_L)
        return total


def run_pass(bank: AdapterBank, backbone: Backbone, chosen: Sequence[Course], one: Pass) -> Tensor:
    """Adds the gradients of some sequences of the fits' next step to the bank's gradient buffer; returns the fits'
    losses over them.  Within `backbone.training`."""
    # Dropout has its own path, and its masks must not depend on rows added for alignment.
    grouped = bank.grouped and not bank.spec.dropout
    owners = [k for k, _ in one]
    sequences: list[TokenSequence] = [chosen[k].batch[place] for k, place in one]
    rows: list[list[int]] = [list(sequence.ids) for sequence in sequences]
    if grouped:
        _align(rows, owners)
    lengths = [len(row) for row in rows]
    weights = [s.weight / chosen[k].batch_labelled for k, s in zip(owners, sequences, strict=True)]
    seeds = None
    if bank.spec.dropout:
        # One stream a fit, step and sequence, so that it does not matter how a step is cut into passes.
        seeds = [_mix(chosen[k].job.seed, chosen[k].done, place) for k, place in one]
    adapters = [chosen[k].adapter for k in owners]
    routing = Routing.of(adapters, lengths, size=bank.size, grouped=grouped, dropout_seeds=seeds)
    every = Labels.of(sequences, lengths, owners, weights)
    layout = Layout.of(rows, bank.device, along=[routing, *every])
    sums = torch.zeros(len(chosen), device=bank.device)
    with bank.route(routing), torch.enable_grad():
        hidden_PD = backbone.packed(layout).squeeze(0)
        torch.stack([labels.loss(hidden_PD, backbone, sums) for labels in every]).sum().backward()
    return sums


def _align(rows: list[list[int]], owners: list[int], multiple: int = 8) -> None:
    """Grouped products need each adapter's rows to be a multiple of 8: the last sequence of each gets a few tokens
    more, which come after all real ones and have no label, so that they change nothing."""
    for k in dict.fromkeys(owners):
        mine = [row for row, owner in zip(rows, owners, strict=True) if owner == k]
        mine[-1] += [mine[-1][-1]] * (-sum(map(len, mine)) % multiple)


def _mix(*numbers: int) -> int:
    """A seed from several numbers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest(), "big")


@dataclass(frozen=True)
class Part:
    """One pass of a step of a fit that steps alone: the `places` of its sequences in that step, `tokens` together."""

    step: int
    places: tuple[int, ...]
    tokens: int
    checkpointing: bool

    @staticmethod
    def of(course: Course, places: Sequence[int], checkpointing: bool) -> Part:
        """Some places of the course's next step."""
        batch = course.batch
        return Part(course.done, tuple(places), sum(len(batch[place].ids) for place in places), checkpointing)


# Computes a part here: its loss [1], and the gradient [F], which the next part overwrites.
Own = Callable[[Part], tuple[Tensor, Tensor]]
# Given the adapter's parameters [F], the parts of a step and a way to compute one here: what `Own` gives, of each part
# in this order.
Share = Callable[[Tensor, Sequence[Part], Own], Iterable[tuple[Tensor, Tensor]]]


def run_part(bank: AdapterBank, backbone: Backbone, course: Course, part: Part) -> tuple[Tensor, Tensor]:
    """The loss [1] and the gradient [F] of a part of the course's next step, within `backbone.training`.  The next pass
    overwrites the gradient."""
    loss = run_pass(bank, backbone, [course], [(0, place) for place in part.places])
    return loss, bank.gradient(course.adapter)


class Partner:
    """Computes parts of the steps of a fit that are taken in another process.  Attaches an adapter to the model, until
    `close`; after an error it is of no more use."""

    def __init__(self, model: PreTrainedModel, spec: LoraSpec, job: FitJob) -> None:
        self._bank = AdapterBank(model, spec, 1)
        self._bank.enable_gradients()
        self._backbone = Backbone(model)
        self._course = Course(job, 0)

    def __call__(self, part: Part, parameters_F: Tensor) -> tuple[Tensor, Tensor]:
        """What `run_part` gives there, with the adapter's parameters."""
        self._bank.parameters_NF[0].copy_(parameters_F)
        self._bank.publish([0])
        self._course.done = part.step
        with self._backbone.training(checkpointing=part.checkpointing):
            return run_part(self._bank, self._backbone, self._course, part)

    def close(self) -> None:
        """Gives the model its own layers back."""
        self._bank.detach()
