"""Several hosts on one machine: a round of Step B on three of them, one cut off in the middle, one joining late.

    python -m benchmarks.hosts [--keep-output DIR]

Makes network namespaces with their own addresses, joined by a bridge in a further namespace; starts a Ray head in one
and a worker machine in each of two others; runs a small `train` with the bundled model from the head, which holds no
worker.  When the first fits for rewards are done, host B's link goes down; then a third machine joins.  The result is
compared with the same run in a single process: edits, fits, answers, rewards and checkpoint must be equal.  The hosts
share the machine's disk, so this shows how machines are lost, not how a model is brought to them.

Needs Linux, root and `ip` (iproute2); says so and skips where one is missing.  Writes `benchmarks/results/hosts.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import processor
from selfedit.methods.restem import train
from selfedit.methods.settings import TrainSettings, make_settings
from selfedit.progress import Progress
from selfedit.runs.directory import RunDirectory

RESULTS = Path(__file__).parent / "results" / "hosts.json"
HEAD, PORT = "10.77.0.1", 6379
HOSTS = {"head": HEAD, "a": "10.77.0.2", "b": "10.77.0.3", "c": "10.77.0.4"}
SETTINGS = {
    "documents": ("news:train",),
    "validation_share": 0.25,
    "limit": 4,
    "rounds": 1,
    "edits": 2,
    "replicates": 2,
    "max_edit_tokens": 48,
    "max_answer_tokens": 12,
    "general_questions": 0,
    "general_texts": 0,
    "neighbour_questions": 0,
    "grader": "lexical",
    "task_size": 2,
    "device": "cpu",
    "dtype": "float32",
    "set": {"epochs": 1},
    "outer_set": {"epochs": 1},
}
# Ray notices a machine that is silent after (failures allowed) times (period); by default that takes half a minute
# longer.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
}
# Nobody else reaches the namespaces, so no token is needed.
ENVIRONMENT = {
    **os.environ,
    **HEALTH,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
}


def missing() -> str | None:
    """Why this cannot run here, or None."""
    if platform.system() != "Linux":
        return "network namespaces exist on Linux only"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    if shutil.which("ip") is None:
        return "the program ip (iproute2) is not installed"
    name = f"selfedit-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"this machine lets nobody make network namespaces ({made.stderr.strip()})"
    ip("netns", "del", name)
    return None


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Network:
    """A bridge, and hosts on it, each a namespace with one address."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.hub = self._namespace("hub")
        ip("-n", self.hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.hub, "link", "set", "bridge", "up")

    def add(self, host: str) -> None:
        namespace = self._namespace(host)
        ip("-n", self.hub, "link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("-n", self.hub, "link", "set", f"to-{host}", "master", "bridge", "up")
        ip("-n", namespace, "addr", "add", f"{HOSTS[host]}/24", "dev", "eth0")
        ip("-n", namespace, "link", "set", "eth0", "up")

    def cut(self, host: str) -> None:
        """From now on nothing reaches the host, and it reaches nobody."""
        ip("-n", self.hub, "link", "set", f"to-{host}", "down")

    def start(self, host: str, *command: str, output: Path) -> subprocess.Popen[bytes]:
        with output.open("wb") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self._name(host), *command], stdout=log, stderr=log, env=ENVIRONMENT
            )

    def processes(self, host: str) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self._name(host)], capture_output=True, text=True, check=True)
        return [int(pid) for pid in listed.stdout.split()]

    def _name(self, host: str) -> str:
        return f"selfedit-{os.getpid()}-{host}"

    def _namespace(self, host: str) -> str:
        name = self._name(host)
        ip("netns", "add", name)
        self.stack.callback(self._remove, host)
        ip("-n", name, "link", "set", "lo", "up")
        return name

    def _remove(self, host: str) -> None:
        for pid in self.processes(host):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        ip("netns", "del", self._name(host))


def start_ray(network: Network, host: str, folder: Path) -> None:
    """Ray on one host: the head without a place for workers, the others with one."""
    network.add(host)
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={HOSTS[host]}", f"--object-store-memory={100_000_000}"]
    if host == "head":
        # Ray's sockets lie here, and their paths have to be short.
        command += ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}"]
    else:
        command += [f"--address={HEAD}:{PORT}", "--num-cpus=1"]
    log = folder / f"{host}.log"
    started = network.start(host, *command, output=log)
    wait_for(f"Ray ran on host {host}", lambda: "Ray runtime started" in log.read_text(), started)


def drive(out: str, ray: str | None) -> None:
    """One run, here or on the hosts; its notes go to standard output."""

    class Notes(Progress):
        def note(self, line: str) -> None:
            print(f"{time.time():.1f} {line}", flush=True)

    values: dict[str, Any] = {**SETTINGS, "out": out}
    if ray is not None:
        values |= {"ray": ray, "cpus_per_worker": 1}
    train(make_settings(TrainSettings, values), progress=Notes())


def outcome(run: Path) -> dict[str, Any]:
    """Everything of a run that must not depend on where its work was done."""
    with RunDirectory.read(run) as directory:
        store = directory.store
        return {
            "edits": [(e.id, e.text, e.reward, e.kept) for e in store.edits()],
            "fits": store._rows("SELECT id, status, first_loss, last_loss FROM fits ORDER BY id"),
            "answers": store._rows("SELECT fit_id, question_id, text FROM answers ORDER BY fit_id, question_id"),
            "rounds": [(r.round, r.train_reward, r.validation_accuracy, r.kept_edits) for r in store.rounds()],
            "checkpoint": [file.read_bytes() for file in sorted((run / "checkpoints").rglob("*")) if file.is_file()],
        }


def wait_for(what: str, true: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 900.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        if process.poll() is not None:
            raise SystemExit(f"its process ended before {what}: see --keep-output")
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drive", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--ray", help=argparse.SUPPRESS)
    parser.add_argument("--keep-output", type=Path, help="keep the runs and the logs in this folder")
    arguments = parser.parse_args()
    if arguments.drive:
        drive(arguments.drive, arguments.ray)
        return 0
    if reason := missing():
        print(f"skipped: {reason}")
        return 0

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces go
    with ExitStack() as stack:
        # A short path, and Ray's own: sockets below it may have 107 characters.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hosts-")))
        if arguments.keep_output:
            stack.callback(shutil.copytree, folder, arguments.keep_output, ignore=_only_ours, dirs_exist_ok=True)
        me = [sys.executable, "-m", "benchmarks.hosts", "--drive"]

        started = time.monotonic()
        subprocess.run([*me, str(folder / "single")], check=True, env=ENVIRONMENT)
        single_seconds = time.monotonic() - started
        print(f"in a single process: {single_seconds:.0f} s", flush=True)

        network = Network(stack)
        for host in ("head", "a", "b"):
            start_ray(network, host, folder)
        started = time.monotonic()
        log = folder / "driver.log"
        driver = network.start("head", *me, str(folder / "hosts"), "--ray", f"{HEAD}:{PORT}", output=log)
        wait_for("both hosts worked", lambda: log.read_text().count("is ready") >= 2, driver)
        store = folder / "hosts" / "run.sqlite"
        wait_for("fits were committed", lambda: store.exists() and _fits(folder / "hosts") >= 8, driver)
        network.cut("b")
        cut_after, cut_fits = time.monotonic() - started, _fits(folder / "hosts")
        print(f"host b is cut off after {cut_after:.0f} s, with {cut_fits} fits done", flush=True)
        start_ray(network, "c", folder)
        status = driver.wait()
        hosts_seconds = time.monotonic() - started
        notes = log.read_text().splitlines()
        print(*notes, sep="\n")
        if status:
            raise SystemExit(f"the run on the hosts ended with {status}")
        b_left = _workers_left(network, "b")

        single, hosts = outcome(folder / "single"), outcome(folder / "hosts")
        equal = {name: single[name] == hosts[name] for name in single}
        result = {
            "settings": {key: list(v) if isinstance(v, tuple) else v for key, v in SETTINGS.items()},
            "machine": processor(),
            "hosts": HOSTS,
            "single_process_seconds": round(single_seconds, 1),
            "hosts_seconds": round(hosts_seconds, 1),
            "cut_after_seconds": round(cut_after, 1),
            "fits_when_cut": cut_fits,
            "fits": len(hosts["fits"]),
            "answers": len(hosts["answers"]),
            "edits": len(hosts["edits"]),
            "fits_counted_twice": sum(n - 1 for n in Counter(row[0] for row in hosts["fits"]).values()),
            "worker_processes_left_on_the_cut_host": b_left,
            "equal": equal,
            "notes": [note.partition(" ")[2] for note in notes],
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps({key: result[key] for key in ("single_process_seconds", "hosts_seconds", "fits", "equal")}))
        return 0 if all(equal.values()) else 1


def _fits(run: Path) -> int:
    with RunDirectory.read(run) as directory:
        return len(directory.store.fit_ids())


def _workers_left(network: Network, host: str, seconds: float = 180.0) -> int:
    """Workers that still run on a host that was cut off, once they had the time to notice."""

    def workers() -> int:
        names = [Path(f"/proc/{pid}/cmdline") for pid in network.processes(host)]
        return sum(b"WorkerActor" in name.read_bytes() for name in names if name.exists())

    end = time.monotonic() + seconds
    while (left := workers()) and time.monotonic() < end:
        time.sleep(1.0)
    return left


def _only_ours(folder: str, names: list[str]) -> set[str]:
    """Ray's own files stay behind."""
    del folder
    return {name for name in names if name.startswith(("session_", "ray_")) or name.endswith(".sock")}


if __name__ == "__main__":
    sys.exit(main())
