"""General questions, asked before and after an adaptation to measure what was forgotten; and general prompts, to which
the model itself writes texts.

Which of the questions count for a model (those it answers rightly before) is up to the method.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from selfedit.documents.document import Question

GENERAL_TITLE = "General knowledge"
"""What general questions are asked under, where an exam names its document's title."""

# A small model knows half of them, so an adapter's questions are drawn from about ten times as many known ones.
_ASKED_PER_QUESTION = 20


Use = Literal["measure", "retain", "topic"]


@cache
def general_prompts(use: Use) -> dict[str, str]:
    """The built-in everyday instructions for one use, by id, in a fixed order.  What is written to a prompt for
    `measure` shows how far an adapter has moved; what is written to one for `retain` may be trained on, so that it does
    not move.  Those for `topic` are mixed, most of them short questions.  No prompt is for two uses, and none is
    one of `general_questions`."""
    return {row["id"]: row["prompt"] for row in _rows("general_prompts.jsonl") if row["use"] == use}


def _rows(name: str) -> list[dict[str, Any]]:
    text = files("selfedit.evaluation").joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@cache
def _questions() -> tuple[Question, ...]:
    rows = _rows("general_questions.jsonl")
    return tuple(Question(f"general|{row['id']}", row["question"], tuple(row["answers"])) for row in rows)


def general_questions(per_adapter: int | None = None, seed: int = 0) -> list[Question]:
    """Built-in everyday questions, each with its accepted answers; their ids begin with `general|`.

    With `per_adapter`, those that a run asks the untrained model: 20 times as many as it asks each adapter, drawn with
    `seed`, so that the first exam does not grow with the list.
    """
    drawn = sorted(_questions(), key=lambda q: hashlib.sha256(f"{seed}|{q.id}".encode()).digest())
    return drawn if per_adapter is None else drawn[: _ASKED_PER_QUESTION * per_adapter]
