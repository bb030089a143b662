"""Units of work: what a worker is asked to do, and what it gives back, as plain data.

Knows token ids, and the engine's settings.  Knows nothing of documents or of where a worker runs.

How jobs are cut into units depends on the jobs and the settings alone, never on the number of workers, and a unit is done by
one worker in one go: that is why results are the same however many workers there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from selfedit.engine import Completion, DecodeRequest, FitJob, FitResult, FitSettings, LoraSpec, TokenSequence


@dataclass(frozen=True)
class WriteUnit:
    """Prompts for the policy without any adapter: edits to be written, or an exam before adaptation."""

    id: str
    policy: tuple[str, ...]
    requests: tuple[DecodeRequest, ...]

    @property
    def cost(self) -> float:
        """Tokens to be written at the most; only for comparing units."""
        return float(sum(request.max_new_tokens + len(request.prompt) for request in self.requests))


@dataclass(frozen=True)
class FitTask:
    """One fit, and the prompts that its adapter is examined with.  With `keep`, the adapter itself comes back too."""

    id: str
    job: FitJob
    exam: tuple[DecodeRequest, ...] = ()
    keep: bool = False


@dataclass(frozen=True)
class FitUnit:
    """Fits that share a bank, with their exams."""

    id: str
    policy: tuple[str, ...]
    lora: LoraSpec
    tasks: tuple[FitTask, ...]

    @property
    def cost(self) -> float:
        """Forward passes in tokens, a training token counted as three; only for comparing units."""
        exam = sum(len(r.prompt) + r.max_new_tokens for task in self.tasks for r in task.exam)
        return float(3 * sum(task.job.tokens for task in self.tasks) + exam)


Unit = WriteUnit | FitUnit


@dataclass(frozen=True)
class FitOutcome:
    """What became of a `FitTask`.  `seconds` is its share of the unit's time (by tokens); `adapter` holds the files of the
    adapter in PEFT's format, by name, where it was to be kept."""

    id: str
    result: FitResult
    completions: tuple[Completion, ...]
    seconds: float
    adapter: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitResult:
    """What a unit gave: completions for a `WriteUnit`, outcomes for a `FitUnit`.  `error` says why it was given up."""

    unit_id: str
    seconds: float
    completions: tuple[Completion, ...] = ()
    outcomes: tuple[FitOutcome, ...] = ()
    error: str | None = None


def write_units(
    prefix: str, policy: tuple[str, ...], requests: Sequence[DecodeRequest], *, size: int
) -> list[tuple[WriteUnit, list[int]]]:
    """Cuts requests into units of at most `size`, similar lengths together; with each unit the numbers of its requests."""
    order = sorted(range(len(requests)), key=lambda k: (-len(requests[k].prompt) - requests[k].max_new_tokens, k))
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    return [
        (WriteUnit(f"{prefix}/{number}", policy, tuple(requests[k] for k in group)), group)
        for number, group in enumerate(groups)
    ]


def fit_units(
    prefix: str, policy: tuple[str, ...], lora: LoraSpec, tasks: Sequence[FitTask], *, size: int
) -> list[FitUnit]:
    """Cuts fits into units of at most `size`, long ones first and fits of similar length together, so that a bank stays full."""
    ordered = sorted(tasks, key=lambda task: (-task.job.tokens, task.id))
    groups = even_groups([task.job.tokens for task in ordered], size=size)
    return [
        FitUnit(f"{prefix}/{number}", policy, lora, tuple(ordered[k] for k in group))
        for number, group in enumerate(groups)
    ]


def even_groups(amounts: Sequence[float], *, size: int) -> list[list[int]]:
    """Numbers of neighbours, at most `size` together and no more of the amount than `size` average ones have (one larger goes
    alone): otherwise the longest fits would make a unit that everybody waits for in the end."""
    limit = size * sum(amounts) / max(1, len(amounts)) * (1 + 1e-9)
    groups: list[list[int]] = []
    amount = 0.0
    for number, one in enumerate(amounts):
        if not groups or len(groups[-1]) == size or amount + one > limit:
            groups.append([])
            amount = 0.0
        groups[-1].append(number)
        amount += one
    return groups


__all__ = [
    "Completion",
    "DecodeRequest",
    "FitJob",
    "FitOutcome",
    "FitResult",
    "FitSettings",
    "FitTask",
    "FitUnit",
    "LoraSpec",
    "TokenSequence",
    "Unit",
    "UnitResult",
    "WriteUnit",
    "even_groups",
    "fit_units",
    "write_units",
]
