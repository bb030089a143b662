"""Fits: fine-tunes of many adapters on one frozen model, together.

A step packs the next sequences of several fits into one row, computes loss and gradients in one forward and backward
pass, and then clips and takes an AdamW step (Loshchilov and Hutter 2019, arXiv 1711.05101) for each adapter on its
own.  So training N adapters together gives, adapter by adapter, what training each alone gives.  `schedule` chooses
which fits step together.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from selfedit.engine.attention import Layout
from selfedit.engine.backbone import Backbone
from selfedit.engine.bank import AdapterBank
from selfedit.engine.jobs import FitJob, FitResult, LessMemoryWarning, SoftTargets, TokenSequence, check
from selfedit.engine.lora import Routing
from selfedit.engine.loss import linear_cross_entropy, linear_divergence
from selfedit.engine.memory import out_of_memory, release_memory
from selfedit.engine.schedule import Course, Pass, choose, passes
from selfedit.engine.state import digest, pack, unpack

ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8


class _Running(Course):
    """A fit under way: its course through the data and its optimiser state."""

    def __init__(self, job: FitJob, adapter: int, bank: AdapterBank) -> None:
        super().__init__(job, adapter)
        self.exp_avg_F = torch.zeros(bank.adapter_size, device=bank.device)
        self.exp_avg_sq_F = torch.zeros(bank.adapter_size, device=bank.device)
        self.count = torch.zeros((), device=bank.device)
        self.losses: list[float] = []
        self.error: str | None = None

    @torch.no_grad()
    def update(self, bank: AdapterBank, loss: float, gradient_F: Tensor, norm: float) -> None:
        """Clips the gradient, of which `norm` is the norm, and takes one AdamW step."""
        settings = self.job.settings
        if not math.isfinite(loss) or not math.isfinite(norm):
            self.error = f"step {self.done + 1} of {len(self.order)}: loss {loss}, gradient norm {norm}"
            return
        scale = None
        if settings.max_grad_norm is not None and norm + 1e-6 > settings.max_grad_norm:
            # The gradient is divided by it, within the same pass over memory as the step.
            scale = torch.tensor((norm + 1e-6) / settings.max_grad_norm, device=bank.device)
        adamw(
            [bank.parameters_NF[self.adapter]],
            [gradient_F],
            [self.exp_avg_F],
            [self.exp_avg_sq_F],
            [],
            [self.count],
            fused=True,
            lr=settings.rate(self.done, len(self.order)),
            beta1=ADAM_BETAS[0],
            beta2=ADAM_BETAS[1],
            weight_decay=settings.weight_decay,
            eps=ADAM_EPSILON,
            amsgrad=False,
            maximize=False,
            grad_scale=scale,
        )
        bank.publish([self.adapter])
        self.losses.append(loss)
        self.advance()

    def state(self, bank: AdapterBank) -> dict[str, Any]:
        """What `restore` goes on from."""
        return {
            "parameters": bank.parameters_NF[self.adapter],
            "exp_avg": self.exp_avg_F,
            "exp_avg_sq": self.exp_avg_sq_F,
            "done": self.done,
            "losses": self.losses,
            "error": self.error,
        }

    def restore(self, bank: AdapterBank, state: dict[str, Any]) -> None:
        bank.parameters_NF[self.adapter].copy_(state["parameters"])
        bank.publish([self.adapter])
        self.exp_avg_F.copy_(state["exp_avg"])
        self.exp_avg_sq_F.copy_(state["exp_avg_sq"])
        self.losses, self.error = list(state["losses"]), state["error"]
        for _ in range(state["done"]):
            self.advance()
        self.count.fill_(self.done)

    def result(self) -> FitResult:
        steps_per_epoch = max(1, len(self.order) // self.job.settings.epochs)
        first, last = self.losses[:steps_per_epoch], self.losses[-steps_per_epoch:]
        return FitResult(
            steps=self.done,
            tokens=self.job.tokens - self.tokens_left,
            first_loss=sum(first) / len(first) if first else None,
            last_loss=sum(last) / len(last) if last else None,
            error=self.error,
            losses=tuple(self.losses),
        )


class UnderWay:
    """Fits between two steps, as `on_step` sees them: it may decode with the bank's adapters, and save the state."""

    def __init__(self, bank: AdapterBank, running: Sequence[_Running], settings: dict[str, Any]) -> None:
        self.bank = bank
        self._running = running
        self._settings = settings
        self._digest = digest(bank, [r.job for r in running])

    @property
    def done(self) -> list[int]:
        """How many steps each fit has taken."""
        return [r.done for r in self._running]

    def save(self, notes: str = "") -> bytes:
        """A safetensors file that `fit(start=...)` goes on from; `state.read_notes` gives the caller's notes back."""
        return pack(self._digest, self._settings, [r.state(self.bank) for r in self._running], notes)

    def restore(self, start: Path) -> None:
        """Errors: UnusableStateError, before anything is changed."""
        size = self.bank.adapter_size
        settings, states = unpack(start, self._digest, {"parameters": size, "exp_avg": size, "exp_avg_sq": size})
        self._settings.update(settings)
        for r, state in zip(self._running, states, strict=True):
            r.restore(self.bank, state)


def fit(
    bank: AdapterBank,
    jobs: Sequence[FitJob],
    *,
    token_budget: int = 2048,
    checkpointing: bool = False,
    on_tokens: Callable[[int], None] | None = None,
    on_step: Callable[[UnderWay], None] | None = None,
    start: Path | None = None,
) -> list[FitResult]:
    """Trains adapter k of the bank on job k, from fresh weights; at most as many jobs as the bank holds.

    `token_budget` bounds the tokens of one forward pass (a single longer sequence goes alone); running out of memory
    halves it, with a warning, and repeats the step, so nothing is lost.  `checkpointing` keeps only the layers' inputs
    and computes the rest again in the backward pass: less memory for a third more work.  `on_tokens` is called with the
    tokens trained after each step.  A fit whose loss or gradient is not finite stops and says so in its result; the
    others go on.

    `on_step` is called after each step but the last with what is under way, which it may save.  `start` is a file with
    what was saved so: these fits go on from there, with the budget and the checkpointing that they began with, and
    become to the last bit what they would have become without the interruption, on the same machine.

    Errors: ValueError for jobs with nothing to learn or unusable targets, or too many; UnusableStateError for a `start`
    that is damaged or of others.
    """
    jobs = list(jobs)
    if len(jobs) > bank.size:
        raise ValueError(f"{len(jobs)} jobs do not fit a bank of {bank.size} adapters")
    backbone = Backbone(bank.model)
    check(jobs, backbone.vocabulary)
    bank.enable_gradients()
    running = []
    for adapter, job in enumerate(jobs):
        bank.reset(adapter, job.seed)
        running.append(_Running(job, adapter, bank))
    # How steps are cut into passes decides how sums are rounded.
    settings: dict[str, Any] = {"token_budget": token_budget, "checkpointing": checkpointing}
    under_way = None
    if on_step is not None or start is not None:
        under_way = UnderWay(bank, running, settings)
    if under_way is not None and start is not None:
        under_way.restore(start)
        if on_tokens is not None:
            on_tokens(sum(r.job.tokens - r.tokens_left for r in running))
    warned = False
    with backbone.training(checkpointing=settings["checkpointing"]):
        while active := [r for r in running if r.error is None and not r.finished]:
            token_budget = settings["token_budget"]
            chosen = choose(active, token_budget)
            losses = _gradients(bank, backbone, chosen, token_budget)
            if losses is None:
                for r in chosen:
                    bank.gradient(r.adapter)  # begun, and to be written anew
                smaller = _halve(token_budget, chosen)
                if not warned:
                    line = f"out of memory: going on with {smaller} tokens per step instead of {token_budget}"
                    warnings.warn(line, LessMemoryWarning, stacklevel=2)
                settings["token_budget"], warned = smaller, True
                continue
            tokens = sum(r.batch_tokens for r in chosen)
            gradients = [bank.gradient(r.adapter) for r in chosen]
            norms = torch.stack([torch.linalg.vector_norm(gradient_F) for gradient_F in gradients]).tolist()
            for r, loss, gradient_F, norm in zip(chosen, losses, gradients, norms, strict=True):
                r.update(bank, loss, gradient_F, norm)
            if on_tokens is not None:
                on_tokens(tokens)
            if (
                on_step is not None
                and under_way is not None
                and any(r.error is None and not r.finished for r in running)
            ):
                on_step(under_way)
    return [r.result() for r in running]


@dataclass
class Labels:
    """The labelled positions of a packed row: where they are, what is to be predicted there, with which weight in the
    loss, and which fit they belong to."""

    positions: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    targets: list[SoftTargets] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)

    @staticmethod
    def of(
        sequences: Sequence[TokenSequence], lengths: Sequence[int], owners: Sequence[int], weights: Sequence[float]
    ) -> list[Labels]:
        """Those of sequences that take so many places of a row each, apart by how many soft targets a token has (none
        at all are 0)."""
        kinds: dict[int, Labels] = {}
        start = 0
        for sequence, length, owner, weight in zip(sequences, lengths, owners, weights, strict=True):
            labels = kinds.setdefault(sequence.targets.top if sequence.targets else 0, Labels())
            labels._add(sequence, start, owner, weight)
            start += length
        return list(kinds.values())

    def _add(self, sequence: TokenSequence, start: int, owner: int, weight: float) -> None:
        """A sequence that begins at `start`: its position p predicts its token p + 1."""
        first, last = max(sequence.prompt_length, 1), len(sequence.ids)
        self.positions += range(start + first - 1, start + last - 1)
        if sequence.targets is None:
            self.tokens += sequence.ids[first:last]
        else:
            self.targets.append(sequence.targets)
        self.weights += [weight] * (last - first)
        self.owners += [owner] * (last - first)

    def loss(self, hidden_PD: Tensor, backbone: Backbone, weights_L: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of the losses, and the loss of each token [L]."""
        device = hidden_PD.device
        hidden_LD = hidden_PD[torch.tensor(self.positions, device=device)]
        if not self.targets:
            tokens_L = torch.tensor(self.tokens, device=device)
            return linear_cross_entropy(hidden_LD, backbone.head_VD, tokens_L, weights_L, backbone.softcap)
        shape = (-1, self.targets[0].top)
        ids = bytearray(b"".join(targets.ids for targets in self.targets))
        log_probs = bytearray(b"".join(targets.log_probs for targets in self.targets))
        ids_LK = torch.frombuffer(ids, dtype=torch.int32).view(shape).to(device, torch.long)
        log_probs_LK = torch.frombuffer(log_probs, dtype=torch.float32).view(shape)
        return linear_divergence(hidden_LD, backbone.head_VD, ids_LK, log_probs_LK, weights_L, backbone.softcap)


def _gradients(bank: AdapterBank, backbone: Backbone, chosen: list[_Running], token_budget: int) -> list[float] | None:
    """Adds the gradients of each fit's next step to the bank's gradient buffer; returns the steps' losses, or None
    where memory ran out."""
    totals = [0.0] * len(chosen)
    try:
        for one in passes(chosen, token_budget):
            for k, loss in _pass(bank, backbone, chosen, one):
                totals[k] += loss
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        # The error holds the pass's tensors; they go with it, when this function returns.
        return None
    return totals


def _pass(bank: AdapterBank, backbone: Backbone, chosen: list[_Running], one: Pass) -> list[tuple[int, float]]:
    device = bank.device
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
    routing = Routing.of(
        [chosen[k].adapter for k in owners],
        lengths,
        size=bank.size,
        device=device,
        grouped=grouped,
        dropout_seeds=seeds,
    )
    input_ids = torch.tensor([token for row in rows for token in row], device=device)[None]
    sums = torch.zeros(len(chosen), device=device)
    with bank.route(routing), torch.enable_grad():
        hidden_PD = backbone.packed(input_ids, Layout.of(lengths, device))[0]
        totals = []
        for labels in Labels.of(sequences, lengths, owners, weights):
            weights_L = torch.tensor(labels.weights, device=device)
            total, losses_L = labels.loss(hidden_PD, backbone, weights_L)
            totals.append(total)
            sums.index_add_(0, torch.tensor(labels.owners, device=device), losses_L * weights_L)
        torch.stack(totals).sum().backward()
    values = sums.tolist()
    return [(k, values[k]) for k in dict.fromkeys(owners)]


def _align(rows: list[list[int]], owners: list[int], multiple: int = 8) -> None:
    """Grouped products need each adapter's rows to be a multiple of 8: the last sequence of each gets a few tokens
    more, which come after all real ones and have no label, so that they change nothing."""
    for k in dict.fromkeys(owners):
        mine = [row for row, owner in zip(rows, owners, strict=True) if owner == k]
        mine[-1] += [mine[-1][-1]] * (-sum(map(len, mine)) % multiple)


def _mix(*numbers: int) -> int:
    """A seed from several numbers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest(), "big")


def _halve(token_budget: int, chosen: list[_Running]) -> int:
    longest = max(len(sequence.ids) for r in chosen for sequence in r.batch)
    if token_budget <= longest:
        raise torch.OutOfMemoryError(
            f"out of memory with a single sequence of {longest} tokens: use shorter sequences, a smaller model or less"
            " rank"
        )
    release_memory()
    return token_budget // 2
