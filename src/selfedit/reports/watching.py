"""A run under way, as far as its records go: what `selfedit watch` shows, again and again, until the run has ended."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from selfedit.errors import UserError
from selfedit.reports import findings, format, table
from selfedit.reports.console import plain_text
from selfedit.reports.records import RunRecords, read_run
from selfedit.runs.costs import Spent
from selfedit.runs.directory import records_in
from selfedit.runs.lock import is_held
from selfedit.text import one_line

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 40  # of a curve


def watch(path: Path, console: Console, every: float) -> None:
    """Shows a run, or of several in a directory (of a reproduction, or of several models) the one that was written
    last, until nobody writes it any more.

    On a terminal the view is drawn in place; elsewhere it is printed whenever it has changed.  Errors: UserError.
    """
    shown = ""
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            run = _newest(path)
            # Before the records, which are then whole where it has ended.
            going_on = is_held(path / "lock") or is_held(run / "lock")
            found = _view(run, going_on)
            if live is not None:
                live.update(found, refresh=True)
            elif (text := plain_text(found)) != shown:
                console.print(Text(text), soft_wrap=True)
                shown = text
            if not going_on:
                return
            time.sleep(every)


def _newest(path: Path) -> Path:
    if records_in(path):
        return path
    runs = [run.parent for below in ("*", "*/*") for run in path.glob(f"{below}/config.yaml")]
    if not runs:
        raise UserError(
            f"{path}: not the directory of a run, and no runs are in it; give the directory that --out named"
        )
    return max(runs, key=_last_written)


def _last_written(run: Path) -> float:
    times = [0.0]
    for file in run.iterdir():
        with suppress(FileNotFoundError):  # a run that goes on makes and removes files
            times.append(file.stat().st_mtime)
    return max(times)


def _view(path: Path, going_on: bool) -> Group:
    run = read_run(path)
    parts: list[RenderableType] = [Text(f"{one_line(path)}  {table.heading(run)}", style="bold")]
    parts += [Text(line) for line in findings.missing(run)[1:]]  # the first says why there are no figures
    if found := findings.compared(run):
        parts.append(table.comparison(found, run.figures.differences))
    if run.rounds:
        parts.append(table.rounds(findings.rounds(run), run.figures.selected_round, run.figures.selected_on))
    parts += [Text(f"{name:<9}{told}") for name, told in _facts(run).items() if told]
    if not going_on:
        ended = "Nobody writes this run; its command goes on with it."
        parts.append(Text("The run has finished." if findings.finished(run) else ended))
    return Group(*parts)


def _facts(run: RunRecords) -> dict[str, str]:
    trained = [fit for fit in run.fits if fit.sequences and not fit.recital]
    tokens, seconds = sum(fit.train_tokens for fit in trained), sum(fit.seconds for fit in trained)
    spent, planned = Spent.of(run.costs), planned_fits(run)
    left = run.seconds * (planned - len(trained)) / len(trained) if planned and trained and run.summary is None else 0.0
    curve = [loss for _, loss in list(run.curves.values())[-1]] if run.curves else []
    return {
        "fits": f"{len(trained):,}" + (f" of {planned:,}" if planned else ""),
        "trained": f"{tokens:,} tokens" + (f", {tokens / seconds:,.0f} per device second" if seconds else ""),
        "written": f"{sum(edit.output_tokens for edit in run.edits):,} tokens of {len(run.edits):,} edits",
        "loss": f"{_curve(curve)}  {curve[0]:.2f} to {curve[-1]:.2f}" if curve else "",
        "spent": f"{format.seconds(spent.seconds)} of devices, {format.usd(spent.usd)} US dollars",
        "time": f"{format.seconds(run.seconds)} so far" + (f", about {format.seconds(left)} left" if left > 0 else ""),
    }


def planned_fits(run: RunRecords) -> int | None:
    """How many fits of edits `compare` and `train` take in all; None where the settings do not say."""
    config, splits, each = run.config, list(run.splits.values()), partial(findings.fits_per_document, run)
    if run.procedure == "compare" and config.get("regime") != "joint":
        roles = [findings.role(name) for name in findings.planned(run)]
        if config.get("policy") is not None and config.get("policy_round") != "all":
            roles.append("trained")
        return len(splits) * sum(each(r) for r in roles if r not in (findings.BASE, *findings.REFERENCE_LINES))
    if run.procedure == "train" and isinstance(rounds := config.get("rounds"), int) and config.get("reward") != "judge":
        training = splits.count("train")
        of_round = min(training, config.get("documents_per_round") or training)
        trained = each("self") + each("passage") * (config.get("baseline") == "passage")
        # One edit of a validation document takes as many as its passage.
        return rounds * of_round * trained + (rounds + 1) * splits.count("validation") * each("passage")
    return None


def _curve(values: list[float]) -> str:
    """A line of blocks, the height of each a mean over a share of the values."""
    size = math.ceil(len(values) / _COLUMNS)
    means = [sum(part) / len(part) for k in range(0, len(values), size) if (part := values[k : k + size])]
    low, high = min(means), max(means)
    return "".join(_BARS[round((value - low) / (high - low or 1.0) * (len(_BARS) - 1))] for value in means)
