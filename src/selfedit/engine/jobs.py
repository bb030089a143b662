"""The engine's inputs and outputs as plain data: shapes of adapters, fits, completions, and errors.

Needs no torch, so that a caller can build and count work before anything heavy is loaded.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal


class UnsupportedModelError(ValueError):
    """The model has no layers that this engine can adapt as asked; the message says which, and what to do."""


class UnusableStateError(ValueError):
    """A saved state is damaged, or belongs to other fits; the message says which."""


class LessMemoryWarning(UserWarning):
    """Memory ran out, and work goes on in smaller pieces; the message says how."""


class NotEnoughMemoryError(MemoryError):
    """Not even one adapter and the longest sequence fit into memory; the message says what they need."""


@dataclass(frozen=True)
class LoraSpec:
    """The shape of the adapters of one bank.

    `targets` is `all-linear` (every linear layer but the output head) or names of layers: a whole dotted name, or its
    end (`q_proj`).  `layers` keeps only decoder layers first..last, both included, counted from 0.  `dropout` acts on
    the input of A, from a random stream of the adapter's own.  Updates are scaled by alpha / rank, or alpha /
    sqrt(rank) with `rslora` (Kalajdzievski 2023, arXiv 2312.03732)."""

    rank: int = 16
    alpha: float = 32.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    layers: tuple[int, int] | None = None
    dropout: float = 0.0
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoraSpec: rank must be at least 1, not {self.rank}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"LoraSpec: dropout must be in [0, 1), not {self.dropout}")
        if not self.targets:
            raise ValueError("LoraSpec: targets is empty; name at least one linear layer, or 'all-linear'")

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


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

    A step takes `batch_size` sequences; its loss is the mean over all their labelled tokens (Trainer's rule with
    gradient accumulation: `batch_size` here is batch size times accumulation there).  `schedule` decays the learning
    rate from the end of the warm-up to zero at the last step (`linear`, `cosine`) or keeps it (`constant`).  `shuffle`
    draws a new order each epoch from the job's seed; without it, sequences keep their order."""

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
    """One fit: sequences, settings and a seed, which decides the adapter's first weights, its data order and its
    dropout."""

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
    """How a fit went.  `first_loss` and `last_loss` are means over the first and the last epoch's steps, nats per
    token; `losses` has one for each step; `error` says why a fit failed (its adapter is then worthless), else None."""

    steps: int
    tokens: int
    first_loss: float | None
    last_loss: float | None
    error: str | None = None
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class DecodeRequest:
    """A prompt and how to go on from it.  `adapter` is its place in the bank, None for the base model (one call of
    `decode` has either).  `temperature` 0 is greedy; else `top_p` keeps the smallest set of tokens with that
    probability.  Decoding ends at a token of `stop_ids`, which is not returned, or after `max_new_tokens`."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()
    adapter: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """`finished` is False where the completion was cut off at `max_new_tokens`."""

    ids: tuple[int, ...]
    finished: bool


def check(jobs: list[FitJob]) -> None:
    """Errors: ValueError, naming the job, for one that has nothing to learn."""
    for number, job in enumerate(jobs):
        if not job.sequences or any(sequence.labelled < 1 for sequence in job.sequences):
            raise ValueError(f"job {number} has no sequences, or one without a token to learn")
