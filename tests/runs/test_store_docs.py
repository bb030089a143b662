"""The queries and the table list of docs/store.md, run and compared, so that they stay true."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

from selfedit.documents.document import Document, Question
from selfedit.editors.base import Edit, edit_id
from selfedit.evaluation.grade import Grade
from selfedit.runs.records import Answer, FitRecord
from selfedit.runs.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
ACCURACY, LEARNED, SPREAD = re.findall(r"```sql\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def experiment(store: Store) -> sqlite3.Connection:
    """Two documents: what the model knows, and what it knows after learning its own edits."""
    documents = [
        Document("d0", "T", "x", (Question("a", "A?", ("1",)), Question("b", "B?", ("2",)))),
        Document("d1", "T", "x", (Question("c", "C?", ("3",)),)),
    ]
    store.add_documents(documents)
    store.add_general_questions([Question("g", "G?", ("9",))])
    store.add_edits([Edit(d.id, "self", i, "text", round=1) for d in documents for i in range(2)])

    def exam(condition: str, document: str | None, edit: str | None, answers: dict[str, str]) -> FitRecord:
        return FitRecord(
            condition,
            0,
            int(edit is not None),
            document,
            edit,
            answers=tuple(Answer(q, t, 1) for q, t in answers.items()),
        )

    store.record_fits(
        [
            exam("none", None, None, {"a": "1", "b": "no", "c": "?", "g": "9"}),
            exam("self", "d0", edit_id(1, "d0", "self", 0), {"a": "1", "b": "2", "g": "no"}),
            exam("self", "d0", edit_id(1, "d0", "self", 1), {"a": "1", "b": "no", "g": "9"}),
            exam("self", "d1", edit_id(1, "d1", "self", 0), {"c": "3"}),
        ]
    )
    for id, item in store.to_grade("exact"):
        if item.answer == "?":
            grade = Grade("ungraded", None, "exact", "no answer from the judge")
        else:
            right = item.answer in item.gold
            grade = Grade("right" if right else "wrong", float(right), "exact")
        store.add_grades([(id, grade)])
    store.set_rewards({edit_id(1, "d0", "self", 0): 1.0, edit_id(1, "d0", "self", 1): 0.5})
    store.set_rewards({edit_id(1, "d1", "self", 0): 1.0})
    return sqlite3.connect(store.path)


def test_accuracy_by_condition(experiment: sqlite3.Connection) -> None:
    assert experiment.execute(ACCURACY).fetchall() == [
        (0, "none", "exact", 0.5, 1, 2, 1),
        (1, "self", "exact", 0.8, 4, 5, 0),
    ]


def test_what_was_learned_and_forgotten(experiment: sqlite3.Connection) -> None:
    assert experiment.execute(LEARNED).fetchall() == [
        (1, "self", "B?", '["2"]', 0.0, 0.5),
        (1, "self", "G?", '["9"]', 1.0, 0.5),
    ]


def test_spread_of_rewards(experiment: sqlite3.Connection) -> None:
    assert experiment.execute(SPREAD).fetchall() == [
        (1, "d0", 2, 0.5, 0.75, 1.0, 0.5),
        (1, "d1", 1, 1.0, 1.0, 1.0, 0.0),
    ]


def test_the_page_lists_exactly_the_tables(store: Store) -> None:
    tables = {name for (name,) in store._rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)) == tables
