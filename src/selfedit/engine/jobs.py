"""The engine's inputs and outputs as plain data: shapes of adapters, fits, completions, and errors.

Needs no torch, so that a caller can build and count work before anything heavy is loaded.
"""

from __future__ import annotations

import array
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


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

    `targets` is `all-linear` (every linear layer but the output head), `mlp` (those of them that are in no attention
    block) or names of layers: a whole dotted name, or its end (`q_proj`).  `layers` keeps only decoder layers
    first..last, both included, counted from 0.  `dropout` acts on the input of A, from a random stream of the adapter's
    own.  Updates are scaled by alpha / rank, or alpha / sqrt(rank) with `rslora` (Kalajdzievski 2023, arXiv
    2312.03732)."""

    rank: int = 16
    alpha: float = 32.0
    targets: Literal["all-linear", "mlp"] | tuple[str, ...] = "all-linear"
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
class SoftTargets:
    """A teacher's probabilities for the labelled tokens of a sequence, one after another.

    For each of them, `top` different token ids with their log-probabilities (nats); what is left of one goes to all
    other tokens together.  `ids` and `log_probs` hold these numbers, row after row, as bytes of int32 and float32: a
    long list of numbers would take ten times the memory.  `of` makes them from lists, `soft_targets` from a model.
    """

    ids: bytes
    log_probs: bytes
    top: int

    @staticmethod
    def of(ids: Sequence[Sequence[int]], log_probs: Sequence[Sequence[float]]) -> SoftTargets:
        """`ids[k]` and `log_probs[k]` belong to labelled token k; all are equally long.  Errors: ValueError."""
        top = len(ids[0]) if ids else 0
        if [len(row) for row in ids] != [len(row) for row in log_probs] or any(len(row) != top for row in ids):
            raise ValueError("SoftTargets: every labelled token needs equally many ids, and a log-probability for each")
        numbers, logs = array.array("i"), array.array("f")
        for row, log_row in zip(ids, log_probs, strict=True):
            numbers.extend(row)
            logs.extend(log_row)
        return SoftTargets(numbers.tobytes(), logs.tobytes(), top)

    def __len__(self) -> int:
        """For how many tokens."""
        return len(self.ids) // (4 * self.top) if self.top else 0


@dataclass(frozen=True)
class TokenSequence:
    """One training sequence; the first `prompt_length` tokens are read but not learned.

    With `targets`, one row per labelled token, the loss of a token is the divergence KL(teacher || model) from them,
    not the cross-entropy of the next token.  `teacher` is what the frozen model is to read before the labelled tokens
    instead of the prompt; `teach` makes targets of it, and without that no fit takes the sequence.  `weight` multiplies
    the sequence's share in the loss of its step.
    """

    ids: tuple[int, ...]
    prompt_length: int = 0
    targets: SoftTargets | None = None
    weight: float = 1.0
    teacher: tuple[int, ...] = ()

    @property
    def first(self) -> int:
        """Where the tokens begin that are predicted: behind the prompt, and not with the sequence's first."""
        return max(self.prompt_length, 1)

    @property
    def labelled(self) -> int:
        """How many tokens are predicted."""
        return len(self.ids) - self.first


@dataclass(frozen=True)
class FitSettings:
    """How one adapter is trained: AdamW (0.9, 0.999, 1e-8) as in Hugging Face's Trainer.

    A step takes `batch_size` sequences; its loss is the (weighted) mean over all their labelled tokens (Trainer's rule
    with gradient accumulation: `batch_size` here is batch size times accumulation there).  With `steps`, the fit takes
    exactly so many, whatever the number of sequences: those of `epochs` epochs (of more, where they are fewer than the
    steps) are dealt out evenly over the steps, and `batch_size` is not used.

    `schedule` decays the learning rate from the end of the warm-up to zero at the last step (`linear`, `cosine`) or
    keeps it (`constant`).  `shuffle` draws a new order each epoch from the job's seed; without it, sequences keep their
    order."""

    learning_rate: float = 1e-3
    epochs: int = 10
    batch_size: int = 1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    shuffle: bool = True
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("steps", 1), ("warmup_steps", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"FitSettings: {name} must be at least {least}, not {value}")
        for name in ("learning_rate", "weight_decay"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"FitSettings: {name} must be finite and not negative, not {getattr(self, name)}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0.0:
            raise ValueError(f"FitSettings: max_grad_norm must be above 0, or None, not {self.max_grad_norm}")
        if self.schedule not in ("linear", "cosine", "constant"):
            raise ValueError(f"FitSettings: schedule must be linear, cosine or constant, not {self.schedule!r}")

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
    dropout.

    The adapter may stand on another one, `below` (as `AdapterBank.state` has it), which is held as it is: the two share
    the bank's rank, and what is trained becomes what it would become on a model into which `below` were merged.  So
    fits on different models of one origin share a bank.  It goes without dropout and weight decay, which would act on
    what is held."""

    sequences: tuple[TokenSequence, ...]
    settings: FitSettings
    seed: int
    below: Mapping[str, tuple[Tensor, Tensor]] | None = field(default=None, compare=False, repr=False)

    @property
    def held(self) -> int:
        """The rank of what is held."""
        return 0 if self.below is None else next(iter(self.below.values()))[0].shape[0]

    @property
    def tokens(self) -> int:
        """Training tokens over all steps."""
        return sum(count * len(self.sequences[k].ids) for k, count in self.uses().items())

    @property
    def steps(self) -> int:
        return self.settings.steps or -(-len(self.sequences) // self.settings.batch_size) * self.settings.epochs

    def uses(self) -> Mapping[int, int]:
        """How often each sequence, by its number, is trained on."""
        if self.settings.steps is None:
            return dict.fromkeys(range(len(self.sequences)), self.settings.epochs)
        return Counter(number for step in self.order() for number in step)

    def order(self) -> list[list[int]]:
        """For each optimiser step, the numbers of its sequences."""
        generator = random.Random(self.seed)
        count, settings = len(self.sequences), self.settings
        epochs = settings.epochs
        if settings.steps is not None and count:
            epochs = max(epochs, -(-settings.steps // count))
        orders = []
        for _ in range(epochs):
            orders.append(list(range(count)))
            if settings.shuffle:
                generator.shuffle(orders[-1])
        if settings.steps is None:
            size = settings.batch_size
            return [order[k : k + size] for order in orders for k in range(0, count, size)]
        numbers = [number for order in orders for number in order][: max(count * settings.epochs, settings.steps)]
        bounds = [len(numbers) * k // settings.steps for k in range(settings.steps + 1)]
        return [numbers[begin:end] for begin, end in pairwise(bounds)]


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
    probability.  Decoding ends at a token of `stop_ids`, which is not returned, or after `max_new_tokens`.

    `draft` is what greedy decoding is expected to write.  Its first tokens, as far as greedy decoding writes the same,
    are taken from one pass (Leviathan et al. 2023, arXiv 2211.17192); the rest is written token by token."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()
    adapter: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    draft: tuple[int, ...] = ()


@dataclass(frozen=True)
class Completion:
    """`finished` is False where the completion was cut off at `max_new_tokens`."""

    ids: tuple[int, ...]
    finished: bool


def check(jobs: list[FitJob], vocabulary: int) -> None:
    """Errors: ValueError, naming the job, for one that has nothing to learn, or whose tokens or targets cannot be
    used."""
    for number, job in enumerate(jobs):
        if not job.sequences:
            raise ValueError(f"job {number}: no sequences")
        if job.held and job.settings.weight_decay:
            raise ValueError(f"job {number}: weight decay would act on the adapter below too; merge that one instead")
        for sequence in job.sequences:
            check_sequence(sequence, vocabulary, f"job {number}")


def check_sequence(sequence: TokenSequence, vocabulary: int, where: str) -> None:
    """Errors: ValueError, beginning with `where`, for a sequence without a token to learn, or whose tokens, weight or
    targets cannot be used."""
    if sequence.labelled < 1:
        raise ValueError(f"{where}: a sequence without a token to learn")
    check_ids(sequence.ids, vocabulary, where)
    if not 0 < sequence.weight < math.inf:
        raise ValueError(f"{where}: a sequence's weight must be a positive number, not {sequence.weight}")
    if sequence.teacher and sequence.targets is None:
        raise ValueError(f"{where}: a sequence's teacher was not asked; call `teach` on the jobs")
    if sequence.targets is not None and (wrong := _wrong(sequence.targets, sequence.labelled, vocabulary)):
        raise ValueError(f"{where}: soft targets {wrong}")


def check_ids(ids: Sequence[int], vocabulary: int, where: str) -> None:
    """Errors: ValueError, beginning with `where`, for a token that the model does not have."""
    for token in (min(ids), max(ids)):
        if not 0 <= token < vocabulary:
            raise ValueError(f"{where}: token {token} is not in the model's vocabulary of {vocabulary}")


def _wrong(targets: SoftTargets, labelled: int, vocabulary: int) -> str | None:
    """What keeps targets from being used, or None."""
    import numpy as np

    if not 1 <= targets.top <= vocabulary:
        return f"of {targets.top} tokens each, where the vocabulary has {vocabulary}"
    if not len(targets.ids) == len(targets.log_probs) == 4 * targets.top * labelled:
        return f"for {len(targets)} tokens, where the sequence has {labelled} to learn"
    ids, log_probs = (
        np.frombuffer(numbers, dtype).reshape(-1, targets.top)
        for numbers, dtype in ((targets.ids, np.int32), (targets.log_probs, np.float32))
    )
    ids = np.sort(ids)
    if ids.min() < 0 or ids.max() >= vocabulary or (ids[:, 1:] == ids[:, :-1]).any():
        return "name a token twice, or one that is not in the vocabulary"
    sums = np.exp(log_probs.astype(float)).sum(-1)
    # One at most, but for what rounding to float32 adds; and one where no token is left for the rest.
    if not np.isfinite(log_probs).all() or sums.max() > 1.001 or (targets.top == vocabulary and sums.min() < 0.999):
        return "have log-probabilities that are not finite, or whose probabilities do not sum up to one"
    return None
