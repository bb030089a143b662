"""Workers without a model, for tests of the pool: what a task does is in its id.  Imported by the actors, too."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfedit.engine import Completion, DecodeRequest
from selfedit.errors import UserError
from selfedit.execution.tasks import CompletionTask, TaskResult


@dataclass(frozen=True)
class FakeSource:
    """`folder` keeps what outlives a worker; `problem` is what starting one fails with."""

    folder: str
    name: str = "fake"
    device: str | None = None
    problem: str = ""

    def tokenizer(self) -> Any:
        return "a tokenizer"

    def worker(self, delta: Callable[[str], Mapping[str, bytes]]) -> FakeWorker:
        if self.problem == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.problem:
            raise UserError(self.problem)
        return FakeWorker(Path(self.folder), delta)


class FakeWorker:
    description = "cpu, float32"
    context_length = 128
    memory = 2**30

    def __init__(self, folder: Path, delta: Callable[[str], Mapping[str, bytes]]) -> None:
        self.folder = folder
        self.delta = delta
        self.memory_share = 1.0
        self.halvings = 0

    def run(self, task: CompletionTask, on_tokens: Callable[[int], None]) -> TaskResult:
        started = time.perf_counter()
        what = task.id.split("/")[0]
        with (self.folder / "began").open("a") as log:
            log.write(f"{task.id} {os.getpid()}\n")
        if what == "raises":
            raise RuntimeError("this task never works")
        if what == "kills-once" and self._first(task.id):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hungry" and self.halvings < 1:
            raise MemoryError("all of it is not enough")
        if what.startswith("gate-"):
            while not (self.folder / what).exists():
                time.sleep(0.05)
        slow = what == "slow-once" and self._first(task.id)
        time.sleep(20.0 if slow else task.requests[0].max_new_tokens / 1000)
        on_tokens(task.requests[0].max_new_tokens)
        deltas = b"".join(content for name in task.policy for content in self.delta(name).values())
        ids = (*task.requests[0].prompt, *deltas)
        return TaskResult(task.id, time.perf_counter() - started, completions=(Completion(ids, True),))

    def _first(self, name: str) -> bool:
        try:
            (self.folder / name.replace("/", "-")).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def task(id: str, *, milliseconds: int = 20, policy: tuple[str, ...] = ()) -> CompletionTask:
    """A task that takes a while and answers with numbers made from its id."""
    return CompletionTask(id, policy, (DecodeRequest(tuple(id.encode()), milliseconds),))


def answer(id: str, deltas: bytes = b"") -> tuple[Completion, ...]:
    return (Completion((*id.encode(), *deltas), True),)
