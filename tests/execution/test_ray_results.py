"""The same run with any number of workers, and with workers killed, gives the same edits, answers, rewards and
policy."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_sharing import long_task

from selfedit.engine import DecodeRequest
from selfedit.execution import ray_pool
from selfedit.execution.pool import InProcess
from selfedit.execution.ray_pool import RayPool
from selfedit.execution.tasks import CompletionTask, FitTask
from selfedit.execution.worker import ModelSource
from selfedit.methods.continual import continual
from selfedit.methods.restem import train
from selfedit.methods.settings import ContinualSettings, TrainSettings, make_settings
from selfedit.runs.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def workers(ray_cluster: Any, tiny_folder: Path) -> Iterator[RayPool]:
    """Three, for all tests here: to start a worker takes longer than what it does."""
    pool = RayPool(ModelSource(str(tiny_folder), device="cpu", dtype="float32"), workers=3, cpus_per_worker=1)
    yield pool
    pool.close()


@pytest.fixture
def pool(workers: RayPool, notes: list[str]) -> RayPool:
    """The three workers; what their pool notes during a test is in `notes`."""
    workers.on_note = notes.append
    return workers


@pytest.fixture
def train_with(documents: Path, tiny_folder: Path, tmp_path: Path) -> Callable[[str, Any], dict[str, Any]]:
    """`train_with(name, pool)`: two small rounds of Step B; everything that must not depend on the pool."""

    def run(name: str, pool: Any) -> dict[str, Any]:
        settings = make_settings(
            TrainSettings,
            {
                "model": str(tiny_folder),
                "device": "cpu",
                "dtype": "float32",
                "documents": (str(documents),),
                "out": tmp_path / name,
                "rounds": 2,
                "edits": 2,
                "replicates": 2,
                "validation_share": 0.34,
                "max_edit_tokens": 24,
                "max_answer_tokens": 4,
                "clean": False,  # the tiny model's lines are about nothing
                "grader": "lexical",
                "general_questions": 1,
                "task_size": 3,
                "set": {"epochs": 2},
                "outer_set": {"epochs": 1},
            },
        )
        train(settings, pool=pool)
        with RunDirectory.read(settings.out) as made:
            store = made.store
            checkpoints = sorted((settings.out / "checkpoints").rglob("*"))
            return {
                "edits": store.edits(),
                "rows": [
                    store._rows(f"SELECT {columns} FROM {table} ORDER BY {columns}")
                    for table, columns in (
                        ("fits", "id, status, train_tokens, steps, first_loss, last_loss"),
                        ("answers", "fit_id, question_id, text, tokens"),
                        ("rounds", "round, train_reward, validation_accuracy, kept_edits"),
                        ("events", "kind, subject, message"),
                    )
                ],
                "selected": made.read_summary().selected_round,
                "policies": {
                    str(file.relative_to(settings.out)): file.read_bytes() for file in checkpoints if file.is_file()
                },
            }

    return run


def test_results_do_not_depend_on_the_workers(
    train_with: Callable[[str, Any], dict[str, Any]], pool: Any, notes: list[str]
) -> None:
    expected = train_with("none", InProcess(pool.source))
    assert len(expected["edits"]) > 16
    assert any(edit.kept for edit in expected["edits"])
    assert len(expected["policies"]) >= 4

    assert train_with("three", pool) == expected

    # Every second one of those at work is killed; a task that is done for the third time is spared.
    over = threading.Event()
    killed: list[int] = []
    tasks: Counter[str] = Counter()

    def kill() -> None:
        while not over.wait(1.0):
            for worker in pool.workers:
                pid, task = worker.pid, worker.task
                if task != "-" and pid not in killed and tasks[task] < 2 and len(killed) < 3:
                    tasks[task] += 1
                    killed.append(pid)
                    os.kill(pid, signal.SIGKILL)
                    time.sleep(2.0)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = train_with("killed", pool)
    finally:
        over.set()
        killer.join()
    assert found == expected
    assert killed
    assert any("is lost" in note for note in notes)


def test_adapters_that_stand_on_others_are_trained_on_any_worker(
    pool: Any, documents: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    small = {"max_answer_tokens": 4, "general_questions": 1, "task_size": 1, "set": {"epochs": 2}}
    found = []
    for name, where in (("none", InProcess(pool.source)), ("three", pool)):
        lanes = {"editor": "passage", "retain": ("edits", "kl"), "sequences": 2, "length": 2, "out": tmp_path / name}
        common = {"model": str(tiny_folder), "device": "cpu", "dtype": "float32", "documents": (str(documents),)}
        found.append(continual(make_settings(ContinualSettings, {**common, **small, **lanes}), pool=where).retention)
    assert found[0] == found[1]
    files = [
        {file.relative_to(run): file.read_bytes() for file in run.rglob("*.safetensors")}
        for run in (tmp_path / "none", tmp_path / "three")
    ]
    assert len(files[0]) == 8
    assert files[0] == files[1]


def test_workers_load_another_model_that_a_task_names(pool: Any, tiny_folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    other = tmp_path / "other"
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(other)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_folder)).save_pretrained(other)
    requests = tuple(DecodeRequest(tuple(range(3, 3 + n)), 8, temperature=1.0, seed=n) for n in (4, 5, 6))
    tasks = [CompletionTask(f"edits/{model}", (), requests, model=model) for model in (str(other), "")]
    expected = {result.task_id: result.completions for result in InProcess(pool.source).run(tasks)}
    assert expected["edits/"] != expected[f"edits/{other}"]
    assert {result.task_id: result.completions for result in pool.run(tasks)} == expected


def test_a_fit_shared_by_workers_is_the_same_whoever_is_lost(
    pool: Any, ray_cluster: Any, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool, "_TICK", 0.1)  # so that helpers are told long before a short fit ends
    task = long_task(steps=20, dropout=0.1)
    (expected,) = next(InProcess(pool.source).run([task])).outcomes

    logs = Path(ray_cluster.head_node.get_session_dir_path()) / "logs"

    def helpers() -> list[Any]:
        return [
            worker
            for worker in pool.workers
            if any("helps with editor" in log.read_text() for log in logs.glob(f"worker-*-{worker.pid}.err"))
        ]

    def wait_until(found: Callable[[], Any]) -> None:
        until = time.monotonic() + 300
        while not found():
            assert time.monotonic() < until
            time.sleep(0.05)

    wait_until(lambda: all(worker.state == "idle" for worker in pool.workers))
    killed: list[int] = []

    def kill_a_helper() -> None:
        wait_until(helpers)
        helper = helpers()[0]
        assert helper.state == "idle"
        killed.append(helper.pid)
        os.kill(helper.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_a_helper)
    killer.start()
    (result,) = pool.run([task])
    killer.join()
    assert killed
    (found,) = result.outcomes
    assert found.result == expected.result
    assert found.adapter == expected.adapter

    # A worker that helped does its own tasks as before; the one that was killed has another in its place.
    short = long_task(steps=1)
    expected_short = next(InProcess(pool.source).run([short])).outcomes[0].adapter
    tasks = [FitTask(f"short/{k}", (), short.lora, short.fits, memory=short.memory) for k in range(3)]
    assert all(result.outcomes[0].adapter == expected_short for result in pool.run(tasks))
    assert "is lost" in " ".join(notes)
