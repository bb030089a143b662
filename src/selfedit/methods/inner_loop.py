"""The inner loop of self-editing (Zweiger et al. 2025, algorithm 1): documents and edits in, scores out.

    for each document C with questions Q, and each edit E of it:
        θ' ← fine-tune(θ, E and C)               a LoRA adapter; many are trained side by side
        A  ← θ'(Q), closed book                  greedily, C not in the context
        r  ← the share of A that is right        by the run's grader

`compare`, `sweep`, `restem`, `learn` and `continual` are loops around it.  θ is the model, or a policy: the model with
the deltas of earlier rounds merged in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from selfedit.engine.jobs import LoraSpec, TokenSequence
from selfedit.execution.tasks import Fit, FitOutcome, FitTask, Recital, TaskResult, fit_tasks
from selfedit.methods.examining import on_the_way, recited
from selfedit.methods.general_texts import retained
from selfedit.methods.learnings import Beside, Learning
from selfedit.methods.policies import missing_adapters, write_adapter
from selfedit.methods.resuming import execute, stop_at_failure
from selfedit.methods.run import Run
from selfedit.methods.sittings import Sitting, sittings
from selfedit.runs.records import CostRecord, FitRecord
from selfedit.text import counted
from selfedit.training.recipes import Recipe

MANY_CHARACTERS = 1_000_000  # of which the cutting takes long enough to be shown


def inner_loop(
    run: Run,
    learnings: Sequence[Learning],
    *,
    recipes: Mapping[str, Recipe] | None = None,
    label: str = "fits",
    beside: Beside | None = None,
) -> dict[str, list[float]]:
    """Trains, examines and grades; the scores of each learning's graded answers about its own documents, by its id.

    What the store has is not done again.  Every condition uses the run's recipe, but for those in `recipes`.  An
    adapter that is to be kept lies in its folder before its fit is committed, with what `beside` makes of the folder.
    Errors: UserError where such a fit was given up, and where too many answers stay ungraded.
    """
    by_id = {learning.id: learning for learning in learnings}
    shown: dict[str, tuple[str, ...]] = {}
    asked: dict[str, Sitting] = {}

    def cut() -> list[FitTask]:
        asked.update(sittings(run, learnings))
        advance = _show_cutting(run, learnings, label)
        own: dict[tuple[str, ...], list[TokenSequence]] = {}
        groups: dict[tuple[tuple[str, ...], LoraSpec, int], list[Fit]] = {}  # fits whose adapters can share a bank
        for id, learning in by_id.items():
            recipe = (recipes or {}).get(learning.condition, run.recipe)
            seed = run.seed("fit", id)
            if recipe.retain and learning.policy not in own:
                own[learning.policy] = retained(run, learning.policy)
            job, shown[id] = run.jobs.job(
                learning.documents,
                learning.edits,
                recipe,
                seed=seed,
                own=own.get(learning.policy, ()),
                advance=advance,
            )
            exam, texts, known = asked[id].requests(run), asked[id].texts, asked[id].known
            recital = asked[id].recital(run, learning.documents, recipe) if learning.recite else Recital()
            fit = Fit(id, job, exam, learning.keep is not None, learning.looks, texts, known, learning.below, recital)
            groups.setdefault((learning.policy, recipe.lora(), len(learning.below)), []).append(fit)
        return [
            task
            for number, ((policy, lora, _), group) in enumerate(groups.items())
            for task in fit_tasks(f"{label}/{number}", policy, lora, group, size=run.workers.task_size)
        ]

    def commit(task: FitTask, result: TaskResult) -> list[CostRecord]:
        costs = []
        for fit, outcome in zip(task.fits, result.outcomes, strict=True):
            learning = by_id[fit.id]
            if learning.keep is not None and outcome.result.error is None:
                write_adapter(learning.keep, outcome.adapter, beside and partial(beside, learning))
            record = _record(run, learning, shown[fit.id], asked[fit.id], outcome)
            questions = asked[fit.id].questions
            others = (*on_the_way(run, learning, fit, outcome, questions), *recited(run, learning, outcome, questions))
            run.store.record_fits([record, *others])
            if learning.keep is not None:
                run.store.add_curve(record.id, thinned(outcome.result.losses))
            for note in outcome.notes:
                run.store.add_event("checkpoint", record.id, note)
                run.progress.note(note)
            if record.error:
                run.store.add_event("failed fit", record.id, record.error)
                run.progress.note(f"fit {record.id} failed: {record.error}")
            costs.append(run.ledger.time("fits", learning.condition, outcome.seconds, learning.round))
        return costs

    kept = {id: learning.keep for id, learning in by_id.items() if learning.keep is not None}
    execute(
        run,
        f"{label}: {counted(len(learnings), 'adapter')}",
        by_id,
        run.store.fit_ids() - missing_adapters(run, kept),
        cut,
        commit,
        after=run.grading.grade_beside,
        fail=stop_at_failure(label) if kept else None,
    )
    if not any(learning.examine for learning in learnings):
        return {}
    run.grading.grade()
    return run.grading.scores_of_fits(by_id, round=learnings[0].round)


def _record(run: Run, learning: Learning, shown: tuple[str, ...], asked: Sitting, outcome: FitOutcome) -> FitRecord:
    result = outcome.result
    return learning.record(
        status="failed" if result.error else "done",
        error=result.error,
        sequences=shown,
        train_tokens=result.tokens,
        steps=result.steps,
        first_loss=result.first_loss,
        last_loss=result.last_loss,
        seconds=outcome.seconds,
        divergence=outcome.divergence,
        answer_loss=outcome.answer_loss,
        **asked.results(run, learning.documents, outcome.completions),
    )


def _show_cutting(run: Run, learnings: Sequence[Learning], label: str) -> Callable[[int], None] | None:
    """Shows the cutting of documents into sequences as a phase of its own, where it takes long."""
    characters = sum(len(document.text) for learning in learnings for document in learning.documents)
    if characters <= MANY_CHARACTERS:
        return None
    run.progress.begin(f"{label}: cutting characters into sequences", characters)
    return run.progress.advance


def thinned(losses: Sequence[float]) -> list[tuple[int, float]]:
    """(step, mean loss since the point before) at no more than 200 steps."""
    stride = -(-len(losses) // 200) or 1
    parts = [losses[k : k + stride] for k in range(0, len(losses), stride)]
    return [(min((k + 1) * stride, len(losses)), sum(part) / len(part)) for k, part in enumerate(parts)]
