"""What goes into the store comes out, once, and only whole."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from tasks_of_work import content, make_experiment, whole_tasks

from selfedit.documents.document import Document, Question
from selfedit.editors.base import Edit, edit_id
from selfedit.errors import UserError
from selfedit.evaluation.grade import Grade, GradeItem
from selfedit.runs.records import (
    Answer,
    CostRecord,
    Event,
    FitRecord,
    OwnText,
    ScoredAnswer,
)
from selfedit.runs.store import Store
from selfedit.runs.summary import RoundSummary


def a_fit(document: Document, replicate: int = 0, **changes: object) -> FitRecord:
    fit = FitRecord(
        condition="passage",
        replicate=replicate,
        document_id=document.id,
        sequences=("Title\nline", "the text"),
        train_tokens=40,
        steps=8,
        first_loss=3.5,
        last_loss=0.25,
        seconds=1.5,
        answers=tuple(Answer(question.id, "an answer", 2) for question in document.questions),
    )
    return replace(fit, **changes)


def test_documents_come_back_in_order_with_their_questions(store: Store, documents: tuple[Document, ...]) -> None:
    store.add_documents(documents[1:], split="train")
    store.add_documents(documents[:1], split="test")
    assert store.documents() == [*documents[1:], documents[0]]
    assert store.documents("test") == [documents[0]]
    assert store.documents("validation") == []
    assert store.splits() == {"d1": "train", "d2": "train", "d0": "test"}


def test_adding_the_same_documents_again_changes_nothing(store: Store, documents: tuple[Document, ...]) -> None:
    store.add_documents(documents)
    before = content(store.path)
    store.add_documents([replace(document, edits={"somebody": ("a note",)}) for document in documents])
    assert content(store.path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: (replace(ds[0], text="other"), *ds[1:]), "document 'd0' has changed"),
        (lambda ds: (replace(ds[0], questions=ds[0].questions[:1]), *ds[1:]), "document 'd0' has changed"),
        (lambda ds: ds[:2], "held 3 documents when this run began; now it holds 2.*'d2'"),
        (lambda ds: (*ds, Document("new", "", "")), "now it holds 4.*'new'"),
        (lambda ds: ds[::-1], "another order"),
    ],
)
def test_changed_documents_are_refused_on_resume(store, documents, change, message) -> None:
    store.add_documents(documents)
    with pytest.raises(UserError, match=message):
        store.add_documents(change(documents))
    assert store.documents() == list(documents)


def test_an_id_used_twice_is_refused_and_nothing_is_kept(store: Store, documents: tuple[Document, ...]) -> None:
    with pytest.raises(UserError, match="two documents have the id 'd0'"):
        store.add_documents([*documents, documents[0]])
    same_question = Document("d9", "t", "x", (documents[0].questions[0],))
    with pytest.raises(UserError, match=r"two questions have the id 'd0q0'.*'d9'"):
        store.add_documents([*documents, same_question])
    assert store.documents() == []


def test_general_questions_belong_to_no_document(store: Store, documents: tuple[Document, ...]) -> None:
    general = [Question("g1", "Capital of France?", ("Paris",)), Question("g2", "2 + 2?", ("4", "four"))]
    store.add_documents(documents)
    store.add_general_questions(general)
    store.add_general_questions(general[:1])
    assert store.general_questions() == general
    assert store.documents() == list(documents)
    with pytest.raises(UserError, match="'g1' has changed"):
        store.add_general_questions([replace(general[0], answers=("Lyon",))])


def test_edits_round_trip_with_reward_and_selection(store: Store, documents: tuple[Document, ...]) -> None:
    store.add_documents(documents)
    edits = [
        Edit("d0", "self:implications", 0, "line\nline 2", "implications", True, 3, 100, 50, round=2),
        Edit("d0", "self:implications", 1, "", "implications", round=2),
        Edit("d1", "replay:notes.jsonl#gpt-4.1", 0, 'quote " and | bar', round=2),
    ]
    store.add_edits(edits)
    store.add_edits(edits)
    assert store.edits() == edits
    ids = [stored.id for stored in store.edits()]
    store.set_rewards({ids[0]: 0.25, ids[1]: 0.0})
    store.set_kept({ids[0]: True, ids[1]: False})
    assert store.edits(writer="self:implications") == [
        replace(edits[0], kept=True, reward=0.25),
        replace(edits[1], kept=False, reward=0.0),
    ]
    assert store.edits(document_id="d1") == [edits[2]]
    assert store.edits(round=1) == []
    store.add_edits([Edit("d0", "api:gpt-5", 1, "late", round=2), Edit("d0", "api:gpt-5", 0, "later", round=2)])
    assert [(edit.document_id, edit.writer, edit.index) for edit in store.edits()] == [
        ("d0", "api:gpt-5", 0),
        ("d0", "api:gpt-5", 1),
        ("d0", "self:implications", 0),
        ("d0", "self:implications", 1),
        ("d1", "replay:notes.jsonl#gpt-4.1", 0),
    ]


def test_rewards_of_an_unknown_edit_are_an_error_and_none_is_set(store: Store, documents) -> None:
    store.add_documents(documents)
    store.add_edits([Edit("d0", "self", 0, "text")])
    with pytest.raises(KeyError):
        store.set_rewards({edit_id(0, "d0", "self", 0): 0.5, "nothing": 0.5})
    assert store.edits()[0].reward is None


def test_a_changed_edit_is_refused(store: Store, documents: tuple[Document, ...]) -> None:
    store.add_documents(documents)
    store.add_edits([Edit("d0", "self", 0, "text")])
    with pytest.raises(UserError, match="edit 0 of document 'd0' by self has changed"):
        store.add_edits([Edit("d0", "self", 1, "new"), Edit("d0", "self", 0, "other text")])
    assert [stored.index for stored in store.edits()] == [0]


def test_fits_round_trip_with_their_answers(store: Store, documents: tuple[Document, ...]) -> None:
    store.add_documents(documents)
    store.add_edits([Edit("d1", "self", 0, "text")])
    on_an_edit = a_fit(documents[1], condition="self", edit_id=edit_id(0, "d1", "self", 0))
    failed = a_fit(documents[0], 1, status="failed", error="loss is not a number", answers=())
    base = FitRecord("none", answers=tuple(Answer(q.id, "", 0) for d in documents for q in d.questions))
    fits = [base, a_fit(documents[0]), failed, on_an_edit]
    store.record_fits(fits)
    assert store.fits() == fits
    assert store.fits(condition="self") == [on_an_edit]
    assert [fit for fit in store.fits(round=0) if fit.document_id == "d0"] == fits[1:3]
    assert store.fit_ids() == {fit.id for fit in fits}


def test_a_fit_that_is_there_stays(store: Store, documents: tuple[Document, ...]) -> None:
    store.add_documents(documents)
    first, second = a_fit(documents[0]), a_fit(documents[1])
    store.record_fits([first])
    store.record_fits([replace(first, last_loss=9.0)])
    store.record_fits([first, second])
    assert store.fits() == [first, second]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_unknown(store: Store, documents: tuple[Document, ...], loss: float) -> None:
    store.add_documents(documents)
    store.record_fits([a_fit(documents[0], last_loss=loss)])
    assert store.fits()[0].last_loss is None


def test_a_task_of_fits_is_kept_whole_or_not_at_all(store: Store, documents: tuple[Document, ...]) -> None:
    store.add_documents(documents)
    unknown_question = a_fit(documents[1], answers=(Answer("no such question", "x", 1),))
    with pytest.raises(sqlite3.IntegrityError):
        store.record_fits([a_fit(documents[0]), unknown_question])
    assert store.fits() == []


def test_ids_of_different_things_differ() -> None:
    edits = {
        edit_id(*parts) for parts in [(0, "a|b", "c", 0), (0, "a", "b|c", 0), (0, "a%7Cb", "c", 0), (1, "a", "b|c", 0)]
    }
    assert len(edits) == 4
    edit = edit_id(0, "d", "self", 1)
    fits = [
        FitRecord("self", 0, 0, "d", edit).id,
        FitRecord("self@lr=1e-3", 0, 0, "d", edit).id,
        FitRecord("self", 0, 1, "d", edit).id,
        FitRecord("self", 0, 0, "d").id,
        FitRecord("self", 1, 0, "d").id,
        FitRecord("self").id,
    ]
    assert len(set(fits)) == len(fits)
    assert fits[0] == f"{edit}|0" == "0|d|self|1|0"
    assert FitRecord("none").id == "0||none|0"


def test_grades_are_added_once_and_ungraded_ones_give_way(store: Store, documents: tuple[Document, ...]) -> None:
    store.add_documents(documents)
    fit = a_fit(documents[0])
    store.record_fits([fit])
    (first, item), (second, _) = store.to_grade("judge")
    assert item == GradeItem("Question 0 of 0?", ("gold 0", "or this"), "an answer")

    cost = CostRecord("grading", "passage", model="gpt", usd=0.1)
    nothing = (first, Grade("ungraded", None, "judge", "timeout"))
    for _ in range(2):
        store.add_grades([nothing], [cost])
    store.add_grades([(first, replace(nothing[1], note="refused"))])
    assert store._rows("SELECT note FROM grades") == [("refused",)], "why not, as was found last"
    assert store.costs() == [cost, cost], "that it was tried again has cost something, too"
    assert [id for id, _ in store.to_grade("judge")] == [second]
    assert [id for id, _ in store.to_grade("judge", retry_ungraded=True)] == [first, second]
    assert [id for id, _ in store.to_grade("lexical")] == [first, second]

    grades = [(first, Grade("right", 0.9, "judge")), (second, Grade("wrong", 0.0, "judge"))]
    store.add_grades(grades)
    store.add_grades([(first, Grade("wrong", 0.0, "judge"))])
    assert store.to_grade("judge", retry_ungraded=True) == []
    assert store.grade_counts("judge") == {"right": 1, "wrong": 1, "ungraded": 0}
    scored = ScoredAnswer(0, "passage", fit.id, None, 0, "d0", "d0q0", "an answer", "right", 0.9)
    assert store.scored_answers("judge") == [
        scored,
        replace(scored, question_id="d0q1", value="wrong", score=0.0),
    ]
    assert store.scored_answers("judge", condition="self") == []


@pytest.mark.parametrize("grade", [Grade("ungraded", 0.0, "g"), Grade("right", None, "g"), Grade("right", 1.5, "g")])
def test_a_grade_that_contradicts_itself_is_refused(store: Store, documents, grade: Grade) -> None:
    store.add_documents(documents)
    store.record_fits([a_fit(documents[0])])
    with pytest.raises(sqlite3.IntegrityError):
        store.add_grades([(store.to_grade("g")[0][0], grade)])
    assert store.grade_counts("g") == {"right": 0, "wrong": 0, "ungraded": 0}


def test_grades_come_with_their_answers_and_graders_by_how_much_they_graded(
    store: Store, documents: tuple[Document, ...]
) -> None:
    store.add_documents(documents)
    fit = a_fit(documents[0])
    store.record_fits([fit])
    answers = [id for id, _ in store.to_grade("judge")]
    store.add_grades([(id, Grade("right", 1.0, "lexical")) for id in answers])
    store.add_grades([(answers[0], Grade("ungraded", None, "judge", "timed out"))])
    assert store.graders() == ["lexical", "judge"]
    first = documents[0].questions[0].id

    def told(grader: str, **how: bool) -> list[tuple[str, str, float | None, str]]:
        return [(one.question_id, one.value, one.score, one.note) for one in store.scored_answers(grader, **how)]

    assert told("judge") == [(first, "ungraded", None, "timed out")]
    assert told("lexical")[0] == (first, "right", 1.0, "")
    assert told("nobody") == []
    assert told("nobody", graded=False) == [(id, "", None, "") for id, *_ in told("lexical")]


def test_curves_come_by_fit(store: Store, documents: tuple[Document, ...]) -> None:
    store.add_documents(documents)
    store.record_fits([a_fit(documents[0]), a_fit(documents[1])])
    store.add_curve(a_fit(documents[1]).id, [(1, 3.5), (2, 1.25)])
    assert store.curves() == {a_fit(documents[1]).id: [(1, 3.5), (2, 1.25)]}


def test_rounds_events_and_api_answers_round_trip(store: Store) -> None:
    store.put_round(RoundSummary(round=1, train_reward=0.25))
    figures = {"train_reward": 0.25, "validation_ci95": [0.1, 0.4], "kept_edits": 7, "seconds": 12.5}
    whole = RoundSummary(round=1, **figures, of_a_later_version=["d0"])
    store.put_round(whole, "checkpoints/round-01")
    store.put_round(RoundSummary(round=0))
    assert store.rounds() == [RoundSummary(round=0), whole]

    for _ in range(2):
        store.add_event("cut", "d0", "edit 0 was cut")
    store.add_event("failed", "d1", "NaN")
    assert store.events() == [Event("cut", "d0", "edit 0 was cut"), Event("failed", "d1", "NaN")]
    assert store.events("failed") == [Event("failed", "d1", "NaN")]

    assert store.get("k") is None
    store.put("k", "gpt", {"messages": ["é"]}, {"text": "half \ud83d"}, 10, 5)
    assert store.get("k") == {"text": "half \ud83d"}
    store.put("k", "gpt", {}, {"text": "again"}, 1, 1)
    assert store.get("k") == {"text": "again"}

    assert store.get_batch("b") is None
    store.put_batch("b", "batch_1", "in_progress")
    store.put_batch("b", "batch_1", "completed")
    assert store.get_batch("b") == ("batch_1", "completed")


def test_time_is_kept_with_each_commit_over_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("selfedit.runs.database.time", SimpleNamespace(monotonic=lambda: now))
    with Store(tmp_path / "run.sqlite") as store:
        now = 5.0
        store.add_event("kind", "first", "")
        store.count_time_for(1)
        now = 7.0
        store.add_event("kind", "second", "")
        now = 8.0
        store.add_event("kind", "second", "")  # is there already: nothing was done
        with pytest.raises(KeyError), store.transaction():
            store.set_rewards({"no such edit": 1.0})
        assert (store.wall_seconds(0), store.wall_seconds(1), store.wall_seconds()) == (5.0, 2.0, 7.0)
    now = 1000.0
    with Store(tmp_path / "run.sqlite") as store:
        store.count_time_for(1)
        now = 1003.0
        store.add_event("kind", "third", "")
        now = 1004.0
        assert (store.wall_seconds(0), store.wall_seconds(1)) == (5.0, 5.0)


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("change", ["DROP TABLE wall_time", 'ALTER TABLE edits RENAME COLUMN "index" TO idx'])
def test_other_tables_are_refused_whatever_their_version_says(store: Store, change: str, readonly: bool) -> None:
    store.close()
    with sqlite3.connect(store.path) as raw:
        raw.execute(change)
    with pytest.raises(UserError, match=r"run\.sqlite: not the tables of schema 4; start a new run"):
        Store(store.path, readonly=readonly)


def test_what_users_add_of_their_own_does_not_matter(store: Store) -> None:
    store.close()
    with sqlite3.connect(store.path) as raw:
        raw.execute("CREATE INDEX mine ON answers(text)")
        raw.execute("CREATE TABLE notes (note TEXT)")
        raw.execute("ALTER TABLE rounds ADD COLUMN mood TEXT")
    with Store(store.path) as writer:
        writer.put_round(RoundSummary(round=1))
    with Store(store.path, readonly=True) as reader:
        assert reader.rounds() == [RoundSummary(round=1)]


def test_without_a_file_there_is_nothing_yet() -> None:
    with Store(None, readonly=True) as store:
        assert (store.documents(), store.edits(), store.fits(), store.wall_seconds()) == ([], [], [], 0.0)


def test_a_transaction_within_another_is_part_of_it(store: Store) -> None:
    with store.transaction():
        store.add_event("outer", "1", "")
        with store.transaction():
            store.add_event("inner", "1", "")
    for kind in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(kind), store.transaction():  # noqa: PT012
            store.add_event("outer", "2", "")
            with store.transaction():
                store.add_event("inner", "2", "")
                raise kind
    assert [(event.kind, event.subject) for event in store.events()] == [("outer", "1"), ("inner", "1")]


def test_threads_take_turns_and_do_not_join_each_others_transactions(store: Store) -> None:
    entered = threading.Event()

    def call_api() -> None:
        entered.wait()
        for i in range(50):
            store.put(f"key {i}", "gpt", {}, {"i": i}, 1, 1)

    thread = threading.Thread(target=call_api)
    thread.start()
    with pytest.raises(RuntimeError), store.transaction():  # noqa: PT012
        entered.set()
        store.add_event("lost", "", "")
        thread.join(timeout=0.2)
        raise RuntimeError
    thread.join()
    assert store.events() == []
    assert [store.get(f"key {i}") for i in range(50)] == [{"i": i} for i in range(50)]


def test_the_file_is_what_was_promised(store: Store) -> None:
    connection = sqlite3.connect(store.path)
    assert connection.execute("PRAGMA user_version").fetchone() == (4,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert store._rows("PRAGMA synchronous") == [(2,)]  # 2: FULL
    assert store._rows("PRAGMA foreign_keys") == [(1,)]


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize(
    ("version", "message"), [(5, "newer selfedit.*update"), (3, "older selfedit"), (0, "not a store of selfedit")]
)
def test_other_schema_versions_are_refused_and_left_alone(store, version, message, readonly) -> None:
    store.close()
    connection = sqlite3.connect(store.path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    before = store.path.read_bytes()
    with pytest.raises(UserError, match=message):
        Store(store.path, readonly=readonly)
    assert store.path.read_bytes() == before


@pytest.mark.parametrize("readonly", [False, True])
def test_files_that_are_no_store_are_refused(tmp_path: Path, readonly: bool) -> None:
    path = tmp_path / "run.sqlite"
    path.write_text("not a database " * 100)
    with pytest.raises(UserError, match=r"run\.sqlite: not a SQLite file"):
        Store(path, readonly=readonly)


def test_a_missing_store_is_refused_for_reading_and_for_writing_without_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such store"):
        Store(tmp_path / "run.sqlite", readonly=True)
    with pytest.raises(UserError, match="cannot be opened"):
        Store(tmp_path / "nowhere" / "run.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_special_characters_is_a_file_name_and_no_option(tmp_path: Path) -> None:
    path = tmp_path / "a#b?mode=memory%20" / "run.sqlite"
    path.parent.mkdir()
    with Store(path) as store:
        store.add_event("a", "", "")
    with Store(path, readonly=True) as store:
        assert len(store.events()) == 1


def test_half_a_character_is_the_users_to_mend(store: Store) -> None:
    with pytest.raises(UserError, match=r"half a character \('\\ud83d'\)"):
        store.add_documents([Document("d", "title", "text \ud83d")])
    assert store.documents() == []


def test_readers_see_finished_tasks_while_another_process_writes(store: Store) -> None:
    experiment = make_experiment(3)
    experiment.prepare(store)
    experiment.write(store, 0)
    seen = []

    def look() -> None:
        with Store(store.path, readonly=True) as reader:
            seen.append((len(reader.edits()), len(reader.fits())))

    with store.transaction():
        experiment.write(store, 1, step=look)
    look()
    assert set(seen[:-1]) == {(1, 3)}
    assert seen[-1] == (2, 6)

    with Store(store.path, readonly=True) as reader, reader.transaction():
        assert len(reader.edits()) == 2
        experiment.write(store, 2)
        assert len(reader.edits()) == 2
    with Store(store.path, readonly=True) as reader:
        assert len(reader.edits()) == 3


def test_a_reader_cannot_write(store: Store) -> None:
    with Store(store.path, readonly=True) as reader, pytest.raises(UserError, match="may not be written"):
        reader.add_event("a", "", "")
    assert store.events() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root may")
def test_a_finished_run_in_a_directory_of_someone_elses_can_be_read() -> None:
    code = (
        "import os, sys; from selfedit.runs.store import Store; os.setuid(65534);"
        "print(len(Store(sys.argv[1], readonly=True).events()))"
    )
    # Not in pytest's own directories, which each pytest that begins meanwhile makes its user's alone again.
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with Store(Path(folder) / "run.sqlite") as store:
            store.add_event("a", "", "")
        done = subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr


def test_a_full_database_keeps_the_finished_tasks(store: Store) -> None:
    experiment = make_experiment(200)
    experiment.prepare(store)
    experiment.write(store, 0)
    pages = store._rows("PRAGMA page_count")[0][0]
    store._rows(f"PRAGMA max_page_count = {pages + 5}")
    written = 1
    with pytest.raises(UserError, match=r"run\.sqlite: the disk is full; make room and give"):  # noqa: PT012
        while written < experiment.tasks:
            experiment.write(store, written)
            written += 1
    assert whole_tasks(store.path, experiment) == written > 1
    store._rows(f"PRAGMA max_page_count = {pages + 10_000}")
    experiment.write(store, written)
    assert whole_tasks(store.path, experiment) == written + 1


FULL_DISK = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from tasks_of_work import make_experiment
from selfedit.errors import UserError
from selfedit.runs.store import Store
experiment = make_experiment(10_000)
store = Store(sys.argv[1])
experiment.prepare(store)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
task = 0
try:
    while True:
        if not experiment.is_done(store, task):
            experiment.write(store, task)
        task += 1
except UserError as error:
    print(task, error, flush=True)
"""


@pytest.mark.parametrize("limit", [260_000, 333_333, 400_001])
def test_a_file_that_cannot_grow_keeps_the_finished_tasks(tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands in for the full disk: the write itself fails, in the log or in the file."""
    path = tmp_path / "run.sqlite"
    command = [sys.executable, "-c", FULL_DISK, str(path), str(Path(__file__).parent), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    finished, message = done.stdout.split(" ", 1)
    assert message.startswith(f"{path}: the disk could not be written or read (full, or over a quota?); make room")
    assert message.count("\n") == 1
    experiment = make_experiment(int(finished) + 2)
    assert whole_tasks(path, experiment) == int(finished) > 0
    with Store(path) as store:
        for task in range(experiment.tasks):
            if not experiment.is_done(store, task):
                experiment.write(store, task)
    assert whole_tasks(path, experiment) == experiment.tasks


def test_own_texts_are_kept_by_policy_and_the_first_stays(store: Store) -> None:
    first = OwnText("", "tea", "Compare tea and coffee.", "Both are drinks.", (5, 6, 7))
    empty = replace(first, prompt_id="empty", text="", ids=())
    later = replace(first, policy="round-01/round-02")
    store.add_own_texts([first, empty, later])
    store.add_own_texts([replace(first, text="other", ids=(8,))])
    assert store.own_texts() == {"tea": first, "empty": empty}
    assert store.own_texts("round-01/round-02") == {"tea": later}
