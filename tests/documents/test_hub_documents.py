"""Datasets of the Hugging Face hub, through a stand-in for the `datasets` library: the tests need no network."""

import builtins
import sys
from types import SimpleNamespace

import pytest

from selfedit.documents import Document, LeftOut, Question, load_documents
from selfedit.errors import UserError


def squad_row(title, context, question, *answers):
    return {
        "id": "x",
        "title": title,
        "context": context,
        "question": question,
        "answers": {"text": list(answers), "answer_start": [0] * len(answers)},
    }


@pytest.fixture
def hub(monkeypatch):
    """`hub(rows)` makes `datasets.load_dataset` yield these rows (raising those that are errors); returns its calls."""

    def install(rows):
        calls = []

        def load_dataset(*args, **kwargs):
            calls.append((args, kwargs))
            for row in rows:
                if isinstance(row, Exception):
                    raise row
                yield row

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        return calls

    return install


def test_squad_rows_are_grouped_by_passage(hub):
    calls = hub(
        [
            squad_row("Old_Town", "First.", "Who?", "Ann", "Ann"),
            squad_row("Old_Town", "First.", "Where?", "here"),
            squad_row("Old_Town", "Second.", "When?", "noon"),
            squad_row("Sea", "Second.", "Why?"),
        ]
    )
    left_out = LeftOut()
    assert load_documents("hf:rajpurkar/squad:validation", left_out=left_out) == [
        Document(
            "Old_Town/0",
            "Old Town",
            "First.",
            (Question("Old_Town/0/q0", "Who?", ("Ann",)), Question("Old_Town/0/q1", "Where?", ("here",))),
        ),
        Document("Old_Town/1", "Old Town", "Second.", (Question("Old_Town/1/q0", "When?", ("noon",)),)),
        Document("Sea/0", "Sea", "Second."),
    ]
    assert left_out.counts == {"unanswerable_questions": 1}
    assert calls == [(("rajpurkar/squad", None), {"split": "validation", "streaming": True})]


def test_documents_without_answerable_questions_are_dropped_where_needed(hub):
    hub([squad_row("A", "One.", "Why?"), squad_row("A", "Two.", "Who?", "Ann")])
    left_out = LeftOut()
    assert [d.id for d in load_documents("hf:x/y", require_questions=True, left_out=left_out)] == ["A/1"]
    assert left_out.counts["unanswerable_documents"] == 1


def test_rows_with_title_and_text_are_documents(hub):
    calls = hub(
        [
            {"id": 12, "url": "u", "title": "Sea", "text": "Waves."},
            {"id": None, "title": "Hill", "text": "Up."},
            {"id": 0, "title": "Dale", "text": "Down."},
        ]
    )
    assert load_documents("hf:wiki/pedia/20.en") == [
        Document("12", "Sea", "Waves."),
        Document("1", "Hill", "Up."),
        Document("0", "Dale", "Down."),
    ]
    assert calls == [(("wiki/pedia", "20.en"), {"split": "train", "streaming": True})]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [{"title": "A", "text": "One."}, ConnectionError("gone\nfar")],
            r"hf:x/y: the dataset cannot be read \(gone far\)",
        ),
        ([ConnectionError("Couldn't reach 'x/y' on the Hub")], "cannot be read .Couldn't reach"),
        ([RuntimeError("Dataset scripts are no longer supported, but found y.py")], "cannot be read .Dataset scripts"),
        ([ValueError("Bad split: z")], "cannot be read .Bad split"),
        ([ImportError("install zstandard")], "cannot be read .install zstandard"),
        ([], "the dataset is empty"),
        ([{"label": 1, "words": "x"}], "columns label, words; needed are"),
        ([{"title": "T", "text": ""}], "row 1: text: is empty"),
        ([{**squad_row("T", "c", "q", "a"), "answers": ["a"]}], "row 1: answers: must be an object"),
        ([{"context": "c", "question": "q", "answers": {"text": ["a"]}}], "row 1: title: is missing"),
    ],
)
def test_mistakes_get_one_line(hub, rows, expected):
    hub(rows)
    with pytest.raises(UserError, match=expected) as error:
        load_documents("hf:x/y")
    assert str(error.value).startswith("hf:x/y")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c/d", "hf:a b", "hf:x/y:"])
def test_a_malformed_name_is_refused(name):
    with pytest.raises(UserError, match="not a dataset's name"):
        load_documents(name)


def test_without_the_library_the_command_that_installs_it_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"hf:x/y: .*pip install datasets"):
        load_documents("hf:x/y")
