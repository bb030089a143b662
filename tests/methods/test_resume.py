"""A run killed at any moment, on a full disk, or started twice: the same command ends like an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from making import Make
from run_content import content
from test_checkpoints import ALWAYS, events, files, left_over

from selfedit.errors import UserError
from selfedit.methods.restem import train
from selfedit.methods.run import Run
from selfedit.methods.settings import LearnSettings, TrainSettings
from selfedit.runs import directory
from selfedit.runs.lock import RunLock
from selfedit.runs.seeds import derive_seed
from selfedit.runs.store import Store
from tiny_world import SMALL, rows, write_rows

KILLS = 20


class Server:
    """Starts runs in processes of their own (see `killable`)."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killable.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def run(self, settings: dict[str, Any], **order: Any) -> dict[str, Any]:
        out = Path(settings["out"])
        log = out.with_name(out.name + ".log")
        log.write_text("")
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"settings": settings, "log": str(log), **order}) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        return {**found, "begun": [tuple(json.loads(line)) for line in log.read_text().splitlines()]}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.process.communicate()


@pytest.fixture(scope="module")
def settings(chat_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two rounds, three documents to train on and two to validate; tasks of two, so that there is much to commit."""
    folder = tmp_path_factory.mktemp("resume")
    return {
        **SMALL,
        "model": chat_model,
        "documents": [str(write_rows(folder / "documents.jsonl", rows(5)))],
        "out": str(folder / "whole"),
        "validation_share": 0.4,
        "rounds": 2,
        "edits": 2,
        "replicates": 1,
        "task_size": 2,
        "outer_set": {"rank": 4, "learning_rate": 3e-3},
    }


@pytest.fixture(scope="module")
def whole(server: Server, settings: dict[str, Any]) -> dict[str, Any]:
    """An uninterrupted run: its number of events and all that it came to."""
    found = server.run(settings)
    assert found["signal"] is None
    assert "error" not in found
    return {**found, "content": content(Path(settings["out"]))}


def committed(out: Path) -> set[tuple[str, Any]]:
    """The edits and fits that are in the store, named as a worker's log names them."""
    if not (out / "run.sqlite").exists():
        return set()
    with Store(out / "run.sqlite") as store:
        fits = {("fit", id) for id in store.fit_ids()}
        edits = store.edits()
    return fits | {
        ("write", derive_seed(0, "edit", edit.round, edit.document_id, edit.writer, edit.index)) for edit in edits
    }


def test_a_run_killed_at_twenty_moments_equals_an_uninterrupted_one(
    server: Server, settings: dict[str, Any], whole: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    mine = {**settings, "out": str(out)}
    generator = random.Random(0)
    # Four times at the very beginning, wherever the clock falls.
    for _ in range(4):
        assert server.run(mine, kill_after=generator.random() * 0.15)["signal"] == signal.SIGKILL
    # Events of all lives together stay below those of a whole run, so that none of them comes to its end.
    shares = [generator.random() for _ in range(KILLS)]
    moments: Counter[str] = Counter()
    for share in shares:
        before = committed(out)
        found = server.run(mine, kill_at=1 + int(0.95 * whole["events"] * share / sum(shares)))
        assert found["signal"] == signal.SIGKILL
        moments[found["begun"].pop()[1]] += 1
        assert not before & set(found["begun"]), "a committed edit or fit was done again"
    assert moments["a transaction"] >= 5
    assert len(moments) >= 2
    assert not (out / "summary.json").exists()

    before = committed(out)
    last = server.run(mine)
    assert last["signal"] is None
    assert not before & set(last["begun"])
    after = content(out)
    for name, expected in whole["content"].items():
        assert after[name] == expected, name


def test_a_long_fit_killed_at_any_moment_ends_with_the_same_adapter(
    server: Server, make: Make, quick: dict[str, Any]
) -> None:
    """One fit of 16 steps with dropout and an exam, saved after each step."""
    more = {"references": False, "checkpoint_minutes": ALWAYS, "set": {**quick["set"], "dropout": 0.1}}
    mine = make(LearnSettings, 4, editor="passage", **more).model_dump(mode="json")
    out = Path(mine["out"])
    whole = server.run({**mine, "out": str(out.with_name("whole"))}, procedure="learn")
    # The first life ends before the fit is under way; the others in the midst of it, or of what they save of it.
    lives = [("a transaction", 12), *(("a step", 4), ("a file", 10)) * 3]
    states = set()
    for only, event in lives:
        found = server.run(mine, procedure="learn", only=only, kill_at=event)
        assert found["signal"] == signal.SIGKILL
        assert found["begun"][-1][1].startswith(only)
        states |= {file.read_bytes() for file in out.glob("unfinished/*.safetensors")}
    assert len(states) == 6
    last = server.run(mine, procedure="learn")
    assert "error" not in last
    assert last["events"] < whole["events"]
    assert files(out / "adapters" / "learned") == files(out.with_name("whole") / "adapters" / "learned")
    assert left_over(out) == []
    assert events(out, "checkpoint") == []
    with (
        Store(out / "run.sqlite", readonly=True) as own,
        Store(out.with_name("whole") / "run.sqlite", readonly=True) as theirs,
    ):
        assert own.scored_answers("lexical") == theirs.scored_answers("lexical") != []
        assert own.curves() == theirs.curves()


def test_a_second_process_is_refused(server: Server, settings: dict[str, Any], tmp_path: Path) -> None:
    mine = {**settings, "out": str(tmp_path / "run")}
    found = server.run(mine, stop_at=60)
    assert found["signal"] == signal.SIGSTOP
    try:
        with pytest.raises(
            UserError, match=rf"run: in use by process {found['pid']} on .*; wait until it ends"
        ) as raised:
            train(TrainSettings(**mine))
        assert "\n" not in str(raised.value)
    finally:
        os.kill(found["pid"], signal.SIGKILL)


@pytest.mark.parametrize("limit", [20_000, 150_000])
def test_a_full_disk_is_one_clear_line_and_the_run_goes_on_afterwards(
    server: Server, settings: dict[str, Any], whole: dict[str, Any], tmp_path: Path, limit: int
) -> None:
    out = tmp_path / "full"
    mine = {**settings, "out": str(out)}
    found = server.run(mine, file_limit=limit)
    assert "make room and give the same command again" in found["error"]
    assert "\n" not in found["error"]
    before = committed(out)
    again = server.run(mine)
    assert "error" not in again
    assert not before & set(again["begun"])
    assert content(out) == whole["content"]


def test_a_run_is_left_under_its_lock_whatever_happens(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, left = make(LearnSettings, 1), []

    class Watched(RunLock):
        def release(self) -> None:
            left.append((settings.out / "config.yaml").exists())
            super().release()

    monkeypatch.setattr(directory, "RunLock", Watched)
    with pytest.raises(UserError, match="made up"), Run("learn", settings):
        raise UserError("made up")
    assert left == [False], "what was removed could be another process's by then"
    with pytest.raises(RuntimeError, match="lost"), Run("learn", settings) as run:
        monkeypatch.setattr(run.workers, "close", lost)
    assert left == [False, True]


def lost() -> None:
    raise RuntimeError("the pool is lost")
