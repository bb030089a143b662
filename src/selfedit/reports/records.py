"""The records of one run, read at one moment from its directory: what every table, chart and page is made of.

An unfinished run is read as far as it goes, even while another process writes it: what is not there yet is empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from selfedit.documents import Document, Question
from selfedit.editors.base import Edit
from selfedit.grouping import grouped
from selfedit.runs.costs import Spent, cost_by_condition
from selfedit.runs.directory import RunDirectory
from selfedit.runs.records import CostRecord, Event, FitRecord, ScoredAnswer
from selfedit.runs.summary import ConditionSummary, RoundSummary, Summary, empty_summary


@dataclass(frozen=True)
class RunRecords:
    """A run as reports see it.  `summary` is None while the run has not finished.

    `scored` are all answers, with their grades by `grader`; `curves` are losses by fit.
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
    scored: Sequence[ScoredAnswer]
    curves: Mapping[str, Sequence[tuple[int, float]]]
    costs: Sequence[CostRecord]
    events: Sequence[Event]
    seconds: float  # that the run has taken so far

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @cached_property
    def figures(self) -> Summary:
        """The summary; of an unfinished run, its model, how that is prompted, and what its conditions have come to so
        far."""
        if self.summary is not None:
            return self.summary
        instruct = (self.config.get("resolved") or {}).get("instruct")
        return empty_summary(str(self.config.get("model") or ""), _conditions_so_far(self), instruct)

    @property
    def model(self) -> str:
        return self.figures.model

    @property
    def procedure(self) -> str:
        return self.figures.procedure or str(self.config.get("procedure") or "")

    @property
    def questions(self) -> int:
        return sum(len(document.questions) for document in self.documents)

    @cached_property
    def answers(self) -> list[ScoredAnswer]:
        """To the documents' questions."""
        return [answer for answer in self.scored if answer.document_id is not None]


def mean_score(answers: Iterable[ScoredAnswer]) -> float | None:
    """The mean score of the graded answers; None where none is graded."""
    scores = [answer.score for answer in answers if answer.score is not None]
    return fmean(scores) if scores else None


def _conditions_so_far(run: RunRecords) -> list[ConditionSummary]:
    """Over pooled answers, without intervals.  Step B's rounds are no conditions: none for them."""
    if run.rounds or any(edit.round for edit in run.edits):
        return []
    fits = [fit for fit in run.fits if fit.round == 0]
    answers = grouped((answer.condition, answer) for answer in run.answers if answer.round == 0)
    names = list(dict.fromkeys([fit.condition for fit in fits] + [edit.writer for edit in run.edits]))
    costs = cost_by_condition(run.costs)
    result = []
    for name in sorted(names, key=lambda name: name != "none"):
        values = Counter(answer.value for answer in answers[name])
        spent = costs.get(name, Spent())
        result.append(
            ConditionSummary(
                name=name,
                accuracy=mean_score(answers[name]),
                correct=values["right"],
                graded=values["right"] + values["wrong"],
                ungraded=values["ungraded"],
                train_tokens=sum(fit.train_tokens for fit in fits if fit.condition == name),
                edit_tokens=sum(edit.output_tokens for edit in run.edits if edit.writer == name),
                seconds=spent.seconds,
                cost_usd=spent.usd,
            )
        )
    return result


def read_run(path: Path) -> RunRecords:
    """Reads all of a run.  Errors: UserError where `path` is no run directory, or one of its files cannot be read."""
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
            rounds=rounds or store.rounds(),
            documents=store.documents(),
            splits=store.splits(),
            general_questions=store.general_questions(),
            edits=store.edits(),
            fits=store.fits(),
            scored=store.scored_answers(grader, graded=False),
            curves=store.curves(),
            costs=store.costs(),
            events=store.events(),
            seconds=store.wall_seconds(),
        )
