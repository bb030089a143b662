"""How far a grader can be trusted: its grades against labelled ones.

Labels come as JSONL rows with `question`, `gold`, `answer` and `correct`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, StrictBool

from selfedit.documents.rows import BlankText, Text, read_rows
from selfedit.errors import UserError, checked
from selfedit.evaluation.grade import GradeItem, Grader
from selfedit.evaluation.statistics import bootstrap_interval, kappa


class GradedRow(BaseModel):
    """One row of a file of answers: `correct` is the label, None where it has none."""

    question: Text
    gold: Annotated[
        list[Text], Field(min_length=1), BeforeValidator(lambda gold: [gold] if isinstance(gold, str) else gold)
    ]
    answer: BlankText
    title: BlankText = ""
    correct: StrictBool | None = None

    @property
    def item(self) -> GradeItem:
        return GradeItem(self.question, tuple(self.gold), self.answer)


@dataclass(frozen=True)
class GraderReport:
    """Agreement of a grader with labels, over the `n` rows that it graded; `ungraded` rows are counted apart.

    `confusion[label][grade]` are counts, with label and grade `right` or `wrong`.  `bias` is the mean score minus the
    share of rows labelled right: what the grader adds to an accuracy (0.01 = one point too high).  Intervals are 95 %,
    by bootstrap over questions (None: these are too few, or all alike)."""

    grader: str
    n: int
    ungraded: int
    questions: int
    agreement: float
    kappa: float
    kappa_ci95: tuple[float, float] | None
    bias: float
    bias_ci95: tuple[float, float] | None
    confusion: dict[str, dict[str, int]]


def read_graded_rows(path: str | Path, *, labelled: bool = True) -> list[GradedRow]:
    """Rows of `{"question", "gold", "answer", "correct"}`, perhaps with a `title`; one JSON object per line.

    `gold` is a text or a list of texts.  `correct` must be there where `labelled`.  An empty `answer` is allowed, blank
    lines are skipped.  Raises UserError naming file and row."""
    rows = []
    for where, row in read_rows(Path(path)):
        rows.append(checked(GradedRow, row, where, 'a row is {"question", "gold", "answer", "correct"}'))
        if labelled and rows[-1].correct is None:
            raise UserError(f"{where}: correct must be true or false; label the row")
    return rows


def check_grader(grader: Grader, rows: Sequence[GradedRow]) -> GraderReport:
    """Grades labelled rows and compares.  Raises UserError where nothing was graded."""
    grades = grader.grade([row.item for row in rows])
    graded = [(row, grade) for row, grade in zip(rows, grades, strict=True) if grade.score is not None]
    if not graded:
        reason = next((grade.note for grade in grades if grade.note), "no rows")
        raise UserError(
            f"{grader.name}: not one of {len(rows)} answers could be graded ({reason}); mend the cause and run again"
        )
    questions = [f"{row.title}\n{row.question}" for row, _ in graded]
    labels = np.asarray([bool(row.correct) for row, _ in graded], dtype=np.float64)
    said = np.asarray([grade.value == "right" for _, grade in graded], dtype=np.float64)
    excess = np.asarray([grade.score for _, grade in graded]) - labels
    ones = np.ones(len(graded))
    agreed, kappa_ci95 = bootstrap_interval(np.stack([labels * said, labels, said, ones]), questions, kappa)
    bias, bias_ci95 = bootstrap_interval(np.stack([excess, ones]), questions, lambda sums: sums[0] / sums[1])
    names = {True: "right", False: "wrong"}
    confusion = {label: dict.fromkeys(names.values(), 0) for label in names.values()}
    for row, grade in graded:
        confusion[names[bool(row.correct)]][grade.value] += 1
    return GraderReport(
        grader=grader.name,
        n=len(graded),
        ungraded=len(rows) - len(graded),
        questions=len(set(questions)),
        agreement=float((labels == said).mean()),
        kappa=agreed,
        kappa_ci95=kappa_ci95,
        bias=bias,
        bias_ci95=bias_ci95,
        confusion=confusion,
    )
