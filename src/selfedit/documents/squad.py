"""SQuAD's layout (v1.1 and v2): articles of paragraphs with questions, as one JSON file or as flat rows.

Sources: Rajpurkar et al. 2016 (v1.1), 2018 (v2, whose `is_impossible` questions have no answer in the text).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from selfedit.documents.document import Document
from selfedit.documents.rows import Text, document_from_row
from selfedit.errors import UserError, checked
from selfedit.json_file import read_json


class _Answer(BaseModel):
    text: str


class _Asked(BaseModel):
    question: str
    answers: list[_Answer]
    is_impossible: bool | None = None


class _Paragraph(BaseModel):
    context: str
    qas: list[_Asked]


class _Article(BaseModel):
    title: Text
    paragraphs: list[_Paragraph]


class _Texts(BaseModel):
    text: list[str]


class _FlatRow(BaseModel):
    title: Text
    context: str
    question: str
    answers: _Texts


def read_documents(path: Path, *, require_questions: bool, counts: Counter[str]) -> Iterator[tuple[str, Document]]:
    """(where, document) of a JSON file: SQuAD's object with "data", or an array of document rows."""
    found = read_json(path, "is the file whole?  One of an object per line is named .jsonl")
    if isinstance(found, list):
        for n, row in enumerate(found, 1):
            where = f"{path}, row {n}"
            yield where, document_from_row(row, where)
        return
    if not isinstance(found, dict) or not isinstance(found.get("data"), list):
        raise UserError(
            f'{path}: no list "data", so not SQuAD JSON; put document rows into a .jsonl file, one object per line'
        )
    paragraphs_of: Counter[str] = Counter()
    for n, value in enumerate(found["data"], 1):
        article = checked(_Article, value, f"{path}, article {n}", "SQuAD has title, paragraphs, context and qas")
        for m, paragraph in enumerate(article.paragraphs, 1):
            # The answers to a v2 question that is impossible are plausible only.
            asked = [
                (one.question, [] if one.is_impossible else [answer.text for answer in one.answers])
                for one in paragraph.qas
            ]
            where = f"{path}, article {n} ({article.title}), paragraph {m}"
            document = _document(article.title, paragraph.context, asked, where, paragraphs_of, counts)
            if asked and not document.questions and require_questions:
                counts["unanswerable_documents"] += 1
            else:
                yield where, document


def group_flat_rows(
    rows: Iterable[tuple[str, dict[str, Any]]], *, require_questions: bool, counts: Counter[str]
) -> Iterator[tuple[str, Document]]:
    """Documents of rows with one question each ("title", "context", "question", "answers": {"text": [...]}).

    Rows of one passage must follow one another, as they do in SQuAD on the Hugging Face hub.
    """
    paragraphs_of: Counter[str] = Counter()
    form = 'SQuAD has title, context, question and answers ({"text": [...]})'
    found = ((where, checked(_FlatRow, row, where, form)) for where, row in rows)
    for (title, context), group in groupby(found, key=lambda item: (item[1].title, item[1].context)):
        (where, first), *others = group
        asked = [(row.question, row.answers.text) for row in (first, *(row for _, row in others))]
        document = _document(title, context, asked, where, paragraphs_of, counts)
        if not document.questions and require_questions:
            counts["unanswerable_documents"] += 1
        else:
            yield where, document


def _document(
    article: str,
    text: str,
    asked: list[tuple[str, list[str]]],
    where: str,
    paragraphs_of: Counter[str],
    counts: Counter[str],
) -> Document:
    """One paragraph as a document; its id is `ARTICLE/N`, N counting the article's paragraphs from 0."""
    number = paragraphs_of[article]
    paragraphs_of[article] += 1
    questions = [{"question": question, "answers": answers} for question, answers in asked if answers]
    counts["unanswerable_questions"] += len(asked) - len(questions)
    title = article.replace("_", " ")
    return document_from_row({"id": f"{article}/{number}", "title": title, "text": text, "questions": questions}, where)
