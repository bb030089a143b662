"""The process of one worker on a cluster: an actor of Ray's around a `Worker`.

Imports the standard library only, and everything else inside functions: Ray carries the class itself (see `ray_pool`),
so that a machine without selfedit, or with another version of it, can still say so.  Answers are plain data.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Mapping
from typing import Any


class WorkerActor:
    """Does tasks, one after another, or helps with another worker's, while a second thread answers `tokens`."""

    def __init__(self, number: int, threads: int, folder: str) -> None:
        # Before torch is imported: OpenMP reads this once, and each thread of this process starts from it.
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[variable] = str(threads)
        if os.path.isdir(folder):
            # Relative paths of models mean what they mean to the driver, where the machines share a file system.
            os.chdir(folder)
        self.number = number
        self.threads = threads
        self.task = "-"
        self.written = 0
        self.deltas: dict[str, list[Any]] = {}
        self.helpers: Mapping[int, Any] = {}
        self.helped: tuple[Any, Any] = (None, None)
        self.worker: Any = None
        self.log = self._logger()

    def __repr__(self) -> str:
        return f"selfedit worker {self.number}"

    def start(self, versions: Mapping[str, str], source: list[Any]) -> dict[str, Any]:
        """Loads the model; `source` holds a reference to what it is made from.

        The answer says where this is; what the user can mend is in `user_error`.
        """
        from importlib.metadata import PackageNotFoundError, version

        import ray

        began = time.monotonic()
        answer: dict[str, Any] = {
            "host": f"{platform.node()} ({ray.util.get_node_ip_address()})",
            "node": ray.get_runtime_context().get_node_id(),
            "pid": os.getpid(),
            "differences": [],
        }
        for package, wanted in versions.items():
            try:
                found = version(package)
            except PackageNotFoundError:
                found = "not installed"
            if found == wanted:
                continue
            difference = f"{answer['host']} has {package} {found}, this machine {wanted}"
            if package == "selfedit":
                return answer | {"user_error": f"{difference}; install the same on both"}
            answer["differences"].append(difference)

        from selfedit.errors import UserError

        try:
            self.worker = ray.get(source[0]).worker(self._delta)
        except UserError as error:
            self.log.error("%s", error)
            return answer | {"user_error": str(error)}
        self.worker.share = self._share
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self.threads)
        self.log.info("ready: %s, %d threads", self.worker.description, self.threads)
        return answer | {
            "description": self.worker.description,
            "context_length": self.worker.context_length,
            "memory": self.worker.memory,
            "seconds": time.monotonic() - began,
        }

    def run(self, task: Any, deltas: dict[str, list[Any]], memory: tuple[float, int]) -> dict[str, Any]:
        """Does a task; `memory` is the worker's share of its device, and how often memory ran out over the task.

        Answers with its `result`, or with the `error` that it raised; the process has to end then, for its state is in
        doubt.
        """
        self.deltas.update(deltas)
        self.task, self.written = task.id, 0
        self.log.info("begins")
        self.worker.memory_share, self.worker.halvings = memory
        try:
            result = self.worker.run(task, self._count)
        except Exception as error:
            self.log.exception("raised")
            from selfedit.errors import reason

            return {"error": f"{type(error).__name__}: {reason(error)}", "out_of_memory": _out_of_memory(error)}
        else:
            self.log.info("done in %.1f s", result.seconds)
            return {"result": result, "tokens": self.written}
        finally:
            # Not at the beginning: who is idle may have been told while this worker still helped another.
            self.task, self.helpers = "-", {}

    def tokens(self, helpers: Mapping[int, Any] | None = None) -> int:
        """Tokens of the task under way, so far.  `helpers` are the actors of other workers, by number, that have
        nothing to do from now on; None where they are as before."""
        if helpers is not None:
            self.helpers = helpers
        return self.written

    def help(self, task: list[Any], deltas: dict[str, list[Any]], part: Any, parameters: Any) -> tuple[float, Any]:
        """Loss and gradient of a part of a step of another worker's task, to which `task` holds a reference."""
        import ray

        self.deltas.update(deltas)
        if self.helped[0] != task[0]:
            self.helped = task[0], ray.get(task[0])
            self.log.info("helps with %s", self.helped[1].id)
        return self.worker.help(self.helped[1], part, parameters)

    def _share(self, task: Any, job: Any) -> Any:
        from selfedit.execution.sharing import Sharing

        return Sharing(task, job, lambda: self.helpers, self.deltas)

    def _count(self, tokens: int) -> None:
        self.written += tokens

    def _delta(self, name: str) -> Any:
        import ray

        return ray.get(self.deltas[name][0])

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
