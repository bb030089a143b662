"""The outer fine-tune of Step B: the policy learns to write the edits that were kept; loss on the edit only."""

from __future__ import annotations

from collections.abc import Sequence

from selfedit.engine.jobs import FitJob
from selfedit.errors import UserError
from selfedit.execution.tasks import Fit, FitTask, TaskResult
from selfedit.methods.policies import is_whole, write_adapter
from selfedit.methods.resuming import GIVEN_UP, execute, stop_at_failure
from selfedit.methods.rewards import TRAIN, UNREAD, Round
from selfedit.runs.records import CostRecord
from selfedit.training.recipes import Recipe

OUTER = "outer"


def train_editor(round: Round, kept: Sequence[str], recipe: Recipe) -> None:
    """Fine-tunes the policy on (editing prompt → kept edit) and writes the round's delta to its checkpoint."""
    run, number = round.run, round.number
    folder = run.directory.checkpoint(number)
    # The line in the ledger declares the checkpoint: one without it is made again, and is the same.
    booked = any(cost.what == OUTER and cost.round == number for cost in run.store.costs())

    def cut() -> list[FitTask]:
        by_id = {document.id: document for document in round.documents}
        lessons = tuple(
            run.jobs.lesson(by_id[edit.document_id], edit)
            for edit in run.store.edits(round=number, writer=TRAIN)
            if edit.id in kept
        )
        if not lessons:
            raise _nothing_kept(round)
        job = FitJob(lessons, recipe.settings(), run.seed("outer", number))
        return [FitTask(f"outer/{number}", round.policy, recipe.lora(), (Fit(OUTER, job, keep=True),))]

    def commit(_: FitTask, result: TaskResult) -> list[CostRecord]:
        (outcome,) = result.outcomes
        if outcome.result.error is not None:
            raise UserError(
                f"round {number}: training the editor failed: {outcome.result.error}; try a lower learning rate"
                " (--outer-set learning_rate=...) and another --out"
            )
        write_adapter(folder, outcome.adapter)
        return [run.ledger.time(OUTER, TRAIN, result.seconds, number)]

    execute(
        run,
        f"round {number}: training the editor on {len(kept)} edits",
        [OUTER],
        [OUTER] if booked and is_whole(folder) else [],
        cut,
        commit,
        fail=stop_at_failure(f"round {number}: training the editor"),
    )


def _nothing_kept(round: Round) -> UserError:
    run, settings, number = round.run, round.settings, round.number
    given_up = [event for event in run.store.events(GIVEN_UP) if event.subject.startswith(f"{number}|")]
    if given_up:
        return UserError(
            f"round {number}: no edit was kept, and {len(given_up)} fits or ratings were given up (the last:"
            f" {given_up[-1].message}); the same command tries them again"
        )
    unread = [event.message for event in run.store.events(UNREAD) if event.subject == f"round {number}"]
    if unread and not any(e.reward is not None for e in run.store.edits(round=number, writer=TRAIN)):
        return UserError(
            f"round {number}: no edit was kept: {unread[0]}; the same command asks again, another setting needs another"
            " --out"
        )
    if settings.reward == "likelihood" and not any(e.reward for e in run.store.edits(round=number, writer=TRAIN)):
        return UserError(
            f"round {number}: --reward likelihood: the model answers no question rightly with the document in its"
            " prompt (or all fits failed); use --reward fit, or a larger model"
        )
    return UserError(
        f"round {number}: no edit was kept by --select {settings.select}, so there is nothing to train on;"
        " sample more edits (--edits) or select otherwise"
    )
