"""SQuAD's layout (v1.1 and v2): articles of paragraphs with questions, as one JSON file or as flat rows.

The file is read as a stream of JSON values, so that its size does not matter.  Sources: Rajpurkar et al. 2016 (v1.1),
2018 (v2, whose `is_impossible` questions have no answer in the text).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from selfedit.documents.document import Document
from selfedit.documents.rows import (
    clean_text,
    clean_title,
    document_from_row,
    json_type,
    make_questions,
    unreadable_json,
)
from selfedit.errors import UserError

_CHUNK = 1 << 20  # characters
_WHITE = " \t\n\r"
_NUMBER = "0123456789.eE+-"  # and "", the end of the buffer


class JsonStream:
    """Values of a JSON text one after another, holding no more of it than the value at hand.

    `json.load` would need the whole file as objects at once; a SQuAD file of 100,000 paragraphs is some 150 MB.
    """

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file, self._path = file, path
        self._buffer, self._position, self._lines_before, self._ended = "", 0, 0, False
        self._decoder = json.JSONDecoder()

    def error(self, message: str, position: int | None = None) -> UserError:
        position = self._position if position is None else position
        line = 1 + self._lines_before + self._buffer.count("\n", 0, position)
        return UserError(f"{self._path}, line {line}: {message}")

    def _read_more(self) -> bool:
        """Drops what is used up and reads as much again as is held, so that a long value is parsed O(1) times over."""
        if self._ended:
            return False
        self._lines_before += self._buffer.count("\n", 0, self._position)
        rest = self._buffer[self._position :]
        try:
            new = self._file.read(max(_CHUNK, len(rest)))
        except UnicodeDecodeError:
            raise self.error("from here on, not UTF-8 text; save the file as UTF-8") from None
        self._buffer, self._position, self._ended = rest + new, 0, not new
        return bool(new)

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._position < len(self._buffer):
                if self._buffer[self._position] not in _WHITE:
                    return self._buffer[self._position]
                self._position += 1
            if not self._read_more():
                return ""

    def take(self, expected: str) -> str:
        """The next character, which must be one of `expected`."""
        found = self.peek()
        if found not in expected or not found:
            raise self.error(
                f"not valid JSON: {' or '.join(expected)} expected, {found or 'end of file'} found; is the file whole?"
            )
        self._position += 1
        return found

    def value(self) -> Any:
        """The next whole value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                if not self._read_more():
                    raise self.error(f"not valid JSON: {error.msg}; is the file whole?", error.pos) from None
                continue
            except (ValueError, RecursionError) as error:
                raise self.error(unreadable_json(error)) from None
            if isinstance(value, int | float) and self._buffer[end : end + 1] in _NUMBER and self._read_more():
                continue  # the number may go on beyond the buffer
            self._position = end
            return value

    def array_items(self) -> Iterator[Any]:
        """The items of an array that begins here."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def object_keys(self) -> Iterator[str]:
        """The keys of an object that begins here; the caller takes each key's value before asking for the next."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                self.take('"')  # raises, naming what stands there
            key = self.value()
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def end(self) -> None:
        if self.peek():
            raise self.error("not valid JSON: text after the end; a file of one object per line is named .jsonl")


def read_json(path: Path, *, require_questions: bool, counts: Counter[str]) -> Iterator[tuple[str, Document]]:
    """Streams (where, document) from a JSON file: SQuAD's object with "data", or an array of document rows."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            stream = JsonStream(file, path)
            start = stream.peek()
            if not start:
                raise UserError(f"{path}: the file is empty")
            if start == "[":
                for n, row in enumerate(stream.array_items(), 1):
                    where = f"{path}, row {n}"
                    yield where, document_from_row(row, where)
            else:
                yield from _read_squad(stream, path, require_questions=require_questions, counts=counts)
            stream.end()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_squad(
    stream: JsonStream, path: Path, *, require_questions: bool, counts: Counter[str]
) -> Iterator[tuple[str, Document]]:
    seen_data = False
    paragraphs_of: Counter[str] = Counter()
    for key in stream.object_keys():
        if key != "data" or stream.peek() != "[":
            stream.value()
            continue
        seen_data = True
        for n, article in enumerate(stream.array_items(), 1):
            yield from _article(article, f"{path}, article {n}", paragraphs_of, require_questions, counts)
    if not seen_data:
        raise UserError(
            f'{path}: no list "data", so not SQuAD JSON; put document rows into a .jsonl file, one object per line'
        )


def _article(
    article: object, where: str, paragraphs_of: Counter[str], require_questions: bool, counts: Counter[str]
) -> Iterator[tuple[str, Document]]:
    name = clean_text(_field(article, "title", where), "title", where)
    where = f"{where} ({name})"
    for n, paragraph in enumerate(_list_field(article, "paragraphs", where), 1):
        place = f"{where}, paragraph {n}"
        questions = []
        for m, item in enumerate(_list_field(paragraph, "qas", place), 1):
            spot = f"{place}, question {m}"
            answers = [_field(answer, "text", spot) for answer in _list_field(item, "answers", spot)]
            if isinstance(item, dict) and item.get("is_impossible"):
                answers = []  # v2 lists such answers as plausible only
            questions.append((_field(item, "question", spot), answers, spot))
        document = _document(name, _field(paragraph, "context", place), questions, place, paragraphs_of, counts)
        if questions and not document.questions and require_questions:
            counts["unanswerable_documents"] += 1
            continue
        yield place, document


def group_flat_rows(
    rows: Iterable[tuple[str, dict[str, Any]]], *, require_questions: bool, counts: Counter[str]
) -> Iterator[tuple[str, Document]]:
    """Documents of rows with one question each ("title", "context", "question", "answers": {"text": [...]}).

    Rows of one passage must follow one another, as they do in SQuAD on the Hugging Face hub.
    """
    paragraphs_of: Counter[str] = Counter()
    for (name, context), group in groupby(rows, key=lambda item: (item[1].get("title"), item[1]["context"])):
        questions = []
        place = ""
        for where, row in group:
            place = place or where
            answers = row["answers"]
            if not isinstance(answers, dict) or not isinstance(answers.get("text"), list):
                raise UserError(f'{where}: column "answers" must hold {{"text": [...]}}, as SQuAD has it')
            questions.append((row["question"], answers["text"], where))
        document = _document(clean_text(name, "title", place), context, questions, place, paragraphs_of, counts)
        if not document.questions and require_questions:
            counts["unanswerable_documents"] += 1
            continue
        yield place, document


def _document(
    name: str,
    context: object,
    questions: list[tuple[Any, list[Any], str]],
    where: str,
    paragraphs_of: Counter[str],
    counts: Counter[str],
) -> Document:
    """One paragraph as a document; its id is `ARTICLE/N`, N counting the article's paragraphs from 0."""
    document_id = f"{name}/{paragraphs_of[name]}"
    paragraphs_of[name] += 1
    pairs = []
    for question, answers, place in questions:
        if answers:
            cleaned = [clean_text(answer, "answers", place) for answer in answers]
            pairs.append((clean_text(question, "question", place), cleaned))
        else:
            counts["unanswerable_questions"] += 1
    return Document(
        id=document_id,
        title=clean_title(name.replace("_", " "), where),
        text=clean_text(context, "context", where),
        questions=make_questions(document_id, pairs),
    )


def _field(value: object, field: str, where: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f'{where}: must be an object with "{field}", not {json_type(value)}')
    if field not in value:
        raise UserError(f'{where}: field "{field}" is missing, which SQuAD JSON has')
    return value[field]


def _list_field(value: object, field: str, where: str) -> list[Any]:
    found = _field(value, field, where)
    if not isinstance(found, list):
        raise UserError(f'{where}: field "{field}" must be a list, not {json_type(found)}')
    return found
