"""Ray itself: importing it, starting it on this machine, joining a cluster, and what its machines have room for."""

from __future__ import annotations

import math
import os
import socket
import subprocess
from dataclasses import dataclass
from typing import Any

from selfedit.errors import UserError, reason

_ANSWERS_WITHIN = 10.0  # seconds for a cluster's address to answer


@dataclass(frozen=True)
class Share:
    """What a worker takes of a machine."""

    cpus: float
    gpus: float

    def fitting(self, node: dict[str, Any]) -> int:
        """How many workers a machine (as `ray.nodes` describes it) has room for."""
        resources = node["Resources"] if node["Alive"] else {}
        room = math.floor(resources.get("CPU", 0.0) / self.cpus + 1e-6)
        if self.gpus:
            room = min(room, math.floor(resources.get("GPU", 0.0) / self.gpus + 1e-6))
        return room

    def of_memory(self, node: dict[str, Any] | None) -> float:
        """Its share of its device's memory."""
        if self.gpus:
            return min(1.0, self.gpus)
        return 1.0 if node is None else min(1.0, self.cpus / max(1.0, node["Resources"].get("CPU", 1.0)))


def choose_share(ray: Any, cpus: float, gpus: float | None, device: str | None) -> Share:
    """A worker's share; a GPU each if `gpus` is left out, where there are any and the device is not the CPU.

    Errors: UserError for a GPU where there is none, and for a worker that no machine has room for.
    """
    device = device or ""
    there = float(ray.cluster_resources().get("GPU", 0.0))
    if gpus is None:
        gpus = 0.0 if device.startswith("cpu") or (not there and not device) else 1.0
    if gpus and not there:
        flag = "--gpus-per-worker" if not device else f"--device {device}"
        raise UserError(f"{flag}: no machine of this Ray has a GPU; leave it out to work on CPUs")
    share = Share(cpus, gpus)
    nodes = ray.nodes()
    if not any(share.fitting(node) for node in nodes):
        most = {
            what: max((node["Resources"].get(what, 0.0) for node in nodes if node["Alive"]), default=0.0)
            for what in ("CPU", "GPU")
        }
        raise UserError(
            f"a worker takes {cpus:g} CPUs and {gpus:g} GPUs, and no machine of this Ray has as many (at most"
            f" {most['CPU']:g} CPUs, {most['GPU']:g} GPUs); lower --cpus-per-worker or --gpus-per-worker"
        )
    return share


def import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("--workers and --ray need Ray: pip install 'selfedit[cluster]'") from None
    # Ray tells of lost workers on standard output, which is the caller's; `on_note` tells of them.
    ray._private.worker._worker_logs_enabled = False
    return ray


def start_local(ray: Any, cpus: int, dashboard: bool) -> tuple[str, subprocess.Popen[bytes]]:
    """Starts Ray on this machine; the dashboard's address, and a process that `stop_local` wants back.  Errors:
    UserError where it does not come up in time."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Deltas and results are megabytes; so are the gradients of a step that is shared, one or two for each worker.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        context = ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=dashboard,
            object_store_memory=int(min(2e9, max(2e8, memory / 10))),
            log_to_driver=False,
            logging_level="ERROR",
        )
    except Exception as error:  # Ray has no class of its own for it
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "--workers: Ray did not start on this machine in time, as where other work takes all of its processors;"
            " the same command tries again"
        ) from None
    return str(context.dashboard_url or ""), _agents_end_with_driver()


def _agents_end_with_driver() -> subprocess.Popen[bytes]:
    """Where this process is killed, the kernel ends what Ray started from it, but not the agents that the raylet
    started: they try for a minute to report its death to a server that is gone as well.  So a shell waits until its
    standard input, which this process holds, is closed, and ends them."""
    import psutil

    agents = [
        str(child.pid)
        for process in psutil.Process().children()
        if process.name() == "raylet"
        for child in process.children()
        if any(part.endswith(("Agent", "agent.py", "agent/main.py")) for part in child.cmdline())
    ]
    return subprocess.Popen(
        ["sh", "-c", 'read _; kill -9 "$@"', "sh", *agents],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what ends this process's group must not end it as well
    )


def stop_local(ray: Any, watcher: subprocess.Popen[bytes]) -> None:
    """Stops what `start_local` started."""
    ray.shutdown()
    watcher.kill()
    watcher.communicate()


def connect(ray: Any, address: str) -> str:
    """Joins a cluster; the dashboard's address.  Errors: UserError for one that does not answer, or has other
    versions."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address != "auto":
        host, separator, port = address.removeprefix("ray://").rpartition(":")
        if not separator or not host or not port.isdigit():
            raise UserError(f"--ray {address}: not an address; use auto, HOST:PORT or ray://HOST:PORT")
        try:
            # Ray itself would try for minutes.
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_WITHIN).close()
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--ray {address}: nothing answers there ({error}); is the cluster up, and the port open?"
            ) from None
    try:
        context = ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ray.exceptions.RaySystemError, ray.exceptions.AuthenticationError) as error:
        raise UserError(
            f"--ray {address}: cannot join the cluster ({reason(error)}); where it asks for a token,"
            " set RAY_AUTH_MODE=token (docs/cluster.md)"
        ) from None
    except RuntimeError as error:
        if "version" not in str(error).lower():
            raise
        raise UserError(f"--ray {address}: other versions than here ({reason(error)}); use the same on both") from None
    return str(getattr(context, "dashboard_url", "") or "")
