"""General questions, asked before and after an adaptation to measure what was forgotten.

Knows the built-in list only.  Which of them count for a model (those it answers rightly before) is the procedure's
choice."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from selfedit.documents.document import Question

GENERAL_TITLE = "General knowledge"
"""What general questions are asked under, where an exam names its document's title."""


@cache
def _questions() -> tuple[Question, ...]:
    text = files("selfedit.evaluation").joinpath("general_questions.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return tuple(Question(f"general|{row['id']}", row["question"], tuple(row["answers"])) for row in rows)


def general_questions() -> list[Question]:
    """The built-in everyday questions, in a fixed order, each with its accepted answers.  Their ids begin with
    `general|`."""
    return list(_questions())
