"""Sums over a run's costs, in tokens, device seconds and dollars.

Tokens and time are always known; money may not be, and an unknown price is not taken for zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from selfedit.grouping import grouped
from selfedit.runs.records import CostRecord


@dataclass(frozen=True)
class Spent:
    """A sum over lines.  `known_usd` adds the prices that are known (None where none is), `unpriced` counts API
    calls without one."""

    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    known_usd: float | None = None
    unpriced: int = 0

    @staticmethod
    def of(lines: Iterable[CostRecord]) -> Spent:
        lines = list(lines)
        prices = [line.usd for line in lines if line.usd is not None]
        return Spent(
            input_tokens=sum(line.input_tokens for line in lines),
            output_tokens=sum(line.output_tokens for line in lines),
            seconds=sum(line.seconds for line in lines),
            known_usd=sum(prices) if prices else None,
            unpriced=sum(line.usd is None and not line.seconds for line in lines),
        )

    @property
    def usd(self) -> float | None:
        """All of it in dollars.  Device time counts only where it has a price (`--usd-per-hour`); None where nothing
        has one, or an API call has none."""
        return None if self.unpriced else self.known_usd


def cost_by_condition(lines: Iterable[CostRecord]) -> dict[str, Spent]:
    """What each condition has spent, in the order in which they first spent something."""
    groups = grouped((line.condition, line) for line in lines)
    return {condition: Spent.of(group) for condition, group in groups.items()}
