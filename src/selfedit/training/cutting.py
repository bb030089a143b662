"""Cuts an edit and its document into training sequences.

Texts are cut here and become token ids in `tokens`; where a length matters, the caller passes a counter of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from selfedit.documents import Document, part_spans
from selfedit.editors.cleaning import ANSWER, QUESTION

Cutting = Literal["lines", "whole"]

_FORM = 48  # tokens that a chat template may put around a text
_SMALLEST_PART = 32


@dataclass(frozen=True)
class TrainingSequence:
    """A text to be learned, under its document's title; with `question`, it is the answer to that exam question."""

    title: str
    text: str
    question: str | None = None


def cut(
    document: Document,
    edit: str | None,
    *,
    cutting: Cutting,
    with_document: bool = True,
    questions_as_exam: bool = False,
    max_tokens: int,
    count_tokens: Callable[[str], int],
    advance: Callable[[int], None] | None = None,
) -> list[TrainingSequence]:
    """The training sequences of one fit: the edit's, then the document's (as published, the document is the last).

    `lines` makes each line of the edit a sequence of its own, `whole` the edit one sequence.  With
    `questions_as_exam`, pairs of `Question:` and `Answer:` lines are learned in the exam's own form instead.  A
    text longer than `max_tokens` is cut into overlapping parts.  An edit of which nothing is left leaves the document.
    `advance` is called, part by part, with how many characters were cut.
    """
    sequences: list[TrainingSequence] = []
    lines = [line for line in (edit or "").splitlines() if line.strip()]
    if questions_as_exam:
        pairs, lines = question_pairs(lines)
        sequences += [TrainingSequence(document.title, answer, question) for question, answer in pairs]
    else:
        lines = _join_pairs(lines)
    texts = lines if cutting == "lines" else ["\n".join(lines)] * bool(lines)
    if with_document or not (sequences or texts):
        texts = [*texts, document.text]
    room = part_size(count_tokens(document.title), max_tokens)
    for text in texts:
        covered = 0
        for begin, end in part_spans(text, room, overlap=room // 8, length=count_tokens):
            sequences.append(TrainingSequence(document.title, text[begin:end].strip()))
            if advance is not None:
                advance(end - covered)
            covered = end
    return sequences


def part_size(title_tokens: int, max_tokens: int) -> int:
    """Tokens that a text may have under its title; a longer one is cut into parts."""
    return max(_SMALLEST_PART, max_tokens - title_tokens - _FORM)


def question_pairs(lines: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(question, answer) of each `Question:` line with an `Answer:` line behind it, and the other lines.  A question
    that got no answer is left out."""
    pairs: list[tuple[str, str]] = []
    others: list[str] = []
    asked: str | None = None
    for line in lines:
        if question := QUESTION.match(line):
            asked = question[1].strip()
        elif (answer := ANSWER.match(line)) and asked is not None:
            pairs.append((asked, answer[1].strip()))
            asked = None
        else:
            others.append(line)
    return pairs, others


def _join_pairs(lines: list[str]) -> list[str]:
    """A question and its answer are learned together: one line, not two."""
    joined: list[str] = []
    for line in lines:
        if joined and ANSWER.match(line) and QUESTION.match(joined[-1]) and "\n" not in joined[-1]:
            joined[-1] += "\n" + line
        else:
            joined.append(line)
    return joined
