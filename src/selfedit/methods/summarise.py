"""From a run's store to its summary: accuracies with intervals, paired differences, what was harmed, costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from statistics import fmean
from typing import Any

from selfedit.documents import Document
from selfedit.evaluation.statistics import (
    Difference,
    DocumentScore,
    accuracy_interval,
    mean_interval,
    paired_difference,
    pooled,
)
from selfedit.grouping import grouped
from selfedit.methods.examining import condition_on_the_way
from selfedit.methods.references import beside_references
from selfedit.methods.run import Run
from selfedit.runs.costs import Spent, cost_by_condition
from selfedit.runs.summary import ConditionSummary, DifferenceSummary, ForgettingSummary, NeighbourSummary, Summary


def summarise(
    run: Run,
    documents: Sequence[Document],
    conditions: Sequence[str],
    compared: Sequence[DifferenceSummary] = (),
    **more: Any,
) -> Summary:
    """Builds and writes `summary.json`; `compared` are differences of others than the conditions, and `more` adds keys
    (rounds and selected round of Step B)."""
    costs = cost_by_condition(run.store.costs())
    summary = Summary(
        schema=1,
        procedure=run.method,
        model=run.settings.model,
        instruct=run.workers.instruct,
        documents=len(documents),
        questions=sum(len(document.questions) for document in documents),
        recipe=run.recipe.model_dump(mode="json"),
        conditions=tuple(condition_summary(run, name, costs.get(name, Spent()), conditions) for name in conditions),
        differences=(*differences(run, conditions), *compared),
        forgetting=tuple(forgetting(run, conditions, routed=more.get("routing") is not None)),
        neighbours=tuple(neighbours(run, conditions)),
        grader=run.grading.name,
        events=dict(Counter(event.kind for event in run.store.events())) | _edit_counts(run),
        device=run.workers.description,
        seconds=run.store.wall_seconds(),
        total_seconds=sum(spent.seconds for spent in costs.values()),
        **more,
    )
    run.directory.write_summary(summary)
    return summary


def accuracy(scores: Mapping[str, DocumentScore]) -> dict[str, Any] | None:
    """The accuracy and its interval, as a summary has them; None where nothing was graded."""
    if not any(score.graded for score in scores.values()):
        return None
    mean, low, high = accuracy_interval(scores)
    return {"accuracy": mean, "ci95": [low, high]}


def summary_of_finished(run: Run) -> Summary | None:
    """The summary that is there, where the run was finished before and nothing has changed since; else None."""
    return None if run.store.changed else run.directory.summary


def condition_summary(run: Run, name: str, spent: Spent, conditions: Sequence[str]) -> ConditionSummary:
    store = run.store
    answers = [
        answer for answer in store.scored_answers(run.grading.name, condition=name) if answer.document_id is not None
    ]
    values = Counter(answer.value for answer in answers)
    scores = run.grading.scores(name)
    fits = store.fits(condition=name)
    return ConditionSummary(
        name=name,
        **(accuracy(scores) or {"accuracy": None}),
        document_mean=fmean(one.score / one.graded for one in scores.values()) if scores else None,
        correct=values["right"],
        graded=values["right"] + values["wrong"],
        ungraded=values["ungraded"],
        train_tokens=sum(fit.train_tokens for fit in fits),
        edit_tokens=sum(edit.output_tokens for edit in store.edits(writer=name)),
        seconds=spent.seconds,
        cost_usd=spent.usd,
        failed_fits=sum(fit.status == "failed" for fit in fits),
        **beside_references(run, name, conditions),
    )


def looks(run: Run, condition: str) -> list[dict[str, Any]]:
    """The accuracy in each exam that the condition's one fit sat on its way."""
    steps = run.store.fits(condition=condition)[0].steps
    fits = [fit for fit in run.store.fits() if fit.condition == condition_on_the_way(condition, fit.steps, steps)]
    scored = [(fit.steps, accuracy(run.grading.scores(fit.condition))) for fit in fits]
    return [{"step": step, "steps": steps, **found} for step, found in sorted(scored, key=itemgetter(0)) if found]


def not_learned(run: Run, condition: str) -> set[str]:
    """Those of which a question was answered wrongly under this condition."""
    scored = run.store.scored_answers(run.grading.name, condition=condition, round=0)
    return {answer.document_id for answer in scored if answer.value == "wrong" and answer.document_id is not None}


def differences(run: Run, conditions: Sequence[str]) -> list[DifferenceSummary]:
    """Every pair of conditions, paired by document."""
    scores = {name: run.grading.scores(name) for name in conditions}
    found = []
    for i, a in enumerate(conditions):
        for b in conditions[i + 1 :]:
            try:
                difference = paired_difference(scores[a], scores[b])
            except ValueError:  # no document was graded under both
                continue
            found.append(difference_summary(a, b, difference))
    return found


def difference_summary(a: str, b: str, found: Difference) -> DifferenceSummary:
    return DifferenceSummary(
        a=a,
        b=b,
        difference=found.mean,
        ci95=(found.lo, found.hi),
        p_value=found.p_value,
        larger_than_noise=found.larger_than_noise,
        documents=found.documents,
    )


def _edit_counts(run: Run) -> dict[str, int]:
    edits = run.store.edits()
    counts = {
        "edits cut off": sum(edit.truncated for edit in edits),
        "lines dropped": sum(edit.dropped_lines for edit in edits),
    }
    return {kind: count for kind, count in counts.items() if count}


def forgetting(run: Run, conditions: Sequence[str], *, routed: bool) -> list[ForgettingSummary]:
    """Of the general questions that the model answered before, how many each condition's adapters still answer, and how
    far they have moved on texts of the model's own.

    Both intervals are over documents, whose adapters count together; where there is no adapter for each, that of the
    first is over questions (`general_scores`).
    """
    found = []
    for name in conditions:
        if name == "none":
            continue
        figures: dict[str, Any] = {}
        if scores := general_scores(run, [name], routed=routed):
            asked, kept = (int(sum(score[k] for score in scores.values())) for k in (1, 0))
            mean, low, high = accuracy_interval(scores)
            figures |= {"asked": asked, "kept": kept, "lost": 1 - mean, "ci95": (1 - high, 1 - low)}
        fits = run.store.fits(condition=name)
        if moved := grouped((fit.document_id or fit.id, fit.divergence) for fit in fits if fit.divergence is not None):
            measured = sum(map(len, moved.values()))
            mean, interval = mean_interval(moved)
            ci95 = interval and (max(0.0, interval[0]), interval[1])
            figures |= {"measured": measured, "divergence": mean, "divergence_ci95": ci95}
        if figures:
            found.append(ForgettingSummary(condition=name, **figures))
    return found


def general_scores(run: Run, conditions: Sequence[str], *, routed: bool = False) -> dict[str, DocumentScore]:
    """How many general questions the adapters of these conditions answered rightly, of those graded, by the document
    that an adapter learned; by question, where questions were routed to adapters, or all adapters learned the same
    (one adapter for all documents)."""
    learned = {fit.id: fit.document_id for name in conditions for fit in run.store.fits(condition=name)}
    answers = [
        answer
        for name in conditions
        for answer in run.store.scored_answers(run.grading.name, condition=name)
        if answer.document_id is None and answer.score is not None
    ]
    by_question = routed or len({learned[answer.fit_id] for answer in answers}) < 2
    return pooled(
        (answer.question_id if by_question else str(learned[answer.fit_id]), DocumentScore(answer.value == "right", 1))
        for answer in answers
    )


def neighbours(run: Run, conditions: Sequence[str]) -> list[NeighbourSummary]:
    """What each condition's adapters say of their own documents when they are asked about others; the interval is over
    documents."""
    found = []
    for name in conditions:
        fits = [fit for fit in run.store.fits(condition=name) if fit.neighbours]
        if not fits:
            continue
        leaked = pooled((str(fit.document_id), DocumentScore(fit.leaked, fit.neighbours)) for fit in fits)
        mean, low, high = accuracy_interval(leaked)
        asked = sum(fit.neighbours for fit in fits)
        before = [fit.leaked_before for fit in fits if fit.leaked_before is not None]
        share = sum(before) / asked if len(before) == len(fits) else None
        found.append(NeighbourSummary(condition=name, asked=asked, leaked=mean, ci95=(low, high), before=share))
    return found
