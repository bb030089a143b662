"""Reading run directories: finished, unfinished, damaged, hostile to reading."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_runs
import pytest

from selfedit.errors import UserError
from selfedit.reports import build_report, findings, table
from selfedit.reports.records import read_run


def test_finished_run_is_read_whole(compare_run: Path) -> None:
    run = read_run(compare_run)
    assert run.summary is not None
    assert run.summary.conditions[0].name == "none"
    assert [document.id for document in run.documents] == [f"d{number}" for number in range(6)]
    assert run.questions == 30  # the eight general ones are counted apart
    asked = {f"general/{number}" for number in range(8)}
    assert {question.id for question in run.general_questions} == asked
    assert {answer.question_id for answer in run.scored if answer.document_id is None} == asked
    base = [answer for answer in run.answers if answer.condition == "none"]
    assert len(base) == 30
    assert run.grader == "lexical"


def test_unfinished_run_has_no_summary_but_its_rows(partial_run: Path) -> None:
    run = read_run(partial_run)
    assert run.summary is None
    assert run.model == "smollm2-135m"
    assert any(not answer.value for answer in run.answers)
    # How its model is prompted is known from the beginning on, in the table of several runs too.
    begun = replace(run, config={**run.config, "resolved": {"instruct": False}})
    assert " · base model · " in table.heading(begun)
    assert table.models([findings.model_row(begun.name, begun.figures)]).rows[0][2] == "no"


def test_reading_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    folder = fake_runs.write_compare(tmp_path / "run", documents=2)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    read_run(folder)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name: after.pop(name) for name in before} == before
    assert set(after) <= {"run.sqlite-wal", "run.sqlite-shm"}  # SQLite's, for readers beside a writer


def test_run_that_is_being_written_is_read(tmp_path: Path) -> None:
    folder = fake_runs.write_compare(tmp_path / "run", documents=2)
    writer = sqlite3.connect(folder / "run.sqlite", isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM events")
    writer.execute("INSERT INTO events (kind, subject, message) VALUES ('half', 'done', 'not committed')")
    try:
        assert "half" not in {event.kind for event in read_run(folder).events}
        writer.execute("COMMIT")
        assert [event.kind for event in read_run(folder).events] == ["half"]
    finally:
        writer.close()


def test_cost_without_a_price_is_not_free(tmp_path: Path) -> None:
    folder = fake_runs.write_compare(tmp_path / "run", documents=2)
    with sqlite3.connect(folder / "run.sqlite") as store:
        store.execute("UPDATE costs SET usd = NULL WHERE id = (SELECT MIN(id) FROM costs WHERE condition = 'passage')")
    by_condition = {(cost.condition, cost.what): cost.usd for cost in findings.costs(read_run(folder))}
    assert by_condition["passage", "fits"] is None
    assert by_condition["api:gpt-5", "edits"] == pytest.approx(2 * 0.00373)


def _no_directory(folder: Path) -> None:
    shutil.rmtree(folder)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def _damaged_store(folder: Path) -> None:
    (folder / "run.sqlite").write_bytes(b"this is no database, but long enough to look like one" * 20)


def _newer_store(folder: Path) -> None:
    with sqlite3.connect(folder / "run.sqlite") as store:
        store.execute("PRAGMA user_version = 99")


def _spoiled(statement: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with sqlite3.connect(folder / "run.sqlite") as store:
            store.execute("PRAGMA ignore_check_constraints = 1")
            store.execute(statement)

    return spoil


def _half_summary(folder: Path) -> None:
    path = folder / "summary.json"
    path.write_text(path.read_text()[:100])


def _newer_summary(folder: Path) -> None:
    (folder / "summary.json").write_text('{"schema": 2}')


def _bad_condition(folder: Path) -> None:
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["conditions"][0]["accuracy"] = "high"
    path.write_text(json.dumps(summary))


def _bad_config(folder: Path) -> None:
    (folder / "config.yaml").write_text("a: [1,\nb: }")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_no_directory, "no such directory"),
        (_empty, "not the directory of a run"),
        (_file, "is a file"),
        (_damaged_store, "run.sqlite"),
        (_newer_store, "newer selfedit (schema 99"),
        (_spoiled("INSERT INTO rounds (round, details) VALUES (1, '{\"usd\": -1}')"), "not the record of round 1: usd"),
        (_spoiled("DROP TABLE events"), "not the tables of schema 4"),
        (_half_summary, "not valid JSON"),
        (_newer_summary, "not a summary of schema 1: schema"),
        (_bad_condition, "conditions[0].accuracy"),
        (_bad_config, "config.yaml"),
    ],
)
def test_what_is_no_run_gets_one_line(tmp_path: Path, spoil, told: str) -> None:
    folder = fake_runs.write_compare(tmp_path / "run", documents=1)
    spoil(folder)
    with pytest.raises(UserError) as caught:
        read_run(folder)
    assert told in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_losses_that_are_not_known_or_not_finite_are_not_shown(tmp_path: Path) -> None:
    folder = fake_runs.write_compare(tmp_path / "run", documents=1)
    with sqlite3.connect(folder / "run.sqlite") as store:
        store.execute("UPDATE fits SET last_loss = NULL")
        store.execute("INSERT INTO curves SELECT id, '[[1, 2.5], [2, 9e999], [3, 1.5]]' FROM fits LIMIT 1")
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": {"epochs": float("nan")}}))
    page = build_report([folder]).read_text(encoding="utf-8")
    assert "72 steps · 4.2 s" in page  # and no losses
    assert "2.50 at step 1, 1.50 at step 3" in page
    assert "<dt>epochs</dt><dd>nan</dd>" in page
