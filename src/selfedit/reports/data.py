"""Reads a run directory for reporting: `config.yaml`, `summary.json` and the store, all of them read-only.

Knows the layout of a run directory and the store's tables (runs/schema.sql).  Writes nothing, computes no statistics
and knows no model.  An unfinished run is read as far as it goes: what is not there yet is empty or None.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from pydantic import ValidationError

from selfedit.editors.endpoint import shown_address
from selfedit.errors import UserError
from selfedit.runs.store import SCHEMA_VERSION
from selfedit.runs.summary import Accuracy, Summary, SweepRow, empty_summary, read_summary
from selfedit.runs.summary import ConditionSummary as Condition
from selfedit.runs.summary import DifferenceSummary as Difference
from selfedit.runs.summary import ForgettingSummary as Forgetting
from selfedit.runs.summary import RoundSummary as Round
from selfedit.runs.summary import StepSummary as Step

__all__ = [
    "Accuracy",
    "Answer",
    "Condition",
    "Cost",
    "Difference",
    "Document",
    "Edit",
    "Event",
    "Fit",
    "Forgetting",
    "General",
    "Question",
    "Round",
    "RunData",
    "Step",
    "Summary",
    "SweepRow",
    "finite",
    "read_run",
]

"""The version of the store that this reader understands."""


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    document_id: str | None
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Edit:
    id: str
    round: int
    document_id: str
    writer: str
    index: int
    prompt: str
    text: str
    truncated: bool
    dropped_lines: int
    input_tokens: int
    output_tokens: int
    kept: bool | None
    reward: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """`value` is 'right', 'wrong', 'ungraded', or '' where no grade has been given yet."""

    fit_id: str
    question_id: str
    text: str
    value: str
    score: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Fit:
    id: str
    round: int
    condition: str
    document_id: str | None
    edit_id: str | None
    replicate: int
    failed: bool
    error: str
    sequences: tuple[str, ...]
    train_tokens: int
    steps: int
    first_loss: float | None
    last_loss: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Document:
    id: str
    split: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class General:
    """How a condition's fits answered one general question: counts, and one answer that was judged wrong."""

    question_id: str
    question: str
    answers: tuple[str, ...]
    condition: str
    right: int
    graded: int
    wrong_example: str


@dataclass(frozen=True, slots=True)
class Cost:
    what: str
    condition: str
    model: str
    input_tokens: int
    output_tokens: int
    seconds: float
    usd: float | None


@dataclass(frozen=True, slots=True)
class Event:
    kind: str
    subject: str
    message: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A fit's losses as (step, nats per token)."""

    round: int
    condition: str
    document_id: str | None
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class RunData:
    """Everything a report shows of one run.  `summary` is None while the run has not finished."""

    path: Path
    config: Mapping[str, Any]
    summary: Summary | None
    documents: tuple[Document, ...] = ()
    questions: Mapping[str, Question] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    fits: tuple[Fit, ...] = ()
    answers: tuple[Answer, ...] = ()
    general: tuple[General, ...] = ()
    rounds: tuple[Round, ...] = ()
    costs: tuple[Cost, ...] = ()
    events: tuple[Event, ...] = ()
    curves: tuple[Curve, ...] = ()
    grader: str = ""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def figures(self) -> Summary:
        """The summary; an empty one while there is none."""
        return self.summary or empty_summary()

    @property
    def model(self) -> str:
        return (self.summary.model if self.summary else "") or str(self.config.get("model") or "")

    @property
    def procedure(self) -> str:
        return (self.summary.procedure if self.summary else "") or str(self.config.get("procedure") or "")


def read_run(path: Path) -> RunData:
    """Reads all of a run.

    Raises:
        UserError: `path` is no run directory, or one of its files cannot be read.
    """
    config, summary = _check(path)
    store = path / "run.sqlite"
    if not store.exists():
        rounds = summary.rounds if summary else ()
        return RunData(path, config, summary, rounds=rounds, grader=summary.grader if summary else "")
    try:
        connection = _connect(store)
        try:
            return _read_store(connection, path, config, summary)
        finally:
            connection.close()
    except (sqlite3.Error, json.JSONDecodeError, ValidationError) as error:
        raise UserError(
            f"{store}: cannot be read as a run's store ({_one_line(error)}); is the file damaged?"
        ) from error


def finite(value: Any) -> Any:
    """`value` with every number that is not finite replaced by None, so that it can be written as strict JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def _check(path: Path) -> tuple[Mapping[str, Any], Summary | None]:
    if not path.exists():
        raise UserError(f"{path}: no such directory; give the directory that --out named")
    if not path.is_dir():
        raise UserError(f"{path}: is a file, not a run directory; give the directory that --out named")
    if not any((path / name).exists() for name in ("config.yaml", "summary.json", "run.sqlite")):
        raise UserError(f"{path}: is no run directory (no config.yaml, run.sqlite or summary.json in it)")
    summary = path / "summary.json"
    return _read_config(path / "config.yaml"), read_summary(summary) if summary.exists() else None


def _read_config(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML ({_one_line(error)})") from error
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no mapping of settings")
    if "api_base" in config:  # older versions stored a password and a query with it
        config["api_base"] = shown_address(config["api_base"])
    return config


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _connect(store: Path) -> sqlite3.Connection:
    """Opens read-only.  In a folder that cannot be written, SQLite cannot share a WAL; without one, none is needed."""
    address = f"file:{quote(os.fsencode(store.resolve()))}"
    connection = sqlite3.connect(f"{address}?mode=ro", uri=True)
    try:
        connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        if store.with_name(store.name + "-wal").exists():
            raise
        connection = sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True)
    connection.row_factory = sqlite3.Row
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        connection.close()
        raise UserError(
            f"{store}: store version {version} is not known here (this version reads version {SCHEMA_VERSION})"
        )
    return connection


def _read_store(
    connection: sqlite3.Connection, path: Path, config: Mapping[str, Any], summary: Summary | None
) -> RunData:
    connection.execute("BEGIN")  # one state of a store that may still be written to
    _refuse_damage(connection)
    questions = {
        row["id"]: Question(row["id"], row["document_id"], row["question"], _strings(row["answers"]))
        for row in connection.execute("SELECT * FROM questions ORDER BY document_id, position")
    }
    grader = _grader(connection, config, summary)
    return RunData(
        path=path,
        config=config,
        summary=summary,
        documents=tuple(
            Document(row["id"], row["split"], row["title"], row["text"])
            for row in connection.execute("SELECT * FROM documents ORDER BY position, id")
        ),
        questions={key: question for key, question in questions.items() if question.document_id is not None},
        edits=tuple(_edits(connection)),
        fits=tuple(_fits(connection)),
        answers=tuple(_answers(connection, grader)),
        general=tuple(_general(connection, grader, questions)),
        rounds=summary.rounds if summary and summary.rounds else tuple(_rounds(connection)),
        costs=tuple(
            Cost(*finite(list(row)))
            for row in connection.execute(
                "SELECT what, condition, model, SUM(input_tokens), SUM(output_tokens), SUM(seconds),"
                " CASE WHEN COUNT(usd) = COUNT(*) THEN SUM(usd) END"  # an unknown price is not a price of 0
                " FROM costs GROUP BY condition, what, model ORDER BY MIN(id)"
            )
        ),
        events=tuple(
            Event(*row) for row in connection.execute("SELECT kind, subject, message FROM events ORDER BY id")
        ),
        curves=tuple(_curves(connection)),
        grader=grader,
    )


def _grader(connection: sqlite3.Connection, config: Mapping[str, Any], summary: Summary | None) -> str:
    """The grader whose grades are shown: the summary's, else the setting's, else the one with most grades."""
    counts = connection.execute("SELECT grader, COUNT(*) FROM grades GROUP BY grader ORDER BY 2 DESC, 1").fetchall()
    present = [str(row[0]) for row in counts]
    for wanted in (summary.grader if summary else "", str(config.get("grader") or "")):
        if wanted in present:
            return wanted
    return present[0] if present else (summary.grader if summary else "")


def _refuse_damage(connection: sqlite3.Connection) -> None:
    """Values that are not of their column's type, and rows that refer to none: SQLite keeps both where a tool wrote
    them."""
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    for table in tables:
        for _, column, declared, *_ in connection.execute(f'PRAGMA table_info("{table}")').fetchall():
            allowed = "'null', 'text'" if declared == "TEXT" else "'null', 'integer', 'real'"
            query = f'SELECT typeof("{column}") FROM "{table}" WHERE typeof("{column}") NOT IN ({allowed}) LIMIT 1'
            if found := connection.execute(query).fetchone():
                raise sqlite3.DataError(f"{table}.{column} holds {found[0]}")
    if broken := connection.execute("PRAGMA foreign_key_check").fetchone():
        raise sqlite3.DataError(f"a row of {broken[0]} belongs to none of {broken[2]}")


def _strings(text: str) -> tuple[str, ...]:
    found = json.loads(text)
    if not isinstance(found, list):
        raise sqlite3.DataError("a list of texts is none")
    return tuple(str(item) for item in found)


def _edits(connection: sqlite3.Connection) -> Iterable[Edit]:
    for row in connection.execute('SELECT * FROM edits ORDER BY round, document_id, writer, "index"'):
        yield Edit(
            id=row["id"],
            round=row["round"],
            document_id=row["document_id"],
            writer=row["writer"],
            index=row["index"],
            prompt=row["prompt"],
            text=row["text"],
            truncated=bool(row["truncated"]),
            dropped_lines=row["dropped_lines"],
            input_tokens=row["input_tokens"],
            output_tokens=row["output_tokens"],
            kept=None if row["kept"] is None else bool(row["kept"]),
            reward=finite(row["reward"]),
        )


def _fits(connection: sqlite3.Connection) -> Iterable[Fit]:
    for row in connection.execute("SELECT * FROM fits ORDER BY round, condition, document_id, edit_id, replicate"):
        yield Fit(
            id=row["id"],
            round=row["round"],
            condition=row["condition"],
            document_id=row["document_id"],
            edit_id=row["edit_id"],
            replicate=row["replicate"],
            failed=row["status"] == "failed",
            error=row["error"] or "",
            sequences=_strings(row["sequences"]),
            train_tokens=row["train_tokens"],
            steps=row["steps"],
            first_loss=finite(row["first_loss"]),
            last_loss=finite(row["last_loss"]),
            seconds=row["seconds"],
        )


def _curves(connection: sqlite3.Connection) -> Iterable[Curve]:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'curves'").fetchone():
        return  # a run that an earlier version began
    for row in connection.execute(
        "SELECT f.round, f.condition, f.document_id, c.points FROM curves c JOIN fits f ON f.id = c.fit_id"
        " ORDER BY f.round, f.condition, f.id"
    ):
        try:
            points = tuple((int(step), float(loss)) for step, loss in json.loads(row["points"]))
        except (TypeError, ValueError, OverflowError) as error:
            raise sqlite3.DataError(f"curves.points holds no pairs of numbers ({error})") from None
        yield Curve(row["round"], row["condition"], row["document_id"], tuple(p for p in points if math.isfinite(p[1])))


def _answers(connection: sqlite3.Connection, grader: str) -> Iterable[Answer]:
    """Answers to the documents' own questions; those to general questions are only counted (`_general`)."""
    rows = connection.execute(
        "SELECT a.fit_id, a.question_id, a.text, v.value, v.score, v.note FROM answers a"
        " JOIN questions q ON q.id = a.question_id AND q.document_id IS NOT NULL"
        " LEFT JOIN grades v ON v.answer_id = a.id AND v.grader = ? ORDER BY a.id",
        (grader,),
    )
    for fit_id, question_id, text, value, score, note in rows:
        yield Answer(fit_id, question_id, text, value or "", finite(score), note or "")


def _general(connection: sqlite3.Connection, grader: str, questions: Mapping[str, Question]) -> Iterable[General]:
    rows = connection.execute(
        "SELECT q.id, f.condition, SUM(v.value = 'right'), SUM(v.value <> 'ungraded'),"
        " MIN(CASE WHEN v.value = 'wrong' THEN a.text END)"
        " FROM answers a JOIN questions q ON q.id = a.question_id AND q.document_id IS NULL"
        " JOIN fits f ON f.id = a.fit_id JOIN grades v ON v.answer_id = a.id AND v.grader = ?"
        " GROUP BY q.id, f.condition ORDER BY q.position, q.id, f.condition",
        (grader,),
    )
    for question_id, condition, right, graded, wrong in rows:
        question = questions[question_id]
        yield General(question_id, question.question, question.answers, condition, right, graded, wrong or "")


def _rounds(connection: sqlite3.Connection) -> Iterable[Round]:
    """Rounds that are in the store while the summary is not written yet."""
    for row in connection.execute("SELECT * FROM rounds ORDER BY round"):
        details = json.loads(row["details"])
        extra = {key: details[key] for key in Round.model_fields if key in details}
        known = {key: row[key] for key in ("train_reward", "validation_accuracy", "kept_edits", "seconds")}
        yield Round.model_validate(finite({**extra, **known, "round": row["round"]}))
