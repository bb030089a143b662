"""Where documents come from: files, folders, the Hugging Face hub, the built-in news; and a sample of them.

This module picks the reader of a source and holds that ids are unique; the formats are in `rows`, `squad`, `files` and
`hub`.
"""

from __future__ import annotations

import heapq
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.resources import as_file, files
from operator import itemgetter
from pathlib import Path

from selfedit.documents import hub
from selfedit.documents.document import Document
from selfedit.documents.files import (
    CONVERTED_SUFFIXES,
    JSON_SUFFIXES,
    KNOWN_SUFFIXES,
    ROW_SUFFIXES,
    TEXT_SUFFIXES,
    converted_document,
    folder_files,
    text_document,
)
from selfedit.documents.rows import document_from_row, read_rows
from selfedit.documents.squad import read_documents
from selfedit.errors import UserError

NEWS = "news"
NEWS_SPLITS = ("train", "validation", "test")
CORPORA = {NEWS: NEWS_SPLITS, "updates": ("before", "after")}
"""The built-in documents, and their splits.  Each of `updates:after` contradicts one of `updates:before`."""

_log = logging.getLogger(__name__)
_NAMED = 10
_COUNTED = {
    "unanswerable_questions": "questions without an answer left out",
    "unanswerable_documents": "documents left out, as none of their questions has an answer",
    "skipped_files": "files of unknown types passed over",
}


@dataclass
class LeftOut:
    """What loading left out: `counts` by kind (see `load_documents`), and a line that names each file of a folder that
    could not be read, and why."""

    counts: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What to tell the user; the first ten files are named."""
        lines = [f"{number:,} {_COUNTED[name]}" for name, number in self.counts.items() if number]
        lines += [f"left out: {file}" for file in self.files[:_NAMED]]
        return lines + [f"left out: {len(self.files) - _NAMED:,} more files"] * (len(self.files) > _NAMED)


@dataclass(frozen=True)
class _Reading:
    """How sources are read, and what is left out on the way."""

    left_out: LeftOut
    require_questions: bool
    strict: bool
    follow_links: bool


def load_documents(
    sources: str | Path | Sequence[str | Path],
    *,
    limit: int | None = None,
    seed: int = 0,
    require_questions: bool = False,
    strict: bool = False,
    follow_links: bool = False,
    left_out: LeftOut | None = None,
) -> list[Document]:
    """The documents of one or several sources, in their order, or a random sample of at most `limit` of them.

    A source is a file, a folder (its files, recursively and sorted), `news` or `news:SPLIT` (the built-in corpus;
    train, validation, test), `updates` or `updates:SPLIT` (before, after: pairs that contradict each other) or
    `hf:OWNER/NAME[/CONFIGURATION][:SPLIT]`.  Files: document rows (.jsonl), SQuAD v1.1 or v2 or an array of document
    rows (.json), plain text and Markdown (.txt, .md), and, through markitdown, PDF, Word, PowerPoint, Excel, HTML and
    EPUB.  To read a file called `news`, write `./news`.

    The sample holds the documents whose hashed (seed, id) are smallest: it depends on neither order nor machine, a
    larger limit keeps what a smaller one has, and only `limit` documents are held.

    A folder's file of which not even the first document can be read is left out, or refused if `strict`; links that
    lead out of a folder are left out unless `follow_links`.  `left_out`, or else the log, gets the files, and counts of
    "unanswerable_questions" and (with `require_questions`) "unanswerable_documents" of SQuAD v2, and of "skipped_files"
    of unknown types in folders.  Raises UserError, naming file and row, for anything else that is unreadable, a
    repeated id, or (with `require_questions`) a document without questions."""
    if limit is not None and limit < 1:
        raise UserError(f"a sample of {limit} documents was asked for; ask for at least 1")
    if isinstance(sources, str | Path):
        sources = [sources]
    if not sources:
        raise UserError("no documents were named; give a file, a folder, `news` or hf:OWNER/NAME")
    reading = _Reading(left_out or LeftOut(), require_questions, strict, follow_links)

    stream = _unique(located for source in sources for located in _located(source, reading))
    documents = list(stream) if limit is None else _sample(stream, limit, seed)
    for line in reading.left_out.lines() if left_out is None else ():
        _log.warning("%s", line)
    return documents


def _sample(stream: Iterator[Document], limit: int, seed: int) -> list[Document]:
    """The `limit` documents with the smallest hashes, in stream order (bottom-k sampling)."""

    def hashed(numbered: tuple[int, Document]) -> bytes:
        return blake2b(f"{seed}:{numbered[1].id}".encode(), digest_size=8).digest()

    chosen = heapq.nsmallest(limit, enumerate(stream), key=hashed)
    return [document for _, document in sorted(chosen, key=itemgetter(0))]


def _unique(located: Iterable[tuple[str, Document]]) -> Iterator[Document]:
    seen: dict[str, str] = {}
    for where, document in located:
        if document.id in seen:
            raise UserError(f'{where}: id "{document.id}" is taken by {seen[document.id]}; ids must be unique')
        seen[document.id] = where
        yield document


def _located(source: str | Path, reading: _Reading) -> Iterator[tuple[str, Document]]:
    """(where it stands, document) of one source."""
    name = str(source)
    corpus, _, split = name.partition(":")
    if corpus in CORPORA:
        documents = _corpus(corpus, split)
    elif name.startswith(hub.PREFIX):
        counts = reading.left_out.counts
        documents = hub.hub_documents(name, require_questions=reading.require_questions, counts=counts)
    else:
        documents = _path(Path(os.path.expanduser(source)), reading)
    found = False
    for where, document in documents:
        if reading.require_questions and not document.questions:
            raise UserError(
                f'{where}: document "{document.id}" has no questions, which an exam needs; add "questions" to its row'
            )
        found = True
        yield where, document
    if not found:
        raise UserError(f"{name}: holds no documents")


def _corpus(name: str, split: str) -> Iterator[tuple[str, Document]]:
    if split and split not in CORPORA[name]:
        raise UserError(f"{name}:{split}: no such split is built in; choose from {', '.join(CORPORA[name])}")
    with as_file(files("selfedit.documents") / "corpus" / f"{name}.jsonl") as path:
        for where, row in read_rows(path):
            if not split or row["split"] == split:
                yield where, document_from_row(row, where)


def _path(path: Path, reading: _Reading) -> Iterator[tuple[str, Document]]:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder (and neither `news`, `updates` nor hf:OWNER/NAME)") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if stat.S_ISDIR(mode):
        yield from _folder(path, reading)
    elif stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
        yield from _file(path, path.name, reading)
    else:
        raise UserError(f"{path}: a device; copy what it holds into a file")


def _folder(folder: Path, reading: _Reading) -> Iterator[tuple[str, Document]]:
    left_out: list[str] = []

    def leave_out(line: str) -> None:
        if reading.strict:
            raise UserError(line)
        left_out.append(line)
        reading.left_out.files.append(line)

    files, unreadable, others = folder_files(folder, follow_links=reading.follow_links)
    reading.left_out.counts["skipped_files"] += others
    for line in unreadable:
        leave_out(line)
    found = False
    for file in files:
        documents = _file(file, file.relative_to(folder).as_posix(), reading)
        try:
            first = next(documents, None)
        except UserError as error:
            leave_out(str(error))
            continue
        if first is not None:
            found = True
            yield first
            yield from documents
    if not found:
        why = f"; {left_out[0]}" if left_out else " (.jsonl, .json, .txt, .md, ...)"
        raise UserError(f"{folder}: the folder holds no documents{why}")


def _file(path: Path, document_id: str, reading: _Reading) -> Iterator[tuple[str, Document]]:
    suffix = path.suffix.lower()
    # A name may hold bytes that are not UTF-8.
    document_id = os.fsencode(document_id).decode("utf-8", "backslashreplace")
    if suffix in ROW_SUFFIXES:
        for where, row in read_rows(path):
            yield where, document_from_row(row, where)
    elif suffix in JSON_SUFFIXES:
        yield from read_documents(path, require_questions=reading.require_questions, counts=reading.left_out.counts)
    elif suffix in TEXT_SUFFIXES or not suffix:
        yield str(path), text_document(path, document_id)
    elif suffix in CONVERTED_SUFFIXES:
        yield str(path), converted_document(path, document_id)
    else:
        raise UserError(f"{path}: files of type {suffix} are not read; known are {' '.join(sorted(KNOWN_SUFFIXES))}")
