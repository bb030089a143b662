"""A small experiment as tasks, and what a store holds of it, free of row numbers."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selfedit.documents.document import Document, Question
from selfedit.editors.base import Edit
from selfedit.evaluation.grade import Grade
from selfedit.runs.records import Answer, CostRecord, FitRecord
from selfedit.runs.store import Store

GRADER = "lexical"
FITS_PER_TASK = 3


@dataclass(frozen=True)
class Experiment:
    """Documents, and tasks: each one edit, its fits with answers, their grades and cost, in one transaction."""

    documents: tuple[Document, ...]
    tasks: int

    def prepare(self, store: Store) -> None:
        store.add_documents(self.documents)

    def _edit(self, task: int) -> Edit:
        document = self.documents[task % len(self.documents)]
        generator = random.Random(task)
        text = "\n".join(f"statement {generator.random()}" for _ in range(generator.randrange(1, 40)))
        return Edit(document.id, "self", task, text, prompt="implications", output_tokens=task)

    def is_done(self, store: Store, task: int) -> bool:
        edit = self._edit(task)
        return f"{edit.id}|0" in store.fit_ids()

    def write(self, store: Store, task: int, step: Callable[[], None] = lambda: None) -> None:
        """Commit one task; `step` is called between its statements."""
        edit = self._edit(task)
        id = edit.id
        questions = self.documents[task % len(self.documents)].questions
        with store.transaction():
            store.add_edits([edit])
            step()
            for replicate in range(FITS_PER_TASK):
                answers = tuple(Answer(q.id, f"answer {task} {replicate} {q.id}", task % 7) for q in questions)
                fit = FitRecord(
                    "self", replicate, 0, edit.document_id, id, sequences=(edit.text,), seconds=1.0, answers=answers
                )
                store.record_fits([fit])
                store.add_costs([CostRecord("fits", "self", seconds=1.0)])
                step()
            for answer_id, item in store.to_grade(GRADER):
                right = len(item.answer) % 2 == 0
                store.add_grades([(answer_id, Grade("right" if right else "wrong", float(right), GRADER))])
                step()


def content(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every table's rows without the row numbers, which depend on the order of work."""
    connection = sqlite3.connect(path)
    try:
        queries = {
            "documents": "SELECT id, split, title, text FROM documents",
            "questions": "SELECT * FROM questions",
            "edits": "SELECT * FROM edits",
            "fits": "SELECT * FROM fits",
            "answers": "SELECT fit_id, question_id, text, tokens FROM answers",
            "grades": "SELECT a.fit_id, a.question_id, g.grader, g.value, g.score, g.note"
            " FROM grades g JOIN answers a ON a.id = g.answer_id",
            "costs": "SELECT what, condition, round, model, input_tokens, output_tokens, seconds, usd FROM costs",
            "events": "SELECT kind, subject, message FROM events",
        }
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        return {table: sorted(connection.execute(query), key=json.dumps) for table, query in queries.items()}
    finally:
        connection.close()


def whole_tasks(path: Path, experiment: Experiment) -> int:
    """How many tasks the store holds; fails if one is there in part."""
    rows = content(path)
    tasks = len(rows["edits"])
    questions = {document.id: len(document.questions) for document in experiment.documents}
    answers = sum(questions[str(row[2])] for row in rows["edits"]) * FITS_PER_TASK
    counts = {table: len(rows[table]) for table in ("fits", "answers", "grades", "costs")}
    assert counts == {
        "fits": tasks * FITS_PER_TASK,
        "answers": answers,
        "grades": answers,
        "costs": tasks * FITS_PER_TASK,
    }
    return tasks


def make_experiment(tasks: int, documents: int = 3) -> Experiment:
    return Experiment(
        tuple(
            Document(
                f"d{d}",
                f"Title {d}",
                f"Text {d}. " * 20,
                tuple(Question(f"d{d}q{q}", f"Question {q} of {d}?", (f"gold {q}", "or this")) for q in range(2 + d)),
            )
            for d in range(documents)
        ),
        tasks,
    )
