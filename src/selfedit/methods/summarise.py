"""From a run's store to its summary: accuracies with intervals, paired differences, forgetting, costs.

Knows conditions and the store.  Runs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from selfedit.documents import Document
from selfedit.evaluation.statistics import DocumentScore, accuracy_interval, paired_difference
from selfedit.methods.experiment import Experiment
from selfedit.runs.costs import Spent, cost_by_condition
from selfedit.runs.summary import ConditionSummary, DifferenceSummary, ForgettingSummary, Summary


def summarise(experiment: Experiment, documents: Sequence[Document], conditions: Sequence[str], **more: Any) -> Summary:
    """Builds and writes `summary.json`; `more` adds keys (rounds and selected round of Step B)."""
    costs = cost_by_condition(experiment.store.costs())
    summary = Summary(
        schema=1,
        procedure=experiment.procedure,
        model=experiment.settings.model,
        instruct=experiment.instruct,
        documents=len(documents),
        questions=sum(len(document.questions) for document in documents),
        recipe=experiment.recipe.model_dump(mode="json"),
        conditions=tuple(
            condition_summary(experiment, documents, name, costs.get(name, Spent())) for name in conditions
        ),
        differences=tuple(differences(experiment, conditions)),
        forgetting=tuple(forgetting(experiment, conditions)),
        grader=experiment.grader.name,
        events=dict(Counter(event.kind for event in experiment.store.events())) | _edit_counts(experiment),
        device=experiment.description,
        seconds=experiment.store.wall_seconds(),
        total_seconds=sum(spent.seconds for spent in costs.values()),
        **more,
    )
    experiment.run.write_summary(summary)
    return summary


def summary_of_finished(experiment: Experiment) -> Summary | None:
    """The summary that is there, where the run was finished before and nothing has changed since; else None."""
    if experiment.store.changed or not experiment.run.summary_path.is_file():
        return None
    return experiment.run.read_summary()


def condition_summary(
    experiment: Experiment, documents: Sequence[Document], name: str, spent: Spent
) -> ConditionSummary:
    """One bar of the comparison."""
    store = experiment.store
    answers = [
        answer
        for answer in store.scored_answers(experiment.grader.name, condition=name)
        if answer.document_id is not None
    ]
    values = Counter(answer.value for answer in answers)
    scores = experiment.scores(name)
    found = accuracy_interval(scores) if scores else None
    fits = store.fits(condition=name)
    asked = {document.id for document in documents}
    edits = [edit for edit in store.edits(writer=name) if edit.document_id in asked]
    return ConditionSummary(
        name=name,
        accuracy=found.mean if found else None,
        ci95=(found.lo, found.hi) if found else None,
        correct=values["right"],
        graded=values["right"] + values["wrong"],
        ungraded=values["ungraded"],
        train_tokens=sum(fit.train_tokens for fit in fits),
        edit_tokens=sum(edit.output_tokens for edit in edits),
        seconds=spent.seconds,
        cost_usd=spent.usd,
        failed_fits=sum(fit.status == "failed" for fit in fits),
    )


def differences(experiment: Experiment, conditions: Sequence[str]) -> list[DifferenceSummary]:
    """Every pair of conditions, paired by document."""
    scores = {name: experiment.scores(name) for name in conditions}
    found = []
    for i, a in enumerate(conditions):
        for b in conditions[i + 1 :]:
            try:
                difference = paired_difference(scores[a], scores[b])
            except ValueError:  # no document was graded under both
                continue
            found.append(
                DifferenceSummary(
                    a=a,
                    b=b,
                    difference=difference.mean,
                    ci95=(difference.lo, difference.hi),
                    p_value=difference.p_value,
                    larger_than_noise=difference.larger_than_noise,
                    documents=difference.documents,
                )
            )
    return found


def forgetting(experiment: Experiment, conditions: Sequence[str]) -> list[ForgettingSummary]:
    """Of the general questions that the model answered before, how many each condition's adapters still answer.

    The interval takes adapters for what was sampled; each was asked its own sample of those questions.
    """
    found = []
    for name in conditions:
        if name == "none":
            continue
        by_fit: dict[str, DocumentScore] = {}
        kept = 0
        for answer in experiment.store.scored_answers(experiment.grader.name, condition=name):
            if answer.document_id is not None or answer.score is None:
                continue
            before = by_fit.get(answer.fit_id, DocumentScore(0.0, 0))
            right = answer.value == "right"
            kept += right
            by_fit[answer.fit_id] = DocumentScore(before.score + right, before.graded + 1)
        asked = sum(score.graded for score in by_fit.values())
        if not asked:
            continue
        mean, low, high = accuracy_interval(by_fit)
        found.append(ForgettingSummary(condition=name, asked=asked, kept=kept, lost=1 - mean, ci95=(1 - high, 1 - low)))
    return found


def _edit_counts(experiment: Experiment) -> dict[str, int]:
    edits = experiment.store.edits()
    counts = {
        "edits cut off": sum(edit.truncated for edit in edits),
        "lines dropped": sum(edit.dropped_lines for edit in edits),
    }
    return {kind: count for kind, count in counts.items() if count}
