"""Ctrl-C in a terminal while workers are at their tasks: the command ends, nothing stays, the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from selfedit.cli.main import main

# Long enough that some fits are done and some are not when it is interrupted.
WORDS = [
    *("compare", "--editor=passage", "--editor=self", "--device=cpu", "--dtype=float32", "--grader=lexical"),
    *(
        "--max-edit-tokens=16",
        "--max-answer-tokens=4",
        "--general-questions=0",
        "--general-texts=0",
        "--neighbour-questions=0",
        "--task-size=1",
        "--limit=4",
        "--set=epochs=60",
    ),
]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def words(documents: Path, model: Path, out: Path) -> list[str]:
    return [*WORDS, f"--model={model}", f"--documents={documents}", f"--out={out}"]


def start(command: list[str], out: Path) -> subprocess.Popen[bytes]:
    with (out.parent / f"{out.name}.log").open("ab") as log:
        # As a terminal does: a process group of its own, which gets the signal as a whole.
        return subprocess.Popen(
            [sys.executable, "-m", "selfedit", *command],
            stdout=log,
            stderr=log,
            env=ALONE,
            process_group=0,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # also where the tests ignore it
        )


def fits(out: Path) -> list[Any]:
    if not (out / "run.sqlite").exists():
        return []
    with closing(sqlite3.connect(out / "run.sqlite")) as connection:
        try:
            return connection.execute(
                "SELECT fits.id, steps, first_loss, last_loss, question_id, text"
                " FROM fits JOIN answers ON fits.id = fit_id ORDER BY 1, 5"
            ).fetchall()
        except sqlite3.OperationalError:  # no tables yet
            return []


def adapted(out: Path) -> int:
    return sum(row[1] > 0 for row in fits(out))


def scores(out: Path) -> Any:
    return [
        {key: value for key, value in bar.items() if "second" not in key}
        for bar in json.loads((out / "summary.json").read_text())["conditions"]
    ]


@pytest.mark.usefixtures("one_thread")
def test_ctrl_c_ends_workers_and_the_same_command_goes_on(documents: Path, tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    assert main(words(documents, tiny_folder, tmp_path / "whole")) == 0
    command = [*words(documents, tiny_folder, tmp_path / "run"), "--workers=2", "--cpus-per-worker=1"]
    run = start(command, tmp_path / "run")
    try:
        end = time.monotonic() + 200
        while adapted(tmp_path / "run") < 2:
            assert run.poll() is None, (tmp_path / "run.log").read_text()
            assert time.monotonic() < end, "no fit was committed"
            time.sleep(0.05)
        everything = psutil.Process(run.pid).children(recursive=True)
        assert any("selfedit" in process.name() or "ray::" in process.name() for process in everything)
        os.killpg(run.pid, signal.SIGINT)
        told = time.monotonic()
        assert run.wait(60) == 130
        assert time.monotonic() - told < 5
    finally:
        run.kill()
    done = adapted(tmp_path / "run")
    assert done < adapted(tmp_path / "whole")
    assert (tmp_path / "run.log").read_text().count("interrupted; the same command goes on from here") == 1
    _, left = psutil.wait_procs(everything, timeout=20)
    assert not left

    assert start(command, tmp_path / "run").wait(300) == 0
    assert fits(tmp_path / "run") == fits(tmp_path / "whole")
    assert scores(tmp_path / "run") == scores(tmp_path / "whole")
