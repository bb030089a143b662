"""General questions, asked before and after an adaptation to measure what was forgotten.

Which of them count for a model (those it answers rightly before) is up to the method.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files

from selfedit.documents.document import Question

GENERAL_TITLE = "General knowledge"
"""What general questions are asked under, where an exam names its document's title."""

# A small model knows half of them, so an adapter's questions are drawn from about ten times as many known ones.
_ASKED_PER_QUESTION = 20


@cache
def _questions() -> tuple[Question, ...]:
    text = files("selfedit.evaluation").joinpath("general_questions.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return tuple(Question(f"general|{row['id']}", row["question"], tuple(row["answers"])) for row in rows)


def general_questions(per_adapter: int | None = None, seed: int = 0) -> list[Question]:
    """The built-in everyday questions, in a fixed order, each with its accepted answers; their ids begin with
    `general|`.

    With `per_adapter`, only those that a run asks the untrained model: 20 times as many as it asks each adapter, drawn
    with `seed`, so that the first exam does not grow with the list.
    """
    if per_adapter is None:
        return list(_questions())
    drawn = sorted(_questions(), key=lambda q: hashlib.sha256(f"{seed}|{q.id}".encode()).digest())
    return drawn[: _ASKED_PER_QUESTION * per_adapter]
