"""From a run's store to its summary: accuracies with intervals, paired differences, what was harmed, costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from selfedit.documents import Document
from selfedit.evaluation.statistics import DocumentScore, accuracy_interval, paired_difference
from selfedit.methods.harm import forgetting, neighbours
from selfedit.methods.references import beside_references
from selfedit.methods.run import Run
from selfedit.runs.costs import Spent, cost_by_condition
from selfedit.runs.summary import ConditionSummary, DifferenceSummary, Summary


def summarise(run: Run, documents: Sequence[Document], conditions: Sequence[str], **more: Any) -> Summary:
    """Builds and writes `summary.json`; `more` adds keys (rounds and selected round of Step B)."""
    costs = cost_by_condition(run.store.costs())
    summary = Summary(
        schema=1,
        procedure=run.method,
        model=run.settings.model,
        instruct=run.workers.instruct,
        documents=len(documents),
        questions=sum(len(document.questions) for document in documents),
        recipe=run.recipe.model_dump(mode="json"),
        conditions=tuple(
            condition_summary(run, documents, name, costs.get(name, Spent())).model_copy(
                update=beside_references(run, name, conditions)
            )
            for name in conditions
        ),
        differences=tuple(differences(run, conditions)),
        forgetting=tuple(forgetting(run, conditions)),
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
    if run.store.changed or not run.directory.summary_path.is_file():
        return None
    return run.directory.read_summary()


def condition_summary(run: Run, documents: Sequence[Document], name: str, spent: Spent) -> ConditionSummary:
    """One bar of the comparison."""
    store = run.store
    answers = [
        answer for answer in store.scored_answers(run.grading.name, condition=name) if answer.document_id is not None
    ]
    values = Counter(answer.value for answer in answers)
    scores = run.grading.scores(name)
    found = accuracy_interval(scores) if scores else None
    fits = store.fits(condition=name)
    asked = {document.id for document in documents}
    edits = [edit for edit in store.edits(writer=name) if edit.document_id in asked]
    return ConditionSummary(
        name=name,
        accuracy=found.mean if found else None,
        ci95=(found.lo, found.hi) if found else None,
        document_mean=fmean(one.score / one.graded for one in scores.values()) if scores else None,
        correct=values["right"],
        graded=values["right"] + values["wrong"],
        ungraded=values["ungraded"],
        train_tokens=sum(fit.train_tokens for fit in fits),
        edit_tokens=sum(edit.output_tokens for edit in edits),
        seconds=spent.seconds,
        cost_usd=spent.usd,
        failed_fits=sum(fit.status == "failed" for fit in fits),
    )


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


def _edit_counts(run: Run) -> dict[str, int]:
    edits = run.store.edits()
    counts = {
        "edits cut off": sum(edit.truncated for edit in edits),
        "lines dropped": sum(edit.dropped_lines for edit in edits),
    }
    return {kind: count for kind, count in counts.items() if count}
