"""Edits for replay, read from files: both layouts, writers, and mistakes."""

import json
from pathlib import Path

import pytest

from selfedit.documents import load_edits
from selfedit.errors import UserError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def file(tmp_path):
    def write(*rows, name="edits.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    return write


def document(name, **edits):
    return {"id": name, "title": "T", "text": "x", "edits": edits}


def message(spec) -> str:
    with pytest.raises(UserError) as error:
        load_edits(spec)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_document_rows(file):
    path = file(
        document("a", me=["One.", "Two."], you=["Three."]), document("b", me=["Four."]), {"id": "c", "title": "T"}
    )
    edits = load_edits(f"{path}#me")
    assert edits == {"a": ["One.", "Two."], "b": ["Four."]}
    assert (edits.source, edits.writer) == (str(path), "me")
    assert load_edits(f"{path}#you") == {"a": ["Three."]}


def test_edit_rows(file):
    path = file(
        {"document_id": "a", "text": " One. "}, {"id": "b", "text": "Two."}, {"document_id": "a", "text": "Three."}
    )
    edits = load_edits(path)
    assert edits == {"a": ["One.", "Three."], "b": ["Two."]}
    assert edits.writer == ""


def test_edit_rows_with_writers(file):
    path = file({"id": "a", "writer": "me", "text": "One."}, {"id": "a", "writer": "you", "text": "Two."})
    assert load_edits(f"{path}#you") == {"a": ["Two."]}


def test_a_single_writer_need_not_be_named(file):
    path = file(document("a", me=["One."]))
    assert load_edits(path) == load_edits(f"{path}#me") == {"a": ["One."]}


def test_a_hash_in_a_file_name_names_no_writer(file):
    path = file(document("a", me=["One."]), name="notes#2.jsonl")
    assert load_edits(path) == load_edits(f"{path}#me") == {"a": ["One."]}


def test_several_writers_and_none_named(file):
    path = file(document("a", me=["One."], you=["Two."]))
    assert message(path) == f"{path}: edits by several writers (me, you); name one: {path}#WRITER"


def test_an_unknown_writer_is_refused_with_those_there_are(file):
    path = file(document("a", me=["One."], you=["Two."]))
    assert message(f"{path}#them") == f'{path}: no edits by "them"; writers are me, you'
    assert message("news#them") == 'news: no edits by "them"; writers are editor'


def test_documents_without_an_edit_are_named(file):
    edits = load_edits(file(document("a", me=["One."]), document("b", me=[])))
    edits.require(["a"])
    with pytest.raises(UserError, match=r'edits\.jsonl: no edit by "me" for document "b"; '):
        edits.require(["a", "b"])
    with pytest.raises(UserError, match=r'for document "b", "c", "d" and 2 more; '):
        edits.require("bcdef")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"id": "a", "title": "T", "text": "x"}], ": no row has edits"),
        ([{"text": "One."}], ", row 1: document_id: is missing; an edit is"),
        ([{"edits": {"me": ["One."]}}], ", row 1: id: is missing; such a row is"),
        ([{"document_id": "a"}], ", row 1: text: is missing"),
        ([{"document_id": "a", "text": ""}], ", row 1: text: is empty"),
        ([{"document_id": 3, "text": "x"}], ", row 1: document_id: Input should be a valid string"),
        ([{"document_id": "a", "text": "x", "writer": 3}], ", row 1: writer: Input should be a valid string"),
        ([document("a", me="One.")], ", row 1: edits.me: Input should be a valid list"),
        ([document("a", me=["x"]), document("a", me=["y"])], ', row 2: id "a" is taken by'),
        (["x"], ", row 1: must be an object; an edit is"),
        ([], ": the file is empty"),
    ],
)
def test_mistakes_get_one_line(file, rows, expected):
    path = file(*rows)
    assert message(path).startswith(f"{path}{expected}")


def test_missing_files_and_folders_are_refused(tmp_path):
    assert "no such file" in message(f"{tmp_path}/none.jsonl#me")
    assert "no such file" in message(f"{'x' * 1000}#me")
    assert "is a folder" in message(tmp_path)
    assert "no writer after #" in message("news#")


@pytest.mark.skipif(not (SHARED / "squad-val200.jsonl").exists(), reason="../shared/data is not beside this checkout")
def test_edits_of_squad_validation_passages():
    path = SHARED / "squad-val200.jsonl"
    edits = load_edits(f"{path}#gpt-4.1")
    assert {len(texts) for texts in edits.values()} == {5}
    assert len(edits) == 200
    assert "gpt-4.1, qwen2.5-7b" in message(path)
