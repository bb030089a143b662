"""What a report says about the notes of a trained editor."""

from __future__ import annotations

from pathlib import Path

from selfedit.documents import Document, Question
from selfedit.editors.base import Edit
from selfedit.reports.console import plain_text
from selfedit.reports.html import render_run
from selfedit.reports.notes import table
from selfedit.reports.records import read_run


def test_lengths_copies_and_answers_are_counted(train_run: Path) -> None:
    run = read_run(train_run)
    (document,) = [Document("v", "Ada", "Ada made a kite in Oslo.", (Question("q", "Where?", ("Oslo", "3")),))]
    edits = [
        Edit("v", "validation", 0, "Ada made a kite.\nWhere is 1923?", output_tokens=10, round=0),
        Edit("v", "validation", 0, "", truncated=True, output_tokens=4, round=1),
        Edit("v", "validation", 1, "A lamp in oslo", output_tokens=8, round=1),
    ]
    run = run.__class__(**{**vars(run), "documents": [document], "splits": {"v": "validation"}, "edits": edits})
    found = table(run)
    # Of "ada made a", "made a kite", "a kite where", "kite where is", "where is 1923" two are in the document.
    before = ("0", "1", "10", "2.0", "0.0", "0.0", "50.0", "40.0", "0.0")
    after = ("1", "2", "6", "0.5", "50.0", "50.0", "0.0", "0.0", "50.0")
    assert found.rows == [before, after]
    assert "What the editor of each round writes" in plain_text(found)


def test_the_page_of_a_training_run_shows_them(train_run: Path, compare_run: Path) -> None:
    run = read_run(train_run)
    assert [row[0] for row in table(run).rows] == ["0", *(str(entry.round) for entry in run.rounds)]
    assert "What the editor of each round writes" in render_run(run, {})
    assert table(read_run(compare_run)).rows == []
