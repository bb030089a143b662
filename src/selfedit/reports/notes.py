"""What a trained editor writes, round by round: how long, how much of it is questions, how much is copied, and how many
of the exam's answers are in it.  Rewards alone do not show an editor that comes to write one line."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.reports import format
from selfedit.reports.records import RunRecords
from selfedit.reports.table import Figures

RUN_LENGTH = 3  # words in a row that count as copied


@dataclass(frozen=True, slots=True)
class Written:
    """The edits of a round's editor of the validation documents: means of tokens and lines, and shares."""

    round: int
    edits: int
    tokens: float
    lines: float
    cut_off: float
    empty: float
    questions: float  # of its lines
    copied: float  # of its runs of three words
    answers: float  # of the exam's questions: an accepted answer stands in the edit


def written(run: RunRecords) -> list[Written]:
    """One per round that was validated; round 0 is the untrained editor."""
    if run.procedure != "train":
        return []
    documents = {d.id: d for d in run.documents if run.splits[d.id] == "validation"}
    rounds: dict[int, list[Edit]] = defaultdict(list)
    for edit in run.edits:
        if edit.document_id in documents:
            rounds[edit.round].append(edit)
    return [_of(number, edits, documents) for number, edits in sorted(rounds.items())]


def _of(number: int, edits: Sequence[Edit], documents: dict[str, Document]) -> Written:
    lines = [edit.text.splitlines() for edit in edits]
    all_lines = [line for some in lines for line in some]
    copied, runs, found, asked = 0, 0, 0, 0
    for edit in edits:
        document = documents[edit.document_id]
        known, own = set(_runs(document.text)), _runs(edit.text)
        copied, runs = copied + sum(one in known for one in own), runs + len(own)
        text = edit.text.casefold()
        found += sum(any(answer.casefold() in text for answer in q.answers) for q in document.questions)
        asked += len(document.questions)
    return Written(
        round=number,
        edits=len(edits),
        tokens=sum(edit.output_tokens for edit in edits) / len(edits),
        lines=len(all_lines) / len(edits),
        cut_off=sum(edit.truncated for edit in edits) / len(edits),
        empty=sum(not edit.text for edit in edits) / len(edits),
        questions=sum(line.rstrip().endswith("?") for line in all_lines) / max(1, len(all_lines)),
        copied=copied / max(1, runs),
        answers=found / max(1, asked),
    )


def _runs(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return [tuple(words[k : k + RUN_LENGTH]) for k in range(len(words) - RUN_LENGTH + 1)]


def table(rounds: Sequence[Written]) -> Figures:
    rows = [
        (
            f"{one.round}",
            f"{one.edits}",
            f"{one.tokens:.0f}",
            f"{one.lines:.1f}",
            *map(format.percent, (one.cut_off, one.empty, one.questions, one.copied, one.answers)),
        )
        for one in rounds
    ]
    headings = [
        "round",
        "edits",
        "tokens",
        "lines",
        "cut off\n%",
        "empty\n%",
        "questions\n%",
        "copied\n%",
        "answers\n%",
    ]
    note = (
        "Of the validation documents. questions: lines that ask; copied: runs of three words that are in the document;"
        " answers: questions of the exam of which an accepted answer stands in the edit."
    )
    return Figures([], headings, rows, [note], title="What the editor of each round writes")
