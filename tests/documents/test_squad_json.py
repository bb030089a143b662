"""SQuAD JSON, v1.1 and v2; arrays of document rows; mistakes in both."""

import json
from pathlib import Path

import pytest

from selfedit.documents import Document, LeftOut, Question, load_documents
from selfedit.errors import UserError


def qa(question, *answers, **more):
    return {"id": "x", "question": question, "answers": [{"text": a, "answer_start": 0} for a in answers], **more}


def squad_file(path: Path, *articles) -> Path:
    data = [
        {"title": title, "paragraphs": [{"context": text, "qas": qas} for text, qas in paragraphs]}
        for title, paragraphs in articles
    ]
    path.write_text(json.dumps({"version": "1.1", "data": data}), "utf-8")
    return path


def message(path, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        load_documents(path, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_paragraphs_become_documents(tmp_path):
    path = squad_file(
        tmp_path / "s.json",
        ("Old_Town", [("First.", [qa("Who?", "Ann", "ann", "Ann"), qa(" Where? ", "here")]), ("Second.", [])]),
        ("Sea", [("Third.", [qa("When?", "noon")])]),
    )
    assert load_documents(path) == [
        Document(
            "Old_Town/0",
            "Old Town",
            "First.",
            (Question("Old_Town/0/q0", "Who?", ("Ann", "ann")), Question("Old_Town/0/q1", "Where?", ("here",))),
        ),
        Document("Old_Town/1", "Old Town", "Second."),
        Document("Sea/0", "Sea", "Third.", (Question("Sea/0/q0", "When?", ("noon",)),)),
    ]


def test_questions_without_an_answer_are_dropped_and_counted(tmp_path, caplog):
    impossible = qa("Why?", is_impossible=True, plausible_answers=[{"text": "so", "answer_start": 0}])
    path = squad_file(
        tmp_path / "s.json",
        ("A", [("One.", [impossible, qa("Who?", "Ann", is_impossible=False)]), ("Two.", [impossible, impossible])]),
    )
    left_out = LeftOut()
    first, second = load_documents(path, left_out=left_out)
    assert [question.id for question in first.questions] == ["A/0/q0"]
    assert second.questions == ()
    assert left_out.counts == {"unanswerable_questions": 3}
    assert left_out.lines() == ["3 questions without an answer left out"]
    assert not caplog.text, "who is told is not told twice"
    load_documents(path)
    assert caplog.text.count("3 questions without an answer left out") == 1


def test_whether_a_question_is_impossible_may_be_null(tmp_path):
    path = squad_file(tmp_path / "s.json", ("A", [("One.", [qa("Who?", "Ann", is_impossible=None)])]))
    assert [question.answers for question in load_documents(path)[0].questions] == [("Ann",)]


def test_documents_left_without_questions_are_dropped_where_an_exam_needs_them(tmp_path):
    impossible = qa("Why?", is_impossible=True)
    path = squad_file(tmp_path / "s.json", ("A", [("One.", [impossible]), ("Two.", [qa("Who?", "Ann")])]))
    left_out = LeftOut()
    assert [d.id for d in load_documents(path, require_questions=True, left_out=left_out)] == ["A/1"]
    assert left_out.counts == {"unanswerable_questions": 1, "unanswerable_documents": 1}


def test_articles_with_one_title_get_different_ids(tmp_path):
    path = squad_file(tmp_path / "s.json", ("A", [("One.", [])]), ("A", [("Two.", [])]))
    assert [document.id for document in load_documents(path)] == ["A/0", "A/1"]


def test_an_array_of_document_rows_is_read(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('[{"id": "a", "title": "T", "text": "One."}, {"id": "b", "title": "T", "text": "Two."}]', "utf-8")
    assert [document.id for document in load_documents(path)] == ["a", "b"]
    path.write_text('[{"id": "a", "title": "T", "text": "One."}, {"id": "b", "title": "T"}]', "utf-8")
    assert message(path).startswith(f"{path}, row 2: text: is missing")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ": not valid JSON at column 1 (Expecting value)"),
        ("[]", ": holds no documents"),
        ('{"data": []}', ": holds no documents"),
        ('{"version": "1.1"}', ': no list "data"'),
        ('{"data": {}}', ': no list "data"'),
        ("true", ': no list "data"'),
        ('{"data": [\n' + "9" * 5000 + "]}", ": a number of too many digits"),
        ('{"data": ' + "[" * 200_000, ": nested too deeply"),
        (
            '{"data": [\n{"title": "T"\n',
            ": not valid JSON at line 3, column 1 (Expecting ',' delimiter); is the file whole",
        ),
        ('{"id": "a"}\n{"id": "b"}', ": not valid JSON at line 2, column 1 (Extra data)"),
        ('{"data": [{"title": "T"}]}', ", article 1: paragraphs: is missing"),
        ('{"data": [3]}', ", article 1: must be an object"),
        ('{"data": [{"title": "", "paragraphs": []}]}', ", article 1: title: is empty"),
        ('{"data": [{"title": "T", "paragraphs": {}}]}', ", article 1: paragraphs: Input should be a valid list"),
        ('{"data": [{"title": "T", "paragraphs": [{"qas": []}]}]}', ", article 1: paragraphs[0].context: is missing"),
        (
            '{"data": [{"title": "T", "paragraphs": [{"context": "c", "qas": [{"question": "Q"}]}]}]}',
            ", article 1: paragraphs[0].qas[0].answers: is missing",
        ),
        (
            '{"data": [{"title": "T", "paragraphs": [{"context": " ", "qas": []}]}]}',
            ", article 1 (T), paragraph 1: text: is empty",
        ),
        (
            '{"data": [{"title": "T", "paragraphs": [{"context": "c", "qas": [{"question": 1, "answers": '
            '[{"text": "a"}]}'
            "]}]}]}",
            ", article 1: paragraphs[0].qas[0].question: Input should be a valid string",
        ),
    ],
)
def test_mistakes_get_one_line(tmp_path, content, expected):
    path = tmp_path / "s.json"
    path.write_text(content, "utf-8")
    assert message(path).startswith(f"{path}{expected}")


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    path = tmp_path / "s.json"
    path.write_bytes(b'{"data": [\n{"title": "\xe9"}]}')
    assert "not UTF-8 text" in message(path)
