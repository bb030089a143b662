"""A run's directory: where its settings, store, summary, report, adapters and checkpoints lie, and who may write them.

A run's directory is its owner's alone (0700, files 0600): it holds the documents.  docs/architecture.md says what lies
in it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from selfedit.editors.endpoint import shown_address
from selfedit.errors import UserError
from selfedit.runs.files import begin_privately, disk_errors, sweep, write_atomically
from selfedit.runs.lock import RunLock
from selfedit.runs.store import Store
from selfedit.runs.summary import Summary, read_summary, write_summary
from selfedit.yaml_file import read_yaml

LIBRARIES = ("selfedit", "torch", "transformers", "safetensors", "numpy")

_HEADER = "# The settings of this run and the versions that began it; written by selfedit.\n"
_VERSIONS, _RESOLVED = "versions", "resolved"


def records_in(path: Path) -> set[str]:
    """Which of the files that a run is known by lie in a directory.  Errors: UserError for one that is not there or may
    not be read."""
    try:
        return {"config.yaml", "run.sqlite", "summary.json"}.intersection(os.listdir(path))
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); a run is its owner's alone") from None
    except OSError:
        what = "is a file, not a run's directory" if os.path.isfile(path) else "no such directory"
        raise UserError(f"{path}: {what}; give the directory that --out named") from None


@dataclass(eq=False)
class RunDirectory:
    """One run on the disk.  `RunDirectory.open` to write it, `RunDirectory.read` to look at it.

    `config` has the settings as plain data, `versions` those of the libraries when the run began, `resolved` what was
    decided then and no setting says (see `resolve`).
    """

    path: Path
    config: dict[str, Any]
    versions: dict[str, str]
    store: Store
    resolved: dict[str, Any]
    lock: RunLock | None = None

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Any], *, free: Collection[str] = ()) -> RunDirectory:
        """Begin a run, or go on with the one that is there, and hold its lock until `close`.

        `config` is every setting, defaults filled in, as plain data.  On resume each must be
        what it was, but for those named in `free` (they change no result; of a group, "group" or "group.key"):
        UserError names the setting, the old and the new value.  UserError also for a directory that holds something
        else, and for a run that another process is writing.  Other versions of libraries than when the run began are
        noted as events of kind "versions".
        """
        path, settings = Path(path), dict(config)
        _refuse_foreign(path)
        if not (path / "config.yaml").exists():
            begin_privately(path)
        with ExitStack() as undo:
            lock = RunLock(path / "lock")
            undo.callback(lock.release)
            sweep(path)
            config_path = path / "config.yaml"
            began_with = versions = library_versions()
            resolved: dict[str, Any] = {}
            before = None
            if config_path.exists():
                before, began_with, resolved = read_recorded(config_path)
                _refuse_changes(path, before, settings, free)
            if before != settings:
                write_atomically(config_path, _config_text(settings, began_with, resolved))
            store = undo.enter_context(Store(path / "run.sqlite"))
            for name in sorted(began_with.keys() | versions.keys()):
                was, now = began_with.get(name, "absent"), versions.get(name, "absent")
                if was != now:
                    store.add_event("versions", name, f"{name} was {was} when the run began, {now} on resume")
            undo.pop_all()
        return cls(path, settings, began_with, store, resolved, lock)

    @classmethod
    def read(cls, path: str | Path) -> RunDirectory:
        """A run to look at, finished or not, even while another process writes it.

        What is not there is empty: `config` without a config.yaml, the store without a run.sqlite.  UserError where
        neither is there, nor a summary, or where one of them cannot be read.
        """
        path = Path(path)
        there = records_in(path)
        if not there:
            raise UserError(f"{path}: not the directory of a run (no config.yaml, run.sqlite or summary.json in it)")
        config, versions, resolved = read_recorded(path / "config.yaml") if "config.yaml" in there else ({}, {}, {})
        store = Store(path / "run.sqlite" if "run.sqlite" in there else None, readonly=True)
        return cls(path, config, versions, store, resolved)

    def resolve(self, name: str, value: Any, what: str | None = None) -> Any:
        """What was decided of `name` when the run began: `value` now, if nothing was.

        For what no setting says and a result depends on: a dtype that was chosen by the device, the content of a file.
        With `what`, UserError where `value` is another now: "`what` changed since this run began".  (A run that an
        older version began has nothing recorded; it goes on with what is found now.)"""
        if name not in self.resolved:
            self.resolved[name] = value
            text = _config_text(self.config, self.versions, self.resolved)
            write_atomically(self.path / "config.yaml", text)
        elif what is not None and self.resolved[name] != value:
            raise UserError(f"{self.path}: {what} changed since this run began; put it back, or name another directory")
        return self.resolved[name]

    def adapter(self, name: str) -> Path:
        """Where the adapter of this name lies; no two names share a place."""
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:80]
        if not safe or safe != name:
            safe = f"{safe}-{hashlib.sha256(name.encode('utf-8')).hexdigest()[:8]}".lstrip("-")
        return self.path / "adapters" / safe

    @property
    def document_adapters(self) -> Path:
        """Where adapters lie that have learned a document each."""
        return self.path / "adapters" / "documents"

    def document_adapter(self, id: str) -> Path:
        """Where the adapter lies that has learned this document alone."""
        return self.document_adapters / self.adapter(id).name

    def checkpoint(self, round: int) -> Path:
        """Where the policy after this round lies: `checkpoints/round-NN`."""
        return self.path / "checkpoints" / delta_name(round)

    @property
    def unfinished(self) -> Path:
        """Where the states of fits under way lie, wherever a worker's own directory is; made when asked for."""
        folder = self.path.absolute() / "unfinished"
        begin_privately(folder)
        return folder

    def write_summary(self, summary: Summary) -> None:
        """Write `summary.json`, whole or not at all; no fit is under way any more."""
        # A kill between a fit's commit and the removal of its state left that.
        shutil.rmtree(self.path / "unfinished", ignore_errors=True)
        write_summary(self.path / "summary.json", summary)

    def read_summary(self) -> Summary:
        """The summary of a finished run.  UserError where the run is not finished."""
        return read_summary(self.path / "summary.json")

    @property
    def summary(self) -> Summary | None:
        """The summary; None while the run is not finished.  UserError where it cannot be read."""
        return self.read_summary() if (self.path / "summary.json").exists() else None

    def close(self) -> None:
        self.store.close()
        if self.lock is not None:
            self.lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def delta_name(round: int) -> str:
    return f"round-{round:02d}"


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide results, without importing them."""
    return {"python": platform.python_version()} | {name: installed(name) or "absent" for name in LIBRARIES}


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _refuse_foreign(path: Path) -> None:
    with disk_errors(path):
        if (path.exists() or path.is_symlink()) and not path.is_dir():
            what = "a file" if path.exists() else "a link that leads nowhere"
            raise UserError(f"{path}: is {what}; name a directory for the run")
        if not path.exists() or (path / "config.yaml").exists():
            return
        # What a run leaves that was killed before its settings were written.
        strangers = [entry.name for entry in path.iterdir() if entry.name != "lock" and not entry.name.startswith(".")]
    if strangers:
        raise UserError(f"{path}: not empty and not a run (it holds {min(strangers)!r}); name a new or empty directory")


def _refuse_changes(path: Path, before: dict[str, Any], now: dict[str, Any], free: Collection[str]) -> None:
    old, new = flat(before), flat(now)
    for name in sorted(old.keys() | new.keys()):
        if any(name == loose or name.startswith(f"{loose}.") for loose in free):
            continue
        was, is_now = old.get(name), new.get(name)  # None also for a setting that the older version did not have
        if was != is_now:
            shown = ["not set" if value is None else repr(value) for value in (was, is_now)]
            raise UserError(
                f"{path}: this run began with {name} = {shown[0]}, now it is {shown[1]}; "
                "put it back to resume, or name another directory"
            )


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name; an empty group is a value of its own."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _config_text(settings: dict[str, Any], versions: dict[str, str], resolved: dict[str, Any]) -> str:
    data = {**settings, **({_RESOLVED: resolved} if resolved else {}), _VERSIONS: versions}
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    if not text.isascii() and yaml.safe_load(text) != data:
        # PyYAML leaves a few characters (U+0085) bare that it does not read back; escaped, it reads all.
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=False)
    return _HEADER + text


def read_recorded(path: Path) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """What a run's `config.yaml` records: the settings, the versions that began the run, what was resolved then.

    UserError where it is no such file.
    """
    data = read_yaml(path, str(path))
    versions = data.pop(_VERSIONS, None) if isinstance(data, dict) else None
    if not isinstance(versions, dict) or "selfedit" not in versions:
        raise UserError(f"{path}: not the settings of a run (no versions in it); name another directory")
    resolved = data.pop(_RESOLVED, {})
    if not isinstance(resolved, dict):
        raise UserError(f"{path}: not the settings of a run ({_RESOLVED} is no mapping); put it back")
    if "api_base" in data:  # older versions stored a password and a query with it
        data["api_base"] = shown_address(data["api_base"])
    return data, versions, resolved
