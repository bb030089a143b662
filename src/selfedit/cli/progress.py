"""Shows progress on standard error: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from selfedit.progress import Progress
from selfedit.text import one_line

if TYPE_CHECKING:
    from rich.progress import Task

_LINE_SECONDS = 15.0
_LONGEST_PHASE = 60  # characters before the bar


class PlainProgress(Progress):
    """A line when a phase begins, and one every fifteen seconds."""

    def __init__(self) -> None:
        self.phase = ""
        self.total: float | None = None
        self.done = 0.0
        self.started = self.said = time.monotonic()

    def begin(self, phase: str, total: float | None) -> None:
        self.phase, self.total, self.done = phase, total, 0.0
        self.started = self.said = time.monotonic()
        self._say(phase)

    def advance(self, amount: float) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.said < _LINE_SECONDS:
            return
        self.said = now
        rate = self.done / (now - self.started)
        of, left = "", ""
        if self.total and rate:
            of = f" of at most {self.total:,.0f}"
            left = f", about {_duration(max(0.0, self.total - self.done) / rate)} left"
        self._say(f"{self.phase}: {self.done:,.0f}{of} ({rate:,.0f}/s{left})")

    def note(self, line: str) -> None:
        self._say(line)

    def close(self) -> None:
        """Nothing to clear."""

    def _say(self, line: str) -> None:
        print(one_line(line), file=sys.stderr, flush=True)


class BarProgress(Progress):
    """A bar for the phase under way, below a line for each that is over: bars that do not fit are not shown."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self.console = Console(stderr=True)
        self.bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TextColumn("{task.percentage:>3.0f} %  {task.fields[rate]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=self.console,
        )
        self.bar.start()

    def begin(self, phase: str, total: float | None) -> None:
        self._finish()
        self.bar.add_task(one_line(phase, _LONGEST_PHASE), total=total, rate="")

    def advance(self, amount: float) -> None:
        for task in self.bar.tasks:  # there is one, or none yet
            self.bar.update(task.id, advance=amount)
            self.bar.update(task.id, rate=_rate(task))

    def note(self, line: str) -> None:
        self._say(one_line(line), "yellow")

    def close(self) -> None:
        self._finish()
        self.bar.stop()

    def _finish(self) -> None:
        for task in self.bar.tasks:
            self.bar.remove_task(task.id)
            amount = f": {task.completed:,.0f} in {_duration(task.elapsed or 0.0)} ({_rate(task)})"
            self._say(task.description + amount * (task.completed > 0))

    def _say(self, line: str, style: str = "") -> None:
        from rich.text import Text

        self.console.print(Text(line, style))  # no markup, no emoji


def make_progress() -> PlainProgress | BarProgress:
    """A bar where somebody looks, lines where a log is kept."""
    return BarProgress() if sys.stderr.isatty() else PlainProgress()


def _rate(task: Task) -> str:
    return f"{task.completed / max(1e-6, task.elapsed or 0.0):,.0f}/s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
