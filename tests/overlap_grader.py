"""A grader for tests in which rewards must differ: the tiny models answer nearly everything wrong."""

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


@pytest.fixture(scope="module", autouse=True)
def overlap_grader() -> Iterator[None]:
    """`grader="overlap"` in the settings of a module's tests, where the module imports this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GRADERS, Overlap.name, Overlap)
        yield
