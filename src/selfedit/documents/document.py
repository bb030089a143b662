"""What a document is: a title, a text and questions about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Question:
    """One exam question.  `answers` are the accepted gold answers, at least one; `id` is unique within a run."""

    id: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A text to be learned, and the questions about it (perhaps none yet).

    `edits` holds edits that were written beforehand, by writer's name.  (The replay editor reads them from their file.)
    """

    id: str
    title: str
    text: str
    questions: tuple[Question, ...] = ()
    edits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
