"""Charts as PNG and SVG (matplotlib, without a display): readable in black and white, the same bytes every time.

Knows summaries and findings, no store.  matplotlib is imported inside the functions: it costs half a second.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from selfedit.reports import findings, format
from selfedit.reports.data import Condition, Round, RunData, Summary
from selfedit.runs.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILLS = ("#ffffff", "#d9d9d9", "#a6a6a6", "#737373", "#404040")
HATCHES = ("", "///", "", "\\\\\\", "", "...", "xx", "--", "++", "oo")
INK = "#222222"
FAINT = "#8a8a8a"

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a dollar in a model's name is a dollar
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titlepad": 14,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "selfedit",  # ids in the SVG derive from this, not from the clock
    "svg.fonttype": "none",
    "savefig.facecolor": "white",
}


def write_charts(run: RunData, folder: Path) -> list[Path]:
    """Writes the run's charts into `folder` as PNG and SVG, overwriting older ones, and returns their paths.

    `chart` compares the conditions; Step B adds `reward`, `validation` and `signal`.  What has no figures has no chart.
    """
    drawn: dict[str, Callable[[], Figure]] = {}
    found = [condition for condition in findings.compared(run) if condition.accuracy is not None]
    rounds = findings.rounds(run)
    selected_round = run.summary.selected_round if run.summary else None
    if found:
        drawn["chart"] = lambda: comparison(found, format.clean(run.model))
    if any(entry.train_reward is not None for entry in rounds):
        drawn["reward"] = lambda: reward_by_round(rounds)
    if any(entry.validation_accuracy is not None for entry in rounds):
        drawn["validation"] = lambda: validation_by_round(rounds, selected_round)
    if signal := findings.signals(run):
        drawn["signal"] = lambda: rewards_within_documents(signal)
    if not drawn:
        return []
    with style():
        return [path for name, draw in drawn.items() for path in save(draw(), folder / name)]


@contextmanager
def style() -> Iterator[None]:
    """The settings that every chart here is drawn and saved under."""
    from matplotlib import rc_context

    with rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes `stem`.png and `stem`.svg, without dates, inside `style()`."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    for path, metadata in ((png, {"Software": None}), (svg, {"Date": None, "Creator": None})):
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix[1:], dpi=160, metadata=metadata)
        write_atomically(path, content.getvalue())
    return [png, svg]


def comparison(conditions: Sequence[Condition], title: str = "") -> Figure:
    """One bar a condition with its 95 % interval and its value."""
    figure, axes = _figure(max(4.8, 1.25 * len(conditions) + 1.2), 4.2)
    for position, condition in enumerate(conditions):
        _bar(axes, position, 0.62, condition, position, 10)
    axes.set_xticks(range(len(conditions)), [_wrapped(condition.name, 16) for condition in conditions])
    axes.set_xlim(-0.6, len(conditions) - 0.4)
    _accuracy_axis(axes, conditions)
    axes.set_title(_wrapped(f"What was learned: {title}" if title else "What was learned", 30 + 12 * len(conditions)))
    return figure


def grouped(runs: Sequence[tuple[str, Summary]]) -> Figure:
    """Several runs: a group of bars a run, the same condition with the same fill everywhere."""
    names = list(dict.fromkeys(condition.name for _, summary in runs for condition in summary.conditions))
    figure, axes = _figure(max(5.6, 0.55 * len(names) * len(runs) + 2.0), 4.6)
    width = 0.8 / len(names)
    everything = []
    for group, (_, summary) in enumerate(runs):
        present = [condition for condition in summary.conditions if condition.accuracy is not None]
        everything += present
        for slot, condition in enumerate(present):  # a condition that a run lacks leaves no hole
            position = group + (slot - (len(present) - 1) / 2) * width
            _bar(axes, position, 0.92 * width, condition, names.index(condition.name), 8 if len(names) < 6 else 6.5)
    axes.set_xticks(range(len(runs)), [_wrapped(label, 22) for label, _ in runs])
    axes.set_xlim(-0.6, len(runs) - 0.4)
    _accuracy_axis(axes, everything)
    labels = [_shortened(name, 40) for name in names]
    handles = [_patch(index, label) for index, label in enumerate(labels)]
    columns = int(
        figure.get_figwidth() / (0.08 * max(len(label) for label in labels) + 0.7)
    )  # inches a letter, a patch
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=max(1, min(columns, len(names))),
        frameon=False,
        fontsize=9,
    )
    return figure


def reward_by_round(rounds: Sequence[Round]) -> Figure:
    """Mean reward of a round's edits on the training documents, with 95 % intervals."""
    figure, axes = _figure(5.6, 3.8)
    points = [(r.round, r.train_reward, r.train_reward_ci95) for r in rounds if r.train_reward is not None]
    _line(axes, points)
    axes.set_title("Reward by round (training documents)")
    axes.set_ylabel("mean reward, %")
    return figure


def validation_by_round(rounds: Sequence[Round], selected_round: int | None) -> Figure:
    """Accuracy of each round's policy on the validation documents, the selected round marked."""
    figure, axes = _figure(5.6, 3.8)
    points = [(r.round, r.validation_accuracy, r.validation_ci95) for r in rounds if r.validation_accuracy is not None]
    _line(axes, points)
    for number, value, ci95 in points:
        if number == selected_round:
            axes.plot(number, 100 * value, "o", markersize=15, markerfacecolor="none", markeredgecolor=INK)
            low = 100 * (ci95[0] if ci95 else value)
            axes.annotate("selected", (number, low), (0, -8), textcoords="offset points", ha="center", va="top")
    axes.set_title("Validation by round")
    axes.set_ylabel("accuracy, %")
    return figure


def rewards_within_documents(signals: Sequence[findings.Signal]) -> Figure:
    """Each round's edits by document, sorted by mean: a long line is a document that tells good edits from bad ones."""
    from matplotlib.ticker import MaxNLocator

    figure, all_axes = _grid(min(len(signals), 3), -(-len(signals) // 3))
    for axes, signal in zip(all_axes, signals, strict=False):
        for position, document in enumerate(signal.documents):
            rewards = [100 * reward for reward in document.rewards]
            axes.plot([position, position], [rewards[0], rewards[-1]], color=FAINT, linewidth=1)
            axes.plot([position] * len(rewards), rewards, "o", color=INK, markersize=3, markerfacecolor="white")
            axes.plot(position, sum(rewards) / len(rewards), "_", color=INK, markersize=7)
        axes.set_title(
            f"Round {signal.round}: {signal.without_signal} of {len(signal.documents)} documents without signal",
            fontsize=10,
        )
        axes.set_ylim(-4, 104)
        axes.set_xlabel("documents, by mean reward")
        axes.set_ylabel("reward of each edit, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xticklabels([])
    for axes in all_axes[len(signals) :]:
        axes.set_visible(False)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _grid(columns: int, rows: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * columns + 0.6, 3.6 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _bar(axes: Axes, position: float, width: float, condition: Condition, index: int, fontsize: float) -> None:
    if condition.accuracy is None:
        return
    value = 100 * condition.accuracy
    fill, hatch = _look(index)
    axes.bar(position, value, width, color=fill, hatch=hatch, edgecolor=INK, linewidth=0.9, zorder=2)
    top = value
    if condition.ci95:
        low, top = 100 * condition.ci95[0], 100 * condition.ci95[1]
        errors = [[max(0.0, value - low)], [max(0.0, top - value)]]
        # A light halo keeps the lower half of the error bar visible on dark fills and hatches.
        axes.errorbar(position, value, errors, color="white", linewidth=4, capsize=5.5, capthick=3.5, zorder=3)
        axes.errorbar(position, value, errors, color=INK, linewidth=1.3, capsize=4, capthick=1.3, zorder=4)
    axes.annotate(
        f"{value:.1f}", (position, max(value, top)), (0, 4), textcoords="offset points", ha="center", fontsize=fontsize
    )


def _look(index: int) -> tuple[str, str]:
    return FILLS[index % len(FILLS)], HATCHES[index % len(HATCHES)]


def _patch(index: int, label: str):
    from matplotlib.patches import Patch

    fill, hatch = _look(index)
    return Patch(facecolor=fill, hatch=hatch, edgecolor=INK, label=label)


def _accuracy_axis(axes: Axes, conditions: Sequence[Condition]) -> None:
    highest = max([100 * max(c.accuracy or 0.0, c.ci95[1] if c.ci95 else 0.0) for c in conditions], default=0.0)
    axes.set_ylim(0, max(5.0, 1.12 * highest))
    what = "estimated accuracy" if findings.estimated(conditions) else "accuracy"
    axes.set_ylabel(f"{what}, %{' (bars: 95 % interval)' if any(c.ci95 for c in conditions) else ''}")
    axes.yaxis.grid(True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)


def _line(axes: Axes, points: Sequence[tuple[int, float, tuple[float, float] | None]]) -> None:
    numbers = [number for number, _, _ in points]
    values = [100 * value for _, value, _ in points]
    axes.plot(numbers, values, "-o", color=INK, linewidth=1.4, markersize=5)
    for number, value, ci95 in points:
        if ci95:
            errors = [[max(0.0, 100 * (value - ci95[0]))], [max(0.0, 100 * (ci95[1] - value))]]
            axes.errorbar(number, 100 * value, errors, color=FAINT, linewidth=1.2, capsize=4, zorder=1)
        halo = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        axes.annotate(
            f"{100 * value:.1f}", (number, 100 * value), (9, 9), textcoords="offset points", fontsize=9, bbox=halo
        )
    axes.set_xticks(numbers)
    axes.set_xlabel("round")
    axes.margins(x=0.12, y=0.25)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -4), min(high, 108))  # shares: below 0 and above 100 there is nothing but room for labels
    axes.yaxis.grid(True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)


def _wrapped(name: str, width: int) -> str:
    """Wrapped at spaces and after `:`, `#` and `/`, so that `replay:notes.jsonl#writer` fits under its bar."""
    text = format.label(name)
    for mark in (":", "#", "/"):
        text = text.replace(mark, mark + " \0")  # a blank to wrap at, to be taken out again
    lines = textwrap.wrap(text, width, break_long_words=True, max_lines=5, placeholder=" …")
    return "\n".join(line.replace(" \0", "").replace("\0", "") for line in lines)


def _shortened(name: str, width: int) -> str:
    text = format.label(name)
    return text if len(text) <= width else text[: width // 2 - 1] + "…" + text[-(width // 2) :]
