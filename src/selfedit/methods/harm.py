"""What learning has harmed: general questions lost, how far adapters have moved, what they say of other documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfedit.evaluation.statistics import DocumentScore, accuracy_interval, mean_interval, pooled
from selfedit.methods.run import Run
from selfedit.methods.settings import LearnSettings
from selfedit.runs.summary import ForgettingSummary, NeighbourSummary


def forgetting(run: Run, conditions: Sequence[str]) -> list[ForgettingSummary]:
    """Of the general questions that the model answered before, how many each condition's adapters still answer, and how
    far they have moved on texts of the model's own.

    The interval of the first takes adapters for what was sampled, each of which was asked its own sample of those
    questions (questions, where each was routed to one adapter, or none); that of the second documents.
    """
    routed = isinstance(run.settings, LearnSettings) and run.settings.adapters == "per-document"
    found = []
    for name in conditions:
        if name == "none":
            continue
        figures: dict[str, Any] = {}
        if by_fit := general_scores(run, [name], by_question=routed):
            asked, kept = (int(sum(score[k] for score in by_fit.values())) for k in (1, 0))
            mean, low, high = accuracy_interval(by_fit)
            figures |= {"asked": asked, "kept": kept, "lost": 1 - mean, "ci95": (1 - high, 1 - low)}
        moved: dict[str, list[float]] = {}
        for fit in run.store.fits(condition=name):
            if fit.divergence is not None:
                moved.setdefault(fit.document_id or fit.id, []).append(fit.divergence)
        if moved:
            measured = sum(map(len, moved.values()))
            mean, interval = mean_interval(moved)
            ci95 = interval and (max(0.0, interval[0]), interval[1])
            figures |= {"measured": measured, "divergence": mean, "divergence_ci95": ci95}
        if figures:
            found.append(ForgettingSummary(condition=name, **figures))
    return found


def general_scores(run: Run, conditions: Sequence[str], *, by_question: bool = False) -> dict[str, DocumentScore]:
    """How many general questions each fit of these conditions answered rightly, of those graded, by fit."""
    return pooled(
        (answer.question_id if by_question else answer.fit_id, DocumentScore(answer.value == "right", 1))
        for name in conditions
        for answer in run.store.scored_answers(run.grading.name, condition=name)
        if answer.document_id is None and answer.score is not None
    )


def neighbours(run: Run, conditions: Sequence[str]) -> list[NeighbourSummary]:
    """What each condition's adapters say of their own documents when they are asked about others; the interval is over
    documents."""
    found = []
    for name in conditions:
        fits = [fit for fit in run.store.fits(condition=name) if fit.neighbours]
        if not fits:
            continue
        leaked = pooled((str(fit.document_id), DocumentScore(fit.leaked, fit.neighbours)) for fit in fits)
        mean, low, high = accuracy_interval(leaked)
        asked = sum(fit.neighbours for fit in fits)
        before = [fit.leaked_before for fit in fits if fit.leaked_before is not None]
        share = sum(before) / asked if len(before) == len(fits) else None
        found.append(NeighbourSummary(condition=name, asked=asked, leaked=mean, ci95=(low, high), before=share))
    return found
