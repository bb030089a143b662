"""The built-in news: its size and shape, and that questions can be answered from the text and not from the title."""

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from selfedit.documents import NEWS_SPLITS, load_documents, load_edits
from selfedit.errors import UserError

NEWS = load_documents("news")
QUESTIONS = [(document, question) for document in NEWS for question in document.questions]


def tokens(text: str) -> list[str]:
    """SQuAD-style: lower case, no punctuation, no articles; digits of one number stay together."""
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower())
    return [token for token in re.findall(r"\w+", text) if token not in {"a", "an", "the"}]


def contains(text: list[str], part: list[str]) -> bool:
    return any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = tokens(text)
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_size_and_shape():
    assert len(NEWS) >= 24
    assert all(60 <= len(document.text.split()) <= 150 for document in NEWS)
    assert all(len(document.questions) == 6 for document in NEWS)
    assert all(len(question.answers[0].split()) <= 9 for _, question in QUESTIONS)
    assert len({document.title for document in NEWS}) == len(NEWS)


def test_splits_divide_the_corpus():
    splits = {name: load_documents(f"news:{name}") for name in NEWS_SPLITS}
    assert {name: len(documents) for name, documents in splits.items()} == {"train": 14, "validation": 8, "test": 8}
    assert sorted(d.id for documents in splits.values() for d in documents) == sorted(d.id for d in NEWS)


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match=r"news:dev: .*train, validation, test"):
        load_documents("news:dev")


@pytest.mark.parametrize("document", NEWS, ids=lambda document: document.id)
def test_answers_are_in_the_text_and_not_in_title_or_question(document):
    text, title = tokens(document.text), tokens(document.title)
    for question in document.questions:
        answers = [tokens(answer) for answer in question.answers]
        assert contains(text, answers[0]), question
        assert not any(contains(title, answer) for answer in answers), question
        assert not any(contains(tokens(question.question), answer) for answer in answers), question


def test_answers_do_not_recur():
    first = Counter(" ".join(tokens(question.answers[0])) for _, question in QUESTIONS)
    assert [answer for answer, number in first.items() if number > 1] == []
    numbers = Counter(n for document in NEWS for n in set(re.findall(r"\d[\d,.]*\d|\d", document.text)))
    assert [number for number, documents in numbers.items() if documents > 1] == []


def test_questions_name_their_subject():
    """Each question shares a capitalised word with the news item, beyond the question's first word."""
    for document, question in QUESTIONS:
        names = set(re.findall(r"\b[A-Z][a-z]+", document.title + " " + document.text))
        assert names & set(re.findall(r"(?<!^)\b[A-Z][a-z]+", question.question)), question


@pytest.mark.parametrize("document", NEWS, ids=lambda document: document.id)
def test_edits_are_plain_statements_in_other_words(document):
    (edit,) = document.edits["editor"]
    lines = edit.split("\n")
    assert len(lines) == 8 == len(set(lines))
    taken = runs(document.text, 6).union(*(runs(question.question, 6) for question in document.questions))
    for line in lines:
        assert line.endswith(".")
        assert 5 <= len(line.split()) <= 25
        assert re.search(r"(?<!^)\b[A-Z][a-z]+|^[A-Z][a-z]+ [A-Z]", line) or line.split()[0] in document.text, line
        assert not re.match(r"(?:He|She|It|They|His|Her|Its|Their|This|These|There)\b(?! takes)", line), line
        assert not runs(line, 6) & taken, line
    for question in document.questions:
        assert any(contains(tokens(edit), tokens(answer)) for answer in question.answers), question


def test_editor_is_the_only_writer():
    edits = load_edits("news")
    assert edits.writer == "editor"
    edits.require(document.id for document in NEWS)


def test_rows_have_the_documented_fields_only():
    text = (files("selfedit.documents") / "corpus" / "news.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert all(set(row) == {"id", "split", "title", "text", "questions", "edits"} for row in rows)
    assert all(set(question) == {"question", "answers"} for row in rows for question in row["questions"])
