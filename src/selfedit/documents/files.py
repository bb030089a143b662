"""Plain text, Markdown and other files as documents without questions: one file, one document.

Knows titles, encodings and which files of a folder count.  PDF, Word, HTML and the like are turned into Markdown by
markitdown where it is installed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from selfedit.documents.document import Document
from selfedit.documents.rows import clean_text, clean_title
from selfedit.errors import UserError

ROW_SUFFIXES = frozenset({".jsonl", ".ndjson"})
JSON_SUFFIXES = frozenset({".json"})
MARKDOWN_SUFFIXES = frozenset({".md", ".markdown"})
TEXT_SUFFIXES = frozenset({".txt", ".text", ".rst"}) | MARKDOWN_SUFFIXES
CONVERTED_SUFFIXES = frozenset({".pdf", ".docx", ".pptx", ".xlsx", ".html", ".htm", ".epub"})
KNOWN_SUFFIXES = ROW_SUFFIXES | JSON_SUFFIXES | TEXT_SUFFIXES | CONVERTED_SUFFIXES

_FENCE = re.compile(r"^ {0,3}(```|~~~)")
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(?P<title>.*?)(?:[ \t]+#+)?[ \t]*$")


def text_document(path: Path, document_id: str) -> Document:
    """A text or Markdown file as a document; see `_titled` for its title.  Raises UserError unless it is UTF-8 text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    return _titled(text, path, document_id)


def converted_document(path: Path, document_id: str) -> Document:
    """A PDF, Word, HTML, ... file as a document, through markitdown (extra `files`)."""
    try:
        from markitdown import MarkItDown, MarkItDownException
    except ImportError:
        raise UserError(
            f"{path}: reading {path.suffix} files needs markitdown; run: pip install 'selfedit[files]'"
        ) from None
    try:
        result = MarkItDown(enable_plugins=False).convert_local(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except MarkItDownException as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: cannot be converted to text ({reason[0]}); save it as .txt or .md") from error
    return _titled(result.markdown, path, document_id, title=result.title)


def _titled(text: str, path: Path, document_id: str, title: str | None = None) -> Document:
    """Takes the title from `title`, else the first Markdown heading, else the file's name.

    In a file that is not Markdown only a heading on the first line counts.  A heading that opens the file is not
    repeated in the text.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not text:
        raise UserError(f"{path}: the file holds no text")
    first, _, rest = text.partition("\n")
    opening = _HEADING.match(first)
    heading = opening["title"].strip() if opening else ""
    if heading and rest.strip() and title in (None, heading):
        title, text = heading, rest.strip()
    elif title is None and path.suffix.lower() in MARKDOWN_SUFFIXES | CONVERTED_SUFFIXES:
        title = _first_heading(text)
    title = title if title and title.strip() else re.sub(r"[_\s]+", " ", path.stem).strip() or path.name
    where = str(path)
    return Document(id=document_id, title=clean_title(title, where), text=clean_text(text, "text", where))


def _first_heading(text: str) -> str | None:
    fenced = False
    for line in text.split("\n"):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced and (heading := _HEADING.match(line)) and heading["title"].strip():
            return heading["title"].strip()
    return None


def folder_files(folder: Path) -> tuple[list[Path], int]:
    """The readable files of a folder and its subfolders, sorted by their path, and how many others were passed over.

    Hidden files and folders and links to folders are left out.  Raises UserError where nothing is left.
    """
    found: list[Path] = []
    skipped = 0

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in KNOWN_SUFFIXES:
                found.append(Path(root, name))
            else:
                skipped += 1
    if not found:
        raise UserError(f"{folder}: the folder holds no documents (.jsonl, .json, .txt, .md, ...)")
    return sorted(found, key=lambda path: path.relative_to(folder).parts), skipped
