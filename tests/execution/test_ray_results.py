"""The same run with any number of workers, with workers killed, and interrupted, gives the same edits, answers, rewards
and policy."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from test_sharing import long_task

from selfedit.cli.main import main
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
from waiting import wait_until

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


def compare_words(documents: Path, model: Path, out: Path) -> list[str]:
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


def test_ctrl_c_ends_workers_and_the_command_goes_on(
    ray_cluster: Any, documents: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    assert main(compare_words(documents, tiny_folder, tmp_path / "whole")) == 0
    command = compare_words(documents, tiny_folder, tmp_path / "run")
    began = time.monotonic()
    run = start([*command, "--workers=2", "--cpus-per-worker=1"], tmp_path / "run")
    try:
        while adapted(tmp_path / "run") < 2:
            assert run.poll() is None, (tmp_path / "run.log").read_text()
            assert time.monotonic() < began + 300, "no fit was committed"
            time.sleep(0.05)
        everything = psutil.Process(run.pid).children(recursive=True)
        assert any("selfedit" in process.name() or "ray::" in process.name() for process in everything)
        told = time.monotonic()
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(120) == 130
        # However busy the machine is: to start takes 15 s by itself, to end one.
        assert time.monotonic() - told < (told - began) / 3
    finally:
        run.kill()
    done = adapted(tmp_path / "run")
    assert done < adapted(tmp_path / "whole")
    assert (tmp_path / "run.log").read_text().count("interrupted; the same command goes on from here") == 1
    _, left = psutil.wait_procs(everything, timeout=60)
    assert not left

    # On the tests' Ray now, and with one worker.
    assert main([*command, "--workers=1", "--cpus-per-worker=1"]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["workers"] == 1
    assert fits(tmp_path / "run") == fits(tmp_path / "whole")
    assert scores(tmp_path / "run") == scores(tmp_path / "whole")


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

    wait_until(lambda: all(worker.state == "idle" for worker in pool.workers), 300)
    killed: list[int] = []

    def kill_a_helper() -> None:
        wait_until(helpers, 300)
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
