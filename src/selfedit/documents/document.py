"""What a document is: a title, a text and questions about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Question:
    """One exam question.  `answers` are the accepted gold answers, at least one; `id` is unique within a run."""

    id: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A text to be learned, and the questions about it (perhaps none yet).

    `edits` holds edits that were written beforehand, by writer's name, for the replay editor.
    """

    id: str
    title: str
    text: str
    questions: tuple[Question, ...] = ()
    edits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def apart_by_title(documents: Sequence[Document]) -> list[Document]:
    """The documents, of which those with a title that an earlier one has are numbered behind it: "Kites (2)"."""
    seen: Counter[str] = Counter()
    found = []
    for document in documents:
        title = document.title
        while title in seen:
            seen[document.title] += 1
            title = f"{document.title} ({seen[document.title]})"
        seen[title] += 1
        found.append(document if title == document.title else replace(document, title=title))
    return found
