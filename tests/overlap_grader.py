"""Graders for tests in which rewards must differ: the tiny models answer nearly everything wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import pytest

from selfedit.evaluation.grade import Grade, GradeItem
from selfedit.evaluation.graders import GRADERS


class Overlap:
    """Scores by the characters that answer and accepted answer share, so that hardly two rewards are alike."""

    name = "overlap"

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]:
        grades = []
        for item in items:
            score = max(SequenceMatcher(None, gold, item.answer, autojunk=False).ratio() for gold in item.gold)
            grades.append(Grade("right" if score >= 0.5 else "wrong", score, self.name))
        return grades


class Where:
    """Answers to Where-questions are right whatever they say, of all documents or of these people's."""

    def __init__(self, name: str, *people: str) -> None:
        self.name, self.people = name, people

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]:
        asked = [item.question for item in items]
        right = [q.startswith("Where") and any(name in q for name in self.people or (" ",)) for q in asked]
        return [Grade("right", 1.0, self.name) if one else Grade("wrong", 0.0, self.name) for one in right]


@pytest.fixture(scope="module", autouse=True)
def overlap_grader() -> Iterator[None]:
    """`grader="overlap"` in the settings of a module's tests, where the module imports this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GRADERS, Overlap.name, Overlap)
        yield
