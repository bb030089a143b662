"""The ledger: what a run has spent, in tokens, device seconds and dollars.

Knows no prices: they come as numbers from the caller (`editors.prices` for APIs, a setting for the device's hour).
Tokens and time are always known; money may not be, and an unknown price is not taken for zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfedit.runs.records import CostRecord
from selfedit.runs.store import Store


def api_cost(
    what: str, condition: str, *, model: str, input_tokens: int, output_tokens: int, usd: float | None, round: int = 0
) -> CostRecord:
    """A line for API calls; `usd` is their price, None where it is unknown."""
    return CostRecord(what, condition, round, model, input_tokens, output_tokens, usd=usd)


def device_cost(
    what: str, condition: str, *, seconds: float, usd_per_hour: float | None, round: int = 0, model: str = ""
) -> CostRecord:
    """A line for device time at an hourly price, None where it is unknown."""
    usd = None if usd_per_hour is None else seconds / 3600 * usd_per_hour
    return CostRecord(what, condition, round, model, seconds=seconds, usd=usd)


@dataclass(frozen=True)
class Spent:
    """A sum over lines.  `known_usd` adds the lines that have a price, `unpriced` counts those that have none."""

    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    known_usd: float = 0.0
    unpriced: int = 0

    @property
    def usd(self) -> float | None:
        """All of it in dollars; None where a line has no price."""
        return None if self.unpriced else self.known_usd

    def plus(self, line: CostRecord) -> Spent:
        return Spent(
            self.input_tokens + line.input_tokens,
            self.output_tokens + line.output_tokens,
            self.seconds + line.seconds,
            self.known_usd + (line.usd or 0.0),
            self.unpriced + (line.usd is None),
        )


def cost_by_condition(store: Store, *, round: int | None = None) -> dict[str, Spent]:
    """What each condition has spent, in the order in which they first spent something."""
    sums: dict[str, Spent] = {}
    for line in store.costs():
        if round is None or line.round == round:
            sums[line.condition] = sums.get(line.condition, Spent()).plus(line)
    return sums


def cost_by_kind(store: Store) -> dict[str, Spent]:
    """What each kind of work (edits, fits, answers, grading, outer) has cost."""
    sums: dict[str, Spent] = {}
    for line in store.costs():
        sums[line.what] = sums.get(line.what, Spent()).plus(line)
    return sums


def total_cost(store: Store) -> Spent:
    """What the run has spent so far; a budget is compared with its `known_usd`."""
    total = Spent()
    for line in store.costs():
        total = total.plus(line)
    return total
