"""The records of one run, read at one moment from its directory: what every table, chart and page is made of.

An unfinished run is read as far as it goes, even while another process writes it: what is not there yet is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from selfedit.documents import Document, Question
from selfedit.editors.base import Edit
from selfedit.evaluation.grade import Grade
from selfedit.runs.directory import RunDirectory
from selfedit.runs.records import Answer, CostRecord, Event, FitRecord
from selfedit.runs.summary import RoundSummary, Summary, empty_summary, round_summary


class Given(NamedTuple):
    """An answer, the fit that gave it, and its grade; None where it has none yet."""

    fit: FitRecord
    answer: Answer
    grade: Grade | None

    @property
    def score(self) -> float | None:
        return self.grade.score if self.grade else None

    @property
    def value(self) -> str:
        """right, wrong or ungraded; empty where there is no grade yet."""
        return self.grade.value if self.grade else ""


@dataclass(frozen=True)
class RunRecords:
    """A run as reports see it.  `summary` is None while the run has not finished.

    `grades` are those of `grader`, by fit and question; `curves` are losses by fit.
    """

    path: Path
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    summary: Summary | None
    grader: str
    rounds: Sequence[RoundSummary]
    documents: Sequence[Document]
    splits: Mapping[str, str]
    general_questions: Sequence[Question]
    edits: Sequence[Edit]
    fits: Sequence[FitRecord]
    grades: Mapping[tuple[str, str], Grade]
    curves: Mapping[str, Sequence[tuple[int, float]]]
    costs: Sequence[CostRecord]
    events: Sequence[Event]
    seconds: float  # that the run has taken so far

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def figures(self) -> Summary:
        """The summary; an empty one while there is none."""
        return self.summary or empty_summary()

    @property
    def model(self) -> str:
        return self.figures.model or str(self.config.get("model") or "")

    @property
    def instruct(self) -> bool | None:
        """Whether the model was prompted through a chat template; None where the run does not say."""
        resolved = self.config.get("resolved") or {}
        return resolved.get("instruct") if self.figures.instruct is None else self.figures.instruct

    @property
    def procedure(self) -> str:
        return self.figures.procedure or str(self.config.get("procedure") or "")

    @property
    def questions(self) -> int:
        return sum(len(document.questions) for document in self.documents)

    @cached_property
    def answers(self) -> list[Given]:
        """The answers to the documents' questions."""
        return [given for given in self._given if given.answer.question_id not in self._general]

    @cached_property
    def general_answers(self) -> list[Given]:
        """The answers to general questions."""
        return [given for given in self._given if given.answer.question_id in self._general]

    @cached_property
    def _general(self) -> set[str]:
        return {question.id for question in self.general_questions}

    @cached_property
    def _given(self) -> list[Given]:
        return [
            Given(fit, answer, self.grades.get((id, answer.question_id)))
            for fit in self.fits
            for id in (fit.id,)
            for answer in fit.answers
        ]


def read_run(path: Path) -> RunRecords:
    """Reads all of a run.

    Raises:
        UserError: `path` is no run directory, or one of its files cannot be read.
    """
    with RunDirectory.read(path) as directory, directory.store.transaction():
        store, resolved, summary = directory.store, directory.resolved, directory.summary
        graders = store.graders()
        wanted = (summary.grader if summary else "", str(directory.config.get("grader") or ""))
        grader = next((name for name in (*wanted, *graders) if name in graders), wanted[0])
        rounds = summary.rounds if summary else ()
        return RunRecords(
            path=path,
            config=directory.config | ({"resolved": resolved} if resolved else {}),
            versions=directory.versions,
            summary=summary,
            grader=grader,
            rounds=rounds or tuple(round_summary(record, store.path) for record in store.rounds()),
            documents=store.documents(),
            splits=store.splits(),
            general_questions=store.general_questions(),
            edits=store.edits(),
            fits=store.fits(),
            grades=store.grades(grader),
            curves=store.curves(),
            costs=store.costs(),
            events=store.events(),
            seconds=store.wall_seconds(),
        )
