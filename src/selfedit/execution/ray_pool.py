"""Workers on Ray: a local one, or a cluster.

Ray finds a place for each worker, starts and ends its process, notices when it is lost, moves data, and has the
autoscaler start machines.  The rest is here: a task whose worker is lost goes to another one (`schedule`), and a worker
that is lost gets a new actor; and the worker of a fit that is alone in its task is told who has nothing to do, to share
its steps with (`sharing`).  Ray's own restarts (`max_restarts`) are of no use for that: the caller of a restarted
actor gets "temporarily unavailable" whether its process was killed, its machine is gone or its memory ran out, and a
call with 2 retries to an actor that waits for a place fails within 4 s (Ray 2.60).

A thread of the pool runs one coroutine per worker, so that workers go on while the caller grades and commits.  All of
the pool's state belongs to that thread; the caller reads one queue.  The driver holds the tokenizer and no tensors.
"""

from __future__ import annotations

import asyncio
import math
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from selfedit.errors import UserError, reason
from selfedit.execution import actor as actor_module
from selfedit.execution.actor import WorkerActor
from selfedit.execution.ray_cluster import choose_share, connect, import_ray, start_local, stop_local
from selfedit.execution.schedule import Job, Schedule
from selfedit.execution.tasks import FitTask, Task, TaskResult
from selfedit.execution.worker import ModelSource, OnTokens

# Seconds between two looks at a task under way.  A task of 16 fits took 800 s on average (`schedule`), and the fit of
# `learn` is one task: without a look, nothing moves for so long.
_TICK = 1.0
_LOOK_EVERY = 3.0  # seconds between two looks at the cluster's machines, and at a worker that has nothing to do
_NOTE_EVERY = 60.0  # seconds between two lines about throughput, or about waiting
_STARTS = 3  # a worker that cannot be started so often in a row is given up
_OUT_OF_MEMORY = "its machine ran out of memory"


@dataclass(eq=False)
class RayWorker:
    """One worker.  `state` is waiting (for a place, or for its model), idle, working or refused."""

    number: int
    actor: Any = None
    state: str = "waiting"
    host: str = "-"
    node: str = ""
    pid: int = 0
    memory_share: float = 1.0
    task: str = "-"


class _Refused(Exception):
    """A worker that cannot be used, and why."""


class RayPool:
    """Workers of a local Ray (`workers` of them), or of the cluster at `address` (at most `workers`; without a number,
    as many as fit).

    `address` is `auto`, `HOST:PORT` or `ray://HOST:PORT`.  A worker takes `gpus_per_worker` GPUs (one if left out,
    where the cluster has any and the device is not the CPU) and `cpus_per_worker` CPUs, which are also its threads (if
    left out: one on a cluster, an equal share of the machine on a local Ray).  `on_tokens` is called with tokens
    trained and written, and with a negative number where a task has to be done again; `on_note` with a line about
    workers that come and go, and about throughput.  Both are called in the thread that waits for results.

    Where Ray is connected already in this process, that connection is used and left open.

    Errors: UserError for what the user can mend, in one line; the first worker is waited for.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        workers: int | None = None,
        address: str | None = None,
        gpus_per_worker: float | None = None,
        cpus_per_worker: float | None = None,
        on_tokens: OnTokens | None = None,
        on_note: Callable[[str], None] | None = None,
        dashboard: bool = True,
    ) -> None:
        self.source = source
        self.on_tokens = on_tokens
        self.on_note = on_note
        self.workers: list[RayWorker] = []
        self.context_length, self.description, self.memory = 0, "", 0  # of the first worker that is ready
        self._wanted = workers
        self._deltas: dict[str, Any] = {}
        self._schedule = Schedule(())
        self._outbox: queue.SimpleQueue[tuple[str, Schedule | None, Any]] = queue.SimpleQueue()
        self._first = ""  # the description of the first worker that is ready, for the pool's thread
        self._tokens = 0
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
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
            if dashboard_url:
                self._note(f"Ray's dashboard: http://{dashboard_url}")
            self._source = self._ray.put(source)
            self._loop = asyncio.new_event_loop()
            self._main = self._loop.create_task(self._serve_all())
            self._thread = threading.Thread(target=self._work, name="selfedit-pool", daemon=True)
            self._thread.start()
            self.tokenizer = source.tokenizer()
            while not self.description:
                self._listen(None)
        except BaseException:
            self.close()
            raise

    # What a pool offers

    def publish(self, name: str, files: Mapping[str, bytes]) -> None:
        """Puts a delta into the object store; workers fetch it when a task needs it."""
        self._deltas[name] = self._ray.put(dict(files))

    def run(self, tasks: Iterable[Task]) -> Generator[TaskResult]:
        """Results as they come, in any order: one for each task, an `error` in those that were given up."""
        tasks = list(tasks)
        schedule = Schedule(tasks)
        self._in_thread(lambda: self._begin(schedule))
        left = len(tasks)
        try:
            while left:
                result = self._listen(schedule)
                if result is not None:
                    left -= 1
                    yield result
        finally:
            # Where the caller wants no more: what is under way is finished, and dropped.
            self._in_thread(lambda: self._begin(Schedule(())))

    def close(self) -> None:
        """Ends the workers, and Ray where this pool started or joined it."""
        if self._loop is not None and self._thread.is_alive():
            self._in_thread(self._main.cancel)
            self._thread.join()
        if self._watcher is not None:
            stop_local(self._ray, self._watcher)
            self._watcher = None
        elif self._own_ray:
            self._ray.shutdown()

    # The caller's side

    def _in_thread(self, call: Callable[[], Any]) -> None:
        with suppress(RuntimeError):  # the loop has ended; why comes through the outbox
            assert self._loop is not None
            self._loop.call_soon_threadsafe(call)

    def _listen(self, schedule: Schedule | None) -> TaskResult | None:
        """Waits for one thing to be said, and passes it on; a result of this schedule is returned."""
        kind, of, value = self._outbox.get()
        if kind == "note":
            if self.on_note is not None:
                self.on_note(value)
        elif kind == "error":
            # Said again to whoever asks next: nothing more will come.
            self._outbox.put((kind, of, value))
            raise value
        elif kind == "ready":
            self.context_length, self.description, self.memory = value
        elif of is schedule:
            if kind == "result":
                return value
            if self.on_tokens is not None:
                self.on_tokens(value)
        return None

    def _make_actor_class(self) -> Any:
        # The class travels itself, not as a name to be imported: a worker may lack selfedit, and says so.
        self._ray.cloudpickle.register_pickle_by_value(actor_module)
        # Without a group of its own, this would be answered only after the task that is under way.
        self._ray.method(concurrency_group="beside")(WorkerActor.tokens)
        remote = self._ray.remote(concurrency_groups={"beside": 1})(WorkerActor)
        return remote.options(num_cpus=self._share.cpus, num_gpus=self._share.gpus, scheduling_strategy="SPREAD")

    # The pool's thread

    def _work(self) -> None:
        assert self._loop is not None
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            pass
        except BaseExceptionGroup as errors:
            error = errors.exceptions[0]
            if isinstance(error, ConnectionError):
                error = UserError(
                    f"the Ray cluster is lost ({reason(error)}); what was committed is kept: run the same command again"
                )
            self._outbox.put(("error", None, error))
        finally:
            self._loop.close()
            for worker in self.workers:
                with suppress(ConnectionError):
                    self._ray.kill(worker.actor)

    async def _serve_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._report())
            looked_at = -math.inf
            while True:
                if time.monotonic() - looked_at >= _LOOK_EVERY:
                    # As many as wanted, or as the machines have room for.  One whose machine is gone waits for another.
                    looked_at = time.monotonic()
                    wanted = self._wanted or sum(self._share.fitting(node) for node in self._ray.nodes())
                    while len(self.workers) < wanted:
                        self.workers.append(worker := RayWorker(len(self.workers) + 1))
                        group.create_task(self._serve(worker))
                await asyncio.sleep(_TICK)
                self._wake()  # a task may be slow by now

    async def _serve(self, worker: RayWorker) -> None:
        """Everything that one worker does, in one process after another."""
        failed_starts = 0
        while True:
            try:
                worker.state, worker.host, worker.node = "waiting", "-", ""
                threads = max(1, int(self._share.cpus))
                worker.actor = self._actor_class.remote(worker.number, threads, os.getcwd())
                await self._start(worker)
                failed_starts = 0
                while await self._do(worker, *await self._next(worker)):
                    pass
            except self._ray.exceptions.RayTaskError:
                raise  # an actor's methods answer with errors instead of raising them: a bug
            except self._ray.exceptions.RayError as error:
                why, _ = self._cause(worker, error)
                self._note(f"worker {worker.number} on {worker.host} is lost ({why}); another is started")
                failed_starts += worker.state == "waiting"
                if failed_starts == _STARTS:
                    self._refuse(worker, f"worker {worker.number} could not be started {_STARTS} times ({why})")
                    return
            except _Refused as refused:
                # Its actor stays, without a model, so that no other is placed there.
                self._refuse(worker, str(refused))
                return
            self._ray.kill(worker.actor)

    async def _start(self, worker: RayWorker) -> None:
        versions = {package: version(package) for package in ("selfedit", "torch", "transformers")}
        answer = await _answer(worker.actor.start.remote(versions, [self._source]))
        worker.host, worker.node, worker.pid = answer["host"], answer["node"], answer["pid"]
        for difference in answer["differences"]:
            self._note(f"{difference}: results may differ")
        if reason := answer.get("user_error"):
            if os.path.exists(self.source.name) and "not a local folder" in reason:
                reason = (
                    f"{worker.host} does not see the model folder {self.source.name}; put it where all machines see it"
                    " under the same path, or name a model of the hub"
                )
            raise _Refused(reason)
        description = answer["description"]
        if self._share.gpus and description.startswith("cpu"):
            raise _Refused(f"{worker.host} has a GPU but its torch sees none; install a CUDA build of torch there")
        node = next((node for node in self._ray.nodes() if node["NodeID"] == worker.node), None)
        worker.memory_share = self._share.of_memory(node)
        worker.state = "idle"
        self._note(f"worker {worker.number} is ready: {worker.host}, {description}, {answer['seconds']:.1f} s")
        if not self._first:
            self._first = description
            memory = int(answer["memory"] * worker.memory_share)
            self._outbox.put(("ready", None, (answer["context_length"], description, memory)))
        elif _kind(description) != _kind(self._first):
            self._note(
                f"worker {worker.number} works in {description}, the first of this run in {self._first}:"
                " results depend on who does what, within rounding; --dtype makes them alike"
            )

    def _refuse(self, worker: RayWorker, reason: str) -> None:
        worker.state = "refused"
        if not self._first:
            raise UserError(reason)
        self._note(f"worker {worker.number} is not used: {reason}")
        if all(worker.state == "refused" for worker in self.workers):
            raise UserError(f"no worker is left: {reason}")

    def _cause(self, worker: RayWorker, error: Exception) -> tuple[str, bool]:
        """Why a worker is lost, in a few words, and whether its task may be the reason."""
        if worker.node and not any(node["Alive"] and node["NodeID"] == worker.node for node in self._ray.nodes()):
            return f"its machine {worker.host} is gone", False
        text = str(error)
        if "running low on memory" in text or isinstance(error, self._ray.exceptions.OutOfMemoryError):
            return _OUT_OF_MEMORY, True
        if "connection error code 2" in text:
            return "its process was killed", True
        return reason(error)[-160:], True

    # Tasks

    def _begin(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._wake()

    def _wake(self) -> None:
        """Has all idle workers look for something to do."""
        self._news.set()
        self._news = asyncio.Event()

    async def _next(self, worker: RayWorker) -> tuple[Schedule, Job]:
        """Waits until there is something to do.  Who helps another worker may be lost meanwhile."""
        looked_at = time.monotonic()
        while True:
            places = {other.node for other in self.workers if other.state in ("idle", "working")}
            if (job := self._schedule.take(worker.node, places, time.monotonic())) is not None:
                if job.holders > 1:
                    self._note(f"{job.task.id} is slow: worker {worker.number} does it too")
                return self._schedule, job
            await self._news.wait()
            if time.monotonic() - looked_at >= _LOOK_EVERY:
                looked_at = time.monotonic()
                await _answer(worker.actor.tokens.remote())

    async def _do(self, worker: RayWorker, schedule: Schedule, job: Job) -> bool:
        """Has a task done.  False if it raised."""
        task, counted = job.task, 0

        def count(tokens: int) -> None:
            nonlocal counted
            if tokens != counted:
                self._tokens += tokens - counted
                self._outbox.put(("tokens", schedule, tokens - counted))
                counted = tokens

        def failed(why: str, **how: bool) -> bool:
            count(0)
            given_up = schedule.fail(job, worker.node, why, **how)
            if given_up is not None:
                self._outbox.put(("result", schedule, given_up))
            return given_up is not None

        worker.state, worker.task = "working", task.id
        try:
            deltas = {name: [self._deltas[name]] for name in task.deltas}
            run = worker.actor.run.remote(task, deltas, (worker.memory_share, job.halvings))
            answer = await self._watched(worker.actor, run, count, isinstance(task, FitTask) and len(task.fits) == 1)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            why, blame = self._cause(worker, error)
            failed(f"a lost worker ({why})", blame=blame, out_of_memory=why == _OUT_OF_MEMORY)
            raise
        else:
            if "error" in answer:
                what = "is given up" if failed(answer["error"], out_of_memory=answer["out_of_memory"]) else "goes back"
                less = ", with half of its memory" if answer["out_of_memory"] and what == "goes back" else ""
                self._note(f"{task.id} raised on worker {worker.number} and {what}{less}: {answer['error']}")
                return False
            first = schedule.finish(job, time.monotonic())
            count(answer["tokens"] if first else 0)
            if first:
                self._outbox.put(("result", schedule, answer["result"]))
            return True
        finally:
            worker.state, worker.task = "idle", "-"
            self._wake()

    async def _watched(self, actor: Any, reference: Any, count: Callable[[int], None], shared: bool) -> dict[str, Any]:
        """A task's answer; its tokens are counted every second until then, and where its steps can be `shared`, its
        worker is told who has nothing to do."""
        answer, told = asyncio.ensure_future(_answer(reference)), None
        while not (await asyncio.wait({answer}, timeout=_TICK))[0]:
            idle = {other.number: other.actor for other in self.workers if shared and other.state == "idle"}
            with suppress(self._ray.exceptions.RayActorError):  # said again by the answer
                count(await _answer(actor.tokens.remote(None if idle == told else idle)))
            told = idle
        return answer.result()

    async def _report(self) -> None:
        """A line about throughput once a minute, or about who is waited for."""
        before = 0
        while True:
            await asyncio.sleep(_NOTE_EVERY)
            states = [worker.state for worker in self.workers]
            working, idle, left = states.count("working"), states.count("idle"), self._schedule.left
            if not working + idle:
                self._note("no worker yet: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))
            elif left:
                rate = (self._tokens - before) / _NOTE_EVERY
                self._note(
                    f"{working + idle} workers, {working} of them working: {rate:,.0f} tokens/s; {left} tasks left"
                )
            before = self._tokens

    def _note(self, line: str) -> None:
        self._outbox.put(("note", None, line))


async def _answer(reference: Any) -> Any:
    """What an actor answers.  (Ray Client's references cannot be awaited.)"""
    return await asyncio.wrap_future(reference.future())


def _kind(description: str) -> tuple[str, str]:
    """Kind of device, and dtype."""
    device, dtype = description.split(", ")
    return device.partition(":")[0], dtype
