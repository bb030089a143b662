"""How far work under way is: the command line shows it, the Python API is quiet unless given a listener."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """`begin` opens a phase of `total` tokens (None: unknown), `advance` counts within it, `note` is one line for the
    user."""

    def begin(self, phase: str, total: float | None) -> None: ...

    def advance(self, amount: float) -> None: ...

    def note(self, line: str) -> None: ...


class Quiet:
    """Shows nothing."""

    def begin(self, phase: str, total: float | None) -> None:
        del phase, total

    def advance(self, amount: float) -> None:
        del amount

    def note(self, line: str) -> None:
        del line
