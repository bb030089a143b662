"""The type of the fixture `make`."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from selfedit.methods.settings import Settings

S = TypeVar("S", bound=Settings)


class Make(Protocol):
    """`make(CompareSettings, 2, editor=("none",))`: settings of a short run on so many documents, in a new folder."""

    def __call__(self, kind: type[S], count: int, **more: Any) -> S: ...
