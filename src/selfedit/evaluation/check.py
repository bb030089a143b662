"""How far a grader can be trusted: its grades against labelled ones.

Labels come as JSONL rows with `question`, `gold`, `answer` and `correct`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field, StrictBool

from selfedit.documents.rows import BlankText, Text, read_rows
from selfedit.errors import UserError, checked
from selfedit.evaluation.grade import Grade, GradeItem, Grader
from selfedit.evaluation.statistics import bootstrap, cohen_kappa, kappa_interval


class _Row(BaseModel):
    question: Text
    gold: Annotated[
        list[Text], Field(min_length=1), BeforeValidator(lambda gold: [gold] if isinstance(gold, str) else gold)
    ]
    answer: BlankText
    title: BlankText = ""
    correct: StrictBool | None = None


@dataclass(frozen=True)
class GradedRow:
    """One row of a file of answers: `correct` is the label, None where it has none."""

    title: str
    item: GradeItem
    correct: bool | None


@dataclass(frozen=True)
class GraderReport:
    """Agreement of a grader with labels, over the `n` rows that it graded; `ungraded` rows are counted apart.

    `confusion[label][grade]` are counts, with label and grade `right` or `wrong`.  `bias` is the mean score minus the
    share of rows labelled right: what the grader adds to an accuracy (0.01 = one point too high).  Intervals are 95 %,
    by bootstrap over questions."""

    grader: str
    n: int
    ungraded: int
    questions: int
    agreement: float
    kappa: float
    kappa_ci95: tuple[float, float]
    bias: float
    bias_ci95: tuple[float, float]
    confusion: dict[str, dict[str, int]]

    def to_json(self) -> dict[str, Any]:
        """The report as plain data; intervals are lists of two."""
        plain = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def read_graded_rows(path: str | Path, *, labelled: bool = True) -> list[GradedRow]:
    """Rows of `{"question", "gold", "answer", "correct"}`, perhaps with a `title`; one JSON object per line.

    `gold` is a text or a list of texts.  `correct` must be there where `labelled`.  An empty `answer` is allowed, blank
    lines are skipped.  Raises UserError naming file and row."""
    rows = []
    for where, row in read_rows(Path(path)):
        found = checked(_Row, row, where, 'a row is {"question", "gold", "answer", "correct"}')
        if labelled and found.correct is None:
            raise UserError(f"{where}: correct must be true or false; label the row")
        item = GradeItem(found.question, tuple(found.gold), found.answer.strip())
        rows.append(GradedRow(found.title.strip(), item, found.correct))
    return rows


def grade_rows(grader: Grader, rows: Sequence[GradedRow]) -> list[Grade]:
    """One grade per row, in order."""
    grades = grader.grade([row.item for row in rows])
    if len(grades) != len(rows):
        raise RuntimeError(f"grader {grader.name} returned {len(grades)} grades for {len(rows)} answers")
    return grades


def check_grader(grader: Grader, rows: Sequence[GradedRow]) -> GraderReport:
    """Grades labelled rows and compares.  Raises UserError where nothing was graded, ValueError on a row without a
    label."""
    if any(row.correct is None for row in rows):
        raise ValueError("a row has no label: nothing to compare with")
    graded: list[tuple[GradedRow, bool, float]] = []
    grades = grade_rows(grader, rows)
    for row, grade in zip(rows, grades, strict=True):
        if grade.value != "ungraded" and grade.score is not None:
            graded.append((row, grade.value == "right", grade.score))
    if not graded:
        reason = next((v.note for v in grades if v.note), "no rows")
        raise UserError(
            f"{grader.name}: not one of {len(rows)} answers could be graded ({reason}); mend the cause and run again"
        )
    labels = [bool(row.correct) for row, _, _ in graded]
    said = [right for _, right, _ in graded]
    questions = [f"{row.title}\n{row.item.question}" for row, _, _ in graded]
    names = {True: "right", False: "wrong"}
    confusion = {label: dict.fromkeys(names.values(), 0) for label in names.values()}
    for label, right in zip(labels, said, strict=True):
        confusion[names[label]][names[right]] += 1
    kappa = kappa_interval(labels, said, questions)
    excess = np.asarray([score - label for (_, _, score), label in zip(graded, labels, strict=True)])
    return GraderReport(
        grader=grader.name,
        n=len(graded),
        ungraded=len(rows) - len(graded),
        questions=len(set(questions)),
        agreement=sum(a == b for a, b in zip(labels, said, strict=True)) / len(graded),
        kappa=cohen_kappa(labels, said),
        kappa_ci95=(kappa.lo, kappa.hi),
        bias=float(excess.mean()),
        bias_ci95=_mean_interval(excess, questions),
        confusion=confusion,
    )


def _mean_interval(values: NDArray[np.float64], clusters: Sequence[str]) -> tuple[float, float]:
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    sums, counts = np.bincount(inverse, weights=values), np.bincount(inverse)
    draws = bootstrap(len(sums), lambda index: sums[index].sum(axis=1) / counts[index].sum(axis=1))
    lo, hi = np.quantile(draws, [0.025, 0.975])
    return float(lo), float(hi)
