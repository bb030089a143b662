"""A store that was interrupted, opened again or lost power holds whole tasks; going on equals never having stopped.

`tests/methods/test_resume.py` kills whole runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks_of_work import Experiment, content, make_experiment, whole_tasks

from selfedit.runs.store import Store


def uninterrupted(path: Path, experiment: Experiment) -> dict[str, list[tuple[object, ...]]]:
    with Store(path) as store:
        experiment.prepare(store)
        for task in range(experiment.tasks):
            experiment.write(store, task)
    return content(path)


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
