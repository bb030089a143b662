"""Which task goes to which worker: one queue, the longest first, with tries, and copies of what a slow worker holds.

Knows tasks by their costs, workers by name, and the time that it is told.  Knows nothing of Ray or of models: the pool
of a cluster and the simulation in `benchmarks/scaling.py` drive the same class."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

from selfedit.execution.tasks import Task, TaskResult

# A task that raised this often is given up.
TRIES = 3
# So is one whose worker died so often while it ran: it may be what kills them, but machines are lost for other reasons
# too.
DEATHS = 5
# A task under way for this many times as long as the median (by its cost), and for this many seconds at least, is given
# to an idle worker as well; the first result counts.
SLOW, SLOW_SECONDS = 4.0, 10.0
_ENOUGH_TIMES = 3  # finished tasks that a median needs


@dataclass(eq=False)
class _Task:
    task: Task
    number: int
    tries: int = 0
    deaths: int = 0
    halvings: int = 0
    bad_places: set[str] = field(default_factory=set)
    holders: list[str] = field(default_factory=list)
    over: bool = False

    @property
    def order(self) -> tuple[float, int]:
        return -self.task.cost, self.number


@dataclass
class _Lane:
    """A worker's tasks: the one under way, and one that waits behind it so that the worker need not ask."""

    place: str
    policy: tuple[str, ...] = ()
    tasks: list[_Task] = field(default_factory=list)
    started: float = 0.0


@dataclass(frozen=True)
class Assignment:
    """A task for a worker.  `taken_from` has it waiting and should forget it; `copied_from` is slow at it.  Memory ran
    out over the task as often as `halvings` says."""

    task: Task
    halvings: int = 0
    taken_from: str | None = None
    copied_from: str | None = None


class Schedule:
    """Hands out tasks until each is finished or given up, whatever becomes of the workers.

    A worker holds at most two tasks, one under way and one behind it; when the queue is empty, an idle worker takes
    what waits behind another's task, so that none waits longer than the task under way.  Times are in seconds, from any
    one clock."""

    def __init__(self, tasks: Iterable[Task], *, slow_seconds: float = SLOW_SECONDS) -> None:
        self.slow_seconds = slow_seconds
        self._tasks = {task.id: _Task(task, number) for number, task in enumerate(tasks)}
        self._waiting = sorted(self._tasks.values(), key=lambda task: task.order)
        self._lanes: dict[str, _Lane] = {}
        self._rates: dict[type, list[float]] = {}
        self.left = len(self._tasks)

    @property
    def done(self) -> bool:
        return self.left == 0

    @property
    def waiting(self) -> int:
        """Tasks that no worker holds."""
        return len(self._waiting)

    def __contains__(self, worker: str) -> bool:
        """Whether a worker has joined and not left."""
        return worker in self._lanes

    def holds(self, worker: str) -> int:
        """How many tasks a worker holds."""
        return len(self._lanes[worker].tasks)

    def join(self, worker: str, place: str) -> None:
        """A worker is ready; `place` is its machine."""
        self._lanes[worker] = _Lane(place)

    def take(self, worker: str, now: float) -> Assignment | None:
        """The next task of a worker, or None where it should wait."""
        lane = self._lanes[worker]
        if len(lane.tasks) > 1:
            return None
        # One behind another only while there are tasks for everybody.
        if not lane.tasks or len(self._waiting) > len(self._lanes):
            task = self._next(lane)
            if task is not None:
                self._waiting.remove(task)
                return self._give(task, worker, now)
        if lane.tasks:
            return None
        return self._steal(worker, now) or self._copy(worker, now)

    def finish(self, worker: str, task_id: str, now: float) -> bool:
        """A worker has done a task.  False where another was first: the result is to be dropped."""
        task = self._tasks[task_id]
        elapsed = self._put_down(worker, task, now)
        if task.over:
            return False
        if elapsed is not None:
            bisect.insort(self._rates.setdefault(type(task.task), []), elapsed / max(task.task.cost, 1.0))
        self._close(task)
        return True

    def fail(
        self, worker: str, task_id: str, why: str, now: float, *, out_of_memory: bool = False
    ) -> TaskResult | None:
        """A task raised.  The result that says so where it is given up; else it goes back and is tried elsewhere if it
        can be."""
        task = self._tasks[task_id]
        task.bad_places.add(self._lanes[worker].place)
        self._put_down(worker, task, now)
        if task.over:
            return None
        task.tries += 1
        task.halvings += out_of_memory
        if task.tries < TRIES:
            self._back(task)
            return None
        self._close(task)
        return TaskResult(task_id, 0.0, error=f"failed {task.tries} times, at last with {why}")

    def leave(
        self, worker: str, why: str, now: float, *, blame: bool = True, out_of_memory: bool = False
    ) -> list[TaskResult]:
        """A worker is gone; its tasks go back.  With `blame`, the one under way may have been the reason."""
        lane = self._lanes.pop(worker)
        given_up = []
        for place, task in enumerate(lane.tasks):
            task.holders.remove(worker)
            if task.over:
                continue
            if blame and place == 0:
                task.deaths += 1
                task.halvings += out_of_memory
                if task.deaths >= DEATHS:
                    self._close(task)
                    given_up.append(
                        TaskResult(
                            task.task.id, now - lane.started, error=f"{task.deaths} workers died at it; the last: {why}"
                        )
                    )
                    continue
            self._back(task)
        return given_up

    def _next(self, lane: _Lane) -> _Task | None:
        """The longest waiting task, of the worker's own policy if there is one: merging others, or going back, takes
        time."""
        best: tuple[int, _Task] | None = None
        for task in self._waiting:
            if lane.place in task.bad_places and not {other.place for other in self._lanes.values()} <= task.bad_places:
                continue
            policy = task.task.policy
            rank = 0 if policy == lane.policy else 1 if policy[: len(lane.policy)] == lane.policy else 2
            if best is None or rank < best[0]:
                best = rank, task
            if rank == 0:
                break
        return best[1] if best else None

    def _give(self, task: _Task, worker: str, now: float) -> Assignment:
        lane = self._lanes[worker]
        if not lane.tasks:
            lane.started = now
        lane.tasks.append(task)
        lane.policy = task.task.policy
        task.holders.append(worker)
        return Assignment(task.task, task.halvings)

    def _steal(self, worker: str, now: float) -> Assignment | None:
        """The longest task that waits behind another."""
        behind = [
            (lane.tasks[-1], name)
            for name, lane in self._lanes.items()
            if len(lane.tasks) > 1 and self._lanes[worker].place not in lane.tasks[-1].bad_places
        ]
        if not behind:
            return None
        task, name = min(behind, key=lambda pair: pair[0].order)
        self._lanes[name].tasks.remove(task)
        task.holders.remove(name)
        self._give(task, worker, now)
        return Assignment(task.task, task.halvings, taken_from=name)

    def _copy(self, worker: str, now: float) -> Assignment | None:
        """The task that is the furthest behind its time."""
        worst: tuple[float, _Task, str] | None = None
        for name, lane in self._lanes.items():
            if not lane.tasks or name == worker:
                continue
            task = lane.tasks[0]
            rates = self._rates.get(type(task.task), [])
            if task.over or len(task.holders) > 1 or len(rates) < _ENOUGH_TIMES:
                continue
            elapsed = now - lane.started
            allowed = max(self.slow_seconds, SLOW * rates[len(rates) // 2] * task.task.cost)
            if elapsed > allowed and (worst is None or elapsed / allowed > worst[0]):
                worst = elapsed / allowed, task, name
        if worst is None:
            return None
        _, task, name = worst
        self._give(task, worker, now)
        return Assignment(task.task, task.halvings, copied_from=name)

    def _put_down(self, worker: str, task: _Task, now: float) -> float | None:
        """Takes a task out of a worker's hands; how long it was under way (None: it had been taken away before)."""
        lane = self._lanes[worker]
        if worker not in task.holders:
            return None
        elapsed = now - lane.started if lane.tasks[0] is task else None
        lane.tasks.remove(task)
        task.holders.remove(worker)
        lane.started = now
        return elapsed

    def _back(self, task: _Task) -> None:
        if not task.holders and task not in self._waiting:
            bisect.insort(self._waiting, task, key=lambda task: task.order)

    def _close(self, task: _Task) -> None:
        task.over = True
        self.left -= 1
        if task in self._waiting:
            self._waiting.remove(task)
