"""The SQLite file of a run: opening and checking it, transactions, and SQLite's errors in words that a user can act on.

- WAL mode: a report reads while the run writes.  `synchronous=FULL`: a commit returns once its data are on the disk, so
  that a task that counted before a power cut still counts after it.  In WAL mode NORMAL would keep the file sound but
  could lose the last commits: fits to redo, API replies to buy again.  docs/store.md measures what one fsync per task
  costs.
- Threads of one process may share a `Database`: calls take turns, and a transaction keeps its turn until it ends.
- The tables must be those of `schema.sql`.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Self, TypeVar

from selfedit.errors import UserError
from selfedit.runs.files import disk_errors, is_private

SCHEMA_VERSION = 4
_SCHEMA = resources.files("selfedit.runs").joinpath("schema.sql").read_text(encoding="utf-8")

# Seconds to wait for another connection's write.  Only one process writes a run (its lock), so this is for other tools.
_BUSY_SECONDS = 30.0

_JSON = {"answers", "sequences", "ids", "details", "points"}
_BOOLEAN = {"truncated", "kept"}

R = TypeVar("R")


class Database:
    """The file at `path`, made if it is not there; with `readonly` never written, and another process may write it.

    Without a path it is empty, in memory: the store of a run that has done nothing yet.

    Raises UserError for a file that is missing (readonly), is no store or has another schema version; and,
    from any method, for a full disk or a damaged file.  The transaction under way is then lost, earlier ones are kept.
    """

    def __init__(self, path: str | Path | None, *, readonly: bool = False) -> None:
        self.path = Path(":memory:" if path is None else path)
        self.readonly = readonly
        self._turn = threading.RLock()
        self._inside = False  # of a transaction
        self._round = 0
        self._since = time.monotonic()
        with self._translated():
            if path is None:
                self._connection = _connect("file::memory:")
                _create(self._connection)
            elif readonly:
                self._open_for_reading()
            else:
                self._open_for_writing()
        self._opened_with = self._connection.total_changes

    def _open_for_writing(self) -> None:
        if is_private(self.path):
            # SQLite gives the files beside it the same permissions.
            with disk_errors(self.path):
                self.path.touch()
                self.path.chmod(0o600)
        self._connection = _connect(f"{self.path.absolute().as_uri()}?mode=rwc")
        self._check_schema()
        if self._connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise UserError(
                f"{self.path}: this file system cannot hold SQLite's write-ahead log (a network drive?); "
                "put the run on a local disk"
            )
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        if _is_empty(self._connection):
            _create(self._connection)

    def _open_for_reading(self) -> None:
        uri = self.path.absolute().as_uri()
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such store; name the directory of a run")
        self._connection = _connect(f"{uri}?mode=ro")
        try:
            _is_empty(self._connection)
        except sqlite3.OperationalError:
            wal = Path(f"{self.path}-wal")
            if wal.exists() and wal.stat().st_size > 0:
                raise
            # A finished run in a directory that may not be written: SQLite cannot make its shared-memory file there,
            # and without a log none is needed.
            self._connection.close()
            self._connection = _connect(f"{uri}?immutable=1")
        self._check_schema()
        if _is_empty(self._connection):
            raise UserError(f"{self.path}: the store is still empty; the run has not begun its work")

    def _check_schema(self) -> None:
        connection = self._connection
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA_VERSION:
            if not _expected_columns() <= _columns(connection):
                raise UserError(f"{self.path}: not the tables of schema {version}; start a new run")
        elif version or not _is_empty(connection):
            raise UserError(f"{self.path}: {_version_advice(version)}")

    @property
    def changed(self) -> bool:
        """Whether anything was written since the file was opened."""
        return self._connection.total_changes > self._opened_with

    def close(self) -> None:
        with self._turn:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written inside is kept whole, or not at all; what is read inside is of one moment.

        One within another is part of it, and what fails there fails both.  Other threads wait until it ends: inside,
        wait neither for them nor for anything slow, and await nothing.
        """
        with self._turn:
            if self._inside:
                yield
                return
            before = self._connection.total_changes
            self._inside = True
            try:
                self._execute("BEGIN" if self.readonly else "BEGIN IMMEDIATE")
                yield
                if self._connection.total_changes > before:
                    self._commit_with_time()
                else:
                    self._execute("COMMIT")
            except BaseException:
                # A full disk may have ended the transaction already.
                if self._connection.in_transaction:
                    self._execute("ROLLBACK")
                raise
            finally:
                self._inside = False

    def _commit_with_time(self) -> None:
        now = time.monotonic()
        self._execute(
            "INSERT INTO wall_time VALUES (?1, ?2) ON CONFLICT DO UPDATE SET seconds = seconds + ?2",
            (self._round, now - self._since),
        )
        self._execute("COMMIT")
        self._since = now

    # Statements

    def _execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        with self._translated():
            return self._connection.execute(sql, parameters)

    def _write(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement, in the transaction under way or in its own; the number of rows it changed."""
        with self.transaction():
            return self._execute(sql, parameters).rowcount

    def _insert(self, table: str, values: Mapping[str, Any], conflict: str = "") -> int:
        """Insert one row; whether that was done (`conflict` is an ON CONFLICT clause)."""
        columns = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" * len(values))
        parameters = [_stored(value) for value in values.values()]
        return self._write(f"INSERT INTO {table} ({columns}) VALUES ({marks}) {conflict}", parameters)

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._turn, self._translated():
            return self._connection.execute(sql, parameters).fetchall()

    def _records(self, make: Callable[..., R], sql: str, parameters: Sequence[Any] = ()) -> list[R]:
        """What `make` makes of each row, called with the columns by name."""
        with self._turn, self._translated():
            cursor = self._connection.execute(sql, parameters)
            read = [(name, _READERS.get(name)) for name, *_ in cursor.description]
            return [
                make(**{name: value if f is None else f(value) for (name, f), value in zip(read, row, strict=True)})
                for row in cursor
            ]

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
            # The low byte is the primary code; the others say more than is needed here.
            mend = _MEND.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
            if mend is None:
                raise
            raise UserError(f"{self.path}: {mend} (SQLite: {error})") from error


def _connect(uri: str) -> sqlite3.Connection:
    # isolation_level=None: transactions begin and end where `transaction` says, nowhere else.
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _create(connection: sqlite3.Connection) -> None:
    try:
        connection.executescript(f"BEGIN IMMEDIATE;\n{_SCHEMA}\nPRAGMA user_version = {SCHEMA_VERSION};\nCOMMIT;")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _is_empty(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _columns(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """(table, column, declared type) of every table."""
    query = "SELECT t.name, c.name, c.type FROM sqlite_master t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'"
    return set(connection.execute(query))


@cache
def _expected_columns() -> set[tuple[str, str, str]]:
    with closing(_connect("file::memory:")) as empty:
        _create(empty)
        return _columns(empty)


def _stored(value: Any) -> Any:
    """A field's value as its column holds it: lists and mappings as JSON; a number that is not finite is unknown."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return value


def _from_json(text: str) -> Any:
    found = json.loads(text)
    return tuple(found) if isinstance(found, list) else found


_READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(_JSON, _from_json),
    **dict.fromkeys(_BOOLEAN, lambda value: None if value is None else bool(value)),
}

_MEND = {
    sqlite3.SQLITE_FULL: "the disk is full; make room and give the same command again (finished tasks are kept)",
    sqlite3.SQLITE_IOERR: (
        "the disk could not be written or read (full, or over a quota?); make room and give the same command again "
        "(finished tasks are kept)"
    ),
    sqlite3.SQLITE_BUSY: "another program holds the store; close it and give the same command again",
    sqlite3.SQLITE_READONLY: "may not be written; change its permissions, or start a new run elsewhere",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; check that its directory exists and its permissions",
    sqlite3.SQLITE_NOTADB: "not a SQLite file; name another run directory",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; save what `sqlite3 run.sqlite .recover` gives, and start a new run",
}


def _version_advice(version: int) -> str:
    if version == 0:
        return "a SQLite file, but not a store of selfedit; name another run directory"
    if version > SCHEMA_VERSION:
        return (
            f"written by a newer selfedit (schema {version}, this one knows {SCHEMA_VERSION}); "
            "update selfedit, or start a new run"
        )
    return (
        f"written by an older selfedit (schema {version}, this one needs {SCHEMA_VERSION}); "
        "read it with that version, or start a new run"
    )
