"""Runs of `train`, or another "procedure", in processes of their own that end, or stop, at a chosen moment.

A server that forks: torch is imported once.

Orders come as lines of JSON on standard input: {"settings": {...}, "log": FILE, and one of "kill_at", "stop_at" (number
of an event, or of one that begins with the words of "only"), "kill_after" (seconds), "file_limit" (bytes), or none of
them}.  An event is a statement of the store's, a file written out or renamed, or a step of the engine.  For each order
a line answers how the process ended."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any

import scipy.stats
import torch
import transformers.models.llama.modeling_llama
from all_methods import METHODS

import selfedit.engine.decoding
import selfedit.engine.waves
from selfedit.errors import UserError
from selfedit.execution import pool as pool_module
from selfedit.execution.tasks import FitTask, Task, TaskResult
from selfedit.progress import Progress
from selfedit.runs import store as store_module

# Imported to be there before the fork.
assert transformers.models.llama.modeling_llama
assert scipy.stats
assert selfedit.engine.decoding
assert selfedit.engine.waves
torch.set_num_threads(1)


class Events:
    """Counts events; at the chosen one the process gets a signal, in the midst of whatever it is doing.  The log then
    says what."""

    def __init__(self, at: int | None, number: signal.Signals, log: int, only: str | None = None) -> None:
        self.count = 0
        self.at = at
        self.number = number
        self.log = log
        self.only = only

    def happen(self, what: str) -> None:
        if self.only is not None and not what.startswith(self.only):
            return
        self.count += 1
        if self.count == self.at:
            os.write(self.log, (json.dumps(["signal", what]) + "\n").encode())
            os.kill(os.getpid(), self.number)


class Listener(Progress):
    """Progress that is an event each time."""

    def __init__(self, events: Events) -> None:
        self.events = events

    def advance(self, amount: float) -> None:
        self.events.happen("a step of the engine")


def before(target: Any, name: str, then: Callable[..., None]) -> None:
    """Has `then` called, with the same arguments, before each call of `target.name`."""
    original = getattr(target, name)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        then(*arguments)
        return original(*arguments, **keywords)

    setattr(target, name, wrapped)


def live(order: dict[str, Any], answer: int) -> None:
    """One life of the run, in the forked process."""
    number = signal.SIGSTOP if "stop_at" in order else signal.SIGKILL
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    events = Events(order.get("kill_at", order.get("stop_at")), number, log, order.get("only"))
    before(
        store_module.Store,
        "_execute",
        lambda store, *_: events.happen("a transaction" if store._inside else "a transaction's beginning"),
    )
    before(os, "fsync", lambda *_: events.happen("a file"))
    before(os, "replace", lambda *_: events.happen("a file"))
    run = pool_module.InProcess.run

    def logged(self: pool_module.InProcess, tasks: Iterable[Task]) -> Generator[TaskResult]:
        for task in tasks:
            begun = (
                [["fit", task.id] for task in task.fits]
                if isinstance(task, FitTask)
                else [["write", request.seed] for request in task.requests if request.temperature > 0]
            )
            os.write(log, "".join(json.dumps(line) + "\n" for line in begun).encode())
            yield from run(self, [task])

    pool_module.InProcess.run = logged  # type: ignore[method-assign]
    if "file_limit" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], resource.RLIM_INFINITY))
    found: dict[str, Any] = {}
    try:
        procedure, kind = METHODS[order.get("procedure", "train")]
        procedure(kind(**order["settings"]), progress=Listener(events))
    except UserError as error:
        found["error"] = str(error)
    found["events"] = events.count
    os.write(answer, json.dumps(found).encode())


def serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                live(order, write)
            finally:
                os._exit(0)
        os.close(write)
        if "kill_after" in order:
            time.sleep(order["kill_after"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, os.WUNTRACED)
        found: dict[str, Any] = {"pid": child, "signal": None}
        if os.WIFSTOPPED(status):
            found["signal"] = os.WSTOPSIG(status)
        elif os.WIFSIGNALED(status):
            found["signal"] = os.WTERMSIG(status)
        else:
            with os.fdopen(os.dup(read)) as answer:
                found.update(json.loads(answer.read() or '{"error": "died"}'))
        os.close(read)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    serve()
