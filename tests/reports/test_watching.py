"""`selfedit watch`: what it shows of a run, and when it ends."""

from __future__ import annotations

import io
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import fake_runs
import pytest
from rich.console import Console

from selfedit.errors import UserError
from selfedit.reports import watching
from selfedit.reports.records import read_run
from selfedit.runs.lock import RunLock, is_held


def watched(path: Path, *, terminal: bool = False) -> str:
    out = io.StringIO()
    watching.watch(path, Console(file=out, width=100, force_terminal=terminal), 1.0)
    return out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_under_way_is_shown_until_nobody_writes_it(
    partial_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    run = shutil.copytree(partial_run, tmp_path / "run")
    lock, looks = RunLock(run / "lock"), []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            lock.release()

    monkeypatch.setattr(watching.time, "sleep", sleep)
    assert is_held(run / "lock")
    shown = watched(run, terminal=terminal)
    assert looks == [1.0, 1.0]
    assert not is_held(run / "lock")
    assert "Nobody writes this run; its command goes on with it." in shown
    # Elsewhere than on a terminal, what has not changed is not printed again.
    assert terminal or shown.count("per device second") == 2
    for words in ("passage", "tokens", "US dollars", "s so far"):
        assert words in shown
    # Of a reproduction, the run that was written last.
    (tmp_path / "all" / "model").mkdir(parents=True)
    shutil.copytree(run, tmp_path / "all" / "model" / "compare")
    (tmp_path / "all" / "model" / "compare" / "gone").symlink_to("nowhere")  # a file that is removed meanwhile
    assert "model/compare" in watched(tmp_path / "all")
    # And of several models' runs, which have no lock in common.
    lock, looks[:] = RunLock(run / "lock"), []
    assert f"{run}  compare" in watched(tmp_path)
    assert looks == [1.0, 1.0]


def test_a_run_from_elsewhere_cannot_steer_the_terminal(partial_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(partial_run, tmp_path / "all" / "model" / "compare\x1b[2J")
    with sqlite3.connect(run / "run.sqlite") as store:
        store.execute("UPDATE edits SET writer = 'api:\x1b]0;owned\x07'")
    shown = watched(tmp_path / "all")
    assert "api:]0;owned: 6 of 6 documents lack fits." in shown
    assert "\x1b" not in shown


def test_a_finished_run_is_shown_once(train_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching.time, "sleep", lambda _: pytest.fail("it has ended"))
    shown = watched(train_run)
    for words in ("The run has finished.", "reward", "validation", "so far\n"):
        assert words in shown
    # One without an exam, such as `learn` of documents without questions, has no summary.
    learned = fake_runs.write_compare(tmp_path / "run", 1, ("passage",), questions=0, finished=False)
    assert "The run has finished." in watched(learned)


def test_the_time_left_is_that_of_the_fits_that_are_planned(partial_run: Path) -> None:
    run = read_run(partial_run)
    assert watching.planned_fits(run) == 2 * 2 * 6  # passage and replayed edits, twice, of each document
    half = replace(run, fits=[fit for fit in run.fits if fit.sequences][:8])
    told = watching._facts(replace(half, seconds=10.0))
    assert (told["fits"], told["time"]) == ("8 of 24", "10 s so far, about 20 s left")


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    for path, told in ((tmp_path, "not the directory of a run"), (tmp_path / "nowhere", "no such directory")):
        with pytest.raises(UserError, match=told):
            watched(path)


def test_a_curve_has_a_block_for_each_share_of_its_values() -> None:
    assert watching._curve([3.0, 2.0, 1.0]) == "█▅▁"
    assert watching._curve([1.0]) == "▁"
    assert len(watching._curve([float(k) for k in range(1000)])) == 40
