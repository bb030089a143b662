"""How a report writes numbers and other people's text."""

from __future__ import annotations

from collections.abc import Callable

from selfedit.runs.summary import Spread
from selfedit.text import one_line

_LONGEST_NAME = 200  # characters
DASH = "–"


def _scaled(factor: float, form: str) -> Callable[[float | None], str]:
    return lambda value: DASH if value is None else f"{factor * value:{form}}".replace("-", "−")


percent = _scaled(100, ".1f")
"""A share in [0, 1] as a percentage with one decimal, without the sign; a dash where there is none, as below."""

points = _scaled(100, "+.1f")
"""A difference of shares in percentage points, signed."""

signed = _scaled(1, "+.2f")
"""A correlation."""

nats = _scaled(1000, ".1f")
"""A divergence in thousandths of a nat."""


def interval(ci95: tuple[float, float] | None, show: Callable[[float], str] = percent, to: str = "–") -> str:
    return DASH if ci95 is None else f"{show(ci95[0])} {to} {show(ci95[1])}"


def points_interval(ci95: tuple[float, float] | None) -> str:
    return interval(ci95, points, "to")


def spread(figure: Spread | None) -> str:
    """A share's mean over sequences and its standard deviation, as percentages."""
    if figure is None:
        return DASH
    return percent(figure.mean) + ("" if figure.deviation is None else f" ± {percent(figure.deviation)}")


def seconds(value: float | None) -> str:
    """A duration in the largest task that leaves three figures: 0.4 s, 38 s, 12 min, 3.4 h."""
    if value is None:
        return DASH
    if value < 9.95:
        return f"{value:.1f} s"
    if value < 600:
        return f"{value:.0f} s"
    if value < 36000:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h"


def usd(value: float | None) -> str:
    """Money in US dollars: cents from a dollar on, more decimals below; a dash for no known price."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    if value < 0.0001:
        return "<0.0001"
    return f"{value:,.2f}" if value >= 1 else f"{value:.3f}" if value >= 0.01 else f"{value:.4f}"


def decimals(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:,.{digits}f}"


def p_value(value: float | None) -> str:
    return DASH if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def short_count(value: int | None) -> str:
    """A count of at most five characters: 950, 12.3k, 123k, 1.23M, 3.4B."""
    if value is None:
        return DASH
    if value < 1000:
        return str(value)
    for factor, task in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            scaled = value / factor
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f}{task}"
    return str(value)


def clean(text: object) -> str:
    """A name, fit to print: on one line, short, without what could steer a terminal."""
    return one_line(text, _LONGEST_NAME)


def recipe_line(recipe: dict[str, object]) -> str:
    """A recipe's settings in one line: `name=value, ...`, nothing where none is recorded."""
    return ", ".join(f"{clean(key)}={_plain(value)}" for key, value in recipe.items())


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "+".join(clean(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else clean(value)
