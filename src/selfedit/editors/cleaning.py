"""From what a writer wrote to an edit that can be learned from.

It works on lines, list marks and the form of questions with answers, whoever wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from selfedit.evaluation.lexical import content
from selfedit.evaluation.text import tokens

# "Question: ...", "Q2. ...", with the answer on the line behind it.  But "A. Smith" is a name, and "A) Oslo" a choice.
QUESTION = re.compile(r"^(?:question\s*\d*\s*[:.)]|q\s*(?:\d+\s*[.)]|\d*\s*:))\s*(.+)$", re.IGNORECASE)
ANSWER = re.compile(r"^(?:answer\s*\d*\s*[:.)]|a\s*(?:\d+\s*[.)]|\d*\s*:))\s*(.+)$", re.IGNORECASE)

# A line whose first sentence asks: "**Where was it?**", "Anna: Where was it?", "Where was it? In Oslo."
_ASKING = re.compile(r"^[\W_]*(?:\w+ ?\d*:[\W_]*)?(\w(?:(?![.!]\s)[^?])*\?)")

# What a reasoning model thinks aloud, perhaps to the end; only its end is there where the template begins it.
_THOUGHT = re.compile(r"\s*<think>.*?(?:</think>|\Z)|.*?^</think>$", re.DOTALL | re.MULTILINE)

_LIST_MARK = re.compile(r"^(?:\s*(?:[-*•–]|\(?\d{1,3}[.):])(?:\s+|$))+")
# A mark before white space, or at the end unless a digit stands before it: "It cost 3." may have been cut from 3.5.
_SENTENCE_END = re.compile(r"[.!?][\"'”’»)\]]*(?=\s)|(?<=\D)[.!?][\"'”’»)\]]*$")


def clean(raw: str, *, cut_off: bool) -> tuple[str, int]:
    """(the text, how many lines were dropped).  Strips list marks, and bold from questions and answers; drops empty and
    repeated lines, what was thought aloud, and, where the text was cut off, its last line, which is not whole.

    A cut text of a single line is kept up to its last whole sentence.  A question that is repeated goes with its
    answer; answers to different questions may be the same.  The text may be empty.
    """
    thought = _THOUGHT.match(raw)
    said = raw[thought.end() :] if thought else raw
    dropped = len(thought[0].strip().splitlines()) if thought else 0
    lines = said.strip().splitlines()
    if cut_off and lines and not said.rstrip(" \t").endswith("\n"):
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
        plain = stripped.replace("**", "")  # "**Question 1:** ..."
        if stripped.startswith("**") and (QUESTION.match(plain) or ANSWER.match(plain)):
            stripped = plain
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


def questions(lines: Iterable[str]) -> tuple[list[str], list[str]]:
    """(the questions, each once; the lines that are neither questions nor marked as answers).  A question is what
    stands behind `Question:`, with an answer or without, or the first sentence of a line, with a question mark."""
    asked: dict[str, None] = {}
    others = []
    for line in lines:
        if found := QUESTION.match(line) or _ASKING.match(line):
            asked[found[1].strip(" *_")] = None
        elif not ANSWER.match(line):
            others.append(line)
    return list(asked), others


def about(text: str, passage: str, *, keep_first: bool = False) -> tuple[str, int]:
    """(the text, how many lines were dropped), without the lines that are not worth learning: those that have no word
    of content in common with the passage (headings, talk to the reader, what is about something else), and those that
    repeat themselves.  A question stays or goes with its answer.  A line without words stays, and with `keep_first` the
    first one.

    Of 30,000 lines that GPT-4.1 and Qwen2.5-7B had written about SQuAD passages the first rule drops 8 %, most of them
    headings and talk, and the second one line.
    """
    known = _stems(tokens(passage))
    kept: list[str] = []
    dropped = 0
    for lines in with_answers(text.splitlines()):
        words = tokens("\n".join(_said(line) for line in lines))
        if words and not (keep_first and not kept) and (known.isdisjoint(_stems(content(words))) or _repeats(words)):
            dropped += len(lines)
        else:
            kept += lines
    return "\n".join(kept), dropped


def with_answers(lines: Iterable[str]) -> Iterator[list[str]]:
    """The lines, a question together with the answer behind it."""
    waiting: list[str] = []
    for line in lines:
        if waiting and not ANSWER.match(line):
            yield waiting
            waiting = []
        waiting.append(line)
        if not QUESTION.match(line):
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _said(line: str) -> str:
    form = QUESTION.match(line) or ANSWER.match(line)
    return form[1] if form else line


def _stems(words: list[str]) -> set[str]:
    """Words without most of their endings, in many languages."""
    return {word[:5] for word in words}


def _repeats(words: list[str]) -> bool:
    """Whether more than a quarter of a longer text has been in it before, three words at a time."""
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return len(threes) >= 10 and len(set(threes)) < 0.75 * len(threes)
