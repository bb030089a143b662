"""From grades to a score.  Ungraded answers are counted, never scored.

Intervals are in `statistics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from selfedit.evaluation.grade import Grade


@dataclass(frozen=True)
class Score:
    """`correct` counts the grades `right`; `accuracy` is the mean score of the graded answers, None if there are
    none."""

    correct: int
    graded: int
    ungraded: int
    accuracy: float | None

    @property
    def answers(self) -> int:
        return self.graded + self.ungraded


def score(grades: Iterable[Grade]) -> Score:
    """The score of some answers' grades, in any order."""
    correct = graded = ungraded = 0
    total = 0.0
    for grade in grades:
        if grade.value == "ungraded":
            ungraded += 1
            continue
        if grade.score is None:
            raise ValueError(f"a grade is '{grade.value}' but has no score: {grade}")
        graded += 1
        correct += grade.value == "right"
        total += grade.score
    return Score(correct, graded, ungraded, total / graded if graded else None)
