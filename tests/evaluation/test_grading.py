"""Grading on a store in memory: what is graded together, tried again, refused, and how scores come of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from selfedit.errors import UserError
from selfedit.evaluation import grading as module
from selfedit.evaluation.grade import Grade, GradeItem
from selfedit.evaluation.grading import Grading, Together
from selfedit.evaluation.statistics import DocumentScore


@dataclass
class Answered:
    fit_id: str
    document_id: str | None
    question_id: str
    answer: str
    value: str = ""
    score: float | None = None
    replicate: int = 0


class Answers:
    """As much of a store as grading looks at; `commits` are the answers and costs that were committed together."""

    def __init__(self, *answers: Answered) -> None:
        self.answers = list(answers)
        self.commits: list[tuple[list[int], list[Any]]] = []

    def to_grade(self, grader: str, *, above: int = -1, retry_ungraded: bool = False) -> list[tuple[int, GradeItem]]:
        wanted = ("", "ungraded") if retry_ungraded else ("",)
        answers = [(k, one) for k, one in enumerate(self.answers) if k > above and one.value in wanted]
        return [(k, GradeItem("?", ("yes",), one.answer)) for k, one in answers]

    def fits_of_answers(self) -> dict[int, str]:
        return {k: one.fit_id for k, one in enumerate(self.answers)}

    def add_grades(self, grades: Iterable[tuple[int, Grade]], costs: Iterable[Any] = ()) -> None:
        graded = list(grades)
        for k, grade in graded:
            self.answers[k].value, self.answers[k].score = grade.value, grade.score
        self.commits.append(([k for k, _ in graded], list(costs)))

    def grade_counts(self, grader: str) -> dict[str, int]:
        return {v: sum(one.value == v for one in self.answers) for v in ("right", "wrong", "ungraded")}

    def scored_answers(self, grader: str, *, round: int | None = None, condition: str | None = None) -> list[Any]:
        return [one for one in self.answers if one.value]


class Picky:
    """Right is "yes", wrong is "no"; nothing can be said of anything else."""

    name = "judge:picky"

    def __init__(self, spent: list[Any]) -> None:
        self.spent = spent

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]:
        self.spent.append(f"{len(items)} items")
        known = {"yes": Grade("right", 1.0, self.name), "no": Grade("wrong", 0.0, self.name)}
        return [known.get(item.answer, Grade("ungraded", None, self.name, note=item.answer)) for item in items]


def grading(store: Answers, together: Together = "chunk", *, max_ungraded: float = 1.0) -> Grading:
    spent: list[Any] = []
    return Grading(store, Picky(spent), together=together, spent=spent, max_ungraded=max_ungraded)


def three() -> Answers:
    return Answers(Answered("f", "a", "q1", "yes"), Answered("f", "b", "q2", "no"), Answered("g", "a", "q1", "perhaps"))


@pytest.mark.parametrize(
    ("together", "expected"),
    [("chunk", [[0, 1], [2]]), ("fit", [[0, 1], [2]]), ("all", [[0, 1, 2]])],
)
def test_what_is_graded_together_is_committed_with_its_cost(
    monkeypatch: pytest.MonkeyPatch, together: Together, expected: list[list[int]]
) -> None:
    monkeypatch.setattr(module, "GRADE_CHUNK", 2)
    store = three()
    grading(store, together).grade()
    assert store.commits == [(ids, [f"{len(ids)} items"]) for ids in expected]


def test_the_ungraded_are_tried_again_once_an_attempt() -> None:
    store = three()
    one = grading(store)
    for _ in range(2):
        one.grade()
    assert [ids for ids, _ in store.commits] == [[0, 1, 2]]
    grading(store).grade()
    assert [ids for ids, _ in store.commits] == [[0, 1, 2], [2]]


def test_too_many_ungraded_are_refused() -> None:
    store = three()
    store.answers += [Answered("g", "b", "q2", word) for word in ("unclear", "unclear")]
    told = r"3 of 5 answers could not be graded by judge:picky.* 0\.5% allows \(most often: unclear\);"
    with pytest.raises(UserError, match=told):
        grading(store, max_ungraded=0.005).grade()


def test_beside_fits_only_what_does_not_hold_them_up_is_graded() -> None:
    for together, graded in (("chunk", True), ("fit", False), ("all", False)):
        store = three()
        grading(store, together).grade_beside()  # type: ignore[arg-type]
        assert bool(store.commits) == graded


def test_scores_leave_out_what_is_ungraded_and_what_belongs_to_no_document() -> None:
    store = three()
    store.answers.append(Answered("f", None, "general|1", "yes"))
    one = grading(store)
    one.grade()
    assert one.scores("any") == {"a": DocumentScore(1.0, 1), "b": DocumentScore(0.0, 1)}
    assert one.scores_of_fits(["f", "g", "failed"]) == {"f": [1.0, 0.0], "g": [], "failed": []}
    assert one.right_before() == {"general|1"}


def test_beside_fits_no_answer_is_looked_at_twice() -> None:
    store = three()
    found = grading(store)
    found.grade_beside()
    store.answers[0].value = ""
    found.grade_beside()
    assert store.commits == [([0, 1, 2], ["3 items"])]
    found.grade()
    assert store.commits[1:] == [([0, 2], ["2 items"])]  # and the one that was ungraded
