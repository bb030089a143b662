"""The order of tasks: what an idle worker does next, and what becomes of a task that failed.

Ray places, starts and ends processes; it does not move a task from one actor to another, and its own retries wait for
the actor that was lost.  With `max_restarts` and `max_task_retries`, one of two machines gone for good and the other
idle, the lost task had not come back after 120 s (Ray 2.60).  Hence this queue.  The pool on Ray and the simulation in
`benchmarks/scaling.py` use the same class.

Figures below: `python -m benchmarks.scaling --simulate-only`, the fits of a round of 50 documents (47 tasks) by 8
workers, 4,970 s when all is well.  A second task behind the one under way, and stealing it, gained at most 0.3 % with
5,000 documents and 2 to 512 workers, also where tasks take 2 s; so a worker holds one task.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from selfedit.execution.tasks import Task, TaskResult

# A task that raised, or whose worker died, this often is given up.
TRIES = 3
# A task under way for this many times as long as the median (by its cost), and for this many seconds at least, is given
# to an idle worker as well; the first result counts.  With a worker that hangs the round takes 6,227 s, without this it
# never ends; with one that is 20 times slower, 6,227 s and 19,419 s.
SLOW, SLOW_SECONDS = 4.0, 10.0
_ENOUGH_TIMES = 3  # finished tasks that a median needs


@dataclass(eq=False)
class Job:
    """A task on its way.  `halvings` is how often memory ran out over it, `holders` how many workers have it now.

    `bad_places` are machines on which it failed.  With one machine on which every task raises at once, all 47 tasks are
    done; if tasks could go back to it, 33 of them would be given up.
    """

    task: Task
    number: int
    tries: int = 0
    halvings: int = 0
    bad_places: set[str] = field(default_factory=set)
    holders: int = 0
    copied: bool = False
    started: float = 0.0
    over: bool = False

    @property
    def order(self) -> tuple[int, tuple[str, ...], float, int]:
        """Tasks of one policy go together, because going back loads the model again; of those, the longest first."""
        return len(self.task.policy), self.task.policy, -self.task.cost, self.number


class Schedule:
    """Hands out tasks until each is finished or given up.  Times are in seconds, from any one clock."""

    def __init__(self, tasks: Iterable[Task], *, slow_seconds: float = SLOW_SECONDS) -> None:
        self.slow_seconds = slow_seconds
        jobs = [Job(task, number) for number, task in enumerate(tasks)]
        self._waiting = sorted(jobs, key=lambda job: job.order)
        self._under_way: list[Job] = []
        self._rates: dict[type, list[float]] = {}
        self.left = len(jobs)

    def take(self, place: str, places: Set[str], now: float) -> Job | None:
        """What an idle worker on the machine `place` does next, or None.  `places` are the machines of all workers."""
        for job in self._waiting:
            if place not in job.bad_places or places <= job.bad_places:
                self._waiting.remove(job)
                self._under_way.append(job)
                job.started, job.copied = now, False
                break
        else:
            if (slow := self._slowest(now)) is None:
                return None
            job, slow.copied = slow, True
        job.holders += 1
        return job

    def finish(self, job: Job, now: float) -> bool:
        """A worker has done a task.  False where another was first: the result is to be dropped."""
        job.holders -= 1
        if job.over:
            return False
        if not job.copied:
            rate = (now - job.started) / max(job.task.cost, 1.0)
            bisect.insort(self._rates.setdefault(type(job.task), []), rate)
        self._close(job)
        return True

    def fail(
        self, job: Job, place: str, why: str, *, blame: bool = True, out_of_memory: bool = False
    ) -> TaskResult | None:
        """A task raised, or its worker is gone.  It goes back, or is given up: the result that says so.

        With `blame`, the task may have been the reason; it is then tried on another machine, if there is one.
        """
        job.holders -= 1
        if job.over:
            return None
        if blame:
            job.tries += 1
            job.halvings += out_of_memory
            job.bad_places.add(place)
        if job.holders:
            return None
        if job.tries >= TRIES:
            self._close(job)
            return TaskResult(job.task.id, 0.0, error=f"failed {job.tries} times, at last with {why}")
        self._under_way.remove(job)
        bisect.insort(self._waiting, job, key=lambda job: job.order)
        return None

    def _slowest(self, now: float) -> Job | None:
        """The task that is the furthest behind its time, if one is."""
        slow: list[tuple[float, int, Job]] = []
        for job in self._under_way:
            rates = self._rates.get(type(job.task), [])
            if job.copied or len(rates) < _ENOUGH_TIMES:
                continue
            allowed = max(self.slow_seconds, SLOW * rates[len(rates) // 2] * job.task.cost)
            if now - job.started > allowed:
                slow.append(((now - job.started) / allowed, -job.number, job))
        return max(slow)[2] if slow else None

    def _close(self, job: Job) -> None:
        job.over = True
        self.left -= 1
        self._under_way.remove(job)
