"""What a report says about the notes of a trained editor."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfedit.documents import Document, Question
from selfedit.editors.base import Edit
from selfedit.reports.html import render_run
from selfedit.reports.notes import table, written
from selfedit.reports.records import read_run
from selfedit.reports.table import plain_text


def test_lengths_copies_and_answers_are_counted(train_run: Path) -> None:
    run = read_run(train_run)
    (document,) = [Document("v", "Ada", "Ada made a kite in Oslo.", (Question("q", "Where?", ("Oslo",)),))]
    edits = [
        Edit("v", "validation", 0, "Ada made a kite.\nWhere is it?", output_tokens=10, round=0),
        Edit("v", "validation", 0, "", truncated=True, output_tokens=4, round=1),
        Edit("v", "validation", 1, "A lamp in oslo", output_tokens=8, round=1),
    ]
    run = run.__class__(**{**vars(run), "documents": [document], "splits": {"v": "validation"}, "edits": edits})
    before, after = written(run)
    assert (before.tokens, before.lines, before.questions, before.answers) == (10, 2, 0.5, 0)
    # Of "ada made a", "made a kite", "a kite where", "kite where is", "where is it" two are in the document.
    assert before.copied == pytest.approx(2 / 5)
    assert (after.edits, after.tokens, after.cut_off, after.empty, after.answers) == (2, 6, 0.5, 0.5, 0.5)
    assert "What the editor of each round writes" in plain_text(table([before, after]))


def test_the_page_of_a_training_run_shows_them(train_run: Path, compare_run: Path) -> None:
    run = read_run(train_run)
    assert [one.round for one in written(run)] == [0, *(entry.round for entry in run.rounds)]
    assert "What the editor of each round writes" in render_run(run)
    assert written(read_run(compare_run)) == []
