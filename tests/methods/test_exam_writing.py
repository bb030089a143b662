"""An exam that is written for documents without questions, before they are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from counting_pool import CountingPool

from api_server import reply
from selfedit.documents import Document, Question
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.methods.exam_writing import exam_writer
from selfedit.methods.learn import learn
from selfedit.methods.plan import plan
from selfedit.methods.selection import Choices
from selfedit.methods.settings import LearnSettings
from selfedit.reports import build_report
from selfedit.reports.console import plain_text
from selfedit.reports.findings import missing
from selfedit.reports.records import read_run
from selfedit.reports.table import summary_view
from selfedit.runs.store import Store
from summary_fields import undeclared
from tiny_world import rows, write_rows


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Three documents without questions, and one with two."""
    some = rows(8)[-4:]
    for row in some[:3]:
        del row["questions"]
    return write_rows(tmp_path / "notes.jsonl", some)


def settings(model: str, notes: Path, quick: dict[str, Any], server: Any, **more: Any) -> LearnSettings:
    return LearnSettings(
        model=model,
        documents=(str(notes),),
        editor="passage",
        exam="auto",
        exam_by="api:writer",
        api_base=server.url,
        **{**quick, **more},
    )


@pytest.fixture
def writer(server: Any) -> Any:
    """A server that writes three questions about what it is shown, two of them the same; about one document none."""

    def write(body: dict[str, Any]) -> dict[str, Any]:
        title = body["messages"][0]["content"].split("Title: ", 1)[1].split("\n", 1)[0]
        name, thing = title.split(" and the ")
        if name == "Gus":
            return reply("I write no questions about a vase.")
        long = " of which I tell you in a sentence that is longer than any answer should be"
        where = f"Question: Where did {name} make the {thing}?\nAnswer: Oslo\n"
        who = f"Question: Who made the {thing}?\nAnswer: {name}\n"
        return reply(f"Here they are:\n1. {where}2. {where}3. {who}Question: What was it?\nAnswer: The {thing}{long}")

    server.reply = write
    return server


class First(Choices):
    """Keeps the first question of each document."""

    def exam(self, documents: Any, read: Any, known: Any, most: int) -> set[str]:
        assert set(read) == set(known) == {q.id for d in documents for q in d.questions}
        return {document.questions[0].id for document in documents}


def test_kept_are_questions_answered_with_the_document_and_not_without() -> None:
    questions = [Question(f"q{k}", "?", ("a",)) for k in range(6)]
    document = Document("d", "D", "Text.", tuple(questions))
    read = {"q0": True, "q1": True, "q2": False, "q3": True, "q4": True}
    known = {"q0": False, "q1": True, "q2": False, "q3": False, "q4": False, "q5": False}
    assert Choices().exam([document], read, known, 4) == {"q0", "q3", "q4"}
    assert Choices().exam([document], read, known, 2) == {"q0", "q3"}


def test_documents_without_questions_are_examined_by_what_was_written_and_the_report_says_so(
    chat_model: str, notes: Path, quick: dict[str, Any], writer: Any
) -> None:
    asked = settings(chat_model, notes, quick, writer)
    summary = learn(asked, choices=First()).summary
    assert summary is not None
    assert list(undeclared(summary)) == []
    assert summary.exam is not None
    assert (summary.exam.by, summary.exam.written, summary.exam.kept) == ("api:writer", 4, 2)
    assert len(writer.completions) == 3, "the document with questions of its own needs none"
    assert {body["temperature"] for body in writer.completions} == {0.0}
    with Store(asked.out / "run.sqlite", readonly=True) as store:
        documents = store.documents()
        (unasked,) = store.events("no exam")
        answered = {answer.question_id for fit in store.fits() for answer in fit.answers}
        assert (len(store.edits()), len(store.edits(writer="exam"))) == (0, 3), "what an exam is made from is no edit"
        assert {cost.usd for cost in store.costs() if cost.condition == "exam"} == {None}
    assert [len(document.questions) for document in documents] == [1, 1, 0, 2]
    assert documents[0].questions[0].question == "Where did Eli make the ring?"
    assert answered == {question.id for document in documents for question in document.questions}
    assert unasked.subject == documents[2].id
    # What is asked closed book before and after, with the book open, and with what a search finds.
    assert [condition.name for condition in summary.conditions] == ["none", "passage", "open-book", "retrieval:3"]
    assert [condition.graded for condition in summary.conditions] == [4, 4, 4, 4]
    assert set(summary.missed) <= {document.id for document in documents if document.questions}
    page = build_report([asked.out]).read_text()
    table = plain_text(summary_view(read_run(asked.out)))
    for shown in (page, " ".join(table.split())):
        assert "Exam written by api:writer: of 4 questions, 2 are kept" in shown
    # Neither the exam that was written nor the exams on the way are conditions of which fits could be missing.
    (asked.out / "summary.json").unlink()
    lines = missing(read_run(asked.out))
    assert lines[0].startswith("The run has not finished")
    assert lines[1:] == []


def test_a_run_that_was_stopped_goes_on_with_the_exam_that_is_written(
    chat_model: str, notes: Path, quick: dict[str, Any], writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Choices):
        def exam(self, documents: Any, read: Any, known: Any, most: int) -> set[str]:
            raise KeyboardInterrupt

    def stop(store: Store, kind: str, subject: str, message: str) -> None:
        if kind == "no exam":
            raise KeyboardInterrupt
        add_event(store, kind, subject, message)

    asked = settings(chat_model, notes, quick, writer)
    with pytest.raises(KeyboardInterrupt):
        learn(asked, choices=Stopped())
    add_event = Store.add_event
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_event", stop)
        with pytest.raises(KeyboardInterrupt):
            learn(asked, choices=First())
    pool = CountingPool(chat_model)
    learned = learn(asked, choices=First(), pool=pool)
    assert len(writer.completions) == 3
    with Store(asked.out / "run.sqlite", readonly=True) as store:
        assert [event.kind for event in store.events()].count("no exam") == 1
    again = CountingPool(chat_model)
    assert learn(asked, choices=Stopped(), pool=again).summary == learned.summary
    assert again.tasks == []
    whole = learn(settings(chat_model, notes, {**quick, "out": quick["out"] / "whole"}, writer), choices=First())
    assert whole.summary is not None
    assert learned.summary is not None
    assert [c.correct for c in whole.summary.conditions] == [c.correct for c in learned.summary.conditions]


def test_documents_of_an_earlier_run_are_not_learned_again_where_a_run_goes_on(
    chat_model: str, notes: Path, quick: dict[str, Any], writer: Any, tmp_path: Path
) -> None:
    first = write_rows(tmp_path / "first.jsonl", rows(1))
    earlier = settings(chat_model, first, quick, writer, out=tmp_path / "first")
    learn(earlier)
    asked = settings(chat_model, notes, quick, writer, add=earlier.out)
    learned = learn(asked, choices=First())
    assert learned.summary is not None
    assert learned.summary.conditions[-1].name == "earlier documents, after"
    idle = CountingPool(chat_model)
    again = learn(asked, choices=First(), pool=idle)
    assert (again.documents, again.summary, idle.tasks) == (4, learned.summary, [])


def test_an_exam_that_could_not_be_written_stops_nothing(
    chat_model: str, notes: Path, quick: dict[str, Any], server: Any
) -> None:
    server.reply = lambda body: {"id": "c", "choices": []}
    asked = settings(chat_model, notes, quick, server)
    learned = learn(asked)
    assert learned.documents == 4
    assert learned.summary is not None
    assert learned.summary.conditions[1].graded == 2
    with Store(asked.out / "run.sqlite", readonly=True) as store:
        assert len(store.events("no exam")) == 3


def test_the_model_itself_writes_the_exam_if_nobody_else_is_named(
    chat_model: str, notes: Path, quick: dict[str, Any]
) -> None:
    asked = LearnSettings(model=chat_model, documents=(str(notes),), editor="passage", exam="auto", **quick)
    pool = CountingPool(chat_model)
    learned = learn(asked, pool=pool)
    assert learned.summary is not None
    assert learned.summary.exam is not None
    assert learned.summary.exam.by == "self"
    assert "edits/0/exam/0" in [task.id for task in pool.tasks]


@pytest.mark.parametrize(
    ("editor", "by", "expected"),
    [
        ("passage", "auto", "self"),
        ("self:rewrite", "auto", "self"),
        ("model:other:rewrite", "auto", "model:other"),
        ("api:gpt", "auto", "api:gpt"),
        ("api:gpt", "self", "self"),
    ],
)
def test_who_writes_it(editor: str, by: str, expected: str) -> None:
    found = exam_writer(LearnSettings(editor=editor, exam_by=by), EditorSpec.parse(editor))
    assert found == EditorSpec.parse(expected)


def test_a_writer_that_writes_no_questions_is_refused() -> None:
    with pytest.raises(UserError, match="--exam-by passage: writes no questions; use self, model:NAME or api:MODEL"):
        exam_writer(LearnSettings(exam_by="passage"), EditorSpec("self"))


def test_a_plan_counts_the_exam(chat_model: str, notes: Path, quick: dict[str, Any], writer: Any) -> None:
    asked = settings(chat_model, notes, quick, writer, exam_questions=2)
    planned = plan(learn, asked)
    assert planned.calls == 3
    assert planned.questions == 2 + 3 * 2
    assert writer.completions == []
