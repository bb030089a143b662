"""What a grader is: it takes questions, accepted answers and answers, as strings, and returns grades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

GradeValue = Literal["right", "wrong", "ungraded"]


@dataclass(frozen=True)
class GradeItem:
    question: str
    gold: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Grade:
    """`value` is right, wrong or ungraded (the grader could not say: never counted as wrong).

    `score` is what the answer counts in an accuracy, from 0 to 1 (the graders here give 0 or 1); None where `value` is
    ungraded.  `note` says why an answer is ungraded.
    """

    value: GradeValue
    score: float | None
    grader: str
    note: str = ""


class Grader(Protocol):
    """Grades answers; one grade per item, in order.  `name` is what a run records (`lexical`, `judge:gpt-4.1`, ...)."""

    name: str

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]: ...
