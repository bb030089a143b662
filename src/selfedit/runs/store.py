"""The store of one run: a SQLite file that holds every finished task, and nothing of an unfinished one.

Knows the tables of `schema.sql` and plain data (`records`); knows no model, no procedure and no lock (see `directory`).

- A task is one transaction: after a crash at any moment it is there whole, or it is not there.
- WAL mode: `report` reads while the run writes.  `synchronous=FULL`: a commit returns once its data are on the disk, so
  that a task that counted before a power cut still counts after it (in WAL mode NORMAL would keep the file sound but
  could lose the last commits: fine-tunes to redo, paid API answers to buy again).  One fsync a task is nothing beside a
  task's work: docs/store.md has the measurement.
- Adding what is already there changes nothing, so a resumed procedure may simply add again.

Threads of one process may share a `Store`: calls take turns, and a transaction keeps its turn until it ends.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from selfedit.documents.document import Document, Question
from selfedit.editors.base import Edit
from selfedit.errors import UserError
from selfedit.evaluation.grade import Grade, GradeItem
from selfedit.runs.files import disk_errors, is_private
from selfedit.runs.records import (
    Answer,
    CostRecord,
    Event,
    FitRecord,
    RoundRecord,
    ScoredAnswer,
)

SCHEMA_VERSION = 2

# Seconds to wait for another connection's write.  Only one process writes a run (its lock), so this is for other tools.
_BUSY_SECONDS = 30.0


class Store:
    """The store at `path`, made if it is not there.

    With `readonly` nothing is ever written, and a run that another process is writing can be read.

    Raises UserError for a file that is missing (readonly), is no store, or has another schema version; and, from any
    method, for a full disk or a damaged file: the task being written is then not in the store, the earlier ones are.
    """

    def __init__(self, path: str | Path, *, readonly: bool = False) -> None:
        self.path = Path(path)
        self.readonly = readonly
        self._turn = threading.RLock()
        self._depth = 0
        self._round = 0
        self._since = time.monotonic()
        if readonly and not self.path.is_file():
            raise UserError(f"{self.path}: no such store; name the directory of a run")
        with self._translated():
            self._connection = self._connect()
        try:
            with self._translated():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise
        self._opened_with = self._connection.total_changes

    @property
    def changed(self) -> bool:
        """Whether anything was written since the store was opened."""
        return self._connection.total_changes > self._opened_with

    def _connect(self) -> sqlite3.Connection:
        uri = self.path.absolute().as_uri()
        if not self.readonly:
            if is_private(self.path):
                # SQLite gives the files beside it the same permissions.
                with disk_errors(self.path):
                    self.path.touch()
                    self.path.chmod(0o600)
            return self._open(f"{uri}?mode=rwc")
        connection = self._open(f"{uri}?mode=ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError:
            connection.close()
            wal = Path(f"{self.path}-wal")
            if wal.exists() and wal.stat().st_size > 0:
                raise
            # A finished run in a directory that may not be written: SQLite cannot make its shared-memory file there,
            # and without a log none is needed.
            connection = self._open(f"{uri}?immutable=1")
        return connection

    def _open(self, uri: str) -> sqlite3.Connection:
        # isolation_level=None: transactions begin and end where `transaction` says, nowhere else.
        return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    def _prepare(self) -> None:
        connection = self._connection
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if empty and version == 0:
            if self.readonly:
                raise UserError(f"{self.path}: the store is still empty; the run has not begun its work")
        elif version != SCHEMA_VERSION:
            raise UserError(f"{self.path}: {_version_advice(version)}")
        if self.readonly:
            return
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise UserError(
                f"{self.path}: this file system cannot hold SQLite's write-ahead log (a network drive?); "
                "put the run on a local disk"
            )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        schema = resources.files("selfedit.runs").joinpath("schema.sql").read_text(encoding="utf-8")
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{schema}\nPRAGMA user_version = {SCHEMA_VERSION};\nCOMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        with self._turn:
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Transactions

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written inside is kept whole, or not at all; what is read inside is of one moment.

        Transactions nest: an inner one that fails takes back its own writes and raises; the outer one decides.  Other
        threads wait until it ends: inside, wait neither for them nor for anything slow, and await nothing.
        """
        with self._turn:
            name = f"level_{self._depth}"
            changes = self._connection.total_changes
            inner = self._depth > 0
            self._depth += 1
            try:
                if inner:
                    self._execute(f"SAVEPOINT {name}")
                else:
                    self._execute("BEGIN" if self.readonly else "BEGIN IMMEDIATE")
                try:
                    yield
                except Exception:
                    # A full disk may have ended the transaction already.
                    if inner and self._connection.in_transaction:
                        self._execute(f"ROLLBACK TO {name}")
                        self._execute(f"RELEASE {name}")
                    raise
                if inner:
                    self._execute(f"RELEASE {name}")
                else:
                    now = time.monotonic()
                    if self._connection.total_changes > changes:
                        self._execute(
                            "INSERT INTO wall_time VALUES (?1, ?2) ON CONFLICT DO UPDATE SET seconds = seconds + ?2",
                            (self._round, now - self._since),
                        )
                    self._execute("COMMIT")
                    if self._connection.total_changes > changes:
                        self._since = now
            except BaseException:
                # Also where Ctrl-C came between two of these lines.
                if not inner and self._connection.in_transaction:
                    self._execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    def _execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        with self._translated():
            return self._connection.execute(sql, parameters)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors that a user can mend, in one line each; all others are bugs and pass."""
        try:
            yield
        except UnicodeEncodeError as error:
            raise UserError(
                f"{self.path}: half a character ({error.object[error.start : error.end]!a}) in the text to be stored; "
                "mend the document or edit that holds it"
            ) from error
        except sqlite3.Error as error:
            mend = _mend(error)
            if mend is None:
                raise
            raise UserError(f"{self.path}: {mend} (SQLite: {error})") from error

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._turn, self._translated():
            return self._connection.execute(sql, parameters).fetchall()

    def _write(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement, in the transaction under way or in its own; the number of rows it changed."""
        with self._turn:
            if self._depth:
                return self._execute(sql, parameters).rowcount
        with self.transaction():
            return self._execute(sql, parameters).rowcount

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
                if document.id not in before:
                    continue
                was = before[document.id]
                if _content(was) != _content(document):
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
            position = self._rows("SELECT count(*) FROM documents")[0][0]
            for document in documents:
                if self._rows("SELECT 1 FROM documents WHERE id = ?", (document.id,)):
                    raise UserError(f"{self.path}: two documents have the id {document.id!r}; give each its own")
                self._write(
                    "INSERT INTO documents VALUES (?, ?, ?, ?, ?)",
                    (document.id, position, split, document.title, document.text),
                )
                position += 1
                self._add_questions(document.questions, document.id)

    def add_general_questions(self, questions: Sequence[Question]) -> None:
        """Add questions that belong to no document (asked to measure forgetting).

        UserError where one that is already there differs.
        """
        with self.transaction():
            before = {question.id: question for question in self.general_questions()}
            for question in questions:
                if question.id in before and _asked(before[question.id]) != _asked(question):
                    raise UserError(
                        f"{self.path}: general question {question.id!r} has changed since this run began; "
                        "start a new run"
                    )
            self._add_questions([question for question in questions if question.id not in before], None)

    def _add_questions(self, questions: Iterable[Question], document_id: str | None) -> None:
        position = self._rows("SELECT count(*) FROM questions")[0][0]
        for question in questions:
            if self._rows("SELECT 1 FROM questions WHERE id = ?", (question.id,)):
                where = f" (the second in document {document_id!r})" if document_id else ""
                raise UserError(f"{self.path}: two questions have the id {question.id!r}{where}; give each its own")
            self._write(
                "INSERT INTO questions VALUES (?, ?, ?, ?, ?)",
                (question.id, document_id, position, question.question, _json(list(question.answers))),
            )
            position += 1

    def documents(self, split: str | None = None) -> list[Document]:
        """The documents of one split, or all, in the run's order, with their questions."""
        rows = self._rows(
            "SELECT id, title, text FROM documents WHERE ?1 IS NULL OR split = ?1 ORDER BY position", (split,)
        )
        questions: dict[str, list[Question]] = {}
        for document_id, *question in self._rows(
            "SELECT document_id, id, question, answers FROM questions WHERE document_id IS NOT NULL ORDER BY position"
        ):
            questions.setdefault(document_id, []).append(_question(question))
        return [Document(id, title, text, tuple(questions.get(id, ()))) for id, title, text in rows]

    def splits(self) -> dict[str, str]:
        """The split of every document, by document id."""
        return dict(self._rows("SELECT id, split FROM documents ORDER BY position"))

    def general_questions(self) -> list[Question]:
        """The questions that belong to no document."""
        rows = self._rows("SELECT id, question, answers FROM questions WHERE document_id IS NULL ORDER BY position")
        return [_question(row) for row in rows]

    # Edits

    def add_edits(self, edits: Iterable[Edit], costs: Iterable[CostRecord] = ()) -> int:
        """Add edits, and what they cost, as one task; how many were new.

        Those already there must be the same (UserError); the costs count only where an edit was new.
        """
        new = 0
        with self.transaction():
            for edit in edits:
                values = (
                    edit.id,
                    edit.round,
                    edit.document_id,
                    edit.writer,
                    edit.index,
                    edit.prompt,
                    edit.text,
                    int(edit.truncated),
                    edit.dropped_lines,
                    edit.input_tokens,
                    edit.output_tokens,
                )
                before = self._rows(f"SELECT {_EDIT_COLUMNS} FROM edits WHERE id = ?", values[:1])
                if not before:
                    self._write(f"INSERT INTO edits ({_EDIT_COLUMNS}) VALUES (?{', ?' * 10})", values)
                    new += 1
                elif before[0] != values:
                    raise UserError(
                        f"{self.path}: edit {edit.index} of document {edit.document_id!r} by {edit.writer} has changed "
                        "since this run began; put it back, or start a new run"
                    )
            if new:
                self.add_costs(costs)
        return new

    def edits(
        self, *, round: int | None = None, writer: str | None = None, document_id: str | None = None
    ) -> list[Edit]:
        """Edits by round, then in the run's order of documents, then by writer and index."""
        rows = self._rows(
            "SELECT e.round, e.document_id, e.writer, e.idx, e.text, e.prompt, e.truncated, e.dropped_lines,"
            " e.input_tokens, e.output_tokens, e.kept, e.reward FROM edits e JOIN documents d ON d.id = e.document_id"
            " WHERE (?1 IS NULL OR e.round = ?1) AND (?2 IS NULL OR e.writer = ?2)"
            " AND (?3 IS NULL OR e.document_id = ?3)"
            " ORDER BY e.round, d.position, e.writer, e.idx",
            (round, writer, document_id),
        )
        return [
            Edit(
                document_id=row[1],
                writer=row[2],
                index=row[3],
                text=row[4],
                prompt=row[5],
                truncated=bool(row[6]),
                dropped_lines=row[7],
                input_tokens=row[8],
                output_tokens=row[9],
                round=row[0],
                reward=row[11],
                kept=None if row[10] is None else bool(row[10]),
            )
            for row in rows
        ]

    def set_rewards(self, rewards: Mapping[str, float]) -> None:
        """Set the rewards of edits, by the store's edit id, as one task.  KeyError for an unknown id."""
        self._set_on_edits("reward", rewards)

    def set_kept(self, kept: Mapping[str, bool]) -> None:
        """Set which edits selection kept, by the store's edit id, as one task.  KeyError for an unknown id."""
        self._set_on_edits("kept", {id: int(value) for id, value in kept.items()})

    def _set_on_edits(self, column: str, values: Mapping[str, float]) -> None:
        with self.transaction():
            for id, value in values.items():
                if not self._write(f"UPDATE edits SET {column} = ? WHERE id = ?", (value, id)):
                    raise KeyError(id)

    # Fits and answers

    def record_fits(self, fits: Iterable[FitRecord], costs: Iterable[CostRecord] = ()) -> int:
        """Add fits with their answers, and what they cost, as one task; how many were new.

        A fit that is already there stays as it is, answers and all (a worker may deliver twice); the costs count only
        where a fit was new.  A loss that is not a number is stored as unknown.
        """
        new = 0
        with self.transaction():
            for fit in fits:
                added = self._write(
                    "INSERT INTO fits (id, round, condition, document_id, edit_id, replicate, status, error, sequences,"
                    " train_tokens, steps, first_loss, last_loss, seconds)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                    (
                        fit.id,
                        fit.round,
                        fit.condition,
                        fit.document_id,
                        fit.edit_id,
                        fit.replicate,
                        fit.status,
                        fit.error,
                        _json(list(fit.sequences)),
                        fit.train_tokens,
                        fit.steps,
                        fit.first_loss,
                        fit.last_loss,
                        fit.seconds,
                    ),
                )
                if not added:
                    continue
                new += 1
                for answer in fit.answers:
                    self._write(
                        "INSERT INTO answers (fit_id, question_id, text, tokens) VALUES (?, ?, ?, ?)",
                        (fit.id, answer.question_id, answer.text, answer.tokens),
                    )
            if new:
                self.add_costs(costs)
        return new

    def add_curve(self, fit_id: str, points: Sequence[tuple[int, float]]) -> None:
        """Store a fit's losses, (step, loss); those that are there stay."""
        self._write(
            "INSERT INTO curves (fit_id, points) VALUES (?, ?) ON CONFLICT DO NOTHING", (fit_id, _json(list(points)))
        )

    def curve(self, fit_id: str) -> list[tuple[int, float]]:
        """A fit's losses, (step, loss); empty where none were kept."""
        rows = self._rows("SELECT points FROM curves WHERE fit_id = ?", (fit_id,))
        return [(int(step), float(loss)) for step, loss in json.loads(rows[0][0])] if rows else []

    def has_fit(self, id: str) -> bool:
        """Whether the fit (see `records.fit_id`) is done or has failed; either way it is not to be done again."""
        return bool(self._rows("SELECT 1 FROM fits WHERE id = ?", (id,)))

    def fit_ids(self) -> set[str]:
        """The ids of all fits that are done or have failed."""
        return {id for (id,) in self._rows("SELECT id FROM fits")}

    def fits(
        self, *, round: int | None = None, condition: str | None = None, document_id: str | None = None
    ) -> list[FitRecord]:
        """Fits as they were recorded, answers included, ordered by round, condition, document, edit and replicate."""
        rows = self._rows(
            "SELECT f.id, f.round, f.condition, f.document_id, f.edit_id, f.replicate, f.status, f.error, f.sequences,"
            " f.train_tokens, f.steps, f.first_loss, f.last_loss, f.seconds FROM fits f"
            " LEFT JOIN documents d ON d.id = f.document_id LEFT JOIN edits e ON e.id = f.edit_id"
            " WHERE (?1 IS NULL OR f.round = ?1) AND (?2 IS NULL OR f.condition = ?2)"
            " AND (?3 IS NULL OR f.document_id = ?3)"
            " ORDER BY f.round, f.condition, d.position, e.idx, f.replicate, f.id",
            (round, condition, document_id),
        )
        answers: dict[str, list[Answer]] = {}
        for fit_id, *answer in self._rows(
            "SELECT a.fit_id, a.question_id, a.text, a.tokens FROM answers a JOIN fits f ON f.id = a.fit_id"
            " WHERE (?1 IS NULL OR f.round = ?1) AND (?2 IS NULL OR f.condition = ?2)"
            " AND (?3 IS NULL OR f.document_id = ?3) ORDER BY a.id",
            (round, condition, document_id),
        ):
            answers.setdefault(fit_id, []).append(Answer(*answer))
        return [
            FitRecord(
                round=row[1],
                condition=row[2],
                document_id=row[3],
                edit_id=row[4],
                replicate=row[5],
                status=row[6],
                error=row[7],
                sequences=tuple(json.loads(row[8])),
                train_tokens=row[9],
                steps=row[10],
                first_loss=row[11],
                last_loss=row[12],
                seconds=row[13],
                answers=tuple(answers.get(row[0], ())),
            )
            for row in rows
        ]

    # Verdicts

    def to_grade(
        self, grader: str, *, round: int | None = None, retry_ungraded: bool = False
    ) -> list[tuple[int, GradeItem]]:
        """(answer id, what to grade) for every answer without a grade by this grader.

        With `retry_ungraded` also those that it could not say anything about.
        """
        rows = self._rows(
            "SELECT a.id, q.question, q.answers, a.text FROM answers a JOIN questions q ON q.id = a.question_id"
            " JOIN fits f ON f.id = a.fit_id"
            " LEFT JOIN grades v ON v.answer_id = a.id AND v.grader = ?1"
            " WHERE (v.value IS NULL OR (?2 AND v.value = 'ungraded')) AND (?3 IS NULL OR f.round = ?3) ORDER BY a.id",
            (grader, int(retry_ungraded), round),
        )
        return [(id, GradeItem(question, tuple(json.loads(gold)), answer)) for id, question, gold, answer in rows]

    def fits_of_answers(self) -> dict[int, str]:
        """The fit of every answer, by the answer's id."""
        return dict(self._rows("SELECT id, fit_id FROM answers"))

    def add_grades(self, grades: Iterable[tuple[int, Grade]], costs: Iterable[CostRecord] = ()) -> int:
        """Add (answer id, grade) pairs, and what they cost, as one task; how many were new.

        A grade that is already there stays, except that an `ungraded` one gives way to a later one.
        """
        new = 0
        with self.transaction():
            for answer_id, grade in grades:
                new += self._write(
                    "INSERT INTO grades (answer_id, grader, value, score, note) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT (answer_id, grader) DO UPDATE SET value = excluded.value, score = excluded.score,"
                    " note = excluded.note WHERE grades.value = 'ungraded' AND excluded.value <> 'ungraded'",
                    (answer_id, grade.grader, grade.value, grade.score, grade.note),
                )
            if new:
                self.add_costs(costs)
        return new

    def scored_answers(
        self, grader: str, *, round: int | None = None, condition: str | None = None
    ) -> list[ScoredAnswer]:
        """Every answer that has a grade by this grader, in the run's order of conditions, documents and questions."""
        rows = self._rows(
            "SELECT f.round, f.condition, f.id, f.edit_id, f.replicate, q.document_id, q.id, a.text, v.value, v.score"
            " FROM grades v JOIN answers a ON a.id = v.answer_id JOIN fits f ON f.id = a.fit_id"
            " JOIN questions q ON q.id = a.question_id"
            " WHERE v.grader = ?1 AND (?2 IS NULL OR f.round = ?2) AND (?3 IS NULL OR f.condition = ?3)"
            " ORDER BY f.round, f.condition, q.position, f.id",
            (grader, round, condition),
        )
        return [ScoredAnswer(*row) for row in rows]

    def grade_counts(self, grader: str) -> dict[str, int]:
        """How many grades of this grader are right, wrong and ungraded."""
        counts = {"right": 0, "wrong": 0, "ungraded": 0}
        counts.update(self._rows("SELECT value, count(*) FROM grades WHERE grader = ? GROUP BY value", (grader,)))
        return counts

    # Time that passes

    def count_time_for(self, round: int) -> None:
        """From here on, time that passes is this round's (0: no round's).

        Each commit that changes anything adds the time since the one before, in the same transaction: what a killed run
        did counts as long as it is there, and a finished run that is opened again gets no longer."""
        self._round = round

    def wall_seconds(self, round: int | None = None) -> float:
        """Seconds that passed until the last commit, over all attempts; of one round, or all together."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'wall_time'"):
            return 0.0  # an older run, opened to be read
        ((seconds,),) = self._rows("SELECT total(seconds) FROM wall_time WHERE ?1 IS NULL OR round = ?1", (round,))
        return seconds

    # Rounds, costs, events

    def put_round(self, record: RoundRecord) -> None:
        """Set a round's record, whole; an earlier one of the same round is replaced."""
        self._write(
            "INSERT OR REPLACE INTO rounds (round, train_reward, validation_accuracy, kept_edits, checkpoint, seconds,"
            " details) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                record.round,
                record.train_reward,
                record.validation_accuracy,
                record.kept_edits,
                record.checkpoint,
                record.seconds,
                _json(record.details),
            ),
        )

    def rounds(self) -> list[RoundRecord]:
        """The rounds so far, in order."""
        rows = self._rows(
            "SELECT round, train_reward, validation_accuracy, kept_edits, checkpoint, seconds, details FROM rounds"
            " ORDER BY round"
        )
        return [
            RoundRecord(
                round=row[0],
                train_reward=row[1],
                validation_accuracy=row[2],
                kept_edits=row[3],
                checkpoint=row[4],
                seconds=row[5],
                details=json.loads(row[6]),
            )
            for row in rows
        ]

    def add_costs(self, costs: Iterable[CostRecord]) -> None:
        """Add lines to the ledger.

        A line belongs into the transaction of the work it pays for (the `costs` of `add_edits`, `record_fits` and
        `add_grades`, or `transaction`): written apart, a crash between the two would lose it or count it twice.
        """
        with self.transaction():
            for cost in costs:
                self._write(
                    "INSERT INTO costs (what, condition, round, model, input_tokens, output_tokens, seconds, usd)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        cost.what,
                        cost.condition,
                        cost.round,
                        cost.model,
                        cost.input_tokens,
                        cost.output_tokens,
                        cost.seconds,
                        cost.usd,
                    ),
                )

    def costs(self) -> list[CostRecord]:
        """The ledger, in the order of writing."""
        rows = self._rows(
            "SELECT what, condition, round, model, input_tokens, output_tokens, seconds, usd FROM costs ORDER BY id"
        )
        return [CostRecord(*row) for row in rows]

    def add_event(self, kind: str, subject: str, message: str) -> None:
        """Note something for the report; the same thing is noted once."""
        self._write(
            "INSERT INTO events (kind, subject, message) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (kind, subject, message),
        )

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
        rows = self._rows(
            "SELECT kind, subject, message FROM events WHERE ?1 IS NULL OR kind = ?1 ORDER BY id", (kind,)
        )
        return [Event(*row) for row in rows]

    # What only reports read

    def graders(self) -> list[str]:
        """The graders that have graded answers, the one with the most grades first."""
        return [
            name for (name,) in self._rows("SELECT grader FROM grades GROUP BY grader ORDER BY count(*) DESC, grader")
        ]

    def grades(self, grader: str) -> dict[tuple[str, str], Grade]:
        """Every grade by this grader, by the fit and the question of its answer."""
        rows = self._rows(
            "SELECT a.fit_id, a.question_id, v.value, v.score, v.note FROM grades v"
            " JOIN answers a ON a.id = v.answer_id WHERE v.grader = ?",
            (grader,),
        )
        return {(fit, question): Grade(value, score, grader, note) for fit, question, value, score, note in rows}

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """The losses of every fit that has any, (step, loss), by fit, in the order of rounds and conditions."""
        rows = self._rows(
            "SELECT c.fit_id, c.points FROM curves c JOIN fits f ON f.id = c.fit_id ORDER BY f.round, f.condition, f.id"
        )
        return {fit: [(int(step), float(loss)) for step, loss in json.loads(points)] for fit, points in rows}

    def refuse_damage(self) -> None:
        """UserError where another program has left in the store what this one never writes, and SQLite keeps: a value
        that is not of its column's type, a row that belongs to none, a list that is none.  Reads the whole file."""
        for (table,) in self._rows("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"):
            for _, column, declared, *_ in self._rows(f'PRAGMA table_info("{table}")'):
                value = f'"{column}"'
                wrong = f"typeof({value}) NOT IN ('null', 'text')"
                if declared != "TEXT":
                    endless = "0" if column.endswith("_loss") else f"abs({value}) = 9e999"  # losses may diverge
                    wrong = f"typeof({value}) NOT IN ('null', 'integer', 'real') OR {endless}"
                if found := self._rows(f'SELECT typeof({value}) FROM "{table}" WHERE {wrong} LIMIT 1'):
                    self._damaged(f"{table}.{column} holds {found[0][0]}")
        for table, column, kind, wrong in (
            ("questions", "answers", "array", "item.type <> 'text'"),
            ("fits", "sequences", "array", "item.type <> 'text'"),
            ("rounds", "details", "object", "0"),
            ("curves", "points", "array", _NO_POINT),
        ):
            is_none = f"CASE WHEN json_valid({column}) THEN json_type({column}) ELSE 'none' END <> '{kind}'"
            if self._rows(f"SELECT 1 FROM {table} WHERE {is_none} LIMIT 1"):
                self._damaged(f"a list in {table}.{column} is none")
            if self._rows(f"SELECT 1 FROM {table}, json_each({column}) item WHERE {wrong} LIMIT 1"):
                self._damaged(f"a list in {table}.{column} holds something else")
        if broken := self._rows("PRAGMA foreign_key_check"):
            self._damaged(f"a row of {broken[0][0]} belongs to none of {broken[0][2]}")

    def _damaged(self, what: str) -> NoReturn:
        raise UserError(f"{self.path}: cannot be read as a run's store ({what}); is the file damaged?")

    # What an API returned

    def get(self, key: str) -> dict[str, Any] | None:
        """The stored response to the request with this key, or None."""
        rows = self._rows("SELECT response FROM api_calls WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    def put(
        self,
        key: str,
        model: str,
        request: Mapping[str, Any],
        response: Mapping[str, Any],
        input_tokens: int,
        output_tokens: int,
    ) -> None:
        """Store a response; one that was stored under the same key is replaced."""
        self._write(
            "INSERT OR REPLACE INTO api_calls (key, model, request, response, input_tokens, output_tokens)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (key, model, json.dumps(request), json.dumps(response), input_tokens, output_tokens),
        )

    def get_batch(self, key: str) -> tuple[str, str] | None:
        """(batch id, status) of a batch under way, or None."""
        rows = self._rows("SELECT batch_id, status FROM api_batches WHERE key = ?", (key,))
        return rows[0] if rows else None

    def put_batch(self, key: str, batch_id: str, status: str) -> None:
        """Store a batch's id and status, so that a restart goes on polling."""
        self._write(
            "INSERT OR REPLACE INTO api_batches (key, batch_id, status) VALUES (?, ?, ?)", (key, batch_id, status)
        )


_NO_POINT = (
    "item.type <> 'array' OR json_array_length(item.value) <> 2 OR json_type(item.value, '$[0]') <> 'integer'"
    " OR json_type(item.value, '$[1]') NOT IN ('integer', 'real')"
)
"""What tells an item of a curve from a (step, loss)."""

_EDIT_COLUMNS = (
    "id, round, document_id, writer, idx, prompt, text, truncated, dropped_lines, input_tokens, output_tokens"
)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _asked(question: Question) -> tuple[str, str, list[str]]:
    return question.id, question.question, list(question.answers)


def _content(document: Document) -> tuple[Any, ...]:
    return document.title, document.text, [_asked(question) for question in document.questions]


def _question(row: Sequence[Any]) -> Question:
    id, question, answers = row
    return Question(id, question, tuple(json.loads(answers)))


def _version_advice(version: int) -> str:
    if version > SCHEMA_VERSION:
        return (
            f"written by a newer selfedit (schema {version}, this one knows {SCHEMA_VERSION}); "
            "update selfedit, or start a new run"
        )
    if version == 0:
        return "a SQLite file, but not a store of selfedit; name another run directory"
    return (
        f"written by an older selfedit (schema {version}, this one needs {SCHEMA_VERSION}); "
        "read it with that version, or start a new run"
    )


def _mend(error: sqlite3.Error) -> str | None:
    """What the user can do about SQLite's error; None for errors that are bugs."""
    # The low byte is the primary code; the others say more than is needed here.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return {
        sqlite3.SQLITE_FULL: "the disk is full; make room and give the same command again (finished tasks are kept)",
        sqlite3.SQLITE_IOERR: (
            "the disk could not be written or read (full, or over a quota?); make room and give the same command again "
            "(finished tasks are kept)"
        ),
        sqlite3.SQLITE_BUSY: "another program holds the store; close it and give the same command again",
        sqlite3.SQLITE_READONLY: "may not be written; change its permissions, or start a new run elsewhere",
        sqlite3.SQLITE_CANTOPEN: "cannot be opened; check that its directory exists and its permissions",
        sqlite3.SQLITE_NOTADB: "not a SQLite file; name another run directory",
        sqlite3.SQLITE_CORRUPT: (
            "the file is damaged; save what `sqlite3 run.sqlite .recover` gives, and start a new run"
        ),
    }.get(code)
