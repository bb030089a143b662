"""Document rows: JSON objects with an id, a title, a text, questions and edits, and JSONL files of them.

A mistake is reported in one line that names file, row and field.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from selfedit.documents.document import Document, Question
from selfedit.errors import UserError
from selfedit.text import is_whole

LONGEST_TITLE = 1000
"""Characters.  A title heads every question and every sequence that is trained on."""

_JSON_NAMES = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def json_type(value: object) -> str:
    """What JSON calls a value, for messages."""
    return "null" if value is None else _JSON_NAMES.get(type(value), type(value).__name__)


def clean_text(value: object, field: str, where: str) -> str:
    """`value` without white space around it; UserError where it is not text, is blank or cannot be stored."""
    if not isinstance(value, str):
        raise UserError(f'{where}: field "{field}" must be text, not {json_type(value)}')
    cleaned = value.strip()
    if not cleaned:
        raise UserError(f'{where}: field "{field}" is empty; fill it in or remove the row')
    if "\0" in cleaned:
        raise UserError(f'{where}: field "{field}" holds a NUL character; remove it')
    if not is_whole(cleaned):
        raise UserError(f'{where}: field "{field}" holds half a character (a lone surrogate); mend it')
    return cleaned


def clean_title(value: object, where: str) -> str:
    """A title on one line: it heads training sequences and questions."""
    title = " ".join(clean_text(value, "title", where).split())
    if len(title) > LONGEST_TITLE:
        raise UserError(
            f'{where}: field "title" has {len(title):,} characters, {LONGEST_TITLE:,} are the most; move text '
            'into "text"'
        )
    return title


def make_questions(document_id: str, pairs: Iterable[tuple[str, Iterable[str]]]) -> tuple[Question, ...]:
    """Questions numbered `DOCUMENT/q0`, `DOCUMENT/q1`, ...; repeated answers of a question are listed once."""
    return tuple(
        Question(f"{document_id}/q{n}", question, tuple(dict.fromkeys(answers)))
        for n, (question, answers) in enumerate(pairs)
    )


def document_from_row(row: object, where: str = "document") -> Document:
    """The document of one row
    `{"id", "title", "text", "questions": [{"question", "answers"}], "edits": {writer: [...]}}`.

    "questions" and "edits" may be missing; other fields are ignored.  White space around texts is removed.  Raises
    UserError, beginning with `where`, for a missing or empty field or one of another type.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: a document row must be an object, not {json_type(row)}")
    for field in ("id", "title", "text"):
        if field not in row:
            raise UserError(f'{where}: field "{field}" is missing; a document needs "id", "title" and "text"')
    document_id = clean_text(row["id"], "id", where)
    return Document(
        id=document_id,
        title=clean_title(row["title"], where),
        text=clean_text(row["text"], "text", where),
        questions=make_questions(document_id, _question_pairs(row.get("questions"), where)),
        edits=edits_field(row.get("edits"), where),
    )


def _question_pairs(questions: object, where: str) -> Iterator[tuple[str, list[str]]]:
    for n, item in enumerate(_list(questions, "questions", where), 1):
        place = f"{where}, question {n}"
        if not isinstance(item, dict):
            raise UserError(f'{place}: must be an object with "question" and "answers", not {json_type(item)}')
        for field in ("question", "answers"):
            if field not in item:
                raise UserError(f'{place}: field "{field}" is missing; a question needs "question" and "answers"')
        answers = [clean_text(answer, "answers", place) for answer in _list(item["answers"], "answers", place)]
        if not answers:
            raise UserError(f'{place}: field "answers" is empty; list at least one accepted answer')
        yield clean_text(item["question"], "question", place), answers


def edits_field(edits: object, where: str) -> dict[str, tuple[str, ...]]:
    """A row's field "edits": {writer: [text, ...]}; none where it is missing or null."""
    if edits is None:
        return {}
    if not isinstance(edits, dict):
        raise UserError(f'{where}: field "edits" must be an object of lists by writer, not {json_type(edits)}')
    return {
        clean_text(writer, "edits", where): tuple(
            clean_text(text, f"edits.{writer}", where) for text in _list(texts, f"edits.{writer}", where)
        )
        for writer, texts in edits.items()
    }


def _list(value: object, field: str, where: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(f'{where}: field "{field}" must be a list, not {json_type(value)}')
    return value


def document_to_row(document: Document) -> dict[str, Any]:
    """The row that `document_from_row` reads back as an equal document."""
    return {
        "id": document.id,
        "title": document.title,
        "text": document.text,
        "questions": [{"question": q.question, "answers": list(q.answers)} for q in document.questions],
        "edits": {writer: list(texts) for writer, texts in document.edits.items()},
    }


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Streams a JSONL file: (where, value) of each line, `where` being `FILE, row N` with N the line's number from 1.

    Blank lines are passed over.  Raises UserError for a file that cannot be read or is empty, for a line that is not
    JSON (with its column) and for bytes that are not UTF-8.
    """
    found = False
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                value = _parse_line(line, f"{path}, line {number}", first=number == 1)
                if value is not None:
                    found = True
                    yield f"{path}, row {number}", value[0]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not found:
        raise UserError(f"{path}: the file is empty; it should hold one JSON object per line")


def _parse_line(line: bytes, where: str, *, first: bool) -> tuple[Any] | None:
    """The line's value in a tuple of one (the value may itself be null); None for a blank line."""
    try:
        text = line.decode("utf-8-sig" if first else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 text (byte {error.start + 1} of the line); save the file as UTF-8"
        ) from None
    if not text:
        return None
    try:
        return (json.loads(text),)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not valid JSON: {error.msg} at column {error.colno}; one JSON object per line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {unreadable_json(error)}; one document row per line") from None


def unreadable_json(error: ValueError | RecursionError) -> str:
    """Why a text that is valid JSON is not read."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
