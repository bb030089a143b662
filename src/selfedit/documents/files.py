"""Plain text, Markdown and other files as documents without questions: one file, one document.

PDF, Word, HTML and the like are turned into Markdown by markitdown where it is installed.
"""

from __future__ import annotations

import codecs
import logging
import os
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from selfedit.documents.document import Document
from selfedit.documents.rows import LONGEST_TITLE, document_from_row
from selfedit.errors import UserError, reason
from selfedit.text import printable

ROW_SUFFIXES = frozenset({".jsonl", ".ndjson"})
JSON_SUFFIXES = frozenset({".json"})
MARKDOWN_SUFFIXES = frozenset({".md", ".markdown"})
TEXT_SUFFIXES = frozenset({".txt", ".text", ".rst"}) | MARKDOWN_SUFFIXES
CONVERTED_SUFFIXES = frozenset({".pdf", ".docx", ".pptx", ".xlsx", ".html", ".htm", ".epub"})
KNOWN_SUFFIXES = ROW_SUFFIXES | JSON_SUFFIXES | TEXT_SUFFIXES | CONVERTED_SUFFIXES

LARGEST_MIB = 64  # of one file: a text of that size is longer than the Bible fifteen times over

_LEADS_OUT = "a link that leads out of the folder; --follow-links reads it"
FENCE = re.compile(r"^ {0,3}(```|~~~)")
# At most so long: PyYAML's time grows with the square of what is nested in each other.
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.{,4000}?\n)(?:---|\.\.\.)[ \t]*(?:\r?\n|$)", re.DOTALL)
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*)")


def text_document(path: Path, document_id: str) -> Document:
    """A text or Markdown file as a document; see `_titled` for its title.  Raises UserError unless it is text in UTF-8,
    or in UTF-16 with its mark."""
    try:
        _check_size(path)
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not wide and (nul := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text (a NUL byte); save the file as UTF-8 text")
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    title = None
    if path.suffix.lower() in MARKDOWN_SUFFIXES:
        title, text = _without_front_matter(text)
    return _titled(text, path, document_id, title=title)


def _without_front_matter(text: str) -> tuple[str | None, str]:
    """The title in the YAML block that opens a Markdown file, as site generators and note-takers write it, and the text
    behind it; the text as it is where no such block opens it."""
    import yaml

    found = _FRONT_MATTER.match(text)
    if found is None:
        return None, text
    try:
        # Without constructors of tags and dates: only the title is of interest, as it is written.
        fields = yaml.load(found[1], Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError):
        return None, text
    if not isinstance(fields, dict):
        return None, text
    title = fields.get("title")
    return title if isinstance(title, str) else None, text[found.end() :]


def converted_document(path: Path, document_id: str) -> Document:
    """A PDF, Word, HTML, ... file as a document, through markitdown (extra `files`)."""
    try:
        from markitdown import MarkItDownException
    except ImportError:
        raise UserError(
            f"{path}: reading {path.suffix} files needs markitdown; run: pip install 'selfedit[files]'"
        ) from None
    try:
        _check_size(path)
        with warnings.catch_warnings(action="ignore"):  # of what a page or a font lacks, on the terminal
            result = _markitdown().convert_local(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except MarkItDownException as error:
        attempts = getattr(error, "attempts", None) or []
        cause = attempts[0].exc_info[1] if attempts and attempts[0].exc_info else error
        raise UserError(f"{path}: cannot be converted to text ({reason(cause)}); save it as .txt or .md") from error
    if not result.markdown.strip() and path.suffix.lower() == ".pdf":
        raise UserError(f"{path}: no text in it, only pictures (a scan?); recognise its text first (OCR)")
    # A workbook's first heading is the name of a sheet.
    title = _named(path) if path.suffix.lower() == ".xlsx" else result.title
    return _titled(result.markdown.replace("\f", "\n\n"), path, document_id, title=title)


@cache
def _markitdown() -> Any:
    """markitdown with these converters alone: its others take a damaged file for text."""
    from markitdown import MarkItDown, converters

    logging.getLogger("pdfminer").setLevel(logging.ERROR)
    reader = MarkItDown(enable_builtins=False, enable_plugins=False)
    for name in ("Pdf", "Docx", "Pptx", "Xlsx", "Epub", "Html"):
        reader.register_converter(getattr(converters, f"{name}Converter")())
    return reader


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > LARGEST_MIB * 2**20:
        raise UserError(f"{path}: {size / 2**20:,.0f} MiB, more than the {LARGEST_MIB} of one file; split it")


def _titled(text: str, path: Path, document_id: str, title: str | None = None) -> Document:
    """Takes the title from `title`, else the first Markdown heading, else the file's name.

    In a file that is not Markdown only a heading on the first line counts.  A heading that opens the file is not
    repeated in the text.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not text:
        raise UserError(f"{path}: the file holds no text")
    first, _, rest = text.partition("\n")
    _, heading = markdown_heading(first) or (0, "")
    title = " ".join((title or "").split())
    if not 0 < len(title) <= LONGEST_TITLE:
        title = None
    if 0 < len(heading) <= LONGEST_TITLE and rest.strip() and title in (None, heading):
        title, text = heading, rest.strip()
    elif title is None and path.suffix.lower() in MARKDOWN_SUFFIXES | CONVERTED_SUFFIXES:
        title = _first_heading(text)
    return document_from_row({"id": document_id, "title": title or _named(path), "text": text}, str(path))


def _named(path: Path) -> str:
    """The title that a file's name makes."""
    stem = printable(path.stem)  # a name may hold bytes that are not UTF-8
    return re.sub(r"[_\s]+", " ", stem).strip() or "untitled"


def _first_heading(text: str) -> str | None:
    fenced = False
    for line in text.split("\n"):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced and (heading := markdown_heading(line)) and 0 < len(heading[1]) <= LONGEST_TITLE:
            return heading[1]
    return None


def markdown_heading(line: str) -> tuple[int, str] | None:
    """A heading's level and title; None where the line is none."""
    found = _HEADING.fullmatch(line)
    if found is None:
        return None
    title = found[2].rstrip(" \t")
    bare = title.rstrip("#")
    return len(found[1]), (title if bare[-1:].strip() else bare).strip()  # a last row of marks closes it


def folder_files(folder: Path, *, follow_links: bool = False) -> tuple[list[Path], list[str], int]:
    """The readable files of a folder and its subfolders, sorted by their path; what of known types cannot be read, a
    line each; and how many files are of other types.

    Hidden files and folders are passed over, and runs.  So are pipes and devices, which may never end, and links that
    lead out of the folder unless `follow_links`.  A folder that a link within the folder leads to is read where it
    lies."""
    found: list[Path] = []
    left_out: list[str] = []
    others = 0
    root = Path(os.path.realpath(folder))
    seen: set[str] = set()  # links may lead round in a circle

    def leads_out(path: Path) -> bool:
        return os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(root)

    def fail(error: OSError) -> None:
        left_out.append(f"{error.filename}: cannot be read ({error.strerror or error})")

    def descend(path: Path) -> bool:
        if leads_out(path) and not follow_links:
            left_out.append(f"{path}: {_LEADS_OUT}")
            return False
        real = os.path.realpath(path)
        if os.path.exists(path / "run.sqlite"):
            return False  # a run may lie among its documents: what it made is none of them
        if real in seen or (os.path.islink(path) and not leads_out(path)):
            return False
        seen.add(real)
        return True

    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not name.startswith(".") and descend(Path(place, name))]
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() not in KNOWN_SUFFIXES:
                others += 1
            elif leads_out(path) and not follow_links:
                left_out.append(f"{path}: {_LEADS_OUT}")
            elif not os.path.isfile(path) and os.path.exists(path):
                left_out.append(f"{path}: a pipe or a device, which may never end; copy what it holds into a file")
            else:
                found.append(path)
    return sorted(found, key=lambda path: path.relative_to(folder).parts), left_out, others
