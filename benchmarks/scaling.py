"""How the work of a round scales with workers: measured with one and two, simulated with many.

    python -m benchmarks.scaling [--rounds 8]

Measured: one and the same task of fits with their exams (of the bundled model on the built-in training items), with one
thread each, by four arms that take turns, task by task, because a shared machine's speed changes from one minute to the
next: an engine in a process pinned to one core (the cores take turns too); one of a pool's two workers; two such
engines at once, which is what the machine itself allows two cores to do; both workers at once.  All are ready and warm;
the time runs from sending the task to having its result.  Then a queue of tasks on both workers, for the share of it
that they are idle.

Simulated: a round of Step B by 1 to 512 such workers, by the class that hands out tasks in the real pool
(`selfedit.execution.schedule`), with task times drawn from the measured ones and the measured time that the driver
needs for a task.  The phases of a round follow one another as they do in `train`: edits are written, fits made and
examined, the editor trained, and the new editor validated.  Training the editor is one fit, whose steps follow one
another; each is cut into passes as the engine cuts it, which the workers compute at once, and the adapter and the
passes' gradients go over the network.  Beside it stands the least that such a fit can take.  Then the fits of such a
round by workers of which one is slow or hangs, or is on a machine on which every task raises, with and without what the
schedule does about it.

Writes `benchmarks/results/scaling.json`.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import processor

RESULTS = Path(__file__).parent / "results" / "scaling.json"
MODEL = "smollm2-135m"
FITS, EPOCHS = 4, 2  # fits of a measured task, and their epochs
EDIT_TOKENS, ANSWER_TOKENS = 48, 12

# A round of Step B with its published settings (docs/fidelity.md): K, S, epochs, share of documents for validation.
K, S, ROUND_EPOCHS, VALIDATION = 5, 3, 10, 0.2
OUTER_EPOCHS, OUTER_BATCH = 2, 10
# A kept edit with its prompt, tokens on average; and, assumed, how unequal such lengths are (a lognormal's sigma, and
# the least and the most as shares of the median).
OUTER_TOKENS = 650.0
SPREAD, LEAST, MOST = 0.6, 0.4, 3.58
# The outer recipe's adapter (rank 64, all linear layers) on the bundled model, in float32.
ADAPTER_BYTES = 4 * 19_537_920
# Assumed: what a worker's network port carries in each direction, and how fast one core takes a gradient out of the
# object store, and adds it up, in bytes per second.
NETWORK, MEMORY = 1.25e9, 1e9
NEVER = 1e5  # seconds without a result, of a simulation, that mean that there will be none


# Measured


def measured_tasks() -> tuple[Any, Any]:
    """A task of fits with their exams, and one of edits."""
    from selfedit.documents import load_documents
    from selfedit.engine import DecodeRequest, FitJob, TokenSequence
    from selfedit.execution.tasks import CompletionTask, Fit, FitTask
    from selfedit.models import load_tokenizer
    from selfedit.prompts import Prompts
    from selfedit.training.recipes import load_recipe

    tokenizer, prompts = load_tokenizer(MODEL), Prompts(None)
    recipe = load_recipe("default").with_settings({"epochs": EPOCHS})
    documents = load_documents(["news:train"], limit=FITS, seed=0, require_questions=True)

    def task(name: str, document: Any) -> Fit:
        lines = [line for line in document.text.split(". ") if line]
        sequences = tuple(TokenSequence(tuple(tokenizer.text_ids(line))) for line in [*lines, document.text])
        exam = tuple(
            DecodeRequest(
                tuple(
                    tokenizer.prompt_ids(prompts.exam(instruct=True, title=document.title, question=question.question))
                ),
                ANSWER_TOKENS,
                tokenizer.stop_ids,
            )
            for question in document.questions[:3]
        )
        return Fit(name, FitJob(sequences, recipe.settings(), seed=0), exam)

    edits = tuple(
        DecodeRequest(
            tuple(
                tokenizer.prompt_ids(
                    prompts.edit("implications", instruct=True, title=document.title, text=document.text)
                )
            ),
            EDIT_TOKENS,
            (),
            temperature=1.0,
            top_p=0.95,
            seed=0,
        )
        for document in documents
    )
    fits = FitTask("fits", (), recipe.lora(), tuple(task(document.id, document) for document in documents))
    return fits, CompletionTask("edits", (), edits)


def engine(core: int, connection: Connection) -> None:
    """A process with an engine in it, pinned to one core: answers each task with its result and its seconds."""
    os.sched_setaffinity(0, [core])
    import torch

    from selfedit.execution.pool import InProcess
    from selfedit.execution.worker import ModelSource

    torch.set_num_threads(1)
    pool = InProcess(ModelSource(MODEL, device="cpu", dtype="float32"))
    connection.send("ready")
    while (task := connection.recv()) is not None:
        connection.send(timed(lambda task=task: list(pool.run([task])))[0])


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def measured(rounds: int) -> dict[str, Any]:
    """Tasks of one size by an engine, a worker, two engines at once and two workers at once, in turns; then a queue."""
    from selfedit.execution.ray_pool import RayPool
    from selfedit.execution.worker import ModelSource

    os.environ["OMP_NUM_THREADS"] = "1"
    start = multiprocessing.get_context("spawn")
    engines: list[Connection] = []
    for core in sorted(os.sched_getaffinity(0))[:2]:
        here, there = start.Pipe()
        start.Process(target=engine, args=(core, there), daemon=True).start()
        assert here.recv() == "ready"
        engines.append(here)
    pool = RayPool(ModelSource(MODEL, device="cpu", dtype="float32"), workers=2, cpus_per_worker=1, dashboard=False)
    while not all(worker.state == "idle" for worker in pool.workers):
        time.sleep(0.2)
    fits, edits = measured_tasks()
    names = itertools.count()

    def by_engines(task: Any, those: Sequence[Connection]) -> float:
        for connection in those:
            connection.send(task)
        return max(connection.recv() for connection in those)

    def by_workers(task: Any, count: int) -> tuple[float, list[float]]:
        seconds, results = timed(lambda: list(pool.run([replace(task, id=f"{next(names)}") for _ in range(count)])))
        return seconds, [result.seconds for result in results]

    arms: dict[str, list[float]] = {name: [] for name in ("engine", "worker", "two_engines", "two_workers")}
    task_times: list[tuple[str, float, float]] = []
    waiting: list[float] = []  # shares of a measurement in which a worker was not at its task
    for task in (fits, edits):  # warm up
        by_engines(task, engines)
        by_workers(task, 2)
    for number in range(rounds):
        order = ["engine", "worker", "two_engines", "two_workers"]
        for arm in order[number % 4 :] + order[: number % 4]:
            if arm == "engine":
                seconds = by_engines(fits, [engines[number // 2 % 2]])
                task_times.append(("FitTask", fits.cost, seconds))
                task_times.append(("CompletionTask", edits.cost, by_engines(edits, [engines[number // 2 % 2]])))
            elif arm == "two_engines":
                seconds = by_engines(fits, engines)
            else:
                seconds, at_tasks = by_workers(fits, 1 if arm == "worker" else 2)
                if arm == "two_workers":
                    waiting += [1 - at_task / max(at_tasks) for at_task in at_tasks]
            arms[arm].append(seconds)
        print({name: [round(s, 1) for s in seconds] for name, seconds in arms.items()}, file=sys.stderr, flush=True)

    queue = [replace(task, id=f"queue/{n}") for n, task in enumerate([fits] * 6 + [edits] * 4)]
    wall, results = timed(lambda: list(pool.run(queue)))
    busy = sum(result.seconds for result in results) / (2 * wall)
    pool.close()
    for connection in engines:
        connection.send(None)

    def ratio(arm: str, tasks: int) -> dict[str, float]:
        """Tasks in the time of one by an engine: of all rounds together, and the least and the most of a round."""
        by_round = [tasks * one / many for one, many in zip(arms["engine"], arms[arm], strict=True)]
        whole = tasks * sum(arms["engine"]) / sum(arms[arm])
        return {"ratio": round(whole, 3), "least": round(min(by_round), 3), "most": round(max(by_round), 3)}

    return {
        "seconds": {name: [round(s, 2) for s in seconds] for name, seconds in arms.items()},
        "worker_over_engine": ratio("worker", 1),
        "two_workers_over_engine": ratio("two_workers", 2),
        "two_engines_over_engine": ratio("two_engines", 2),
        "two_workers_over_two_engines": round(sum(arms["two_engines"]) / sum(arms["two_workers"]), 3),
        "queue": {"tasks": len(queue), "idle_share": round(1 - busy, 4)},
        "difference_of_two_tasks_at_once": round(sum(waiting) / len(waiting), 4),
        "driver_seconds": {name: round(value, 5) for name, value in driver_seconds().items()},
        "task_times": [[kind, cost, round(seconds, 3)] for kind, cost, seconds in task_times],
    }


@dataclass(frozen=True)
class NoWork:
    """Workers that answer at once: what is left is the pool's own time."""

    name: str = "none"
    device: str | None = None

    def tokenizer(self) -> Any:
        return None

    def worker(self, delta: Callable[[str], Mapping[str, bytes]]) -> Any:
        del delta
        return NoWorker()


class NoWorker:
    description, context_length, memory = "cpu, float32", 1, 2**30

    def run(self, task: Any, on_tokens: Callable[[int], None]) -> Any:
        from selfedit.execution.tasks import TaskResult

        del on_tokens
        return TaskResult(task.id, 0.0)


def driver_seconds(tasks: int = 400) -> dict[str, float]:
    """Seconds of the driver for a task of fits: sending and receiving it, and committing its fits."""
    import ray

    from benchmarks import scaling
    from selfedit.execution.ray_pool import RayPool

    ray.cloudpickle.register_pickle_by_value(scaling)
    task, _ = measured_tasks()
    pool = RayPool(scaling.NoWork(), workers=1, cpus_per_worker=1, dashboard=False)
    list(pool.run([replace(task, id="warm-up")]))
    started = time.perf_counter()
    list(pool.run([replace(task, id=f"u/{n}") for n in range(tasks)]))
    sent = (time.perf_counter() - started) / tasks
    pool.close()
    return {"task": sent, "commit": commit_seconds()}


def commit_seconds(tasks: int = 50, fits: int = 16, answers: int = 5) -> float:
    """Seconds to commit a task of fits with their answers to a run's store."""
    from selfedit.documents import Document, Question
    from selfedit.runs.records import Answer, FitRecord
    from selfedit.runs.store import Store

    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "run.sqlite") as store:
        questions = tuple(Question(f"q{k}", "which", ("this",)) for k in range(answers))
        store.add_documents([Document("d", "title", "text", questions)])
        started = time.perf_counter()
        for task in range(tasks):
            records = [
                FitRecord(
                    condition=f"c{task}-{k}",
                    document_id="d",
                    sequences=("x" * 400,) * 8,
                    train_tokens=1,
                    steps=1,
                    answers=tuple(Answer(q.id, "an answer", 12) for q in questions),
                )
                for k in range(fits)
            ]
            store.record_fits(records)
        return (time.perf_counter() - started) / tasks


# Simulated


@dataclass(frozen=True)
class SimulatedTask:
    """What the schedule needs of a task, and how many seconds an ordinary worker takes for it."""

    id: str
    cost: float
    seconds: float
    policy: tuple[str, ...] = ()


@dataclass(frozen=True)
class Misfortune:
    """Workers that are `slow` by a factor (infinity: they hang), or on whose machine every task raises after a second
    (`bad`) and whose next process is ready after `restart` seconds."""

    slow: Mapping[int, float] = field(default_factory=dict)
    bad: frozenset[int] = frozenset()
    restart: float = 15.0


def simulate(
    tasks: Sequence[SimulatedTask],
    workers: int,
    driver: float,
    misfortune: Misfortune = Misfortune(),
    kind: Callable[..., Any] | None = None,
) -> tuple[float, int]:
    """Seconds until the last result is there, and how many tasks were given up.  The driver needs `driver` seconds for
    each task that it hands out; `kind` is the class of the schedule."""
    from selfedit.execution.schedule import Schedule

    schedule = (kind or Schedule)(tasks)
    places = {str(worker) for worker in range(workers)}
    # When, a number, which worker, with which job (None: idle) and whether it is done.
    events: list[tuple[float, int, int, Any, bool]] = [(0.0, n, n, None, True) for n in range(workers)]
    numbers = itertools.count(workers)
    free, last, given_up = 0.0, 0.0, 0

    def later(when: float, worker: int, job: Any = None, done: bool = True) -> None:
        heapq.heappush(events, (when, next(numbers), worker, job, done))

    while schedule.left and events and events[0][0] - last < NEVER:
        now, _, worker, job, done = heapq.heappop(events)
        if job is not None and not done:
            given_up += schedule.fail(job, str(worker), "it raised") is not None
            later(now + misfortune.restart, worker)
            continue
        if job is not None and schedule.finish(job, now):
            last = now
        job = schedule.take(str(worker), places, now)
        if job is None:
            later(now + 1.0, worker)
            continue
        free = max(free, now) + driver
        if worker in misfortune.bad:
            later(free + 1.0, worker, job, False)
        elif (factor := misfortune.slow.get(worker, 1.0)) < float("inf"):
            later(free + factor * job.task.seconds, worker, job)
    return (float("inf") if schedule.left else last), given_up


Times = Mapping[str, Sequence[tuple[float, float]]]  # for each kind of task, (cost, seconds) as measured


def round_tasks(documents: int, task_size: int, times: Times) -> dict[str, list[SimulatedTask]]:
    """The tasks of a round, by phase."""
    from selfedit.execution.tasks import even_groups

    draw = random.Random(documents)
    rates = {kind: [seconds / cost for cost, seconds in pairs] for kind, pairs in times.items()}

    # Costs of one edit (prompt and text), one fit with its exam, and training on one kept edit; in the published runs
    # an edit with its document has 410 tokens on average, very unequally: here between a third and three times of it.
    def fit_cost() -> float:
        size = min(1230.0, max(137.0, draw.lognormvariate(5.84, 0.6)))
        return 3 * size * ROUND_EPOCHS + 5 * (60 + 64)

    def tasks(name: str, costs: list[float], kind: str) -> list[SimulatedTask]:
        costs = sorted(costs, reverse=True)
        sums = [sum(costs[k] for k in group) for group in even_groups(costs, size=task_size)]
        return [SimulatedTask(f"{name}/{n}", cost, cost * draw.choice(rates[kind])) for n, cost in enumerate(sums)]

    validation = round(documents * VALIDATION)
    training = documents - validation
    return {
        "edits": tasks("edits", [300.0 + 350] * (training * K), "CompletionTask"),
        "fits": tasks("fits", [fit_cost() for _ in range(training * K * S)], "FitTask"),
        "editor": [],
        "validation edits": tasks("validation edits", [300.0 + 350] * validation, "CompletionTask"),
        "validation fits": tasks("validation fits", [fit_cost() for _ in range(validation * S)], "FitTask"),
    }


def editor_seconds(edits: int, workers: int, batch: int, token: float) -> tuple[float, float, float]:
    """Seconds to train the editor: by one worker, by so many, and the least that any number of them can take, which is
    the longest pass of each step, and one adapter and one gradient over the network.  A `token` takes so many."""
    from selfedit.engine import FitJob, FitSettings, TokenSequence
    from selfedit.engine.planning import TARGET_TOKENS
    from selfedit.engine.schedule import Course, passes

    draw = random.Random(edits)
    shares = [min(MOST, max(LEAST, draw.lognormvariate(0.0, SPREAD))) for _ in range(edits)]
    lengths = [round(OUTER_TOKENS * share * edits / sum(shares)) for share in shares]
    job = FitJob(
        tuple(TokenSequence((0,) * length) for length in lengths), FitSettings(epochs=OUTER_EPOCHS, batch_size=batch), 0
    )
    course, many, least = Course(job, 0), 0.0, 0.0
    while not course.finished:
        places = [[place for _, place in one] for one in passes([course], TARGET_TOKENS["cpu"])]
        parts = sorted((sum(len(course.batch[place].ids) for place in one) for one in places), reverse=True)
        helpers = min(workers, len(parts)) - 1
        # Whoever is free takes the longest part that is left.
        free, elsewhere = [0.0] * (helpers + 1), 0
        for part in parts:
            worker = min(range(helpers + 1), key=free.__getitem__)
            free[worker] += part * token
            elsewhere += worker > 0
        moved = (helpers + elsewhere) / NETWORK + (helpers > 0) * (1 + len(parts)) / MEMORY
        many += max(free) + ADAPTER_BYTES * moved
        least += parts[0] * token + ADAPTER_BYTES * 2 / NETWORK
        course.advance()
    return job.tokens * token, many, least


def round_of(
    documents: int, workers: int, task_size: int, times: Times, driver: float, batch: int = OUTER_BATCH
) -> dict[str, Any]:
    """A round's phases in seconds; the editor is trained with `batch` sequences per step."""
    phases = round_tasks(documents, task_size, times)
    training = documents - round(documents * VALIDATION)
    seconds = {name: simulate(work, workers, driver)[0] if work else 0.0 for name, work in phases.items()}
    mean = sum(seconds / cost for cost, seconds in times["FitTask"]) / len(times["FitTask"])
    alone, seconds["editor"], least = editor_seconds(training, workers, batch, 3 * mean)
    others = sum(task.seconds for work in phases.values() for task in work)
    busy = others + alone
    total = sum(seconds.values())
    return {
        "documents": documents,
        "workers": workers,
        "task_size": task_size,
        "tasks_of_fits": len(phases["fits"]),
        "seconds": round(total, 1),
        "speedup": round(busy / total, 2),
        "efficiency": round(busy / total / workers, 3),
        "phases": {name: round(value, 1) for name, value in seconds.items()},
        "editor": {
            "batch": batch,
            "one_worker": round(alone, 1),
            "least": round(least, 1),
            "speedup": round(alone / seconds["editor"], 2),
            "speedup_of_the_round_at_most": round(busy / (total - seconds["editor"] + least), 2),
            "speedup_of_the_round_by_one_worker": round(busy / (total - seconds["editor"] + alone), 2),
        },
        "without_editor": {
            "speedup": round(others / (total - seconds["editor"]), 2),
            "efficiency": round(others / (total - seconds["editor"]) / workers, 3),
        },
    }


def misfortunes(times: Times, driver: float) -> list[dict[str, Any]]:
    """The fits of a round of 50 documents by 8 workers, one of them unlucky: seconds, and tasks given up, with the
    schedule as it is, and without the part of it that is for this."""
    from selfedit.execution.schedule import Job, Schedule

    class WithoutCopies(Schedule):
        def _slowest(self, now: float) -> Job | None:
            return None

    class WithoutPlaces(Schedule):
        def take(self, place: str, places: Any, now: float) -> Job | None:
            return super().take(place, frozenset(), now)

    work = round_tasks(50, 16, times)["fits"]
    found = []
    for what, misfortune, without in (
        ("none", Misfortune(), Schedule),
        *(
            (f"{factor:g} times slower", Misfortune(slow={0: factor}), WithoutCopies)
            for factor in (2.0, 4.0, 8.0, 20.0)
        ),
        ("hangs", Misfortune(slow={0: float("inf")}), WithoutCopies),
        ("every task raises there", Misfortune(bad=frozenset({0})), WithoutPlaces),
    ):
        row: dict[str, Any] = {"one of 8 workers": what, "tasks": len(work)}
        for name, kind in (("as it is", Schedule), ("without", without)):
            seconds, given_up = simulate(work, 8, driver, misfortune, kind)
            row[name] = {"seconds": round(seconds) if seconds < float("inf") else "never", "given up": given_up}
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="of one task by each arm")
    parser.add_argument("--simulate-only", action="store_true", help="with the measurements of the last results file")
    arguments = parser.parse_args()
    if arguments.simulate_only:
        found = json.loads(RESULTS.read_text())
    else:
        found = {
            "date": date.today().isoformat(),
            "command": "python -m benchmarks.scaling " + " ".join(sys.argv[1:]),
            "machine": processor(),
            **measured(arguments.rounds),
        }
    times: dict[str, list[tuple[float, float]]] = {}
    for kind, cost, seconds in found["task_times"]:
        times.setdefault(kind, []).append((cost, seconds))
    driver = found["driver_seconds"]["task"]
    found["simulated"] = [
        round_of(documents, workers, task_size, times, driver)
        for documents in (50, 5000)
        for task_size in (16, 4)
        for workers in (1, 8, 64, 512)
    ]
    found["larger_steps"] = [round_of(5000, 512, 4, times, driver, batch) for batch in (20, 40, 50, 64, 128)]
    found["misfortunes"] = misfortunes(times, driver)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    tables = ("simulated", "larger_steps", "misfortunes")
    print(json.dumps({key: found[key] for key in found.keys() - {"task_times", *tables}}, indent=1))
    for row in [row for table in tables for row in found[table]]:
        print(row)


if __name__ == "__main__":
    main()
