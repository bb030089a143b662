"""SQuAD JSON, v1.1 and v2, read as a stream; arrays of document rows; mistakes in both."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfedit.documents import Document, LeftOut, Question, iter_documents, load_documents, squad
from selfedit.documents.squad import JsonStream
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
    assert message(path).startswith(f'{path}, row 2: field "text" is missing')


def test_articles_stream(tmp_path, monkeypatch):
    """The first article arrives although the file breaks off later."""
    monkeypatch.setattr(squad, "_CHUNK", 16)
    path = squad_file(tmp_path / "s.json", ("A", [("One.", [])]), ("B", [("Two." * 100, [])]))
    path.write_text(path.read_text("utf-8")[:-40], "utf-8")
    stream = iter_documents(path)
    assert next(stream).id == "A/0"
    with pytest.raises(UserError, match="is the file whole"):
        next(stream)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ": the file is empty"),
        ("[]", ": holds no documents"),
        ('{"data": []}', ": holds no documents"),
        ('{"version": "1.1"}', ': no list "data"'),
        ('{"id": "a", "title": "T", "text": "x"}\n{"id": "b"}', ': no list "data"'),
        ('{"data": {}}', ': no list "data"'),
        ('{"data": [\n' + "9" * 5000 + "]}", ", line 2: a number of too many digits"),
        ('{"data": ' + "[" * 200_000, ", line 1: nested too deeply"),
        ("true", ", line 1: not valid JSON: { expected, t found"),
        ('{"data": [\n{"title": "T"\n', ", line 3: not valid JSON: Expecting ',' delimiter"),
        ('{"data": [] "x": 1}', ", line 1: not valid JSON: , or } expected"),
        ('{"data": []} []', ", line 1: not valid JSON: text after the end"),
        ("{3: 4}", ', line 1: not valid JSON: " expected, 3 found'),
        ('{"data": [{"title": "T"}]}', ', article 1 (T): field "paragraphs" is missing'),
        ('{"data": [3]}', ', article 1: must be an object with "title", not a number'),
        ('{"data": [{"title": "", "paragraphs": []}]}', ', article 1: field "title" is empty'),
        ('{"data": [{"title": "T", "paragraphs": {}}]}', ', article 1 (T): field "paragraphs" must be a list'),
        (
            '{"data": [{"title": "T", "paragraphs": [{"qas": []}]}]}',
            ', article 1 (T), paragraph 1: field "context" is m',
        ),
        (
            '{"data": [{"title": "T", "paragraphs": [{"context": "c", "qas": [{"question": "Q"}]}]}]}',
            ', article 1 (T), paragraph 1, question 1: field "answers" is missing',
        ),
        (
            '{"data": [{"title": "T", "paragraphs": [{"context": "c", "qas": [{"question": 1, "answers": '
            '[{"text": "a"}]}'
            "]}]}]}",
            ', article 1 (T), paragraph 1, question 1: field "question" must be text, not a number',
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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class ShortReads(io.StringIO):
    """A file that gives a few characters at a time, whatever is asked for."""

    def __init__(self, text: str, size: int) -> None:
        super().__init__(text)
        self.size = size

    def read(self, size=-1):
        return super().read(self.size)


@given(st.lists(json_values, max_size=5), st.integers(1, 7), st.sampled_from([None, 2]))
def test_an_array_read_in_pieces_is_the_array(values, size, indent):
    stream = JsonStream(ShortReads(json.dumps(values, indent=indent), size), Path("x.json"))
    assert list(stream.array_items()) == values
    stream.end()


@given(st.dictionaries(st.text(), json_values, max_size=5), st.integers(1, 7))
def test_an_object_read_in_pieces_is_the_object(value, size):
    stream = JsonStream(ShortReads(json.dumps(value), size), Path("x.json"))
    assert {key: stream.value() for key in stream.object_keys()} == value
    stream.end()
