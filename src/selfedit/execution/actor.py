"""The process of one worker on a cluster: an actor of Ray's around a `Worker`.

Imports the standard library only, and everything else inside functions: Ray is sent this class itself (see `ray_pool`),
so that a machine without selfedit, or with another version of it, can still say so.  Answers with plain data; knows
nothing of queues or of the run."""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
import time
from typing import Any


class WorkerActor:
    """Does tasks, one after another, while a second thread answers `look` and `drop`."""

    def __init__(self, number: int, threads: int, folder: str, patience: float) -> None:
        # Before torch is imported: OpenMP reads this once, and each thread of this process starts from it.
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = str(threads)
        if os.path.isdir(folder):
            # Relative paths of models mean what they mean to the driver, where the machines share a file system.
            os.chdir(folder)
        self.number = number
        self.threads = threads
        self.task = "-"
        self.tokens = 0
        self.busy_seconds = 0.0
        self.began: float | None = None
        self.dropped: set[int] = set()
        self.deltas: dict[str, list[Any]] = {}
        self.worker: Any = None
        self.looked = time.monotonic()
        self.log = self._logger()
        threading.Thread(target=self._watch_driver, args=(patience,), daemon=True).start()

    def __repr__(self) -> str:
        return f"selfedit worker {self.number}"

    def hello(self) -> dict[str, Any]:
        """Who and where this worker is."""
        from importlib.metadata import PackageNotFoundError, version

        import ray

        versions = {"python": platform.python_version()}
        for package in ("selfedit", "torch", "transformers"):
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = "not installed"
        node = ray.get_runtime_context().get_node_id()
        host = f"{platform.node()} ({ray.util.get_node_ip_address()})"
        return {"versions": versions, "host": host, "node": node, "pid": os.getpid()}

    def start(self, source: Any) -> dict[str, Any]:
        """Loads the model, or loads it afresh.  What the user can mend comes back as `user_error`."""
        from selfedit.errors import UserError

        began = time.monotonic()
        try:
            self.worker = source.worker(self._delta)
        except UserError as error:
            self.log.error("%s", error)
            return {"user_error": str(error)}
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self.threads)
        self.log.info("ready: %s, %d threads", self.worker.description, self.threads)
        return {
            "description": self.worker.description,
            "context_length": self.worker.context_length,
            "memory": self.worker.memory,
            "seconds": time.monotonic() - began,
        }

    def run(self, order: int, task: Any, deltas: dict[str, list[Any]], memory: tuple[float, int]) -> dict[str, Any]:
        """Does a task; `memory` is the worker's share of its device, and how often memory ran out.

        Answers with its `result`, with the `error` that it raised, or with neither where it was not begun.
        """
        if order in self.dropped or self.worker is None:
            return {}
        self.deltas.update(deltas)
        self.task, self.tokens, self.began = task.id, 0, time.monotonic()
        self.log.info("begins")
        self.worker.memory_share, self.worker.halvings = memory
        try:
            result = self.worker.run(task, self._count)
        except Exception as error:
            self.log.exception("raised")
            self.worker = None  # its state is in doubt: nothing is done before it is started anew
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            return {"error": f"{type(error).__name__}: {line}", "out_of_memory": _out_of_memory(error)}
        else:
            self.log.info("done in %.1f s", result.seconds)
            return {"result": result, "tokens": self.tokens}
        finally:
            self.busy_seconds += time.monotonic() - self.began
            self.task, self.tokens, self.began = "-", 0, None

    def look(self) -> tuple[str, int, float]:
        """The task under way, its tokens so far, and the seconds spent on tasks in all."""
        self.looked = time.monotonic()
        began = self.began
        return self.task, self.tokens, self.busy_seconds + (self.looked - began if began is not None else 0.0)

    def drop(self, order: int) -> None:
        """A task that waits here is not to be begun."""
        self.dropped.add(order)

    def _count(self, tokens: int) -> None:
        self.tokens += tokens

    def _delta(self, name: str) -> Any:
        import ray

        return ray.get(self.deltas[name][0])

    def _watch_driver(self, patience: float) -> None:
        """Ends this process when nobody has looked for a while: the driver, or the way to it, is gone."""
        while time.monotonic() - self.looked < patience:
            time.sleep(1.0)
        self.log.error("the driver has not been heard of for %.0f s; this worker ends", patience)
        os._exit(1)

    def _logger(self) -> logging.Logger:
        """Lines on standard error, which Ray keeps in this worker's log file; each carries the task's id."""
        handler = logging.StreamHandler()
        handler.setFormatter(
            logging.Formatter(f"%(asctime)s worker {self.number} [%(task)s] %(levelname)s %(message)s")
        )

        def name_task(record: logging.LogRecord) -> bool:
            record.task = self.task
            return True

        handler.addFilter(name_task)
        log = logging.getLogger("selfedit.execution")
        log.setLevel(logging.INFO)
        for logger in (log, logging.getLogger("py.warnings")):
            logger.addHandler(handler)
            logger.propagate = False
        logging.captureWarnings(True)
        return log


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate" in str(error)
