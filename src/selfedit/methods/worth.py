"""Was training the editor worth it?  One paragraph, from a run's own figures.

It claims nothing that the intervals do not carry.
"""

from __future__ import annotations

from collections.abc import Sequence

from selfedit.evaluation.statistics import (
    LEAST_DOCUMENTS,
    Difference,
    DocumentScore,
    accuracy_interval,
    paired_difference,
)
from selfedit.methods.run import Run
from selfedit.runs.costs import Spent


def worth_it(run: Run, validation: Sequence[str], selected: int) -> str:
    """Step A's gain, Step B's further gain with its interval, what each cost, and what that recommends."""
    if not validation:
        return (
            "No documents were set apart for validation, so nothing can be said about whether training the "
            "editor helped:"
            " run it again with --validation-share, or compare it on other documents with `selfedit compare --policy`."
        )
    wanted = set(validation)
    before = _of(run.grading.scores("none", round=0), wanted)
    untrained = run.grading.scores("validation", round=0)
    last = max((record.round for record in run.store.rounds()), default=0)
    shown = selected or last
    trained = run.grading.scores("validation", round=shown)
    if not before.keys() & untrained.keys() or not untrained.keys() & trained.keys():
        return (
            "No validation document has graded answers before and after, so nothing can be said about whether "
            "training the editor helped."
        )
    step_a = paired_difference(before, untrained)
    step_b = paired_difference(untrained, trained)
    cost_a, cost_b = _costs(run)
    sentences = [
        f"On {len(validation)} validation documents the untrained model's accuracy is "
        f"{accuracy_interval(before).mean:.1%} before"
        f" it learns anything; learning its own edits (Step A) changes that by {_points(step_a)}.",
        f"Training the editor (Step B, round {shown}) changes it by a further {_points(step_b)}.",
        f"Step A took {_spent(cost_a)}; Step B {_spent(cost_b)}.",
    ]
    if step_b.documents < LEAST_DOCUMENTS:
        sentences.append(
            f"With fewer than {LEAST_DOCUMENTS} validation documents nothing can be larger than noise: set more apart."
        )
    if selected == 0:
        sentences.append(
            "No round beats the untrained editor by more than noise, so round 0 is selected: these figures do "
            "not recommend"
            " training the editor. " + _instead(step_a)
        )
    elif step_b.larger_than_noise:
        sentences.append(
            f"Round {selected} is selected. Its gain is larger than noise, but it was chosen on these documents: "
            "confirm it on test documents with `selfedit compare --policy`."
        )
    else:
        sentences.append(
            f"Round {selected} is selected because every earlier one is worse than the best by more than "
            "noise; against the"
            " untrained editor its gain is within noise. Confirm it on test documents with `selfedit compare --policy`."
        )
    return " ".join(sentences)


def _instead(step_a: Difference) -> str:
    if step_a.larger_than_noise and step_a.mean > 0:
        return "Step A alone is what they support."
    return (
        "Step A's own gain is within noise too: more documents, another recipe or a stronger editor should come first."
    )


def _of(scores: dict[str, DocumentScore], wanted: set[str]) -> dict[str, DocumentScore]:
    return {document: score for document, score in scores.items() if document in wanted}


def _points(difference: Difference) -> str:
    note = "" if difference.larger_than_noise else ", within noise"
    return f"{100 * difference.mean:+.1f} points ({100 * difference.lo:+.1f} to {100 * difference.hi:+.1f}{note})"


def _costs(run: Run) -> tuple[Spent, Spent]:
    """Validation in round 0 is Step A; everything in later rounds is Step B."""
    lines = run.store.costs()
    step_a = Spent.of(line for line in lines if line.round == 0 and line.condition == "validation")
    return step_a, Spent.of(line for line in lines if line.round > 0)


def _spent(spent: Spent) -> str:
    money = "" if spent.usd is None or not spent.usd else f" and {spent.usd:.2f} US dollars"
    if spent.seconds >= 3600:
        return f"{spent.seconds / 3600:.1f} device hours{money}"
    return f"{spent.seconds / 60:.1f} device minutes{money}"
