"""How far a grader can be trusted: its grades against labelled ones.

Labels come as JSONL rows with `question`, `gold`, `answer` and `correct`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfedit.errors import UserError
from selfedit.evaluation.grade import Grade, GradeItem, Grader
from selfedit.evaluation.statistics import bootstrap, cohen_kappa, kappa_interval
from selfedit.text import is_whole


@dataclass(frozen=True)
class GradedRow:
    """One row of a file of answers: `number` is its line (from 1), `correct` the label, None where it has none."""

    number: int
    title: str
    question: str
    gold: tuple[str, ...]
    answer: str
    correct: bool | None
    gradings: int

    @property
    def item(self) -> GradeItem:
        return GradeItem(self.question, self.gold, self.answer)


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


_MOST_GRADINGS = 1_000_000


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        handle = path.open(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a JSONL file of answers") from error
    with handle:
        number = 0
        try:
            for number, line in enumerate(handle, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{path}: row {number}: not JSON ({error}); write one JSON object per line"
                    ) from error
                if not isinstance(row, dict):
                    raise UserError(f"{path}: row {number}: not a JSON object; write one JSON object per line")
                yield number, row
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: row {number + 1}: not UTF-8 text; save the file as UTF-8") from error


def _text(path: Path, number: int, row: dict[str, Any], name: str, *, empty: bool = False) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        problem = f"no field '{name}'" if name not in row else f"field '{name}' is not text"
        raise UserError(f'{path}: row {number}: {problem}; add "{name}": "..."')
    if not empty and not value.strip():
        raise UserError(f"{path}: row {number}: field '{name}' is empty; fill it in or remove the row")
    if not is_whole(value):
        raise UserError(f"{path}: row {number}: field '{name}' holds half a character (a lone surrogate); mend it")
    return value


def read_graded_rows(path: str | Path, *, labelled: bool = True) -> list[GradedRow]:
    """Rows of `{"question", "gold", "answer", "correct"}`, with `title` and `gradings` if they like; one JSON object a
    line.

    `gold` is a text or a list of texts.  `correct` must be there where `labelled`.  An empty `answer` is allowed, blank
    lines are skipped.  Raises UserError naming file and row."""
    path = Path(path)
    rows = []
    for number, row in _rows(path):
        question = _text(path, number, row, "question")
        answer = _text(path, number, row, "answer", empty=True)
        gold = row.get("gold")
        if isinstance(gold, list) and gold and all(isinstance(g, str) and g.strip() for g in gold):
            golds = tuple(_text(path, number, {"gold": text}, "gold") for text in gold)
        elif isinstance(gold, list):
            raise UserError(f"{path}: row {number}: field 'gold' must list at least one text and no empty one; mend it")
        else:
            golds = (_text(path, number, row, "gold"),)
        correct = row.get("correct")
        if not isinstance(correct, bool) and (labelled or correct is not None):
            raise UserError(f"{path}: row {number}: field 'correct' must be true or false; label the row")
        title = _text(path, number, row, "title", empty=True) if "title" in row else ""
        gradings = row.get("gradings", 1)
        if not isinstance(gradings, int) or isinstance(gradings, bool) or not 0 < gradings <= _MOST_GRADINGS:
            raise UserError(
                f"{path}: row {number}: field 'gradings' must be a whole number from 1 to {_MOST_GRADINGS:,}; mend it"
            )
        rows.append(GradedRow(number, title, question, golds, answer, correct, gradings))
    if not rows:
        raise UserError(f"{path}: no rows; write one JSON object per line")
    return rows


def grade_rows(grader: Grader, rows: Sequence[GradedRow]) -> list[Grade]:
    """One grade per row, in order."""
    grades = grader.grade([row.item for row in rows])
    if len(grades) != len(rows):
        raise RuntimeError(f"grader {grader.name} returned {len(grades)} grades for {len(rows)} answers")
    return grades


def check_grader(grader: Grader, rows: Sequence[GradedRow], *, seed: int = 0) -> GraderReport:
    """Grades labelled rows and compares.  Raises UserError where nothing was graded, ValueError on a row without a
    label."""
    unlabelled = [row.number for row in rows if row.correct is None]
    if unlabelled:
        raise ValueError(f"row {unlabelled[0]} has no label: nothing to compare with")
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
    questions = [f"{row.title}\n{row.question}" for row, _, _ in graded]
    names = {True: "right", False: "wrong"}
    confusion = {label: dict.fromkeys(names.values(), 0) for label in names.values()}
    for label, right in zip(labels, said, strict=True):
        confusion[names[label]][names[right]] += 1
    kappa = kappa_interval(labels, said, questions, seed=seed)
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
        bias_ci95=_mean_interval(excess, questions, seed),
        confusion=confusion,
    )


def _mean_interval(values: NDArray[np.float64], clusters: Sequence[str], seed: int) -> tuple[float, float]:
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    sums, counts = np.bincount(inverse, weights=values), np.bincount(inverse)
    draws = bootstrap(len(sums), lambda index: sums[index].sum(axis=1) / counts[index].sum(axis=1), seed=seed)
    lo, hi = np.quantile(draws, [0.025, 0.975])
    return float(lo), float(hi)
