"""Document rows: JSON objects with an id, a title, a text, questions and edits, and JSONL files of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from selfedit.documents.document import Document, Question
from selfedit.errors import UserError, checked
from selfedit.json_file import decoded, parsed

LONGEST_TITLE = 1000
"""Characters.  A title heads every question and every sequence that is trained on."""


def _whole(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell it ("\\ud83d"); no file, database or tokenizer takes it
        raise ValueError("holds half a character (a lone surrogate); mend it") from None
    if "\0" in text:
        raise ValueError("holds a NUL character; remove it")
    return text.strip()


def _filled(text: str) -> str:
    if not text:
        raise ValueError("is empty; fill it in or remove the row")
    return text


def _on_one_line(title: str) -> str:
    title = " ".join(title.split())
    if len(title) > LONGEST_TITLE:
        raise ValueError(f'has {len(title):,} characters, {LONGEST_TITLE:,} are the most; move text into "text"')
    return title


BlankText = Annotated[str, AfterValidator(_whole)]
"""A text of a file, without white space around it."""

Text = Annotated[BlankText, AfterValidator(_filled)]
"""One that is not blank."""


class _QuestionRow(BaseModel):
    question: Text
    answers: list[Text] = Field(min_length=1)


class DocumentRow(BaseModel):
    """`questions`, `edits` and a writer's list of them may be missing or null; other fields are ignored."""

    id: Text
    title: Annotated[Text, AfterValidator(_on_one_line)]
    text: Text
    questions: list[_QuestionRow] | None = None
    edits: dict[Text, list[Text] | None] | None = None


def make_questions(document_id: str, pairs: Iterable[tuple[str, Iterable[str]]]) -> tuple[Question, ...]:
    """Questions numbered `DOCUMENT/q0`, `DOCUMENT/q1`, ...; repeated answers of a question are listed once."""
    return tuple(
        Question(f"{document_id}/q{n}", question, tuple(dict.fromkeys(answers)))
        for n, (question, answers) in enumerate(pairs)
    )


def document_from_row(row: object, where: str = "document") -> Document:
    """The document of one row
    `{"id", "title", "text", "questions": [{"question", "answers"}], "edits": {writer: [...]}}`.

    Raises UserError, beginning with `where`, for a missing or empty field or one of another type.
    """
    remedy = 'a document is {"id", "title", "text", "questions": [{"question", "answers"}], "edits": {writer: [...]}}'
    found = checked(DocumentRow, row, where, remedy)
    questions = make_questions(found.id, ((asked.question, asked.answers) for asked in found.questions or ()))
    edits = {writer: tuple(texts or ()) for writer, texts in (found.edits or {}).items()}
    return Document(found.id, found.title, found.text, questions, edits)


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
                where = f"{path}, line {number}"
                text = decoded(line, where)
                if text.strip():
                    found = True
                    yield f"{path}, row {number}", parsed(text, where, "one JSON object per line")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not found:
        raise UserError(f"{path}: the file is empty; it should hold one JSON object per line")
