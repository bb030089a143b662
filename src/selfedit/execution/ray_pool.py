"""Workers on Ray: a local one, or a cluster.

Knows actors, and how they and their machines fail.  Which task goes where is `schedule`'s business; what a worker
does is `worker`'s.  The driver holds the tokenizer and no tensors.

A thread of the pool hands out tasks and receives results, so that workers go on while the caller grades and commits.
All of the pool's state belongs to that thread; it hears of everything through one queue, and the caller through
another."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol

from selfedit.errors import UserError
from selfedit.execution import actor as actor_module
from selfedit.execution.actor import WorkerActor
from selfedit.execution.ray_cluster import choose_share, connect, import_ray, one_line, start_local, stop_local
from selfedit.execution.schedule import Schedule
from selfedit.execution.tasks import Task, TaskResult
from selfedit.execution.worker import OnTokens
from selfedit.models import Tokenizer

_TICK = 1.0  # seconds between two looks at the workers
_NODES_EVERY = 3.0  # seconds between two looks at the cluster's machines
_NOTE_EVERY = 60.0  # seconds between two lines about throughput, or about waiting
_PATIENCE = 120.0  # seconds after which a worker that nobody looks at ends itself
_STARTS = 3  # a worker that cannot be started so often in a row is given up
_OUT_OF_MEMORY = "its machine ran out of memory"


class Source(Protocol):
    """What workers are made from, such as a `ModelSource`; it is sent to them."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str | None: ...

    def tokenizer(self) -> Tokenizer: ...

    def worker(self, delta: Callable[[str], Mapping[str, bytes]]) -> Any: ...


@dataclass(frozen=True)
class WorkerState:
    """How a worker is doing.  `state` is waiting (for a place), starting, idle, working or refused; `tokens` were
    trained and written by it, in `busy_seconds` on tasks and `ready_seconds` in all."""

    number: int
    host: str
    pid: int
    state: str
    task: str
    tokens: int
    busy_seconds: float
    ready_seconds: float


@dataclass
class _Slot:
    """A place for a worker.  When its actor dies, another life begins; what is heard of earlier lives is ignored."""

    number: int
    actor: Any = None
    life: int = 0
    state: str = "waiting"
    host: str = "-"
    node: str = ""
    pid: int = 0
    memory_share: float = 1.0
    halvings: int = 0
    cpu: bool = True
    failed_starts: int = 0
    looking: bool = False
    orders: dict[str, int] = field(default_factory=dict)  # tasks given to it and not answered, with the order's number
    counted: dict[str, int] = field(default_factory=dict)  # tokens of tasks that are not answered yet
    tokens: int = 0
    busy_seconds: float = 0.0
    busy_before: float = 0.0
    ready_at: float = 0.0
    ready_before: float = 0.0

    @property
    def task(self) -> str:
        """The task under way."""
        return next(iter(self.orders), "-")

    @property
    def key(self) -> str:
        return f"{self.number}.{self.life}"


class RayPool:
    """Workers of a local Ray (`workers` of them) or of the cluster at `address` (at most `workers`; as many as fit
    without).

    `address` is `auto`, `HOST:PORT` or `ray://HOST:PORT`.  A worker takes `gpus_per_worker` GPUs (one if left out,
    where the cluster has any and the device is not the CPU) and `cpus_per_worker` CPUs, which are also its threads (if
    left out: one on a cluster, an equal share of the machine on a local Ray).  `on_tokens` is told of tokens trained
    and written, and takes them back, as a negative number, where a task has to be done again; `on_note` of workers that
    come and go, and of throughput.  Both are called in the thread that waits for results.

    Where Ray is connected already in this process, that connection is used and left open.

    Errors: UserError for what the user can mend, in one line; the first worker is waited for.
    """

    def __init__(
        self,
        source: Source,
        *,
        workers: int | None = None,
        address: str | None = None,
        gpus_per_worker: float | None = None,
        cpus_per_worker: float | None = None,
        on_tokens: OnTokens | None = None,
        on_note: Callable[[str], None] | None = None,
        dashboard: bool = True,
        patience: float = _PATIENCE,
    ) -> None:
        if workers is None and address is None:
            raise ValueError("neither a number of workers nor a cluster's address is given")
        self.source = source
        self.on_tokens = on_tokens
        self.on_note = on_note
        self._wanted = workers
        self._patience = patience
        if cpus_per_worker is None:
            cpus_per_worker = 1.0 if address is not None else float(max(1, (os.cpu_count() or 1) // (workers or 1)))
        self._ray = import_ray()
        self._own_ray = not self._ray.is_initialized()
        self._watcher: subprocess.Popen[bytes] | None = None
        dashboard_url = ""
        if self._own_ray:
            if address is None:
                cpus = math.ceil((workers or 1) * cpus_per_worker)
                dashboard_url, self._watcher = start_local(self._ray, cpus, dashboard)
            else:
                dashboard_url = connect(self._ray, address)
        try:
            self._share = choose_share(self._ray, cpus_per_worker, gpus_per_worker, source.device)
            self._actor_class = self._make_actor_class()
            self._start()
            if dashboard_url:
                self._note(f"Ray's dashboard: http://{dashboard_url}")
            self._tokenizer = source.tokenizer()
            self._wait_for_first()
        except BaseException:
            self.close()
            raise

    # What a pool offers

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def description(self) -> str:
        """The device and dtype of the first worker."""
        return self._description

    @property
    def memory(self) -> int:
        """Bytes that a plan of the first worker should use."""
        return self._memory

    def publish(self, name: str, files: Mapping[str, bytes]) -> None:
        """Puts a delta into the object store, once; workers fetch it when a task needs it."""
        digest = hashlib.sha256(
            repr(sorted((n, hashlib.sha256(c).digest()) for n, c in files.items())).encode()
        ).digest()
        if self._deltas.get(name, (b"", None))[0] != digest:
            self._deltas[name] = digest, self._ray.put(dict(files))

    def run(self, tasks: Iterable[Task]) -> Generator[TaskResult]:
        """Results as they come, in any order: one for each task, an `error` in those that were given up."""
        tasks = list(tasks)
        if not tasks:
            return
        if len({task.id for task in tasks}) < len(tasks):
            raise ValueError("two tasks have the same id")
        self._runs += 1
        number = self._runs
        self._inbox.put(lambda: self._begin(number, tasks))
        left = len(tasks)
        try:
            while left:
                result = self._listen(number)
                if result is not None:
                    left -= 1
                    yield result
        finally:
            self._inbox.put(lambda: self._end(number))

    def states(self) -> list[WorkerState]:
        """All workers as they are now."""
        now = time.monotonic()
        return [
            WorkerState(
                slot.number,
                slot.host,
                slot.pid,
                slot.state if slot.state != "ready" else "idle" if slot.task == "-" else "working",
                slot.task,
                slot.tokens,
                slot.busy_before + slot.busy_seconds,
                slot.ready_before + (now - slot.ready_at if slot.state == "ready" else 0.0),
            )
            for slot in list(self._slots)
        ]

    def resize(self, workers: int) -> None:
        """Goes on with so many workers; tasks of those that end go back."""
        if workers < 1:
            raise ValueError(f"{workers} workers cannot do anything")

        def resize() -> None:
            self._wanted = workers
            self._grow()
            self._assign_all()

        self._inbox.put(resize)

    def close(self) -> None:
        """Ends the workers, and Ray where this pool started or joined it."""
        thread = getattr(self, "_thread", None)
        if thread is not None and thread.is_alive():
            self._closing = True
            self._inbox.put(lambda: None)
            thread.join()
        if self._watcher is not None:
            stop_local(self._ray, self._watcher)
            self._watcher = None
        elif self._own_ray:
            self._ray.shutdown()

    # The caller's side

    def _listen(self, number: int) -> TaskResult | None:
        """Waits for one thing to be said, and passes it on; a result of run `number` is returned."""
        kind, run, value = self._outbox.get()
        if kind == "note":
            if self.on_note is not None:
                self.on_note(value)
        elif kind == "tokens":
            if self.on_tokens is not None and run == number:
                self.on_tokens(value)
        elif kind == "error":
            # Said again to whoever asks next: nothing more will come.
            self._outbox.put((kind, run, value))
            raise value
        elif kind == "ready":
            self._description, self._context_length = value["description"], value["context_length"]
            self._memory = value["memory"]
        elif run == number:
            return value
        return None

    def _wait_for_first(self) -> None:
        while not hasattr(self, "_description"):
            self._listen(0)

    def _make_actor_class(self) -> Any:
        # The class travels itself, not as a name to be imported: a worker may lack selfedit, and says so.
        self._ray.cloudpickle.register_pickle_by_value(actor_module)
        # Without a group of their own, these would be answered only after the task (or the start) that is under way.
        for method in (WorkerActor.look, WorkerActor.drop):
            self._ray.method(concurrency_group="beside")(method)
        remote = self._ray.remote(concurrency_groups={"beside": 1})(WorkerActor)
        return remote.options(
            num_cpus=self._share.cpus,
            num_gpus=self._share.gpus,
            scheduling_strategy="SPREAD",
            max_restarts=0,
            max_task_retries=0,
        )

    # The pool's thread

    def _start(self) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
        self._slots: list[_Slot] = []
        self._deltas: dict[str, tuple[bytes, Any]] = {}
        self._schedule = Schedule(())
        self._run = self._runs = self._orders = 0
        self._first: dict[str, Any] | None = None
        self._closing = False
        self._nodes_at = 0.0
        self._noted_at = time.monotonic()
        self._tokens_noted = 0
        self._thread = threading.Thread(target=self._loop, name="selfedit-pool", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        tick = 0.0
        try:
            while not self._closing:
                try:
                    self._inbox.get(timeout=max(0.0, tick - time.monotonic()))()
                except queue.Empty:
                    self._tick()
                    tick = time.monotonic() + _TICK
                # A busy inbox must not put the tick off for ever.
                if time.monotonic() > tick + _TICK:
                    self._tick()
                    tick = time.monotonic() + _TICK
        except ConnectionError as error:
            self._say(
                "error",
                UserError(
                    f"the Ray cluster is lost ({one_line(error)}); what was committed is kept: run the same "
                    "command again"
                ),
            )
        except Exception as error:
            self._say("error", error)
        finally:
            for slot in self._slots:
                with suppress(ConnectionError):
                    self._kill(slot)

    def _say(self, kind: str, value: Any) -> None:
        self._outbox.put((kind, self._run, value))

    def _note(self, line: str) -> None:
        self._say("note", line)

    def _begin(self, number: int, tasks: list[Task]) -> None:
        self._run = number
        self._schedule = Schedule(tasks)
        self._tokens_noted = sum(slot.tokens for slot in self._slots)
        self._noted_at = time.monotonic()
        for slot in self._slots:
            # One that is still at a task that another has done meanwhile joins when it is free.
            if slot.state == "ready" and not slot.orders:
                self._schedule.join(slot.key, slot.node)
        self._assign_all()

    def _end(self, number: int) -> None:
        """The caller wants no more results of a run: what waits at the workers is dropped, what is under way goes to
        waste."""
        if number != self._run or self._schedule.done:
            return
        self._schedule = Schedule(())
        self._run = 0
        for slot in self._slots:
            if slot.state == "ready" and slot.orders:
                self._leave(slot, "its task is not wanted any more", blame=False)
                self._kill(slot)
                self._respawn(slot)

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._nodes_at > _NODES_EVERY:
            self._nodes_at = now
            self._grow()
        for slot in self._slots:
            if slot.host != "-" and slot.actor is not None and not slot.looking:
                slot.looking = True
                self._ask(slot, slot.actor.look.remote(), self._looked)
        self._assign_all()
        if now - self._noted_at > _NOTE_EVERY and (self._first is None or not self._schedule.done):
            self._throughput(now)

    def _throughput(self, now: float) -> None:
        states = [slot.state for slot in self._slots]
        ready = states.count("ready")
        if not ready:
            self._note("no worker yet: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))
        else:
            tokens = sum(slot.tokens for slot in self._slots)
            rate = (tokens - self._tokens_noted) / (now - self._noted_at)
            working = sum(bool(slot.orders) for slot in self._slots)
            self._note(
                f"{ready} workers, {working} of them working: {rate:,.0f} tokens/s; {self._schedule.left} tasks left"
            )
            self._tokens_noted = tokens
        self._noted_at = now

    # Workers come and go

    def _grow(self) -> None:
        """As many actors as are wanted, or as the machines have room for."""
        target = self._wanted
        if target is None:
            target = sum(self._share.fitting(node) for node in self._ray.nodes())
        # Too many are those that wait for a place that no longer exists, or that are no longer wanted.
        for slot in sorted(self._slots, key=lambda slot: (slot.state != "waiting", -slot.number)):
            if len(self._slots) > target and (slot.state == "waiting" or self._wanted is not None):
                if slot.state == "ready":
                    self._leave(slot, "it is no longer wanted", blame=False)
                self._kill(slot)
                self._slots.remove(slot)
        numbers = {slot.number for slot in self._slots}
        free = (n for n in range(1, target + 1) if n not in numbers)
        while len(self._slots) < target:
            slot = _Slot(next(free))
            self._slots.append(slot)
            self._spawn(slot)

    def _spawn(self, slot: _Slot) -> None:
        slot.life += 1
        slot.state, slot.host, slot.node, slot.looking = "waiting", "-", "", False
        slot.busy_before += slot.busy_seconds
        slot.counted, slot.orders, slot.busy_seconds = {}, {}, 0.0
        threads = max(1, int(self._share.cpus))
        slot.actor = self._actor_class.remote(slot.number, threads, os.getcwd(), self._patience)
        self._ask(slot, slot.actor.hello.remote(), self._greeted)

    def _kill(self, slot: _Slot) -> None:
        if slot.actor is not None:
            self._ray.kill(slot.actor, no_restart=True)
            slot.actor = None

    def _ask(self, slot: _Slot, reference: Any, then: Callable[..., None], *details: Any) -> None:
        """Has `then(slot, answer, *details)` called in this thread, or the worker taken for lost."""
        life = slot.life

        def hear(future: Any) -> None:
            self._inbox.put(lambda: self._heard(slot, life, future, then, details))

        reference.future().add_done_callback(hear)

    def _heard(self, slot: _Slot, life: int, future: Any, then: Callable[..., None], details: tuple[Any, ...]) -> None:
        if slot.life != life or slot.actor is None:
            return
        error = future.exception()
        if error is None:
            then(slot, future.result(), *details)
        elif isinstance(error, self._ray.exceptions.RayTaskError) or not isinstance(
            error, self._ray.exceptions.RayError
        ):
            # An actor's methods answer with errors instead of raising them: this is a bug, or the connection is lost.
            raise error
        else:
            self._lost(slot, error)

    def _greeted(self, slot: _Slot, hello: dict[str, Any]) -> None:
        slot.host, slot.node, slot.pid, slot.state = hello["host"], hello["node"], hello["pid"], "starting"
        here = {"python": platform.python_version(), "selfedit": version("selfedit")}
        for what, mine in here.items():
            theirs = hello["versions"][what]
            if theirs != mine:
                self._refuse(slot, f"{slot.host} has {what} {theirs}, this machine {mine}; install the same on both")
                return
        for what in ("torch", "transformers"):
            theirs = hello["versions"][what]
            if theirs != version(what):
                self._note(f"{slot.host} has {what} {theirs}, this machine {version(what)}: results may differ")
        node = next((node for node in self._ray.nodes() if node["NodeID"] == slot.node), None)
        slot.memory_share = self._share.of_memory(node)
        self._ask(slot, slot.actor.start.remote(self.source), self._started)

    def _started(self, slot: _Slot, answer: dict[str, Any]) -> None:
        if "user_error" in answer:
            reason = answer["user_error"]
            if os.path.exists(self.source.name) and "not a local folder" in reason:
                reason = (
                    f"{slot.host} does not see the model folder {self.source.name}; put it where all machines "
                    "see it under"
                    " the same path, or name a model of the hub"
                )
            self._refuse(slot, reason)
            return
        if self._share.gpus and answer["description"].startswith("cpu"):
            self._refuse(slot, f"{slot.host} has a GPU but its torch sees none; install a CUDA build of torch there")
            return
        slot.failed_starts = 0
        slot.cpu = answer["description"].startswith("cpu")
        slot.state, slot.ready_at = "ready", time.monotonic()
        self._note(f"worker {slot.number} is ready: {slot.host}, {answer['description']}, {answer['seconds']:.1f} s")
        if self._first is None:
            self._first = answer
            self._say("ready", {**answer, "memory": int(answer["memory"] * slot.memory_share)})
        elif _kind(answer["description"]) != _kind(self._first["description"]):
            self._note(
                f"worker {slot.number} works in {answer['description']}, worker 1 of this run in"
                f" {self._first['description']}: results depend on who does what, within rounding; --dtype "
                "makes them alike"
            )
        self._schedule.join(slot.key, slot.node)
        self._assign(slot)

    def _refuse(self, slot: _Slot, reason: str) -> None:
        """A worker that cannot be used.  Its actor stays, without a model, so that no other is placed there."""
        slot.state = "refused"
        if self._first is None:
            raise UserError(reason)
        self._note(f"worker {slot.number} is not used: {reason}")
        self._check_some_left(reason)

    def _check_some_left(self, reason: str) -> None:
        if self._slots and all(slot.state == "refused" for slot in self._slots):
            raise UserError(f"no worker is left: {reason}")

    def _lost(self, slot: _Slot, error: Exception) -> None:
        """An actor died, or its machine is gone."""
        gone = not any(node["Alive"] and node["NodeID"] == slot.node for node in self._ray.nodes())
        why = f"its machine {slot.host} is gone" if slot.node and gone else _cause(error)
        was = slot.state
        self._note(f"worker {slot.number} on {slot.host} is lost ({why}); another is started")
        out_of_memory = why == _OUT_OF_MEMORY
        slot.halvings += out_of_memory
        if was == "ready":
            self._leave(slot, why, blame=not gone, out_of_memory=out_of_memory)
        else:
            slot.failed_starts += 1
        self._kill(slot)
        if slot.failed_starts >= _STARTS:
            slot.life += 1
            self._refuse(slot, f"worker {slot.number} could not be started {_STARTS} times ({why})")
            return
        self._respawn(slot)

    def _restart(self, slot: _Slot) -> None:
        """Begins anew after an error: with a fresh process where a device's state may be in doubt, else with a fresh
        model."""
        self._leave(slot, "it was started anew", blame=False)
        if slot.cpu:
            slot.life += 1
            slot.counted, slot.orders, slot.looking = {}, {}, False
            self._ask(slot, slot.actor.start.remote(self.source), self._started)
            self._assign_all()
            return
        self._kill(slot)
        self._respawn(slot)

    def _respawn(self, slot: _Slot) -> None:
        self._spawn(slot)
        self._nodes_at = 0.0  # the machines may be others now
        self._assign_all()

    def _leave(self, slot: _Slot, why: str, *, blame: bool, out_of_memory: bool = False) -> None:
        slot.ready_before += time.monotonic() - slot.ready_at
        for task_id in list(slot.counted):
            self._count(slot, task_id, 0)
        slot.state = "starting"
        if slot.key in self._schedule:
            now = time.monotonic()
            for result in self._schedule.leave(slot.key, why, now, blame=blame, out_of_memory=out_of_memory):
                self._say("result", result)

    # Tasks

    def _assign_all(self) -> None:
        for _ in range(2):  # one for everybody before anyone gets a second
            for slot in self._slots:
                if slot.key not in self._schedule or self._assign(slot, most=1):
                    continue
                if not self._schedule.waiting and not self._schedule.holds(slot.key):
                    return  # nothing to take, to steal or to copy for an idle worker is nothing for all

    def _assign(self, slot: _Slot, *, most: int = 2) -> int:
        """Gives a worker what it should have; how many tasks that was."""
        given = 0
        while given < most and (assignment := self._schedule.take(slot.key, time.monotonic())) is not None:
            given += 1
            task = assignment.task
            if assignment.taken_from is not None:
                self._forget(next(s for s in self._slots if s.key == assignment.taken_from), task.id)
            if assignment.copied_from is not None:
                self._note(
                    f"worker {assignment.copied_from.split('.')[0]} is slow at {task.id}: worker {slot.number} "
                    "does it too"
                )
            deltas = {name: [self._deltas[name][1]] for name in task.policy}
            memory = slot.memory_share, max(slot.halvings, assignment.halvings)
            self._orders += 1
            slot.orders[task.id] = self._orders
            answer = slot.actor.run.remote(self._orders, task, deltas, memory)
            self._ask(slot, answer, self._answered, self._run, task.id)
        return given

    def _forget(self, slot: _Slot, task_id: str) -> None:
        """Tells a worker not to begin a task."""
        slot.actor.drop.remote(slot.orders.pop(task_id))

    def _answered(self, slot: _Slot, answer: dict[str, Any], run: int, task_id: str) -> None:
        slot.orders.pop(task_id, None)
        if run != self._run:
            if "error" in answer:
                self._restart(slot)
            elif not slot.orders:
                self._schedule.join(slot.key, slot.node)
                self._assign(slot)
            return
        now = time.monotonic()
        if "error" in answer:
            out_of_memory = answer["out_of_memory"]
            slot.halvings += out_of_memory
            given_up = self._schedule.fail(slot.key, task_id, answer["error"], now, out_of_memory=out_of_memory)
            what = "is given up" if given_up else "goes back"
            self._note(f"{task_id} raised on worker {slot.number} and {what}: {answer['error']}")
            if given_up is not None:
                self._say("result", given_up)
            if out_of_memory:
                self._note(f"worker {slot.number} goes on with half of its memory")
            self._restart(slot)
            return
        if "result" in answer:
            first = self._schedule.finish(slot.key, task_id, now)
            self._count(slot, task_id, answer["tokens"] if first else 0)
            slot.counted.pop(task_id, None)
            if first:
                self._say("result", answer["result"])
        self._assign(slot)

    def _looked(self, slot: _Slot, answer: tuple[str, int, float]) -> None:
        slot.looking = False
        task, tokens, slot.busy_seconds = answer
        if slot.state != "ready":
            return
        if task in slot.orders:
            self._count(slot, task, tokens)

    def _count(self, slot: _Slot, task_id: str, total: int) -> None:
        """A task's tokens are now `total`."""
        more = total - slot.counted.get(task_id, 0)
        slot.counted[task_id] = total
        if more:
            slot.tokens += more
            self._say("tokens", more)


def _kind(description: str) -> tuple[str, str]:
    """Kind of device, and dtype."""
    device, dtype = description.split(", ")
    return device.partition(":")[0], dtype


def _cause(error: Exception) -> str:
    """Why an actor died, in a few words."""
    text = str(error)
    if "running low on memory" in text or type(error).__name__ == "OutOfMemoryError":
        return _OUT_OF_MEMORY
    if "connection error code 2" in text:
        return "its process was killed"
    return one_line(error)[-160:]
