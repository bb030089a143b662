"""How far work under way is: the command line shows it, the Python API is quiet unless given a listener."""

from __future__ import annotations


class Progress:
    """`begin` opens a phase of `total` tokens (None: unknown), `advance` counts within it, `note` is one line for the
    user.  This one shows nothing."""

    def begin(self, phase: str, total: float | None) -> None: ...

    def advance(self, amount: float) -> None: ...

    def note(self, line: str) -> None: ...
