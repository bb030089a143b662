"""From what a writer wrote to an edit that can be learned from.

Knows lines.  Knows nothing of who wrote them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LIST_MARK = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,3}[.):])\s+")


@dataclass(frozen=True)
class Cleaned:
    """`dropped` counts repeated and empty lines that were left out, and the cut last line."""

    text: str
    dropped: int


def clean(raw: str, *, cut_off: bool) -> Cleaned:
    """Strips list marks, drops empty and repeated lines, and, where the text was cut off, its last line, which is not whole.

    A cut text of a single line is kept up to its last whole sentence.  The result may be empty.
    """
    lines = raw.strip().splitlines()
    dropped = 0
    if cut_off and len(lines) > 1:
        lines.pop()
        dropped += 1
    elif cut_off and lines:
        end = max(lines[0].rfind(mark) for mark in ".!?")
        dropped += end < 0
        lines = [lines[0][: end + 1]] if end >= 0 else []
    kept: list[str] = []
    seen: set[str] = set()
    for line in lines:
        stripped = _LIST_MARK.sub("", line).strip()
        key = stripped.casefold().rstrip(".")
        # Answers may repeat ("Answer: Yes"): only whole statements and questions count as repetitions.
        if not stripped or (key in seen and not key.startswith("answer:")):
            dropped += 1
            continue
        seen.add(key)
        kept.append(stripped)
    return Cleaned("\n".join(kept), dropped)
