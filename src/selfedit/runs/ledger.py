"""The money of a run under way: what device time and calls of APIs cost, and the budget that both draw on.

A cost is committed in the transaction of the work that it pays for, so that a crash neither loses nor repeats it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from selfedit.editors.prices import Budget, ModelPrice, Prices
from selfedit.errors import UserError
from selfedit.runs.costs import Spent
from selfedit.runs.records import CostRecord
from selfedit.runs.store import Store

if TYPE_CHECKING:
    from selfedit.editors.replies import ApiResult
    from selfedit.execution.tasks import TaskResult


class Ledger:
    """What a run spends.  `usd_per_hour` is the device's price; `budget` is a limit in US dollars, which what earlier
    attempts at the run spent counts against.  None: unknown, and no limit."""

    def __init__(
        self, store: Store, prices: Prices, *, model: str, usd_per_hour: float | None, budget: float | None
    ) -> None:
        self.store = store
        self.prices = prices
        self.model = model
        self.usd_per_hour = usd_per_hour
        self.budget = Budget(budget)
        self.budget.spend(Spent.of(store.costs()).known_usd or 0.0)

    def time(self, what: str, condition: str, seconds: float, round: int = 0, model: str = "") -> CostRecord:
        """Spends device time, of the run's model or another; the line is to be committed with what the time gave."""
        usd = None if self.usd_per_hour is None else seconds / 3600 * self.usd_per_hour
        self.budget.spend(usd or 0.0)
        return CostRecord(what, condition, round, model or self.model, seconds=seconds, usd=usd)

    def book(self, what: str, condition: str, model: str, result: ApiResult, round: int = 0) -> None:
        """Writes down what a reply cost, whether it can be used or not, in the transaction that keeps it."""
        if result.paid:
            tokens = result.input_tokens, result.output_tokens
            self.store.add_costs([CostRecord(what, condition, round, model, *tokens, usd=result.usd)])

    def price(self, model: str) -> ModelPrice | None:
        """An API model's price; None where it is not known.  Errors: UserError for that where there is a budget."""
        try:
            return self.prices.model(model)
        except UserError:
            if self.budget.limit is not None:
                raise
            return None

    def within_budget(self, results: Generator[TaskResult]) -> Iterator[TaskResult]:
        """Results of device time as they come.  Stops cleanly before one that would pass the budget, judged by the
        dearest before it.  Errors: BudgetReached."""
        dearest = 0.0
        while True:
            if self.usd_per_hour is not None and self.budget.would_exceed(dearest):
                results.close()
                raise self.budget.reached("the next task", dearest)
            result = next(results, None)
            if result is None:
                return
            dearest = max(dearest, result.seconds / 3600 * (self.usd_per_hour or 0.0))
            yield result
