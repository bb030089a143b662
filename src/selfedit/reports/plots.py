"""Charts (matplotlib, without a display) as PNG and SVG files and as a part of the page: readable in black and white,
the same bytes every time.  Imported where something is drawn: matplotlib costs half a second.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from selfedit.reports import findings, format
from selfedit.reports.records import RunRecords
from selfedit.runs.files import disk_errors, write_atomically
from selfedit.runs.summary import ConditionSummary, RetentionSummary, Summary
from selfedit.text import one_line

WIDTH = 5.2
"""Inches of a chart: 500 pixels on the page, so that its words can still be read on a telephone."""

PAPER, INK, QUIET, RULE = "#ffffff", "#222222", "#8a8a8a", "#e4e4e4"
HALO = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}  # keeps a label legible on a line
FILLS = ("#ffffff", "#d9d9d9", "#a6a6a6", "#737373", "#404040")
HATCHES = ("", "///", "", "\\\\\\", "", "...", "xx", "--", "++", "oo")
_ON_THE_PAGE = {PAPER: "var(--paper)", INK: "var(--ink)", QUIET: "var(--quiet)", RULE: "var(--rule)"} | {
    fill: f"var(--fill-{number})" for number, fill in enumerate(FILLS) if number
}

Point = tuple[int, float | None, tuple[float, float] | None]
"""Where, a share, its 95 % interval."""

MOST_LABELS = 12
"""Points of a line that have their values beside them; of more, the labels would cover each other."""

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a model's name is a dollar
    "axes.axisbelow": True,
    "axes.edgecolor": QUIET,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titlepad": 14,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "path.simplify": False,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "selfedit",  # ids in the SVG derive from this, not from the clock
    "xtick.color": INK,
    "xtick.major.size": 0,
    "ytick.color": INK,
    "ytick.major.size": 0,
}


class Chart(NamedTuple):
    """`title` stands above it in its files, `label` in its place where it is not seen, `hints` over its columns (see
    `rewards_of_round`)."""

    figure: Figure
    title: str
    label: str
    hints: Sequence[str] = ()


def write_charts(drawn: Mapping[str, Chart], folder: Path) -> list[Path]:
    """Writes charts into `folder` as PNG and SVG, under their titles, overwriting older ones, and returns their paths.
    Inside `style()`."""
    paths = []
    for name, chart in drawn.items():
        chart.figure.suptitle(_wrapped(chart.title, 60), x=0.02, ha="left", fontsize=12)
        paths += save(chart.figure, folder / name)
    return paths


def charts(run: RunRecords) -> dict[str, Chart]:
    """The charts that files and page share, by name.  Inside `style()`.

    `chart` compares the conditions; a sweep adds `frontier`, Step B `reward`, `validation` and for each round
    `signal-N`, continual learning a `matrix` for each remedy.  What has no figures has no chart.
    """
    rounds, summary, model = findings.rounds(run), run.figures, format.clean(run.model)
    rewards = [(entry.round, entry.train_reward, entry.train_reward_ci95) for entry in rounds]
    validation = [(entry.round, entry.validation_accuracy, entry.validation_ci95) for entry in rounds]
    compared, rewarded = comparison(findings.compared(run)), line(rewards, "round", "mean reward, %")
    validated = line(validation, "round", "accuracy, %", summary.selected_round)
    found = {}
    for name, figure, title, label in (
        ("frontier", frontier(summary), f"Learned and forgotten: {model}", "What each recipe learned and forgot"),
        ("chart", compared, f"What was learned: {model}", "Accuracy of each condition, with 95 % intervals"),
        ("reward", rewarded, "Reward by round (training documents)", "Reward by round"),
        ("validation", validated, "Validation by round", "Validation by round"),
    ):
        if figure is not None:
            found[name] = Chart(figure, title, f"{label}; the same figures are in the table")
    for signal in findings.signals(run):
        title = f"Round {signal.round}: {signal.without_signal} of {len(signal.documents)} documents without signal"
        label = f"Rewards of each document's edits in round {signal.round}"
        hints = [entry.document.title for entry in signal.documents]
        found[f"signal-{signal.round}"] = Chart(rewards_of_round(signal), title, label, hints)
    for one in summary.retention:
        if (figure := matrix(one)) is not None:
            over = f", mean of {one.sequences} sequences" if one.sequences > 1 else ""
            title = f"What is still known, in %: retain {one.retain}{over}"
            found[f"matrix-{one.retain}"] = Chart(figure, title, title)
    return found


@contextmanager
def style() -> Iterator[None]:
    """The settings that every chart here is drawn and saved under."""
    with rc_context(_STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        # Names in a script that the font does not have are boxes in a PNG file, and words in the others.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes `stem`.png and `stem`.svg, without dates, inside `style()`."""
    with disk_errors(stem):
        stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
        content = io.BytesIO()
        figure.savefig(content, format=suffix[1:], dpi=200, metadata=metadata)
        paths.append(stem.with_name(stem.name + suffix))
        write_atomically(paths[-1], content.getvalue())
    return paths


def inline(chart: Chart, name: str) -> Markup:
    """The chart as an SVG element of the page, inside `style()`: in the page's colours, and with attributes in the
    place of style sheets, which the page's policy forbids.  `name` is its own on its page."""
    content = io.BytesIO()
    chart.figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(content.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for node in root.iter():
        if node.get("id") == "columns":
            for column, hint in zip(node, chart.hints, strict=True):
                ElementTree.SubElement(column, f"{_SVG}title").text = hint
        if node.tag == f"{_SVG}g":
            node.attrib.pop("id", None)
        for item in node.attrib.pop("style", "").split("; "):
            key, _, value = item.partition(": ")
            if key == "font":  # SIZE FAMILIES; the family is the page's
                key, value = "font-size", next(word for word in value.split() if word.endswith("px"))
            if key and key != "font-family":
                node.set(key, value)
        for key, value in node.attrib.items():
            if key == "id":
                node.set(key, f"{name}-{value}")
            elif key.endswith("href"):
                node.set(key, f"#{name}-{value[1:]}")
            elif value.startswith("url(#"):
                node.set(key, f"url(#{name}-{value[5:]}")
            elif value in _ON_THE_PAGE:
                node.set(key, _ON_THE_PAGE[value])
    width = float(root.attrib.pop("width").removesuffix("pt")) * 4 / 3
    del root.attrib["height"]
    root.attrib |= {"class": "chart", "width": f"{width:.0f}", "role": "img", "aria-label": chart.label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


_SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", _SVG[1:-1])
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def comparison(conditions: Sequence[ConditionSummary]) -> Figure | None:
    """One bar per condition with its 95 % interval and its value, and a line where open book is; None where nothing was
    graded."""
    shown = [condition for condition in conditions if condition.accuracy is not None]
    if not shown:
        return None
    figure, axes = _figure(0.9 + 0.42 * len(shown))
    base = findings.reference([condition.name for condition in shown])
    for position, condition in enumerate(shown):
        _bar(axes, position, 0.6, condition, FILLS[1] if condition.name == base else FILLS[2])
        if condition.name == "open-book":
            axes.axvline(100 * (condition.accuracy or 0.0), color=INK, linewidth=1, linestyle="--", zorder=1)
    axes.set_yticks(range(len(shown)), [_wrapped(condition.name, 22) for condition in shown])
    _accuracy_axis(axes, shown)
    return figure


def frontier(summary: Summary) -> Figure | None:
    """Each recipe of a sweep: what it learned against what was forgotten, a point's area as its training tokens; with
    lines for what may be lost, no adaptation and open book.  None where there is none, or nothing was known."""
    rows = [row for row in summary.sweep if row.accuracy is not None and row.lost is not None and not row.failed_fits]
    if not rows:
        return None
    figure, axes = _figure(3.6)
    most = max(row.train_tokens for row in rows) or 1.0
    for row in sorted(rows, key=lambda row: -row.train_tokens):  # small ones on top
        place = (100 * (row.lost or 0.0), 100 * (row.accuracy or 0.0))
        size = max(10.0, 20 * (row.train_tokens / most) ** 0.5)  # its number stands in it
        fill = FILLS[3] if row.validated else FILLS[1]
        axes.plot(*place, "o", markersize=size, markerfacecolor=fill, markeredgecolor=INK, markeredgewidth=0.8)
        if row.chosen:
            axes.plot(*place, "o", markersize=size + 6, markerfacecolor="none", markeredgecolor=INK)
            axes.annotate("chosen", place, (size / 2 + 5, -3), textcoords="offset points", fontsize=9)
        ink = PAPER if row.validated else INK
        axes.annotate(f"{row.number}", place, ha="center", va="center", fontsize=8, color=ink)
    if summary.most_lost is not None:
        axes.axvline(100 * summary.most_lost, color=QUIET, linewidth=1, linestyle=":")
    for name, shown in ((findings.BASE, "no adaptation"), ("open-book", "open book")):
        for base in (c.accuracy for c in summary.conditions if c.name == name and c.accuracy is not None):
            axes.axhline(100 * base, color=QUIET, linewidth=1, linestyle="--")
            place = (1.0, 100 * base)
            axes.annotate(shown, place, xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set_xlabel("general questions lost, %\n(area: training tokens; dark: validation documents)")
    axes.set_ylabel("accuracy, %")
    axes.margins(x=0.15, y=0.15)
    axes.set_xlim(min(-2.0, axes.get_xlim()[0]), None)
    axes.grid(True)
    return figure


def grouped(runs: Sequence[tuple[str, Sequence[ConditionSummary]]]) -> Figure | None:
    """Several runs: a group of bars per run, the same condition with the same fill everywhere."""
    everything = [c for _, conditions in runs for c in conditions if c.accuracy is not None]
    names = list(dict.fromkeys(condition.name for condition in everything))
    if not names:
        return None
    figure, axes = _figure(0.9 + 0.22 * (len(names) + 1) * len(runs) + 0.25 * -(-len(names) // 2))
    height = 0.84 / len(names)
    for group, (_, conditions) in enumerate(runs):
        for condition in conditions:
            if condition.accuracy is not None:
                index = names.index(condition.name)
                _bar(axes, group + (index - (len(names) - 1) / 2) * height, height, condition, *_look(index))
    axes.set_yticks(range(len(runs)), [_wrapped(label, 18) for label, _ in runs])
    axes.set_ylim(-0.55, len(runs) - 0.45)
    _accuracy_axis(axes, everything)
    handles = []
    for index, name in enumerate(names):
        fill, hatch = _look(index)
        handles.append(Patch(facecolor=fill, hatch=hatch, edgecolor=INK, label=one_line(name, 30)))
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def line(points: Sequence[Point], across: str, up: str, selected: int | None = None) -> Figure | None:
    """Shares with their 95 % intervals by round or step, one of them marked as selected; None where there are none."""
    known = [(number, 100 * value, ci95) for number, value, ci95 in points if value is not None]
    if not known:
        return None
    figure, axes = _figure(3.1)
    axes.plot([number for number, _, _ in known], [value for _, value, _ in known], "-o", color=INK, linewidth=1.4)
    for number, value, ci95 in known:
        low, high = (100 * ci95[0], 100 * ci95[1]) if ci95 else (value, value)
        if ci95:
            errors = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar(number, value, errors, color=QUIET, linewidth=1.2, capsize=4, zorder=1)
        if number == selected:
            axes.plot(number, value, "o", markersize=14, markerfacecolor="none", markeredgecolor=INK)
            axes.annotate("selected", (number, low), (0, -8), textcoords="offset points", ha="center", va="top")
        if len(known) <= MOST_LABELS:
            axes.annotate(f"{value:.1f}", (number, value), (8, 8), textcoords="offset points", fontsize=9, bbox=HALO)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(known) <= MOST_LABELS:
        axes.set_xticks([number for number, _, _ in known])
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.margins(x=0.12, y=0.25)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -4), min(high, 108))  # shares: below 0 and above 100 there is nothing but room for labels
    axes.yaxis.grid(True)
    return figure


def matrix(entry: RetentionSummary) -> Figure | None:
    """Continual learning: the accuracy on each document of a sequence after each step, the darker the higher; None for
    a single step."""
    steps = len(entry.accuracy)
    if steps < 2:
        return None
    figure, axes = _figure(1.1 + WIDTH * 0.8)
    for i, row in enumerate(entry.accuracy):
        for j, value in enumerate(row):
            if value is None:
                continue
            shade = min(int(value * len(FILLS)), len(FILLS) - 1)
            axes.add_patch(Rectangle((j + 0.5, i + 0.5), 1, 1, facecolor=FILLS[shade], edgecolor=RULE, linewidth=0.7))
            if steps <= MOST_LABELS:
                spread = entry.deviation[i][j] if entry.deviation else None
                text = f"{100 * value:.0f}" + ("" if spread is None else f"\n±{100 * spread:.0f}")
                ink = PAPER if shade > len(FILLS) // 2 else INK
                size = 9 if steps <= MOST_LABELS // 2 or spread is None else 7
                axes.text(j + 1, i + 1, text, ha="center", va="center", fontsize=size, color=ink)
    axes.set_xlim(0.5, steps + 0.5)
    axes.set_ylim(steps + 0.5, 0.5)
    axes.set_aspect("equal")
    ticks = range(1, steps + 1, -(-steps // MOST_LABELS))
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.set_xlabel("document, in the order of learning")
    axes.set_ylabel("after step")
    return figure


def loss(points: Sequence[tuple[int, float]]) -> Figure:
    """A fit's loss, nats per token, by training step."""
    figure, axes = _figure(2.6)
    axes.plot([step for step, _ in points], [value for _, value in points], color=INK, linewidth=1.2)
    axes.set_ylim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token")
    axes.yaxis.grid(True)
    return figure


def rewards_of_round(signal: findings.Signal) -> Figure:
    """A round's edits by document, sorted by mean: a long line is a document that tells good edits from bad ones."""
    figure, axes = _figure(2.8)
    rewards = [[100 * reward for reward in document.rewards] for document in signal.documents]
    positions = range(len(rewards))
    axes.vlines(positions, [found[0] for found in rewards], [found[-1] for found in rewards], color=QUIET, linewidth=1)
    dots = [(position, reward) for position, found in enumerate(rewards) for reward in found]
    axes.plot(*zip(*dots, strict=True), "o", color=INK, markersize=3, markerfacecolor=PAPER)
    axes.plot(positions, [sum(found) / len(found) for found in rewards], "_", color=INK, markersize=7)
    axes.vlines(positions, 0, 100, alpha=0, linewidth=6, gid="columns")  # unseen: what a hint is shown over
    axes.set_ylim(-4, 104)
    axes.set_xlabel("documents, by mean reward")
    axes.set_ylabel("reward of each edit, %")
    axes.set_xticks([])
    axes.yaxis.grid(True)
    return figure


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _bar(axes: Axes, position: float, height: float, condition: ConditionSummary, fill: str, hatch: str = "") -> None:
    value = 100 * (condition.accuracy or 0.0)
    axes.barh(position, value, height, color=fill, hatch=hatch, edgecolor=INK, linewidth=0.8, zorder=2)
    end = value
    if condition.ci95:
        low, end = 100 * condition.ci95[0], 100 * condition.ci95[1]
        errors = [[max(0.0, value - low)], [max(0.0, end - value)]]
        # A light halo keeps the lower half of the error bar visible on dark fills and hatches.
        axes.errorbar(value, position, xerr=errors, color=PAPER, linewidth=3.5, capsize=3.5, capthick=3, zorder=3)
        axes.errorbar(value, position, xerr=errors, color=INK, linewidth=1.2, capsize=3, capthick=1.2, zorder=4)
    place = (max(value, end), position)
    axes.annotate(f"{value:.1f}", place, (6, 0), textcoords="offset points", va="center", fontsize=9, bbox=HALO)


def _look(index: int) -> tuple[str, str]:
    return FILLS[index % len(FILLS)], HATCHES[index % len(HATCHES)]


def _accuracy_axis(axes: Axes, conditions: Sequence[ConditionSummary]) -> None:
    highest = max([100 * max(c.accuracy or 0.0, c.ci95[1] if c.ci95 else 0.0) for c in conditions], default=0.0)
    axes.set_xlim(0, max(5.0, 1.12 * highest))
    axes.set_xlabel(f"accuracy, %{' (lines: 95 % interval)' if any(c.ci95 for c in conditions) else ''}")
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.xaxis.grid(True)


def _wrapped(name: str, width: int) -> str:
    """Wrapped at spaces and after `:`, `#` and `/`, so that `replay:notes.jsonl#writer` fits beside its bar."""
    text = format.clean(name)
    for mark in (":", "#", "/"):
        text = text.replace(mark, mark + " \0")  # a blank to wrap at, to be taken out again
    lines = textwrap.wrap(text, width, break_long_words=True, max_lines=5, placeholder=" …")
    return "\n".join(line.replace(" \0", "").replace("\0", "") for line in lines)
