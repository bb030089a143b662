"""The store of one run: every finished task, and nothing of an unfinished one.

A run is written and read through this class alone.  `schema.sql` has its tables, `records` the plain data that go in
and come out, `database` what SQLite needs.

- A task is one transaction: after a crash at any moment it is there whole, or it is not there.
- Adding what is already there changes nothing, so a resumed method may simply add again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from selfedit.documents.document import Document, Question
from selfedit.editors.base import AS_WRITTEN, EXAM_WRITER, Edit
from selfedit.errors import UserError, checked
from selfedit.evaluation.grade import Grade, GradeItem
from selfedit.grouping import grouped
from selfedit.runs.database import SCHEMA_VERSION, Database
from selfedit.runs.records import (
    Answer,
    CostRecord,
    Event,
    FitRecord,
    OwnText,
    ScoredAnswer,
)
from selfedit.runs.summary import RoundSummary

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["SCHEMA_VERSION", "Store"]

# Of a round; all others of its figures are in `details`.
_ROUND_COLUMNS = ("round", "train_reward", "validation_accuracy", "kept_edits", "seconds")


def _fields(table: str, kind: type[DataclassInstance], *but: str) -> str:
    """The columns that hold a record's fields."""
    return ", ".join(f'{table}."{field.name}"' for field in fields(kind) if field.name not in but)


class Store(Database):
    """A run's records.  Errors as `Database` says."""

    # Documents and questions

    def add_documents(self, documents: Sequence[Document], split: str = "exam") -> None:
        """Add all documents of a split, with their questions, in their order.

        Again with the same documents: nothing changes.  UserError where a document, its questions or the split's list
        differ from what the run began with, or where an id is used twice.  Edits that a document carries are not
        stored.
        """
        with self.transaction():
            before = {document.id: document for document in self.documents(split)}
            for document in documents:
                if document.id in before and before[document.id] != replace(document, edits={}):
                    raise UserError(
                        f"{self.path}: document {document.id!r} has changed since this run began; "
                        "put it back, or start a new run"
                    )
            now = [document.id for document in documents]
            if before and now != list(before):
                differing = sorted(set(now) ^ set(before)) or now
                raise UserError(
                    f"{self.path}: split {split!r} held {len(before)} documents when this run began; now it holds "
                    f"{len(now)}, or another order (see {differing[0]!r}); put them back, or start a new run"
                )
            if before:
                return
            for document in documents:
                row = {"id": document.id, "split": split, "title": document.title, "text": document.text}
                if not self._insert("documents", row, "ON CONFLICT (id) DO NOTHING"):
                    raise UserError(f"{self.path}: two documents have the id {document.id!r}; give each its own")
                self._add_questions(document.questions, document.id)

    def add_general_questions(self, questions: Sequence[Question]) -> None:
        """Add questions that belong to no document (they measure forgetting).

        UserError where one that is already there differs.
        """
        with self.transaction():
            before = {question.id: question for question in self.general_questions()}
            for question in questions:
                if question.id in before and before[question.id] != question:
                    raise UserError(
                        f"{self.path}: general question {question.id!r} has changed since this run began; "
                        "start a new run"
                    )
            self._add_questions([question for question in questions if question.id not in before], None)

    def _add_questions(self, questions: Iterable[Question], document_id: str | None) -> None:
        for question in questions:
            row = {"document_id": document_id, **vars(question)}
            if not self._insert("questions", row, "ON CONFLICT (id) DO NOTHING"):
                where = f" (the second in document {document_id!r})" if document_id else ""
                raise UserError(f"{self.path}: two questions have the id {question.id!r}{where}; give each its own")

    def add_questions(self, by_document: Mapping[str, Iterable[Question]]) -> None:
        """Add questions to documents that are there, by the document's id, as one task."""
        with self.transaction():
            for document_id, questions in by_document.items():
                self._add_questions(questions, document_id)

    def drop_questions(self, ids: Iterable[str]) -> None:
        """Take back questions, with their answers and grades, as one task."""
        with self.transaction():
            for id in ids:
                self._write(
                    "DELETE FROM grades WHERE answer_id IN (SELECT id FROM answers WHERE question_id = ?)", (id,)
                )
                self._write("DELETE FROM answers WHERE question_id = ?", (id,))
                self._write("DELETE FROM questions WHERE id = ?", (id,))

    def documents(self, split: str | None = None) -> list[Document]:
        """The documents of one split, or all, in the run's order, with their questions."""
        rows = self._rows(
            "SELECT id, title, text FROM documents WHERE ?1 IS NULL OR split = ?1 ORDER BY position", (split,)
        )
        questions: dict[str, list[Question]] = {id: [] for id, *_ in rows}
        for document_id, asked in self._records(
            lambda document_id, **question: (document_id, Question(**question)),
            "SELECT document_id, id, question, answers FROM questions WHERE document_id IS NOT NULL ORDER BY position",
        ):
            if document_id in questions:
                questions[document_id].append(asked)
        return [Document(id, title, text, tuple(questions[id])) for id, title, text in rows]

    def splits(self) -> dict[str, str]:
        return dict(self._rows("SELECT id, split FROM documents ORDER BY position"))

    def general_questions(self) -> list[Question]:
        """The questions that belong to no document."""
        return self._records(
            Question, "SELECT id, question, answers FROM questions WHERE document_id IS NULL ORDER BY position"
        )

    # Edits

    def add_edits(self, edits: Iterable[Edit]) -> None:
        """Add edits as one task; those already there must be the same, whatever their reward (UserError)."""
        with self.transaction():
            for edit in edits:
                if before := self._records(Edit, f"SELECT {_fields('e', Edit)} FROM edits e WHERE id = ?", (edit.id,)):
                    if before != [replace(edit, reward=before[0].reward, kept=before[0].kept)]:
                        raise UserError(
                            f"{self.path}: edit {edit.index} of document {edit.document_id!r} by {edit.writer} has"
                            " changed since this run began; put it back, or start a new run"
                        )
                else:
                    self._insert("edits", {"id": edit.id, **vars(edit)})

    def edits(
        self, *, round: int | None = None, writer: str | None = None, document_id: str | None = None
    ) -> list[Edit]:
        """Edits by round, then in the run's order of documents, then by writer and index.  What was written and is
        learned in another form (`AS_WRITTEN`), or not at all (`EXAM_WRITER`), is given only by its writer's name."""
        return self._records(
            Edit,
            f"SELECT {_fields('e', Edit)} FROM edits e JOIN documents d ON d.id = e.document_id"
            " WHERE (?1 IS NULL OR e.round = ?1) AND (?3 IS NULL OR e.document_id = ?3)"
            " AND (?2 IS NULL AND e.writer NOT LIKE '%' || ?4 AND e.writer <> ?5 OR e.writer = ?2)"
            ' ORDER BY e.round, d.position, e.writer, e."index"',
            (round, writer, document_id, AS_WRITTEN, EXAM_WRITER),
        )

    def set_rewards(self, rewards: Mapping[str, float]) -> None:
        """Set the rewards of edits, by the store's edit id, as one task.  KeyError for an unknown id."""
        self._set_on_edits("reward", rewards)

    def set_kept(self, kept: Mapping[str, bool]) -> None:
        """Set which edits selection kept, by the store's edit id, as one task.  KeyError for an unknown id."""
        self._set_on_edits("kept", kept)

    def _set_on_edits(self, column: str, values: Mapping[str, float]) -> None:
        with self.transaction():
            for id, value in values.items():
                if not self._write(f"UPDATE edits SET {column} = ? WHERE id = ?", (value, id)):
                    raise KeyError(id)

    # Fits and answers

    def record_fits(self, fits: Iterable[FitRecord]) -> None:
        """Add fits with their answers, as one task.

        A fit that is already there stays as it is, answers and all.  A loss that is not finite is stored as unknown.
        """
        with self.transaction():
            for fit in fits:
                row = {"id": fit.id, **vars(fit)}
                answers = row.pop("answers")
                if self._insert("fits", row, "ON CONFLICT (id) DO NOTHING"):
                    for answer in answers:
                        self._insert("answers", {"fit_id": fit.id, **vars(answer)})

    def add_curve(self, fit_id: str, points: Sequence[tuple[int, float]]) -> None:
        """Store a fit's losses, (step, loss), those that are finite; a curve that is there stays."""
        finite = [point for point in points if math.isfinite(point[1])]
        self._insert("curves", {"fit_id": fit_id, "points": finite}, "ON CONFLICT DO NOTHING")

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """The losses of every fit that has any, (step, loss), by fit, in the order of rounds and conditions."""
        rows = self._rows(
            "SELECT c.fit_id, c.points FROM curves c JOIN fits f ON f.id = c.fit_id ORDER BY f.round, f.condition, f.id"
        )
        return {fit: [(int(step), float(loss)) for step, loss in json.loads(points)] for fit, points in rows}

    def fit_ids(self) -> set[str]:
        """The ids of all fits that are done or have failed: either way they are not to be done again."""
        return {id for (id,) in self._rows("SELECT id FROM fits")}

    def fits(self, *, round: int | None = None, condition: str | None = None) -> list[FitRecord]:
        """Fits as they were recorded, answers included, ordered by round, condition, document, edit and replicate."""
        chosen = "(?1 IS NULL OR f.round = ?1) AND (?2 IS NULL OR f.condition = ?2)"
        parameters = (round, condition)
        rows = self._rows(
            "SELECT a.fit_id, a.question_id, a.text, a.tokens, a.topic FROM answers a JOIN fits f ON f.id = a.fit_id"
            f" WHERE {chosen} ORDER BY a.id",
            parameters,
        )
        answers = grouped((fit_id, Answer(*answer)) for fit_id, *answer in rows)
        return self._records(
            lambda id, **fit: FitRecord(**fit, answers=tuple(answers.get(id, ()))),
            f"SELECT f.id, {_fields('f', FitRecord, 'answers')} FROM fits f"
            " LEFT JOIN documents d ON d.id = f.document_id LEFT JOIN edits e ON e.id = f.edit_id"
            f' WHERE {chosen} ORDER BY f.round, f.condition, d.position, e."index", f.replicate, f.id',
            parameters,
        )

    # What the model wrote to general prompts

    def add_own_texts(self, texts: Iterable[OwnText]) -> None:
        """Add texts that a policy wrote to general prompts; one that is there stays."""
        with self.transaction():
            for text in texts:
                self._insert("own_texts", vars(text), "ON CONFLICT DO NOTHING")

    def own_texts(self, policy: str = "") -> dict[str, OwnText]:
        """The texts of a policy, by the prompt's id."""
        columns = _fields("own_texts", OwnText)
        texts = self._records(OwnText, f"SELECT {columns} FROM own_texts WHERE policy = ? ORDER BY rowid", (policy,))
        return {text.prompt_id: text for text in texts}

    # Grades

    def to_grade(self, grader: str, *, above: int = -1, retry_ungraded: bool = False) -> list[tuple[int, GradeItem]]:
        """(answer id, what to grade) for every answer with an id `above` this one and no grade by this grader.

        With `retry_ungraded` also those that it could not say anything about.
        """
        return self._records(
            lambda id, question, answers, text: (id, GradeItem(question, answers, text)),
            "SELECT a.id, q.question, q.answers, a.text FROM answers a JOIN questions q ON q.id = a.question_id"
            " LEFT JOIN grades g ON g.answer_id = a.id AND g.grader = ?1"
            " WHERE a.id > ?3 AND (g.value IS NULL OR (?2 AND g.value = 'ungraded')) ORDER BY a.id",
            (grader, retry_ungraded, above),
        )

    def fits_of_answers(self) -> dict[int, str]:
        return dict(self._rows("SELECT id, fit_id FROM answers"))

    def add_grades(self, grades: Iterable[tuple[int, Grade]], costs: Iterable[CostRecord] = ()) -> None:
        """Add (answer id, grade) pairs, and what they cost, as one task.

        A grade that is already there stays, except that an `ungraded` one gives way to a later one.  The costs are
        added in any case: an answer that a judge still cannot grade has cost its time again.
        """
        with self.transaction():
            for answer_id, grade in grades:
                self._insert(
                    "grades",
                    {"answer_id": answer_id, **vars(grade)},
                    "ON CONFLICT (answer_id, grader) DO UPDATE SET value = excluded.value, score = excluded.score,"
                    " note = excluded.note WHERE grades.value = 'ungraded'",
                )
            self.add_costs(costs)

    def scored_answers(
        self, grader: str, *, round: int | None = None, condition: str | None = None, graded: bool = True
    ) -> list[ScoredAnswer]:
        """Every answer that has a grade by this grader (every answer, if not `graded`), in the run's order of
        conditions, documents and questions."""
        rows = self._rows(
            "SELECT f.round, f.condition, f.id, f.edit_id, f.replicate, q.document_id, q.id, a.text,"
            " coalesce(g.value, ''), g.score, coalesce(g.note, ''), a.topic"
            " FROM answers a JOIN fits f ON f.id = a.fit_id JOIN questions q ON q.id = a.question_id"
            " LEFT JOIN grades g ON g.answer_id = a.id AND g.grader = ?1"
            " WHERE (g.value IS NOT NULL OR NOT ?4) AND (?2 IS NULL OR f.round = ?2)"
            " AND (?3 IS NULL OR f.condition = ?3) ORDER BY f.round, f.condition, q.position, f.id",
            (grader, round, condition, graded),
        )
        return [ScoredAnswer(*row) for row in rows]

    def graders(self) -> list[str]:
        """The graders that have graded answers, the one with the most grades first."""
        rows = self._rows("SELECT grader FROM grades GROUP BY grader ORDER BY count(*) DESC, grader")
        return [grader for (grader,) in rows]

    def grade_counts(self, grader: str) -> dict[str, int]:
        """How many grades of this grader are right, wrong and ungraded."""
        counts = {"right": 0, "wrong": 0, "ungraded": 0}
        counts.update(self._rows("SELECT value, count(*) FROM grades WHERE grader = ? GROUP BY value", (grader,)))
        return counts

    # Rounds, time, costs, events

    def put_round(self, figures: RoundSummary, checkpoint: str | None = None) -> None:
        """Set a round's record, whole; an earlier one of the same round is replaced.  `checkpoint` is where its policy
        lies, relative to the run's directory."""
        details = figures.model_dump(mode="json", exclude_unset=True)
        row = {name: details.pop(name, None) for name in _ROUND_COLUMNS}
        with self.transaction():
            self._write("DELETE FROM rounds WHERE round = ?", (figures.round,))
            self._insert("rounds", {**row, "checkpoint": checkpoint, "details": details})

    def rounds(self) -> list[RoundSummary]:
        """The rounds' figures.  UserError for a record that another program has changed."""

        def read(round: int, details: dict[str, Any], **columns: Any) -> RoundSummary:
            where = f"{self.path}: not the record of round {round}"
            return checked(RoundSummary, {"round": round, **columns, **details}, where, "run the command again")

        return self._records(read, f"SELECT {', '.join(_ROUND_COLUMNS)}, details FROM rounds ORDER BY round")

    def count_time_for(self, round: int) -> None:
        """From here on, time that passes is this round's (0: no round's).

        Each commit that changes anything adds the time since the one before, in the same transaction: what a killed run
        did counts as long as it is there, and a finished run that is opened again gets no longer.
        """
        self._round = round

    def wall_seconds(self, round: int | None = None) -> float:
        """Seconds that passed until the last commit, over all attempts; of one round, or all together."""
        ((seconds,),) = self._rows("SELECT total(seconds) FROM wall_time WHERE ?1 IS NULL OR round = ?1", (round,))
        return float(seconds)

    def add_costs(self, costs: Iterable[CostRecord]) -> None:
        """Add lines to the ledger.

        A line belongs into the transaction of the work it pays for: written apart, a crash between the two would lose
        it or count it twice.
        """
        with self.transaction():
            for cost in costs:
                self._insert("costs", vars(cost))

    def costs(self) -> list[CostRecord]:
        return self._records(
            CostRecord,
            f"SELECT {_fields('costs', CostRecord)} FROM costs ORDER BY id",
        )

    def add_event(self, kind: str, subject: str, message: str) -> None:
        """Note something for the report; the same thing is noted once."""
        self._insert("events", {"kind": kind, "subject": subject, "message": message}, "ON CONFLICT DO NOTHING")

    def set_event(self, kind: str, subject: str, message: str) -> None:
        """Note something in the place of what was noted of this kind about this subject, as one task."""
        with self.transaction():
            self.drop_event(kind, subject)
            self.add_event(kind, subject, message)

    def drop_event(self, kind: str, subject: str) -> None:
        """Take back what was noted of this kind about this subject: it holds no longer."""
        self._write("DELETE FROM events WHERE kind = ? AND subject = ?", (kind, subject))

    def events(self, kind: str | None = None) -> list[Event]:
        """What was noted, of one kind or all, in the order of writing."""
        return self._records(
            Event, "SELECT kind, subject, message FROM events WHERE ?1 IS NULL OR kind = ?1 ORDER BY id", (kind,)
        )

    # What an API returned

    def get(self, key: str) -> dict[str, Any] | None:
        rows = self._rows("SELECT response FROM api_calls WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    def put(self, key: str, model: str, request: Mapping[str, Any], response: Mapping[str, Any], *tokens: int) -> None:
        """Store a response, with the tokens read and written; one that was stored under the same key is replaced."""
        self._write(
            "INSERT OR REPLACE INTO api_calls VALUES (?, ?, ?, ?, ?, ?)",
            # In ASCII: a reply may hold half a character, which SQLite could not store.
            (key, model, json.dumps(request), json.dumps(response), *tokens),
        )

    def get_batch(self, key: str) -> tuple[str, str] | None:
        """(batch id, status) of a batch under way, or None."""
        rows = self._rows("SELECT batch_id, status FROM api_batches WHERE key = ?", (key,))
        return rows[0] if rows else None

    def put_batch(self, key: str, batch_id: str, status: str) -> None:
        self._write("INSERT OR REPLACE INTO api_batches VALUES (?, ?, ?)", (key, batch_id, status))
