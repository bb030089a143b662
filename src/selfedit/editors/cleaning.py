"""From what a writer wrote to an edit that can be learned from.

It works on lines, list marks and the form of questions with answers, whoever wrote them.
"""

from __future__ import annotations

import re

# "Question: ...", "Q2. ...", with the answer on the line behind it.
QUESTION = re.compile(r"^(?:question|q)\s*\d*\s*[:.)]\s*(.+)$", re.IGNORECASE)
ANSWER = re.compile(r"^(?:answer|a)\s*\d*\s*[:.)]\s*(.+)$", re.IGNORECASE)

_LIST_MARK = re.compile(r"^(?:\s*(?:[-*•–]|\(?\d{1,3}[.):])(?:\s+|$))+")
# A mark before white space, or at the end unless a digit stands before it: "It cost 3." may have been cut from 3.5.
_SENTENCE_END = re.compile(r"[.!?][\"'”’»)\]]*(?=\s)|(?<=\D)[.!?][\"'”’»)\]]*$")


def clean(raw: str, *, cut_off: bool) -> tuple[str, int]:
    """(the text, how many lines were dropped).  Strips list marks, drops empty and repeated lines, and, where the text
    was cut off, its last line, which is not whole.

    A cut text of a single line is kept up to its last whole sentence.  A question that is repeated goes with its
    answer; answers to different questions may be the same.  The text may be empty.
    """
    lines = raw.strip().splitlines()
    dropped = 0
    if cut_off and lines and not raw.rstrip(" \t").endswith("\n"):
        if len(lines) > 1:
            lines.pop()
            dropped += 1
        else:
            ends = [match.end() for match in _SENTENCE_END.finditer(lines[0])]
            lines = [lines[0][: ends[-1]]] if ends else []
            dropped += not ends
    kept: list[str] = []
    seen: set[str] = set()
    asked_again = False
    for line in lines:
        stripped = _LIST_MARK.sub("", line).strip()
        if not stripped:
            dropped += 1
            continue
        key = stripped.casefold().rstrip(".")
        answer = ANSWER.match(stripped) is not None
        repeated = asked_again if answer else key in seen
        asked_again = repeated and QUESTION.match(stripped) is not None
        if repeated:
            dropped += 1
            continue
        seen.add(key)
        kept.append(stripped)
    return "\n".join(kept), dropped
