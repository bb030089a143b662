"""What a trained editor writes, round by round: how long, how much of it is questions, how much is copied, and how many
of the exam's answers are in it.  Rewards alone do not show an editor that comes to write one line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.evaluation.text import contains, tokens
from selfedit.grouping import grouped
from selfedit.reports import format
from selfedit.reports.console import Figures
from selfedit.reports.records import RunRecords

RUN_LENGTH = 3  # words in a row that count as copied
SHARES = ("cut off", "empty", "questions", "copied", "answers")
NOTE = (
    "Of the validation documents. questions: lines that ask; copied: runs of three words that are in the document;"
    " answers: questions of the exam of which an accepted answer stands in the edit, compared as graders compare them."
)


def table(run: RunRecords) -> Figures:
    """A row for each round that was validated; round 0 is the untrained editor."""
    documents = {d.id: d for d in run.documents if run.procedure == "train" and run.splits[d.id] == "validation"}
    rounds = grouped((edit.round, edit) for edit in run.edits if edit.document_id in documents)
    rows = [_row(number, edits, documents) for number, edits in sorted(rounds.items())]
    headings = ["round", "edits", "tokens", "lines", *(f"{name}\n%" for name in SHARES)]
    return Figures([], headings, rows, [NOTE], title="What the editor of each round writes")


def _row(number: int, edits: Sequence[Edit], documents: Mapping[str, Document]) -> tuple[str, ...]:
    lines: list[str] = []
    copied: list[bool] = []
    answered: list[bool] = []
    for edit in edits:
        document, words = documents[edit.document_id], tokens(edit.text)
        known = set(_runs(document.text))
        lines += edit.text.splitlines()
        copied += [run in known for run in _runs(edit.text)]
        answered += [any(contains(words, tokens(answer)) for answer in q.answers) for q in document.questions]
    cut_off, empty = [edit.truncated for edit in edits], [not edit.text for edit in edits]
    asking = [line.rstrip().endswith("?") for line in lines]
    length = sum(edit.output_tokens for edit in edits) / len(edits)
    shares = (sum(found) / max(1, len(found)) for found in (cut_off, empty, asking, copied, answered))
    return f"{number}", f"{len(edits)}", f"{length:.0f}", f"{len(lines) / len(edits):.1f}", *map(format.percent, shares)


def _runs(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return [tuple(words[k : k + RUN_LENGTH]) for k in range(len(words) - RUN_LENGTH + 1)]
