"""Fits: fine-tunes of many adapters on one frozen model, together.

Knows token sequences, data order, steps, learning-rate schedules, clipping and AdamW, each kept per adapter: training N
adapters together gives, adapter by adapter, what training each alone gives.  Knows nothing of text or documents.

A step of the engine takes the next optimiser step of several fits; their sequences are packed into rows without padding.  Fits
need not move in lockstep: those with the most work left go first, as many as the token budget holds.
"""

from __future__ import annotations

import hashlib
import math
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from selfedit.engine.backbone import Backbone
from selfedit.engine.bank import AdapterBank
from selfedit.engine.lora import Routing
from selfedit.engine.loss import linear_cross_entropy
from selfedit.engine.memory import out_of_memory, release_memory
from selfedit.engine.packing import Layout, packed

ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class TokenSequence:
    """One training sequence; the first `prompt_length` tokens are read but not learned."""

    ids: tuple[int, ...]
    prompt_length: int = 0

    @property
    def labelled(self) -> int:
        """How many tokens are predicted: all but the prompt's and the first."""
        return len(self.ids) - max(self.prompt_length, 1)


@dataclass(frozen=True)
class FitSettings:
    """How one adapter is trained: AdamW (0.9, 0.999, 1e-8) as in Hugging Face's Trainer.

    A step takes `batch_size` sequences; its loss is the mean over all their labelled tokens (Trainer's rule with gradient
    accumulation: `batch_size` here is batch size times accumulation there).  `schedule` decays the learning rate from the end of
    the warm-up to zero at the last step (`linear`, `cosine`) or keeps it (`constant`).  `shuffle` draws a new order
    each epoch from the job's seed; without it, sequences keep their order.
    """

    learning_rate: float = 1e-3
    epochs: int = 10
    batch_size: int = 1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    shuffle: bool = True

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of optimiser step `step` (from 0) of `steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * step / max(1, self.warmup_steps)
        if self.schedule == "constant":
            return self.learning_rate
        share = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        if self.schedule == "linear":
            return self.learning_rate * max(0.0, 1.0 - share)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class FitJob:
    """One fit: sequences, settings and a seed, which decides the adapter's first weights, its data order and its dropout."""

    sequences: tuple[TokenSequence, ...]
    settings: FitSettings
    seed: int

    @property
    def tokens(self) -> int:
        """Training tokens over all epochs."""
        return sum(len(sequence.ids) for sequence in self.sequences) * self.settings.epochs

    @property
    def steps(self) -> int:
        return -(-len(self.sequences) // self.settings.batch_size) * self.settings.epochs

    def order(self) -> list[list[int]]:
        """For each optimiser step, the numbers of its sequences."""
        generator = random.Random(self.seed)
        steps = []
        for _ in range(self.settings.epochs):
            numbers = list(range(len(self.sequences)))
            if self.settings.shuffle:
                generator.shuffle(numbers)
            size = self.settings.batch_size
            steps += [numbers[k : k + size] for k in range(0, len(numbers), size)]
        return steps


@dataclass(frozen=True)
class FitResult:
    """How a fit went.  `first_loss` and `last_loss` are means over the first and the last epoch's steps, nats per token;
    `error` says why a fit failed (its adapter is then worthless), else None."""

    steps: int
    tokens: int
    first_loss: float | None
    last_loss: float | None
    error: str | None = None


class _Running:
    """A fit under way: its place in the bank, its data order and its optimiser state."""

    def __init__(self, job: FitJob, adapter: int, device: torch.device, size: int) -> None:
        self.job = job
        self.adapter = adapter
        self.order = job.order()
        self.exp_avg_F = torch.zeros(size, device=device)
        self.exp_avg_sq_F = torch.zeros(size, device=device)
        self.count = torch.zeros((), device=device)
        self.losses: list[float] = []
        self.done = 0
        self.tokens_left = job.tokens
        self.last_tokens = 0
        self.error: str | None = None

    @staticmethod
    def start(bank: AdapterBank, adapter: int, job: FitJob) -> _Running:
        bank.reset(adapter, job.seed)
        return _Running(job, adapter, bank.device, bank.adapter_size)

    @property
    def batch(self) -> list[TokenSequence]:
        """The sequences of the next step."""
        return [self.job.sequences[k] for k in self.order[self.done]]

    @property
    def labelled(self) -> int:
        """Labelled tokens of the next step."""
        return sum(sequence.labelled for sequence in self.batch)

    @torch.no_grad()
    def update(self, bank: AdapterBank, loss: float) -> None:
        """Clips the gradient, takes one AdamW step and clears the gradient."""
        settings = self.job.settings
        parameters, gradient = bank.parameters_NF[self.adapter], bank.gradients_NF[self.adapter]  # type: ignore[index]
        norm = torch.linalg.vector_norm(gradient)
        if not math.isfinite(loss) or not math.isfinite(norm.item()):
            self.error = f"step {self.done + 1} of {len(self.order)}: loss {loss}, gradient norm {norm.item()}"
            gradient.zero_()
            return
        if settings.max_grad_norm is not None:
            gradient.mul_((settings.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        torch._fused_adamw_(
            [parameters],
            [gradient],
            [self.exp_avg_F],
            [self.exp_avg_sq_F],
            [],
            [self.count.add_(1)],
            lr=settings.rate(self.done, len(self.order)),
            beta1=ADAM_BETAS[0],
            beta2=ADAM_BETAS[1],
            weight_decay=settings.weight_decay,
            eps=ADAM_EPSILON,
            amsgrad=False,
            maximize=False,
        )
        gradient.zero_()
        bank.publish([self.adapter])
        self.losses.append(loss)
        self.last_tokens = sum(len(sequence.ids) for sequence in self.batch)
        self.tokens_left -= self.last_tokens
        self.done += 1

    def result(self) -> FitResult:
        steps_per_epoch = len(self.order) // max(1, self.job.settings.epochs)
        first, last = self.losses[:steps_per_epoch], self.losses[-steps_per_epoch:]
        return FitResult(
            steps=self.done,
            tokens=self.job.tokens - self.tokens_left,
            first_loss=sum(first) / len(first) if first else None,
            last_loss=sum(last) / len(last) if last else None,
            error=self.error,
        )


def fit(
    bank: AdapterBank,
    jobs: Sequence[FitJob],
    *,
    token_budget: int = 2048,
    on_tokens: Callable[[int], None] | None = None,
) -> list[FitResult]:
    """Trains adapter k of the bank on job k, from fresh weights; at most as many jobs as the bank holds.

    `token_budget` bounds the tokens of one forward pass (a single longer sequence goes alone); running out of memory halves it,
    with a warning, and repeats the step, so nothing is lost.  `on_tokens` is called with the tokens trained after each step.  A
    fit whose loss or gradient is not finite stops and says so in its result; the others go on.
    """
    if len(jobs) > bank.size:
        raise ValueError(f"{len(jobs)} jobs do not fit a bank of {bank.size} adapters")
    for number, job in enumerate(jobs):
        if not job.sequences or any(sequence.labelled < 1 for sequence in job.sequences):
            raise ValueError(f"job {number} has no sequences, or one without a token to learn")
    backbone = Backbone(bank.model)
    gradients_NF = bank.enable_gradients()
    running = [_Running.start(bank, adapter, job) for adapter, job in enumerate(jobs)]
    active = [r for r in running if r.order]
    warned = False
    while active:
        chosen = _choose(active, token_budget)
        try:
            losses = _gradients(bank, backbone, chosen, token_budget)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            smaller = _halve(token_budget, chosen)
            if not warned:
                warnings.warn(
                    f"out of memory: going on with {smaller} tokens a step instead of {token_budget}", stacklevel=2
                )
            token_budget, warned = smaller, True
            for r in chosen:
                gradients_NF[r.adapter].zero_()
            continue
        for r, loss in zip(chosen, losses, strict=True):
            r.update(bank, loss)
        if on_tokens is not None:
            on_tokens(sum(r.last_tokens for r in chosen))
        active = [r for r in active if r.error is None and r.done < len(r.order)]
    return [r.result() for r in running]


def _choose(active: list[_Running], token_budget: int) -> list[_Running]:
    """The fits of the next step: those with the most tokens left first, until the budget is full; in the bank's order."""
    chosen: list[_Running] = []
    tokens = 0
    for r in sorted(active, key=lambda r: (-r.tokens_left, r.adapter)):
        size = sum(len(sequence.ids) for sequence in r.batch)
        if not chosen or tokens + size <= token_budget:
            chosen.append(r)
            tokens += size
    return sorted(chosen, key=lambda r: r.adapter)


def _gradients(bank: AdapterBank, backbone: Backbone, chosen: list[_Running], token_budget: int) -> list[float]:
    """Adds the gradients of each fit's next step to the bank's gradient buffer; returns the steps' losses."""
    totals = [0.0] * len(chosen)
    for micro_batch in _micro_batches(chosen, token_budget):
        for k, loss in _micro_step(bank, backbone, chosen, micro_batch):
            totals[k] += loss
    return totals


def _micro_batches(chosen: list[_Running], token_budget: int) -> list[list[tuple[int, int]]]:
    """(number in `chosen`, place in its step) of the step's sequences, cut into forward passes of at most the budget."""
    batches: list[list[tuple[int, int]]] = [[]]
    tokens = 0
    for k, r in enumerate(chosen):
        for place, sequence in enumerate(r.batch):
            if batches[-1] and tokens + len(sequence.ids) > token_budget:
                batches.append([])
                tokens = 0
            batches[-1].append((k, place))
            tokens += len(sequence.ids)
    return batches


def _micro_step(
    bank: AdapterBank, backbone: Backbone, chosen: list[_Running], batch: list[tuple[int, int]]
) -> list[tuple[int, float]]:
    device = bank.device
    # Dropout has its own path, and its masks must not depend on rows added for alignment.
    grouped = bank.grouped and not bank.spec.dropout
    sequences = [chosen[k].batch[place] for k, place in batch]
    rows: list[list[int]] = [list(sequence.ids) for sequence in sequences]
    if grouped:
        _align(rows, [k for k, _ in batch])
    lengths = [len(row) for row in rows]
    # Position p predicts token p + 1 of the same sequence; only positions with a label get logits.
    positions: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    owners: list[int] = []
    start = 0
    for (k, _), sequence, row in zip(batch, sequences, rows, strict=True):
        first, last = max(sequence.prompt_length, 1), len(sequence.ids)
        positions += range(start + first - 1, start + last - 1)
        targets += sequence.ids[first:last]
        weights += [1.0 / chosen[k].labelled] * (last - first)
        owners += [k] * (last - first)
        start += len(row)
    seeds = None
    if bank.spec.dropout:
        # One stream a fit, step and sequence, so that it does not matter how a step is cut into passes.
        seeds = [_mix(chosen[k].job.seed, chosen[k].done, place) for k, place in batch]
    routing = Routing.of(
        [chosen[k].adapter for k, _ in batch],
        lengths,
        size=bank.size,
        device=device,
        grouped=grouped,
        dropout_seeds=seeds,
    )
    layout = Layout.of(lengths, device)
    input_ids = torch.tensor([token for row in rows for token in row], device=device)[None]
    with packed(bank.model, layout), bank.route(routing), torch.enable_grad():
        hidden = backbone.hidden(input_ids=input_ids, position_ids=layout.positions(device), use_cache=False)
        total, losses_L = linear_cross_entropy(
            hidden[0, torch.tensor(positions, device=device)],
            backbone.head_VD,
            torch.tensor(targets, device=device),
            torch.tensor(weights, device=device),
            backbone.softcap,
        )
        total.backward()
    weighted_L = losses_L * torch.tensor(weights, device=device)
    sums = torch.zeros(len(chosen), device=device).index_add_(0, torch.tensor(owners, device=device), weighted_L)
    present = dict.fromkeys(k for k, _ in batch)
    values = sums.tolist()
    return [(k, values[k]) for k in present]


def _align(rows: list[list[int]], owners: list[int], multiple: int = 8) -> None:
    """Grouped products want each adapter's rows to be a multiple of 8: the last sequence of each gets a few tokens more, which
    come after all real ones and have no label, so that nothing sees them."""
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
            f"out of memory with a single sequence of {longest} tokens: use shorter sequences, a smaller model or less rank"
        )
    release_memory()
    return token_budget // 2
