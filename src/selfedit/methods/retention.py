"""What a model still knows as it learns documents one after another: from answers to matrices, and from these to the
usual figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from selfedit.documents import Question
from selfedit.evaluation.statistics import DocumentScore, paired_difference, pooled
from selfedit.methods.run import Run
from selfedit.methods.sequences import Lane
from selfedit.methods.summarise import accuracy, difference_summary
from selfedit.methods.updates import replaced_by, still_true, superseded, update_summary
from selfedit.runs.records import ScoredAnswer
from selfedit.runs.summary import DifferenceSummary, RetentionSummary, Spread, UpdateSummary

Matrix = Sequence[Sequence[float | None]]
"""Row i, column j <= i: the accuracy on document j after step i; None where nothing was graded."""


def retention_summary(run: Run, lanes: Sequence[Lane]) -> RetentionSummary:
    first, steps = lanes[0], len(lanes[0].documents)
    # A document's questions have to be the same at each step, or its figures could not be compared: those that are
    # asked after the last one.
    kept = {lane.number: {q.id for d in still_true(lane.documents) for q in d.questions} for lane in lanes}
    scored = run.store.scored_answers(run.grading.name, condition=first.after)
    graded = pooled(
        (f"{one.replicate} {one.round} {one.document_id}", DocumentScore(one.score, 1))
        for one in scored
        if one.score is not None and one.question_id in kept[one.replicate]
    )
    untrained = run.store.scored_answers(run.grading.name, condition="none")

    def before(lane: Lane) -> float | None:
        scores = pooled(
            (str(one.document_id), DocumentScore(one.score, 1))
            for one in untrained
            if one.score is not None and one.question_id in kept[lane.number]
        )
        return _mean(score / count for score, count in scores.values())

    examined = {lane.number: {one.round for one in scored if one.replicate == lane.number} for lane in lanes}

    def cell(lane: Lane, step: int, column: int) -> float | None:
        # A step whose document has no edit leaves the model as it was.
        latest = max((one for one in examined[lane.number] if one <= step), default=0)
        found = graded.get(f"{lane.number} {latest} {lane.documents[column].id}")
        return found and found.score / found.graded

    matrices = [[[cell(lane, i + 1, j) for j in range(i + 1)] for i in range(steps)] for lane in lanes]
    known = run.grading.right_before()
    general = pooled(
        (f"{one.replicate}", DocumentScore(one.value == "right", 1))
        for one in final_answers(run, lanes)
        if one.document_id is None and one.question_id in known and one.score is not None
    )
    cells = [[[m[i][j] for m in matrices] for j in range(i + 1)] for i in range(steps)]
    figures: dict[str, Any] = {name: _spread(map(of, matrices)) for name, of in FIGURES.items()}
    return RetentionSummary(
        retain=first.retain,
        sequences=len(lanes),
        accuracy=tuple(tuple(_mean(cell) for cell in row) for row in cells),
        deviation=tuple(tuple(_deviation(cell) for cell in row) for row in cells) if len(lanes) > 1 else (),
        before=_spread(map(before, lanes)),
        general=_spread(right / asked for right, asked in general.values()),
        train_tokens=sum(fit.train_tokens for fit in run.store.fits(condition=first.condition)),
        **figures,
    )


def final_answers(run: Run, lanes: Sequence[Lane]) -> list[ScoredAnswer]:
    """What the lanes of one remedy answered after the last step of each."""
    scored = run.store.scored_answers(run.grading.name, condition=lanes[0].after)
    last = {one.replicate: one.round for one in sorted(scored, key=lambda one: one.round)}
    return [one for one in scored if one.round == last[one.replicate]]


def final_scores(run: Run, lanes: Sequence[Lane]) -> dict[str, DocumentScore]:
    """The scores after the last step, by document, over all sequences."""
    return pooled(
        (one.document_id, DocumentScore(one.score, 1))
        for one in final_answers(run, lanes)
        if one.document_id is not None and one.score is not None
    )


def new_and_earlier(run: Run, lane: Lane, step: int) -> dict[str, Any]:
    scores = run.grading.scores(lane.after, round=step, replicate=lane.number)
    document = lane.documents[step - 1].id

    def part(new: bool) -> dict[str, Any] | None:
        some = {id: score for id, score in scores.items() if (id == document) == new}
        found = accuracy(some)
        return found and {**found, "documents": len(some)}

    return {"step": step, "document": document, "new": part(True), "earlier": part(False)}


def compare_remedies(run: Run, remedies: Sequence[Sequence[Lane]]) -> tuple[DifferenceSummary, ...]:
    """Each remedy against the first, after the last step, paired by document."""
    first, *others = ((some[0].retain, final_scores(run, some)) for some in remedies)
    return tuple(
        difference_summary(f"retain {first[0]}", f"retain {retain}", paired_difference(first[1], scores))
        for retain, scores in others
        if first[1].keys() & scores.keys()
    )


def remedy_updates(run: Run, some: Sequence[Lane]) -> list[UpdateSummary]:
    """What became of facts that a later document changes, after the last step."""
    scored = final_answers(run, some)
    asked: list[tuple[ScoredAnswer, Sequence[Question]]] = []
    for lane in some:
        # Which questions one replaces depends on the sequence.
        replaced = replaced_by(superseded(lane.documents), lane.documents)
        own = (one for one in scored if one.replicate == lane.number)
        asked += [(one, replaced[one.question_id]) for one in own if one.question_id in replaced]
    found = update_summary(some[0].after, asked)
    return [] if found is None else [found]


def average(matrix: Matrix) -> float | None:
    """The mean accuracy on all documents after the last step."""
    return _mean(matrix[-1])


def learned(matrix: Matrix) -> float | None:
    """The mean accuracy on each document after its own step."""
    return _mean(row[-1] for row in matrix)


def backward(matrix: Matrix) -> float | None:
    """Backward transfer (Lopez-Paz and Ranzato 2017): how much better earlier documents are known after the last step
    than after their own; below 0 where they are forgotten."""
    pairs = zip(matrix[-1][:-1], (row[-1] for row in matrix), strict=False)
    return _mean(last - then for last, then in pairs if last is not None and then is not None)


def forgetting(matrix: Matrix) -> float | None:
    """Forgetting (Chaudhry et al. 2018): the highest accuracy on an earlier document before the last step, less that
    after it."""
    columns = [
        ([value for row in matrix[j:-1] if (value := row[j]) is not None], last)
        for j, last in enumerate(matrix[-1][:-1])
    ]
    return _mean(max(found) - last for found, last in columns if found and last is not None)


FIGURES = {"average": average, "learned": learned, "backward": backward, "forgetting": forgetting}


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def _deviation(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return stdev(found) if len(found) > 1 else None


def _spread(values: Iterable[float | None]) -> Spread | None:
    found = [value for value in values if value is not None]
    return Spread(mean=fmean(found), deviation=_deviation(found)) if found else None
