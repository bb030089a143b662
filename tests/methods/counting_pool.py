"""A pool that counts what it is given, and can change it or give it up."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import replace

from selfedit.execution.pool import InProcess
from selfedit.execution.tasks import FitTask, Task, TaskResult
from selfedit.execution.worker import ModelSource
from selfedit.models import Model

REASON = "failed 3 times, at last with RuntimeError: no luck"


class CountingPool(InProcess):
    """The pool of this process; `tasks` and `fits` say what it was asked for, `alter` changes what it does, and tasks
    of which `gives_up` is true are given up, as the pool on Ray does after three tries."""

    def __init__(self, model: str, *, loaded: Model | None = None) -> None:
        super().__init__(ModelSource(model, "cpu", "float32"), model=loaded)
        self.tasks: list[Task] = []
        self.alter: Callable[[Task], Task] = lambda task: task
        self.gives_up: Callable[[Task], bool] = lambda task: False

    def run(self, tasks: Iterable[Task]) -> Generator[TaskResult]:
        for task in tasks:
            self.tasks.append(task)
            if self.gives_up(task):
                yield TaskResult(task.id, 0.1, error=REASON)
            else:
                yield from super().run([self.alter(task)])

    @property
    def fits(self) -> list[str]:
        """The inner fits, by id; the editor's own is not among them."""
        return [fit.id for task in self.tasks if isinstance(task, FitTask) for fit in task.fits if fit.id != "outer"]


def blow_up(id: str) -> Callable[[Task], Task]:
    """What to `alter` so that fits whose ids begin like this become NaN."""

    def alter(task: Task) -> Task:
        if not isinstance(task, FitTask):
            return task
        fits = [
            replace(fit, job=replace(fit.job, settings=replace(fit.job.settings, learning_rate=1e30)))
            if fit.id.startswith(id)
            else fit
            for fit in task.fits
        ]
        return replace(task, fits=tuple(fits))

    return alter
