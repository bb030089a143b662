"""Where documents come from: files, folders, the Hugging Face hub, the built-in news; and a sample of them.

Knows which reader takes which source and that ids must be unique.  The formats themselves are in `rows`, `squad`,
`files` and `hub`; splitting is in `splitting`.
"""

from __future__ import annotations

import heapq
import logging
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from importlib.resources import as_file, files
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
from selfedit.documents.squad import read_json
from selfedit.errors import UserError

NEWS = "news"
NEWS_SPLITS = ("train", "validation", "test")

_log = logging.getLogger(__name__)
_COUNTED = {
    "unanswerable_questions": "questions without an answer left out",
    "unanswerable_documents": "documents left out, as none of their questions has an answer",
    "skipped_files": "files of unknown types passed over",
}


def iter_documents(
    source: str | Path, *, require_questions: bool = False, counts: Counter[str] | None = None
) -> Iterator[Document]:
    """Streams the documents of one source, in the source's order.

    A source is a file, a folder (its files, recursively and sorted), `news` or `news:SPLIT` (the built-in corpus;
    train, validation, test) or `hf:OWNER/NAME[/CONFIGURATION][:SPLIT]`.  Files: document rows (.jsonl), SQuAD v1.1 or v2
    or an array of document rows (.json), plain text and Markdown (.txt, .md), and, through markitdown, PDF, Word,
    PowerPoint, Excel, HTML and EPUB.  To read a file called `news`, write `./news`.

    Adds to `counts` what was left out: "unanswerable_questions" and (with `require_questions`)
    "unanswerable_documents" of SQuAD v2, "skipped_files" of folders.  Raises UserError, naming file and row, for
    anything unreadable, a repeated id, or (with `require_questions`) a document without questions.
    """
    counts = Counter() if counts is None else counts
    for _, document in _unique(_located(source, require_questions, counts), {}):
        yield document


def load_documents(
    sources: str | Path | Sequence[str | Path],
    *,
    limit: int | None = None,
    seed: int = 0,
    require_questions: bool = False,
    counts: Counter[str] | None = None,
) -> list[Document]:
    """The documents of one or several sources (see `iter_documents`), or a random sample of at most `limit` of them.

    The sample holds the documents whose hashed (seed, id) are smallest, in the sources' order: it depends on neither
    that order nor the machine, a larger limit keeps what a smaller one has, and only `limit` documents are ever held.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a sample of {limit} documents was asked for; ask for at least 1")
    if isinstance(sources, str | Path):
        sources = [sources]
    if not sources:
        raise UserError("no documents were named; give a file, a folder, `news` or hf:OWNER/NAME")
    counts = Counter() if counts is None else counts
    before = counts.copy()

    seen: dict[str, str] = {}
    stream = (
        document for source in sources for _, document in _unique(_located(source, require_questions, counts), seen)
    )
    documents = list(stream) if limit is None else _sample(stream, limit, seed)
    for name, number in (counts - before).items():
        _log.warning("%d %s", number, _COUNTED[name])
    return documents


def _sample(stream: Iterator[Document], limit: int, seed: int) -> list[Document]:
    """The `limit` documents with the smallest hashes, in stream order (bottom-k sampling)."""
    heap: list[tuple[int, int, Document]] = []  # (-hash, position, document): the largest hash is on top
    for position, document in enumerate(stream):
        digest = blake2b(f"{seed}:{document.id}".encode(), digest_size=8).digest()
        entry = (-int.from_bytes(digest), -position, document)
        if len(heap) < limit:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)
    return [document for _, _, document in sorted(heap, key=lambda entry: -entry[1])]


def _unique(located: Iterator[tuple[str, Document]], seen: dict[str, str]) -> Iterator[tuple[str, Document]]:
    for where, document in located:
        if document.id in seen:
            raise UserError(f'{where}: id "{document.id}" is taken by {seen[document.id]}; ids must be unique')
        seen[document.id] = where
        yield where, document


def _located(source: str | Path, require_questions: bool, counts: Counter[str]) -> Iterator[tuple[str, Document]]:
    """(where it stands, document) of one source."""
    name = str(source)
    if name == NEWS or name.startswith(f"{NEWS}:"):
        documents = _news(name)
    elif name.startswith(hub.PREFIX):
        documents = hub.hub_documents(name, require_questions=require_questions, counts=counts)
    else:
        documents = _path(Path(source).expanduser(), require_questions, counts)
    found = False
    for where, document in documents:
        if require_questions and not document.questions:
            raise UserError(
                f'{where}: document "{document.id}" has no questions, which an exam needs; add "questions" to its row'
            )
        found = True
        yield where, document
    if not found:
        raise UserError(f"{name}: holds no documents")


def _news(name: str) -> Iterator[tuple[str, Document]]:
    _, _, split = name.partition(":")
    if name != NEWS and split not in NEWS_SPLITS:
        raise UserError(f"{name}: the built-in news has no such split; choose from {', '.join(NEWS_SPLITS)}")
    with as_file(files("selfedit.documents") / "corpus" / "news.jsonl") as path:
        for where, row in read_rows(path):
            if not split or row["split"] == split:
                yield where, document_from_row(row, where)


def _path(path: Path, require_questions: bool, counts: Counter[str]) -> Iterator[tuple[str, Document]]:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder (and neither `news` nor hf:OWNER/NAME)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if is_folder:
        found, skipped = folder_files(path)
        counts["skipped_files"] += skipped
        for file in found:
            yield from _file(file, file.relative_to(path).as_posix(), require_questions, counts)
    else:
        yield from _file(path, path.name, require_questions, counts)


def _file(
    path: Path, document_id: str, require_questions: bool, counts: Counter[str]
) -> Iterator[tuple[str, Document]]:
    suffix = path.suffix.lower()
    if suffix in ROW_SUFFIXES:
        for where, row in read_rows(path):
            yield where, document_from_row(row, where)
    elif suffix in JSON_SUFFIXES:
        yield from read_json(path, require_questions=require_questions, counts=counts)
    elif suffix in TEXT_SUFFIXES or not suffix:
        yield str(path), text_document(path, document_id)
    elif suffix in CONVERTED_SUFFIXES:
        yield str(path), converted_document(path, document_id)
    else:
        raise UserError(f"{path}: files of type {suffix} are not read; known are {' '.join(sorted(KNOWN_SUFFIXES))}")
