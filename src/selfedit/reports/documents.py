"""What the page shows of each document: its text, exam, edits and fits, under every condition and round.

All figures of the list are computed here; the page's script only sorts, hides and opens what stands there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from selfedit.documents import Document, Question
from selfedit.editors.base import Edit
from selfedit.grouping import grouped
from selfedit.reports import findings, format
from selfedit.reports.records import RunRecords, mean_score
from selfedit.runs.records import FitRecord, ScoredAnswer
from selfedit.runs.summary import ConditionSummary
from selfedit.text import counted

Key = tuple[int, str]
"""A column: round and condition."""

BASE: Key = (0, findings.BASE)

T = TypeVar("T", FitRecord, ScoredAnswer)


@dataclass(frozen=True, slots=True)
class AnswerView:
    """An answer, and how many of a column's fits gave it with the same grade."""

    text: str
    value: str
    score: float | None
    note: str
    topic: str | None
    fits: int


@dataclass(frozen=True, slots=True)
class QuestionView:
    """A question, the answers of each column that was asked, and what became of it against no adaptation, by column
    that learned: learned, lost, kept or unknown."""

    question: Question
    answers: Mapping[Key, Sequence[AnswerView]]
    change: Mapping[Key, str]


@dataclass(frozen=True, slots=True)
class EditView:
    edit: Edit
    score: float | None
    fits: Sequence[FitRecord]

    @property
    def key(self) -> Key:
        return self.edit.round, self.edit.writer


@dataclass(frozen=True)
class DocumentView:
    """`scores` are mean scores of the graded answers, by column; `pairs`, of Step B, the best and the worst edit of
    each round that tells them apart."""

    document: Document
    split: str
    scores: Mapping[Key, float]
    questions: Sequence[QuestionView]
    edits: Sequence[EditView]
    fits: Mapping[Key, Sequence[FitRecord]]  # those without an edit
    pairs: Sequence[tuple[Edit, Edit]]

    def count(self, key: Key, change: str) -> int:
        """How many questions a column has learned or lost."""
        return sum(question.change.get(key) == change for question in self.questions)

    @property
    def flags(self) -> str:
        """What the list can be filtered by."""
        fits = [fit for found in (*self.fits.values(), *(view.fits for view in self.edits)) for fit in found]
        answers = [a for question in self.questions for found in question.answers.values() for a in found]
        flags = {
            "failed": any(fit.status == "failed" for fit in fits),
            "cut": any(view.edit.truncated for view in self.edits),
            "ungraded": any(answer.value == "ungraded" for answer in answers),
        }
        return " ".join(name for name, holds in flags.items() if holds)


@dataclass(frozen=True)
class DocumentList:
    """`columns` have their names; `best` is the column with the highest score, of those that learn where there are any:
    it judges the documents at first; `examined` are the columns with grades on documents of a split; `shared` are fits
    on all documents."""

    columns: Mapping[Key, str]
    documents: Sequence[DocumentView]
    shared: Mapping[Key, Sequence[FitRecord]]
    compared: Sequence[str]

    @cached_property
    def changes(self) -> dict[str, Counter[str]]:
        """By condition that was compared, how many questions were learned, lost, kept, or stayed unknown."""
        counts = {
            name: Counter(q.change[0, name] for d in self.documents for q in d.questions if (0, name) in q.change)
            for name in self.compared
        }
        return {name: found for name, found in counts.items() if found}

    @cached_property
    def examined(self) -> dict[str, list[Key]]:
        return {
            split: [key for key in self.columns if any(key in d.scores for d in self.documents if d.split == split)]
            for split in dict.fromkeys(d.split for d in self.documents)
        }

    @cached_property
    def best(self) -> Key | None:
        # What was asked about other documents (an earlier run's, say) is not to be compared.
        examined = [d for d in self.documents if BASE in d.scores] or self.documents
        means = {
            key: sum(found) / len(found)
            for key in self.columns
            if (found := [d.scores[key] for d in examined if key in d.scores])
        }
        return max(means, key=lambda key: (_learns(key), means[key]), default=None)


def document_list(
    run: RunRecords, conditions: Sequence[ConditionSummary], signals: Sequence[findings.Signal] = ()
) -> DocumentList:
    columns = _columns(run, conditions)
    order = {key: number for number, key in enumerate(columns)}
    answers = grouped((answer.question_id, answer) for answer in run.answers)
    recitals = {fit.id for fit in run.fits if fit.recital}
    others = (answer for answer in run.answers if answer.fit_id not in recitals)
    on_edit = grouped(((answer.edit_id, answer.document_id), answer) for answer in others)
    fits: dict[str | None, list[FitRecord]] = defaultdict(list)  # without an edit, by document
    edit_fits: dict[str, list[FitRecord]] = defaultdict(list)
    for fit in run.fits:
        if fit.sequences or fit.status == "failed":  # else it is an exam of the model as it is
            (fits[fit.document_id] if fit.edit_id is None else edit_fits[fit.edit_id]).append(fit)
    edits: dict[str, list[EditView]] = defaultdict(list)
    for edit in run.edits:
        id = edit.id
        score = mean_score(on_edit[id, edit.document_id]) if edit.reward is None else edit.reward
        edits[edit.document_id].append(EditView(edit, score, edit_fits[id]))
    rewarded = (one for signal in signals for one in signal.documents)
    pairs = grouped((one.document.id, (one.best, one.edits[0])) for one in rewarded if one.best and one.spread > 0)
    views = []
    for document in run.documents:
        found = [given for question in document.questions for given in answers[question.id]]
        views.append(
            DocumentView(
                document=document,
                split=run.splits[document.id],
                scores={
                    key: score
                    for key, of_column in _by_column(found).items()
                    if (score := mean_score(of_column)) is not None
                },
                questions=[_question(question, answers[question.id]) for question in document.questions],
                edits=sorted(edits[document.id], key=lambda view: (order[view.key], view.edit.index)),
                fits=_by_column(fits[document.id]),
                pairs=pairs[document.id],
            )
        )
    compared = [condition.name for condition in conditions]
    return DocumentList(columns, views, _by_column(fits[None]), compared)


def _columns(run: RunRecords, conditions: Sequence[ConditionSummary]) -> dict[Key, str]:
    keys = {(fit.round, fit.condition) for fit in run.fits} | {(e.round, e.writer) for e in run.edits}
    word = "step" if run.procedure == "continual" else "round"
    rounds = any(number for number, _ in keys)
    order = {condition.name: number for number, condition in enumerate(conditions)}

    def name(key: Key) -> str:
        number, condition = key
        if not rounds or condition == findings.BASE:
            return condition
        return f"{word} {number} · {condition}" if number else f"before training · {condition}"

    def place(key: Key) -> tuple[bool, int, int, str]:
        return key[1] != findings.BASE, key[0], order.get(key[1], len(order)), key[1]

    return {key: name(key) for key in sorted(keys, key=place)}


def _learns(key: Key) -> bool:
    return findings.role(key[1]) not in (findings.BASE, *findings.REFERENCE_LINES)


def _by_column(found: Iterable[T]) -> dict[Key, list[T]]:
    return dict(grouped(((one.round, one.condition), one) for one in found))


def _question(question: Question, answers: Sequence[ScoredAnswer]) -> QuestionView:
    by_column = _by_column(answers)
    known = {key: findings.known(answer.value for answer in found) for key, found in by_column.items()}
    before = known.get(BASE)
    change = {}
    for key, after in known.items():
        if _learns(key) and before is not None and after is not None:
            change[key] = ("kept" if after else "lost") if before else ("learned" if after else "unknown")
    return QuestionView(question, {key: _merged(found) for key, found in by_column.items()}, change)


def _merged(answers: Iterable[ScoredAnswer]) -> list[AnswerView]:
    """Answers that read and count alike as one, the most frequent first."""
    counts: Counter[tuple[str, str, float | None, str, str | None]] = Counter()
    for given in answers:
        score = None if given.score is None else round(given.score, 3)
        counts[given.answer, given.value, score, given.note, given.topic] += 1
    return [AnswerView(*answer, fits) for answer, fits in counts.most_common()]


def fit_line(fit: FitRecord) -> str:
    """A fit in one line: what it was trained on and what came of it."""
    parts = [f"fit {fit.replicate + 1}"]
    if fit.status == "failed":
        return f"{parts[0]} · failed: {fit.error}"
    if fit.recital:
        return f"{parts[0]} · by recitation"
    parts += [f"{fit.train_tokens:,} tokens", f"{fit.steps:,} steps"]
    if fit.first_loss is not None and fit.last_loss is not None:
        parts.append(f"loss {fit.first_loss:.2f} → {fit.last_loss:.2f}")
    return " · ".join([*parts, f"{fit.seconds:.1f} s"])


def edit_line(view: EditView) -> str:
    """What is to be said of an edit beside its text and its writer."""
    edit = view.edit
    parts = [f"edit {edit.index + 1}"]
    if edit.prompt:
        parts.append(f"prompt {edit.prompt}")
    if edit.output_tokens:
        parts.append(f"{edit.output_tokens:,} tokens")
    if view.score is not None:
        parts.append(f"scored {format.percent(view.score)} %")
    if edit.kept:
        parts.append("kept")
    if edit.truncated:
        parts.append("cut off, used up to its last whole line")
    if edit.dropped_lines:
        parts.append(f"{counted(edit.dropped_lines, 'line')} dropped")
    return " · ".join(parts)
