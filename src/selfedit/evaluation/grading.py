"""Gives the answers in a run's store their grades, and reads scores from them.

An answer that a grader can say nothing about is ungraded: excluded and counted, never wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, Protocol

from selfedit.errors import UserError
from selfedit.evaluation.grade import Grade, GradeItem, Grader
from selfedit.evaluation.statistics import DocumentScore, pooled

GRADE_CHUNK = 64  # grades committed together

# Which answers are graded in one go, and committed together: an adapter's, so many, or all of them.
Together = Literal["fit", "chunk", "all"]


class Answers(Protocol):
    """What grading needs of a run's store."""

    def to_grade(self, grader: str, *, above: int = ..., retry_ungraded: bool = ...) -> list[tuple[int, GradeItem]]: ...
    def fits_of_answers(self) -> dict[int, str]: ...
    def add_grades(self, grades: Iterable[tuple[int, Grade]], costs: Iterable[Any] = ()) -> None: ...
    def grade_counts(self, grader: str) -> dict[str, int]: ...
    def scored_answers(self, grader: str, *, round: int | None = None, condition: str | None = None) -> list[Any]: ...


@dataclass(eq=False)
class Grading:
    """Grades what is ungraded.

    `spent` holds costs of grades that are not committed yet (a local judge's device time).  `begin` shows a judge's
    work as a phase of so many answers.
    """

    store: Answers
    grader: Grader
    max_ungraded: float = 0.02
    together: Together = "chunk"
    spent: list[Any] = field(default_factory=list)
    begin: Callable[[str, float], None] = lambda phase, total: None
    beside: bool = field(default=False, init=False)  # whether grading goes on beside a phase whose progress is shown
    _retried: bool = field(default=False, init=False)
    _notes: Counter[str] = field(default_factory=Counter, init=False)  # why answers stay ungraded
    _up_to: int = field(default=-1, init=False)  # the last answer that was graded

    @property
    def name(self) -> str:
        """The grader's."""
        return self.grader.name

    def grade(self) -> None:
        """Gives every answer that has none its grade.  Errors: UserError where too many stay ungraded."""
        # Answers that a judge could not grade are tried again, once an attempt at the run.
        todo = self.store.to_grade(self.name, retry_ungraded=not self._retried)
        self._retried = True
        if todo and self.name.startswith("judge:"):
            self.begin(f"grading by {self.name}", len(todo))
        self._grade(todo)
        counts = self.store.grade_counts(self.name)
        total = sum(counts.values())
        commonest = "".join(f" (most often: {note})" for note, _ in self._notes.most_common(1))
        if total and counts["ungraded"] / total > self.max_ungraded:
            raise UserError(
                f"{counts['ungraded']} of {total} answers could not be graded by {self.name}, more than --max-ungraded"
                f" {100 * self.max_ungraded:g}% allows{commonest}; nothing is reported.  The same command"
                " tries them again"
            )

    def grade_beside(self) -> None:
        """Grades what has come so far while fits go on (workers on Ray do not wait for it): not by the model itself,
        which would interrupt them, nor by an API that takes batches."""
        if self.together != "chunk":
            return
        self.beside = True
        self._grade(self.store.to_grade(self.name, above=self._up_to))
        self.beside = False

    def _grade(self, todo: Sequence[tuple[int, GradeItem]]) -> None:
        for chunk in self._chunks(todo):
            grades = self.grader.grade([item for _, item in chunk])
            self._notes.update(grade.note for grade in grades if grade.note)
            self.store.add_grades(zip((id for id, _ in chunk), grades, strict=True), self.spent)
            self.spent.clear()
            self._up_to = max(self._up_to, chunk[-1][0])

    def _chunks(self, todo: Sequence[tuple[int, GradeItem]]) -> Iterator[list[tuple[int, GradeItem]]]:
        if self.together == "fit":
            fits = self.store.fits_of_answers()
            for _, group in groupby(todo, key=lambda one: fits[one[0]]):
                yield list(group)
            return
        size = GRADE_CHUNK if self.together == "chunk" else len(todo) or 1
        for start in range(0, len(todo), size):
            yield list(todo[start : start + size])

    def scores(
        self, condition: str, *, round: int | None = None, replicate: int | None = None
    ) -> dict[str, DocumentScore]:
        """Scores and numbers of graded answers by document; ungraded answers count neither way."""
        return pooled(
            (answer.document_id, DocumentScore(answer.score, 1))
            for answer in self.store.scored_answers(self.name, condition=condition, round=round)
            if answer.document_id is not None and answer.score is not None and replicate in (None, answer.replicate)
        )

    def scores_of_fits(self, ids: Iterable[str], *, round: int | None = None) -> dict[str, list[float]]:
        """Scores of the graded answers of these fits about their own documents, by fit; a failed fit has none."""
        found: dict[str, list[float]] = {id: [] for id in ids}
        for answer in self.store.scored_answers(self.name, round=round):
            if answer.fit_id in found and answer.document_id is not None and answer.score is not None:
                found[answer.fit_id].append(answer.score)
        return found

    def right_before(self) -> set[str]:
        """The general questions that the model answered rightly before it learned anything."""
        answers = self.store.scored_answers(self.name, condition="none")
        return {answer.question_id for answer in answers if answer.document_id is None and answer.value == "right"}
