"""Document rows, sources, samples, and the one line that each mistake gets."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfedit.documents import Document, Question, document_from_row, document_to_row, load_documents, load_edits
from selfedit.documents import rows as rows_module
from selfedit.errors import UserError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"

ROW = {
    "id": "a",
    "title": "A title",
    "text": "Some text.",
    "questions": [{"question": "What?", "answers": ["this", "that", "this"]}],
    "edits": {"me": ["One.\nTwo."]},
}


def write_rows(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def rows_named(*ids: str) -> list[dict]:
    return [{"id": name, "title": f"Title {name}", "text": f"Text {name}."} for name in ids]


def message(*args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        load_documents(*args, **kwargs)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_row_becomes_a_document(tmp_path):
    assert load_documents(write_rows(tmp_path / "d.jsonl", [ROW])) == [
        Document("a", "A title", "Some text.", (Question("a/q0", "What?", ("this", "that")),), {"me": ("One.\nTwo.",)})
    ]


def test_questions_and_edits_may_be_missing_and_other_fields_are_ignored(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", [{**rows_named("a")[0], "split": "train", "questions": None}])
    assert load_documents(path) == [Document("a", "Title a", "Text a.")]


def test_a_writer_without_edits_may_be_null_as_programs_with_fixed_columns_write_it(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", [{**rows_named("a")[0], "edits": {"me": ["One."], "you": None}}])
    assert [document.edits for document in load_documents(path)] == [{"me": ("One.",), "you": ()}]
    assert load_edits(path) == {"a": ["One."]}


def test_white_space_around_fields_is_removed_and_titles_are_one_line(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", [{"id": " a ", "title": " A\n  title ", "text": "\nOne.\n\nTwo.\n"}])
    assert load_documents(path) == [Document("a", "A title", "One.\n\nTwo.")]


# Text as a file may hold it: no lone surrogates, no NUL, something besides white space.
texts = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map(str.strip).filter(bool)
)


@given(
    st.builds(
        lambda name, title, text, questions, edits: {
            "id": name,
            "title": title,
            "text": text,
            "questions": [{"question": question, "answers": answers} for question, answers in questions],
            "edits": edits,
        },
        texts,
        texts,
        texts,
        st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), max_size=3),
        st.dictionaries(texts, st.lists(texts, max_size=2), max_size=2),
    )
)
def test_rows_and_documents_convert_back_and_forth(row):
    document = document_from_row(json.loads(json.dumps(row)))
    assert document_from_row(document_to_row(document)) == document
    assert (document.id, document.text) == (row["id"], row["text"])
    assert [q.id for q in document.questions] == [f"{document.id}/q{n}" for n in range(len(row["questions"]))]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"id": None}, "id: Input should be a valid string"),
        ({"title": "  "}, "title: is empty"),
        ({"text": ["a"]}, "text: Input should be a valid string"),
        ({"text": "\ud83d"}, "text: holds half a character"),
        ({"text": "a\0b"}, "text: holds a NUL character"),
        ({"title": "x" * 1001}, 'title: has 1,001 characters, 1,000 are the most; move text into "text"'),
        ({"questions": {}}, "questions: Input should be a valid list"),
        ({"questions": ["What?"]}, "questions[0]: must be an object"),
        ({"questions": [ROW["questions"][0], {"question": "What?"}]}, "questions[1].answers: is missing"),
        ({"questions": [{"answers": ["a"]}]}, "questions[0].question: is missing"),
        ({"questions": [{"question": "", "answers": ["a"]}]}, "questions[0].question: is empty"),
        ({"questions": [{"question": "What?", "answers": []}]}, "questions[0].answers: List should have at least 1"),
        ({"questions": [{"question": "What?", "answers": [""]}]}, "questions[0].answers[0]: is empty"),
        ({"questions": [{"question": "What?", "answers": "a"}]}, "questions[0].answers: Input should be a valid list"),
        ({"questions": [{"question": "What?", "answers": [True]}]}, "answers[0]: Input should be a valid string"),
        ({"edits": ["One."]}, "edits: Input should be a valid dictionary"),
        ({"edits": {"me": "One."}}, "edits.me: Input should be a valid list"),
        ({"edits": {"me": [""]}}, "edits.me[0]: is empty"),
    ],
)
def test_a_bad_field_is_named_with_file_and_row(tmp_path, change, expected):
    path = write_rows(tmp_path / "d.jsonl", [*rows_named("x", "y"), {**ROW, **change}])
    text = message(path)
    assert text.startswith(f"{path}, row 3")
    assert expected in text


@pytest.mark.parametrize("field", ["id", "title", "text"])
def test_a_missing_field_is_named(tmp_path, field):
    path = write_rows(tmp_path / "d.jsonl", [{key: value for key, value in ROW.items() if key != field}])
    assert message(path).startswith(f"{path}, row 1: {field}: is missing")


@pytest.mark.parametrize("value", [None, [], 3, "text"])
def test_a_row_that_is_no_object_is_refused(tmp_path, value):
    assert "row 1: must be an object; a document is {" in message(write_rows(tmp_path / "d.jsonl", [value]))


def test_malformed_json_names_line_and_column(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(ROW) + '\n\n{"id": "b", "title" "T"}\n', "utf-8")
    text = message(path)
    assert text.startswith(f"{path}, line 3: not valid JSON at column 21")
    assert "column 21" in text


def test_nesting_without_end_is_refused(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("[" * 200_000, "utf-8")
    assert message(path).startswith(f"{path}, line 1: n")


def test_a_number_of_too_many_digits_is_refused(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(f'{json.dumps(ROW)}\n{{"id": {"9" * 5000}}}\n', "utf-8")
    assert message(path).startswith(f"{path}, line 2: a number of too many digits; ")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "d.jsonl"
    path.write_text(content, "utf-8")
    assert message(path).startswith(f"{path}: the file is empty")


def test_bytes_that_are_not_utf8_are_refused_with_their_row(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b'\n{"id": "\xe9"}\n')
    assert message(path).startswith(f"{path}, line 2: not UTF-8 text (at byte 9)")


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n")
    assert [document.id for document in load_documents(path)] == ["a"]


def test_a_missing_file_is_named(tmp_path):
    assert message(tmp_path / "none.jsonl").startswith(f"{tmp_path / 'none.jsonl'}: no such file or folder")
    assert "cannot be read" in message("x" * 5000)
    assert "cannot be read" in message("a\0b")
    assert "no such file or folder" in message("~nobody-of-this-name/notes")


def test_a_type_that_is_not_read_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    assert "files of type .png are not read" in message(tmp_path / "a.png")


def test_repeated_ids_name_both_rows_within_and_across_files(tmp_path):
    one = write_rows(tmp_path / "1.jsonl", rows_named("a", "b", "a"))
    assert message(one) == f'{one}, row 3: id "a" is taken by {one}, row 1; ids must be unique'
    two, three = (write_rows(tmp_path / name, rows_named("z")) for name in ("2.jsonl", "3.jsonl"))
    assert message([two, three]) == f'{three}, row 1: id "z" is taken by {two}, row 1; ids must be unique'


def test_questions_can_be_required(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", [ROW, *rows_named("b")])
    assert len(load_documents(path)) == 2
    assert message(path, require_questions=True).startswith(f'{path}, row 2: document "b" has no questions')


def test_no_source_and_no_size_are_refused():
    assert "no documents were named" in message([])
    assert "at least 1" in message("news", limit=0)


def test_several_sources_keep_their_order(tmp_path):
    one = write_rows(tmp_path / "1.jsonl", rows_named("b", "a"))
    two = write_rows(tmp_path / "2.jsonl", rows_named("d", "c"))
    assert [document.id for document in load_documents([two, str(one)])] == ["d", "c", "b", "a"]


def test_a_sample_holds_no_more_documents_than_it_has(tmp_path, monkeypatch):
    held = most = 0

    class Watched(Document):
        def __init__(self, *fields):
            nonlocal held, most
            super().__init__(*fields)
            held += 1
            most = max(most, held)

        def __del__(self):
            nonlocal held
            held -= 1

    monkeypatch.setattr(rows_module, "Document", Watched)
    path = write_rows(tmp_path / "d.jsonl", rows_named(*(f"d{n}" for n in range(100))))
    assert len(load_documents(path, limit=3)) == 3
    assert most < 8


def test_a_sample_is_repeatable_nested_and_independent_of_order(tmp_path):
    ids = [f"d{n}" for n in range(60)]
    forward = write_rows(tmp_path / "f.jsonl", rows_named(*ids))
    backward = write_rows(tmp_path / "b.jsonl", rows_named(*reversed(ids)))

    def sample(path, limit, seed=0):
        return [document.id for document in load_documents(path, limit=limit, seed=seed)]

    ten = sample(forward, 10)
    assert len(ten) == 10
    assert ten == sorted(ten, key=ids.index)
    assert sample(backward, 10) == ten[::-1]
    assert set(ten) < set(sample(forward, 20))
    assert ten != sample(forward, 10, seed=1)
    assert sample(forward, 60) == sample(forward, 1000) == ids


def test_a_sample_favours_no_document(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", rows_named(*(f"d{n}" for n in range(8))))
    chosen = Counter(document.id for seed in range(400) for document in load_documents(path, limit=2, seed=seed))
    # 100 expected each, standard deviation 8.7
    assert all(60 <= chosen[f"d{n}"] <= 140 for n in range(8))


@pytest.mark.skipif(not (SHARED / "squad-val200.jsonl").exists(), reason="../shared/data is not beside this checkout")
def test_squad_validation_passages_load():
    documents = load_documents(SHARED / "squad-val200.jsonl", require_questions=True)
    assert len(documents) == 200
    assert sum(len(document.questions) for document in documents) == 974
    assert len({document.title for document in documents}) == 47
    assert all(
        {name: len(texts) for name, texts in d.edits.items()} == {"qwen2.5-7b": 5, "gpt-4.1": 5} for d in documents
    )
