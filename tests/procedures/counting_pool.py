"""A pool that counts what it is given, and can change it or give it up."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

from selfedit.workers.pool import InProcess
from selfedit.workers.units import FitUnit, Unit, UnitResult
from selfedit.workers.worker import ModelSource

REASON = "failed 3 times, at last with RuntimeError: no luck"


class CountingPool(InProcess):
    """The pool of this process; `units` and `fits` say what it was asked for, `alter` changes what it does, and units of
    which `gives_up` is true are given up, as the pool on Ray does after three tries."""

    def __init__(self, model: str) -> None:
        super().__init__(ModelSource(model, "cpu", "float32"))
        self.units: list[Unit] = []
        self.alter: Callable[[Unit], Unit] = lambda unit: unit
        self.gives_up: Callable[[Unit], bool] = lambda unit: False

    def run(self, units: Iterable[Unit]) -> Generator[UnitResult]:
        for unit in units:
            self.units.append(unit)
            if self.gives_up(unit):
                yield UnitResult(unit.id, 0.1, error=REASON)
            else:
                yield from super().run([self.alter(unit)])

    @property
    def fits(self) -> list[str]:
        """The inner fits, by id; the editor's own is not among them."""
        return [
            task.id for unit in self.units if isinstance(unit, FitUnit) for task in unit.tasks if task.id != "outer"
        ]
