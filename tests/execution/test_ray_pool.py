"""The pool on Ray: every task once, whatever becomes of the workers; what the user sees.  Its workers need no model."""

from __future__ import annotations

import asyncio
import os
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import psutil
import pytest
from fakes import FakeSource, answer, task

from selfedit.errors import UserError
from selfedit.execution import ray_cluster, ray_pool
from selfedit.execution.schedule import Schedule
from selfedit.execution.tasks import TaskResult
from waiting import wait_until

MakePool = Callable[..., Any]


def began(folder: Path) -> Counter[str]:
    """How often each task was begun."""
    return Counter(line.split()[0] for line in (folder / "began").read_text().splitlines())


def in_state(pool: Any, state: str) -> int:
    return sum(worker.state == state for worker in pool.workers)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_tasks_come_back_once_whatever_befalls_the_workers(
    make_pool: MakePool, ray_cluster: Any, notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pool, one misfortune after another: starting processes is what takes time here."""
    slow_seconds = 60.0
    monkeypatch.setattr(ray_pool, "Schedule", lambda tasks: Schedule(tasks, slow_seconds=slow_seconds))
    tokens: list[int] = []
    pool = make_pool(FakeSource(str(tmp_path)), workers=2, on_tokens=tokens.append)
    assert (pool.description, pool.context_length, pool.tokenizer) == ("cpu, float32", 128, "a tokenizer")

    wait_until(lambda: in_state(pool, "idle") == 2)

    # All is well; two policies, and the driver takes its time with the results.
    pool.publish("r1", {"a": b"one"})
    pool.publish("r2", {"b": b"two"})
    tasks = [task(f"plain/{k}", milliseconds=30 + k) for k in range(12)]
    tasks += [task(f"policy/{k}", policy=("r1", "r2")) for k in range(4)]
    found: list[TaskResult] = []
    for result in pool.run(tasks):
        time.sleep(0.02)
        found.append(result)
    assert sorted(r.task_id for r in found) == sorted(u.id for u in tasks)
    for result in found:
        assert result.error is None
        assert result.completions == answer(result.task_id, b"onetwo" if "policy" in result.task_id else b"")
    assert sum(tokens) == sum(u.requests[0].max_new_tokens for u in tasks)
    assert set(began(tmp_path).values()) == {1}

    # The workers' logs name the task.
    folder = Path(ray_cluster.head_node.get_session_dir_path()) / "logs"
    for worker in pool.workers:
        (log,) = folder.glob(f"worker-*-{worker.pid}.err")
        assert re.search(rf"worker {worker.number} \[(plain|policy)/\d+\] INFO begins", log.read_text())
    wait_until(lambda: all(worker.state == "idle" for worker in pool.workers))

    # A task that raises is given up after three tries, one that is too big is done with less memory, the others are not
    # touched.
    tasks = [task("raises/0"), task("hungry/0"), *[task(f"beside/{k}") for k in range(4)]]
    results = {r.task_id: r for r in pool.run(tasks)}
    assert set(results) == {u.id for u in tasks}
    assert results.pop("raises/0").error == "failed 3 times, at last with RuntimeError: this task never works"
    assert all(r.completions == answer(name) for name, r in results.items())
    counts = began(tmp_path)
    assert counts["raises/0"] == 3
    assert counts["hungry/0"] == 2
    assert "half of its memory" in " ".join(notes)

    # A worker dies at a task: another takes over, but not more than twice.
    assert [r.completions for r in pool.run([task("kills-once/0")])] == [answer("kills-once/0")]
    assert "its process was killed" in " ".join(notes)
    assert [r.error for r in pool.run([task("kills/0")])] == [
        "failed 3 times, at last with a lost worker (its process was killed)"
    ]
    assert began(tmp_path)["kills/0"] == 3

    # The caller stops in the middle: the next run is not disturbed.
    tasks = [task(f"never/{k}", milliseconds=300) for k in range(6)]
    results_of_run = pool.run(tasks)
    next(results_of_run)
    results_of_run.close()
    assert [r.task_id for r in pool.run([task("after/0")])] == ["after/0"]
    assert list(pool.run([])) == []

    # A worker hangs at a task: it is done by another as well, and counted once.
    slow_seconds = 0.5
    wait_until(lambda: in_state(pool, "idle") == 2)
    tasks = [task(f"quick/{k}", milliseconds=100) for k in range(4)] + [task("slow-once/0", milliseconds=110)]
    names = [r.task_id for r in pool.run(tasks)]
    assert sorted(names) == sorted(u.id for u in tasks)
    assert began(tmp_path)["slow-once/0"] == 2
    assert any("slow-once/0 is slow: worker" in note for note in notes)


def test_workers_killed_at_random_lose_nothing(make_pool: MakePool, notes: list[str], tmp_path: Path) -> None:
    pool = make_pool(FakeSource(str(tmp_path)), workers=3)
    tasks = [task(f"work/{k}", milliseconds=100 + k) for k in range(30)]
    choose = random.Random(0)
    results = []
    killed: list[int] = []
    for result in pool.run(tasks):
        results.append(result)
        # One that was killed may seem to work for a moment.
        working = [worker.pid for worker in pool.workers if worker.state == "working" and worker.pid not in killed]
        if len(results) >= 6 * (len(killed) + 1) and working:
            killed.append(choose.choice(working))
            os.kill(killed[-1], signal.SIGKILL)
    assert Counter(r.task_id for r in results) == Counter(u.id for u in tasks)
    assert all(r.completions == answer(r.task_id) for r in results)
    assert sum("is lost" in note for note in notes) >= 3


def test_machines_come_and_go_during_a_run(
    make_pool: MakePool, notes: list[str], tmp_path: Path, ray_cluster: Any
) -> None:
    # Without a number of workers, as many as fit: the first machine has room for one.
    pool = make_pool(FakeSource(str(tmp_path)), address=ray_cluster.address, cpus_per_worker=3)
    tasks = [task(f"gate-open/{k}") for k in range(8)]
    found: list[TaskResult] = []
    consumer = threading.Thread(target=lambda: found.extend(pool.run(tasks)))
    consumer.start()
    wait_until(lambda: in_state(pool, "working") == 1)
    second = ray_cluster.add_node(num_cpus=3, object_store_memory=80_000_000)
    wait_until(lambda: in_state(pool, "working") == 2)
    ray_cluster.remove_node(second)
    wait_until(lambda: in_state(pool, "waiting") == 1)
    third = ray_cluster.add_node(num_cpus=3, object_store_memory=80_000_000)
    wait_until(lambda: in_state(pool, "working") == 2)
    ray_cluster.remove_node(third)
    wait_until(lambda: in_state(pool, "waiting") == 1)
    (tmp_path / "gate-open").touch()
    consumer.join()
    assert Counter(r.task_id for r in found) == Counter(u.id for u in tasks)
    assert all(r.completions == answer(r.task_id) for r in found)
    assert any("is lost" in note for note in notes)


DRIVER = """
import sys, ray, fakes
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
ray.cloudpickle.register_pickle_by_value(fakes)
from selfedit.execution.ray_pool import RayPool
pool = RayPool(fakes.FakeSource(sys.argv[2]), workers=1, cpus_per_worker=1)
next(pool.run([fakes.task("a/0"), fakes.task("b/0", milliseconds=60000)][::-1]))
"""


def test_workers_of_a_killed_driver_end(ray_cluster: Any, tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, ray_cluster.address, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    try:
        wait_until(lambda: (tmp_path / "began").exists())
    finally:
        driver.kill()
        driver.wait()
    pid = int((tmp_path / "began").read_text().split()[1])
    wait_until(lambda: not alive(pid))


LOCAL_DRIVER = """
import sys, ray, fakes
ray.cloudpickle.register_pickle_by_value(fakes)
from selfedit.execution.ray_pool import RayPool
pool = RayPool(fakes.FakeSource(sys.argv[1]), workers=1, cpus_per_worker=1, dashboard=False)
next(pool.run([fakes.task("a/0", milliseconds=60000)]))
"""


def test_nothing_of_a_local_ray_outlives_a_killed_driver(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    driver = subprocess.Popen(
        [sys.executable, "-c", LOCAL_DRIVER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    try:
        wait_until(lambda: (tmp_path / "began").exists())
        started = psutil.Process(driver.pid).children(recursive=True)
        agents = [process for process in started if "Agent" in process.name()]
        assert len(agents) == 2
        # Stopped, they cannot end by themselves, which they would after a minute.
        for agent in agents:
            agent.suspend()
    finally:
        driver.kill()
        driver.wait()
    wait_until(lambda: not any(alive(process.pid) for process in started))


CLIENT = """
import sys, ray, fakes
ray.cloudpickle.register_pickle_by_value(fakes)
from selfedit.execution.ray_pool import RayPool
pool = RayPool(fakes.FakeSource(sys.argv[2]), address=sys.argv[1], workers=1, cpus_per_worker=1)
print(sorted(result.task_id for result in pool.run([fakes.task("a/0"), fakes.task("b/0")])))
pool.close()
"""


def test_a_cluster_is_joined_through_ray_client(ray_cluster: Any, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, ray_cluster.client_address, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip() == "['a/0', 'b/0']", done.stderr
    assert began(tmp_path) == {"a/0": 1, "b/0": 1}


# What the user can get wrong: one line each.


def test_what_the_first_worker_works_in_is_known_before_anybody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller may still load the tokenizer when the second worker is ready, and a third cannot be used."""
    pool = ray_pool.RayPool.__new__(ray_pool.RayPool)
    share = SimpleNamespace(gpus=0, of_memory=lambda node: 0.5)
    vars(pool).update(_first="", _share=share, _source=None, _ray=SimpleNamespace(nodes=list))
    pool._outbox = queue.SimpleQueue()
    pool.workers = [ray_pool.RayWorker(number, MagicMock()) for number in (1, 2, 3)]
    for worker, dtype in zip(pool.workers[:2], ("float32", "bfloat16"), strict=True):
        answer = {"host": "here", "node": "", "pid": 1, "differences": [], "seconds": 1.0}
        answer |= {"description": f"cpu, {dtype}", "context_length": 128, "memory": 1000}
        monkeypatch.setattr(ray_pool, "_answer", AsyncMock(return_value=answer))
        asyncio.run(pool._start(worker))
    pool._refuse(pool.workers[2], "no GPU")
    said = [pool._outbox.get() for _ in range(pool._outbox.qsize())]
    assert [value for kind, _, value in said if kind == "ready"] == [(128, "cpu, float32", 500)]
    notes = " ".join(value for kind, _, value in said if kind == "note")
    assert "worker 2 works in cpu, bfloat16, the first of this run in cpu, float32" in notes


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as raised:
        call()
    line = str(raised.value)
    assert "\n" not in line
    return line


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refused(lambda: ray_pool.RayPool(FakeSource(str(tmp_path)), workers=1))
    assert line == "--workers and --ray need Ray: pip install 'selfedit[cluster]'"


@pytest.mark.parametrize(
    ("message", "kind"), [("The current node timed out during startup.", UserError), ("of another kind", Exception)]
)
def test_a_local_ray_that_does_not_come_up_is_told(message: str, kind: type[Exception]) -> None:
    ray = SimpleNamespace(init=MagicMock(side_effect=Exception(message)))
    with pytest.raises(Exception, match="Ray did not start on this machine" if kind is UserError else message) as told:
        ray_cluster.start_local(ray, 2, False)
    assert type(told.value) is kind


@pytest.mark.parametrize("address", ["nonsense", "ray://host", "host:", ":6379", "ray://host:x"])
def test_what_is_no_address_is_refused(address: str) -> None:
    import ray

    assert refused(lambda: ray_cluster.connect(ray, address)).startswith(f"--ray {address}: not an address; use auto")


def test_a_cluster_that_does_not_answer_is_named() -> None:
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"ray://127.0.0.1:{free.getsockname()[1]}"
    line = refused(lambda: ray_cluster.connect(ray, address))
    assert line.startswith(f"--ray {address}: nothing answers there")


def test_no_cluster_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(**_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    assert refused(lambda: ray_cluster.connect(ray, "auto")).startswith(
        "--ray auto: cannot join the cluster (Could not find"
    )


def test_another_python_on_the_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray._private.utils import check_version_info

    def init(**_: Any) -> None:
        check_version_info({"ray_version": ray.__version__, "python_version": "3.9.1"}, "this machine")

    monkeypatch.setattr(ray, "init", init)
    line = refused(lambda: ray_cluster.connect(ray, "auto"))
    assert line.startswith("--ray auto: other versions than here (")
    assert "Python: 3.9.1" in line


def test_another_selfedit_on_a_worker_is_named(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray_pool, "version", lambda _: "99.0")
    line = refused(lambda: make_pool(FakeSource(str(tmp_path)), workers=1))
    assert line.startswith(f"{socket.gethostname()} (")
    assert " has selfedit 0" in line
    assert line.endswith("this machine 99.0; install the same on both")


def test_a_gpu_that_is_not_there_is_named(make_pool: MakePool, tmp_path: Path) -> None:
    line = refused(lambda: make_pool(FakeSource(str(tmp_path)), workers=1, gpus_per_worker=0.5))
    assert line == "--gpus-per-worker: no machine of this Ray has a GPU; leave it out to work on CPUs"
    line = refused(lambda: make_pool(FakeSource(str(tmp_path), device="cuda"), workers=1))
    assert line.startswith("--device cuda: no machine of this Ray has a GPU")


def test_a_worker_that_fits_nowhere_is_refused(make_pool: MakePool, tmp_path: Path) -> None:
    line = refused(lambda: make_pool(FakeSource(str(tmp_path)), workers=1, cpus_per_worker=64))
    assert line.startswith("a worker takes 64 CPUs and 0 GPUs, and no machine of this Ray has as many")


def test_a_model_folder_that_workers_do_not_see_is_named(make_pool: MakePool, tmp_path: Path) -> None:
    problem = "model x: not a local folder with a causal language model, and not loadable from the hub (...)"
    source = FakeSource(str(tmp_path), name=str(tmp_path), problem=problem)
    line = refused(lambda: make_pool(source, workers=1))
    assert line.startswith(f"{socket.gethostname()} (")
    assert f" does not see the model folder {tmp_path}; put it where all machines see it" in line


def test_workers_that_die_at_the_start_are_given_up(
    make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool, "_STARTS", 2)  # three by default
    line = refused(lambda: make_pool(FakeSource(str(tmp_path), problem="die"), workers=1))
    assert line == "worker 1 could not be started 2 times (its process was killed)"


def test_the_one_private_name_of_ray_does_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    ray = ray_cluster.import_ray()
    lost = {"pid": "raylet", "lines": ["A worker died or was killed while executing a task."]}
    try:
        ray._private.worker.print_worker_logs(lost, sys.stdout)
        broken = "is not heeded" if capsys.readouterr().out else ""
    except (AttributeError, TypeError) as error:
        broken = str(error)
    name = "ray._private.worker._worker_logs_enabled"
    assert not broken, f"Ray {ray.__version__} broke {name} ({broken}); src/selfedit/execution/ray_cluster.py uses it"
    private = re.compile(r"ray\.(?:\w+\.)*_\w[\w.]*")
    sources = Path(ray_cluster.__file__).parents[1].rglob("*.py")
    assert {found for file in sources for found in private.findall(file.read_text(encoding="utf-8"))} == {name}
