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


# Where a paragraph stands, its article's title, its text, and each question about it with its answers.
_Asking = tuple[str, str, str, list[tuple[str, list[str]]]]


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
    found = ((f"{path}, article {n}", article) for n, article in enumerate(found["data"], 1))
    yield from _documents(_paragraphs(found), require_questions, counts)


def _paragraphs(articles: Iterable[tuple[str, Any]]) -> Iterator[_Asking]:
    for where, value in articles:
        article = checked(_Article, value, where, "SQuAD has title, paragraphs, context and qas")
        for m, paragraph in enumerate(article.paragraphs, 1):
            # The answers to a v2 question that is impossible are plausible only.
            asked = [
                (one.question, [] if one.is_impossible else [answer.text for answer in one.answers])
                for one in paragraph.qas
            ]
            yield f"{where} ({article.title}), paragraph {m}", article.title, paragraph.context, asked


def group_flat_rows(
    rows: Iterable[tuple[str, dict[str, Any]]], *, require_questions: bool, counts: Counter[str]
) -> Iterator[tuple[str, Document]]:
    """Documents of rows with one question each ("title", "context", "question", "answers": {"text": [...]}).

    Rows of one passage must follow one another, as they do in SQuAD on the Hugging Face hub.
    """
    form = 'SQuAD has title, context, question and answers ({"text": [...]})'
    found = ((where, checked(_FlatRow, row, where, form)) for where, row in rows)
    groups = (list(group) for _, group in groupby(found, key=lambda item: (item[1].title, item[1].context)))
    asking = (
        (group[0][0], group[0][1].title, group[0][1].context, [(row.question, row.answers.text) for _, row in group])
        for group in groups
    )
    yield from _documents(asking, require_questions, counts)


def _documents(
    paragraphs: Iterable[_Asking], require_questions: bool, counts: Counter[str]
) -> Iterator[tuple[str, Document]]:
    """Each paragraph as a document; its id is `ARTICLE/N`, N counting the article's paragraphs from 0."""
    paragraphs_of: Counter[str] = Counter()
    for where, article, text, asked in paragraphs:
        questions = [{"question": question, "answers": answers} for question, answers in asked if answers]
        counts["unanswerable_questions"] += len(asked) - len(questions)
        row = {"id": f"{article}/{paragraphs_of[article]}", "title": article.replace("_", " "), "text": text}
        paragraphs_of[article] += 1
        document = document_from_row({**row, "questions": questions}, where)
        if asked and not questions and require_questions:
            counts["unanswerable_documents"] += 1
        else:
            yield where, document
