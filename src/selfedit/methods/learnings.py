"""What an adapter learns, and under which name: a pass of the inner loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfedit.documents import Document, Question
from selfedit.editors.base import Edit
from selfedit.runs.records import FitRecord
from selfedit.training.jobs import EditTexts

Asked = tuple[Document | None, Question]  # None: a general question


def asked_about(documents: Iterable[Document], general: Iterable[Question] = ()) -> list[Asked]:
    """All questions of these documents, and general ones."""
    own: list[Asked] = [(document, question) for document in documents for question in document.questions]
    return own + [(None, question) for question in general]


Beside = Callable[["Learning", Path], None]  # puts into an adapter's folder what belongs beside it


@dataclass(frozen=True)
class Learning:
    """One pass of the inner loop.

    With one document its questions are the exam; with several, one adapter learns them all and is asked about all of
    them.  `edits` are a text, or several, for each of `documents`; None: the passage alone.  The adapter is kept in the
    folder `keep`.  A fit that is alone in its task sits `looks` exams on the way.  With `likelihood`, the loss of the
    model's own open-book answers is measured, whether the exam is taken or not.  The exam is `asked` in place of the
    documents' questions where questions are routed to adapters (`routing`).  The adapter stands on the deltas `below`
    too, which are not merged, so that adapters on different ones share a bank.  With `recite` it sits the exam once
    more, by recitation.
    """

    condition: str
    documents: tuple[Document, ...]
    edits: tuple[EditTexts, ...]
    edit_id: str | None = None
    replicate: int = 0
    round: int = 0
    policy: tuple[str, ...] = ()
    keep: Path | None = None
    examine: bool = True
    looks: int = 0
    likelihood: bool = False
    asked: tuple[Asked, ...] | None = None
    below: tuple[str, ...] = ()
    recite: bool = False

    @property
    def document_id(self) -> str | None:
        return self.documents[0].id if len(self.documents) == 1 else None

    @property
    def id(self) -> str:
        return self.record().id

    def record(self, **figures: Any) -> FitRecord:
        """Its fit, with what became of it."""
        return FitRecord(self.condition, self.replicate, self.round, self.document_id, self.edit_id, **figures)


def one_each(
    condition: str, documents: Sequence[Document], edits: Sequence[Edit] | None, replicates: int = 1, **more: Any
) -> list[Learning]:
    """One adapter per edit and replicate, on the edit's document; of the documents alone where there are no edits."""
    by_id = {document.id: document for document in documents}
    taught: list[tuple[Document, EditTexts, str | None]] = [(document, None, None) for document in documents]
    if edits is not None:
        taught = [(by_id[edit.document_id], edit.text, edit.id) for edit in edits]
    return [Learning(condition, (d,), (text,), id, r, **more) for d, text, id in taught for r in range(replicates)]


def one_per_document(
    condition: str, documents: Sequence[Document], edits: Sequence[Edit] | None, replicates: int = 1, **more: Any
) -> list[Learning]:
    """One adapter per document and replicate, on all its edits; of the documents alone where there are no edits."""
    taught = _taught(documents, edits)
    return [Learning(condition, (d,), (texts,), None, r, **more) for d, texts in taught for r in range(replicates)]


def all_in_one(
    condition: str, documents: Sequence[Document], edits: Sequence[Edit] | None, replicates: int = 1, **more: Any
) -> list[Learning]:
    """One adapter per replicate, on all documents of which there is an edit: all edits of a document, and it once.
    Edits of others are left out."""
    if not (taught := _taught(documents, edits)):
        return []
    chosen, texts = zip(*taught, strict=True)
    return [Learning(condition, chosen, texts, None, r, **more) for r in range(replicates)]


def _taught(documents: Sequence[Document], edits: Sequence[Edit] | None) -> list[tuple[Document, EditTexts]]:
    """The documents of which there is an edit, each with all of them; all documents alone where there are no edits."""
    if edits is None:
        return [(document, None) for document in documents]
    texts: dict[str, list[str]] = {document.id: [] for document in documents}
    for edit in edits:
        texts.get(edit.document_id, []).append(edit.text)
    return [(document, tuple(texts[document.id])) for document in documents if texts[document.id]]


# By `--regime`: what the adapters of a condition learn.
REGIMES = {"single": one_each, "document": one_per_document, "joint": all_in_one}
