"""From verdicts to a score.  Ungraded answers are counted, never scored.

Knows verdicts only; intervals are in `statistics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from selfedit.exam.verdict import Verdict


@dataclass(frozen=True)
class Score:
    """`correct` counts the verdicts `right`; `accuracy` is the mean credit of the graded answers, None if there are none."""

    correct: int
    graded: int
    ungraded: int
    accuracy: float | None

    @property
    def answers(self) -> int:
        return self.graded + self.ungraded


def score(verdicts: Iterable[Verdict]) -> Score:
    """The score of some answers' verdicts, in any order."""
    correct = graded = ungraded = 0
    credit = 0.0
    for verdict in verdicts:
        if verdict.value == "ungraded":
            ungraded += 1
            continue
        if verdict.credit is None:
            raise ValueError(f"a verdict is '{verdict.value}' but has no credit: {verdict}")
        graded += 1
        correct += verdict.value == "right"
        credit += verdict.credit
    return Score(correct, graded, ungraded, credit / graded if graded else None)
