"""Edits that were written beforehand, read from a file for the replay editor.

Two layouts are read: document rows with "edits", and rows of one edit each.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib.resources import as_file, files
from pathlib import Path

from pydantic import AliasChoices, BaseModel, Field

from selfedit.documents.loading import NEWS
from selfedit.documents.rows import Text, read_rows
from selfedit.errors import UserError, checked
from selfedit.text import listed


class _WithEdits(BaseModel):
    """As much as is needed here of a document row."""

    id: Text
    edits: dict[Text, list[Text] | None] | None = None


class _EditRow(BaseModel):
    document_id: Text = Field(validation_alias=AliasChoices("document_id", "id"))
    text: Text
    writer: Text | None = None


class WrittenEdits(dict[str, list[str]]):
    """One writer's edits by document id.  `source` is the file, `writer` the writer's name ("" where rows name
    none)."""

    def __init__(self, edits: Mapping[str, list[str]], source: str, writer: str) -> None:
        super().__init__(edits)
        self.source, self.writer = source, writer

    def require(self, document_ids: Iterable[str]) -> None:
        """Raises UserError naming the documents that have no edit here."""
        missing = [document_id for document_id in document_ids if not self.get(document_id)]
        if missing:
            named = listed([f'"{document_id}"' for document_id in missing], 3)
            by = f' by "{self.writer}"' if self.writer else ""
            raise UserError(
                f"{self.source}: no edit{by} for document {named}; add rows for it or leave the document out"
            )


def load_edits(spec: str | Path) -> WrittenEdits:
    """The edits of `FILE[#WRITER]`, where FILE is JSONL or `news` (the built-in corpus).

    Rows are documents with "edits" ({writer: [text, ...]}), or single edits {"document_id" (or "id"), "text",
    "writer"?}.  The writer may be left out where the file has only one.  Raises UserError for an unreadable file or
    row, an unknown writer, or several writers and none named."""
    name, wanted = _parse(str(spec))
    if name == NEWS:
        with as_file(files("selfedit.documents") / "corpus" / "news.jsonl") as path:
            by_writer = _read(path)
    else:
        path = Path(name).expanduser()
        if os.path.isdir(path):
            raise UserError(f"{name}: is a folder; edits are read from one .jsonl file")
        if not os.path.exists(path):
            raise UserError(f"{name}: no such file; give edits as a .jsonl file, or `news` for the built-in ones")
        by_writer = _read(path)

    writers = ", ".join(sorted(writer or "(unnamed)" for writer in by_writer))
    if not by_writer:
        raise UserError(f'{name}: no row has edits; a document row needs "edits", an edit row "document_id" and "text"')
    if wanted is None and len(by_writer) > 1:
        raise UserError(f"{name}: edits by several writers ({writers}); name one: {name}#WRITER")
    writer = next(iter(by_writer)) if wanted is None else wanted
    if writer not in by_writer:
        raise UserError(f'{name}: no edits by "{writer}"; writers are {writers}')
    return WrittenEdits(by_writer[writer], name, writer)


def _parse(spec: str) -> tuple[str, str | None]:
    """File and writer; a "#" that belongs to an existing file's name names no writer."""
    name, mark, writer = spec.rpartition("#")
    if not mark or os.path.exists(os.path.expanduser(spec)):
        return spec, None
    if not writer:
        raise UserError(f"{spec}: no writer after #; write FILE#WRITER or FILE")
    return name, writer


def _read(path: Path) -> dict[str, dict[str, list[str]]]:
    """{writer: {document id: [edit, ...]}} in the order of the file."""
    by_writer: dict[str, dict[str, list[str]]] = {}
    seen: dict[str, str] = {}
    for where, row in read_rows(path):
        if isinstance(row, dict) and ("edits" in row or "title" in row):
            written = checked(_WithEdits, row, where, 'such a row is {"id", "edits": {writer: [...]}}')
            if written.id in seen:
                raise UserError(f'{where}: id "{written.id}" is taken by {seen[written.id]}; ids must be unique')
            seen[written.id] = where
            for writer, texts in (written.edits or {}).items():
                if texts:
                    by_writer.setdefault(writer, {}).setdefault(written.id, []).extend(texts)
        else:
            edit = checked(_EditRow, row, where, 'an edit is {"document_id", "text", "writer"}')
            by_writer.setdefault(edit.writer or "", {}).setdefault(edit.document_id, []).append(edit.text)
    return by_writer
