"""A run that was killed, interrupted or lost power holds whole tasks; going on equals never having stopped."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks_of_work import Experiment, content, make_experiment, whole_tasks

from selfedit.runs.store import Store

KILLS = 20
UNITS_A_LIFE = 9

# Writes at most `tasks` tasks, then waits; stops and waits at a statement of the last one, where `statement` names one.
WRITER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tasks_of_work import make_experiment
from selfedit.runs.directory import RunDirectory
experiment = make_experiment(int(sys.argv[3]))
tasks, statement = int(sys.argv[4]), int(sys.argv[5])
def step():
    global statement
    if tasks == 1:
        if statement == 0:
            print("inside", flush=True)
            time.sleep(600)
        statement -= 1
with RunDirectory.open(Path(sys.argv[2]), {"tasks": experiment.tasks}) as run:
    experiment.prepare(run.store)
    for task in range(experiment.tasks):
        if not experiment.is_done(run.store, task):
            print("begin", task, flush=True)
            experiment.write(run.store, task, step)
            print("done", task, flush=True)
            tasks -= 1
            if tasks == 0:
                time.sleep(600)
"""


def start_writer(run: Path, experiment: Experiment, tasks: int, statement: int) -> subprocess.Popen[str]:
    numbers = map(str, (experiment.tasks, tasks, statement))
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(run), *numbers]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def uninterrupted(path: Path, experiment: Experiment) -> dict[str, list[tuple[object, ...]]]:
    with Store(path) as store:
        experiment.prepare(store)
        for task in range(experiment.tasks):
            experiment.write(store, task)
    return content(path)


def test_a_run_killed_at_twenty_moments_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Every second kill falls inside a transaction for certain, the others where they fall."""
    experiment = make_experiment(KILLS * UNITS_A_LIFE)
    run = tmp_path / "run"
    generator = random.Random(0)
    committed = [0]
    for kill in range(KILLS):
        inside = kill % 2 == 1
        tasks = generator.randrange(1, UNITS_A_LIFE)
        writer = start_writer(run, experiment, tasks, generator.randrange(6) if inside else -1)
        assert writer.stdout is not None
        if inside:
            while writer.stdout.readline() != "inside\n":
                assert writer.poll() is None
        elif kill > 4:
            for _ in range(generator.randrange(1, 2 * tasks)):
                assert writer.stdout.readline()
            time.sleep(generator.random() * 0.01)
        else:  # may fall before, or into, the making of the directory and the store
            time.sleep(0.1 + generator.random() * 0.2)
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        if not (run / "run.sqlite").exists():
            continue
        with Store(run / "run.sqlite") as store:
            committed.append(sum(experiment.is_done(store, task) for task in range(experiment.tasks)))
        assert whole_tasks(run / "run.sqlite", experiment) == committed[-1]
        if inside and kill > 1:
            assert committed[-1] == committed[-2] + tasks - 1
    assert committed == sorted(committed), "a later kill lost a finished task"

    last_life = start_writer(run, experiment, -1, -1)
    begun = [line for line in last_life.communicate()[0].splitlines() if line.startswith("begin")]
    assert last_life.returncode == 0
    assert len(begun) == experiment.tasks - committed[-1] > 0, "a finished task was done again"
    assert content(run / "run.sqlite") == uninterrupted(tmp_path / "whole.sqlite", experiment)


class Stop(Exception):
    """An interruption inside a task."""


def crash_image(store: Path, to: Path, lost_bytes: int) -> None:
    """Copy the store as a power cut would leave it, less the last bytes of the log."""
    for suffix in ("", "-wal"):
        source = Path(f"{store}{suffix}")
        if source.exists():
            shutil.copy(source, f"{to}{suffix}")
    log = Path(f"{to}-wal")
    if log.exists():
        with open(log, "r+b") as file:
            file.truncate(max(0, log.stat().st_size - lost_bytes))


TASKS = 6
WHOLE: dict[str, list[tuple[object, ...]]] = {}


@pytest.fixture(scope="module", autouse=True)
def _whole(tmp_path_factory: pytest.TempPathFactory) -> None:
    WHOLE.update(uninterrupted(tmp_path_factory.mktemp("whole") / "run.sqlite", make_experiment(TASKS)))


# One attempt at a task: which, how it is interrupted, at which of its statements, how many bytes of the log are lost.
ATTEMPTS = st.lists(
    st.tuples(
        st.integers(0, TASKS - 1),
        st.sampled_from(["finish", "exception", "reopen", "power cut"]),
        st.integers(0, 12),
        st.integers(0, 40_000),
    ),
    max_size=10,
)


@settings(max_examples=60, deadline=None)
@given(attempts=ATTEMPTS, order=st.permutations(range(TASKS)))
def test_any_interleaving_of_interrupted_writes_equals_the_uninterrupted(
    attempts: list[tuple[int, str, int, int]], order: list[int]
) -> None:
    experiment = make_experiment(TASKS)
    with TemporaryDirectory() as folder:
        path = Path(folder, "0.sqlite")
        store = Store(path)
        experiment.prepare(store)
        for number, (task, how, at, lost) in enumerate(attempts, 1):
            if experiment.is_done(store, task):
                continue
            image = Path(folder, f"{number}.sqlite")
            steps = iter(range(1000))

            def step(how: str = how, at: int = at, lost: int = lost, image: Path = image, steps=steps) -> None:
                if how != "finish" and next(steps) == at:
                    if how == "power cut":
                        crash_image(store.path, image, lost)  # noqa: B023 (called before the loop goes on)
                    raise Stop

            try:
                experiment.write(store, task, step)
            except Stop:
                if how == "reopen":
                    store.close()
                    store = Store(store.path)
                elif how == "power cut":
                    store.close()
                    store = Store(image)
                    experiment.prepare(store)
            assert whole_tasks(store.path, experiment) == sum(experiment.is_done(store, task) for task in range(TASKS))
        for task in order:
            if not experiment.is_done(store, task):
                experiment.write(store, task)
        store.close()
        assert content(store.path) == WHOLE
