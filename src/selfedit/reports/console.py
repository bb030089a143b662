"""Tables for the console (rich).  Without a terminal they come out as plain text of at most 100 columns."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 100
"""Columns of a table where no terminal says how wide it is."""


@dataclass(frozen=True)
class Figures:
    """A table, as the console (rich prints it) and the page show it: headings of columns of words, then of figures
    (with a line break where the console has one), rows of cells, numbers of the chosen rows, and notes."""

    words: Sequence[str]
    figures: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    chosen: Collection[int] = ()
    title: str = ""

    @property
    def headings(self) -> list[str]:
        """On a line each."""
        return [h.replace("-\n", "").replace("/\n", "/").replace("\n", " ") for h in (*self.words, *self.figures)]

    def __rich__(self) -> Group:
        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, show_edge=False, header_style=""
        )
        for heading in self.words:  # wrapped where they are long
            table.add_column(heading, overflow="fold", min_width=12)
        for heading in self.figures:
            table.add_column(heading, justify="right", no_wrap=True)
        for number, row in enumerate(self.rows):
            # What others wrote is no markup of rich's.
            cells = [Text(cell) if place < len(self.words) else cell for place, cell in enumerate(row)]
            table.add_row(*cells, style="bold" if number in self.chosen else "")
        return Group(*([Text(self.title)] if self.title else []), table, *dim(self.notes))


def plain_text(renderable: RenderableType, width: int = PLAIN_WIDTH) -> str:
    """What a renderable looks like without a terminal: no colours, no escape sequences, no trailing spaces."""
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False, color_system=None, legacy_windows=False).print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def print_wide(renderable: RenderableType, console: Console) -> None:
    """Prints at the terminal's width, or at `PLAIN_WIDTH` columns where there is no terminal to be narrower."""
    if console.is_terminal:
        console.print(renderable)
    else:
        console.print(Text(plain_text(renderable)), soft_wrap=True, end="")


def dim(notes: Iterable[str]) -> list[Text]:
    return [Text(note, style="dim") for note in notes]
