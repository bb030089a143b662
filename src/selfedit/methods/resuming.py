"""The one principle of resuming, for everything that workers execute.

What the store lacks of a list is executed, and each task's results are committed with their cost in one transaction.
Tasks are cut from the whole list, never from what is left, and a task is committed whole: so a resumed run executes the
same tasks as an uninterrupted one, the same fits side by side, and is equal to it to the last bit.  (Edits and grades
by an API are no tasks: a reply is committed with its cost and with what is made of it, as it comes.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from selfedit.editors.base import Complete, Fail
from selfedit.engine.jobs import Completion, DecodeRequest
from selfedit.errors import UserError
from selfedit.execution.tasks import Checkpoint, CompletionTask, FitTask, TaskResult, completion_tasks
from selfedit.runs.records import CostRecord

if TYPE_CHECKING:
    from selfedit.methods.run import Run

T = TypeVar("T", CompletionTask, FitTask)
GIVEN_UP = "given up"  # the kind of an event; its subject is the id of what was asked for and not got
PROMPTS = 64  # of one task without adapters


def execute(
    run: Run,
    phase: str | None,
    ids: Iterable[str],
    done: Container[str],
    cut: Callable[[], Sequence[T]],
    commit: Callable[[T, TaskResult], Iterable[CostRecord]],
    *,
    after: Callable[[], None] = lambda: None,
    fail: Fail | None = None,
) -> None:
    """Executes what is left of a list and commits it, task by task.

    `ids` name the whole list, `done` has those that the store has.  `cut` makes tasks of the whole list.  `commit`
    writes a task's results to the store and returns their cost; `after` is called once that is done.  `fail(id,
    reason)` is called for each id of a task that was given up; left out, an event names the id.  The same command tries
    it again.
    """
    if all(id in done for id in ids):
        return
    tasks = {left.id: _with_checkpoint(run, left) for task in cut() if (left := task.without(done)).ids}
    if phase is not None:
        run.progress.begin(phase, sum(task.tokens for task in tasks.values()))
    for result in run.workers.run(list(tasks.values())):
        task = tasks[result.task_id]
        if result.error is not None:
            run.progress.note(f"{task.id} was given up: {result.error}")
            for id in task.ids:
                (fail or partial(run.store.set_event, GIVEN_UP))(id, result.error)
            continue
        with run.store.transaction():
            run.store.add_costs(commit(task, result))
            for id in task.ids:
                run.store.drop_event(GIVEN_UP, id)
            for note in result.notes:
                run.store.add_event("less memory", result.task_id, note)
        if isinstance(task, FitTask) and task.checkpoint is not None:
            task.checkpoint.file.unlink(missing_ok=True)
        for note in result.notes:
            run.progress.note(f"{result.task_id}: {note}")
        after()


def completer(
    run: Run,
    prefix: str,
    spend: Callable[[float], CostRecord | None],
    *,
    phase: str | None = None,
    policy: tuple[str, ...] = (),
    model: str = "",
    size: Callable[[], int] = lambda: PROMPTS,
) -> Complete:
    """A `Complete` whose tasks are named `prefix/N`: by the policy, or by another `model`.  `spend(seconds)` is called
    with each task's device time; where it returns the line for it, that is committed with the task's completions, and
    with the tokens that were read and written."""

    def complete(
        requests: Mapping[str, Sequence[DecodeRequest]],
        done: Container[str],
        keep: Callable[[str, Sequence[Completion], float], None],
        fail: Fail | None = None,
    ) -> None:
        def commit(task: CompletionTask, result: TaskResult) -> list[CostRecord]:
            for id, completions in task.completions(result).items():
                keep(id, completions, result.seconds * len(completions) / len(task.requests))
            line = spend(result.seconds)
            if line is None:
                return []
            read = sum(len(request.prompt) for request in task.requests)
            written = sum(len(completion.ids) for completion in result.completions)
            return [replace(line, input_tokens=read, output_tokens=written)]

        def cut() -> list[CompletionTask]:
            return completion_tasks(prefix, policy, requests, size=size(), model=model)

        execute(run, phase, requests, done, cut, commit, fail=fail)

    return complete


def stop_at_failure(what: str) -> Fail:
    """For `execute`, where nothing can be done without the task."""

    def fail(_: str, reason: str) -> None:
        raise UserError(
            f"{what} was given up: {reason}; the run cannot go on without it.  The same command tries it again"
        )

    return fail


def _with_checkpoint(run: Run, task: T) -> T:
    """The task; a fit that is alone in it, and so may be long, with a place for its state while it is under way."""
    minutes = run.settings.checkpoint_minutes
    if not isinstance(task, FitTask) or len(task.fits) != 1 or not minutes:
        return task
    name = hashlib.sha256(repr((task.id, task.policy)).encode()).hexdigest()[:16]
    return replace(task, checkpoint=Checkpoint(run.directory.unfinished / f"{name}.safetensors", 60 * minutes))
