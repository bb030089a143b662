"""How the work of a round scales with workers: measured with one and two, simulated with many.

    python -m benchmarks.scaling [--units 12] [--repeats 2]

Measured: the same units of work (fits with exams, and edits, of the bundled model on the built-in training items), one core and
one thread a worker: in this process pinned to one core; by one worker; by two; and by two separate processes at once,
which is what the machine itself allows two cores to do.  The time runs from the first unit's start to the last result, with
all workers ready.  A worker's idle share is the part of that time in which it was not at a unit.

Simulated: a round of Step B by 1 to 512 such workers, by the class that hands out units in the real pool
(`selfedit.workers.schedule`), with unit times drawn from the measured ones and the measured time that the driver needs for a
unit.  The phases of a round follow one another as they do in `train`: edits are written, fits made and examined, the
editor trained (one fit, so one worker), and the new editor validated.

Writes `benchmarks/results/scaling.json`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "scaling.json"
FITS, EPOCHS = 4, 2  # fits of a measured unit, and their epochs
EDIT_TOKENS, ANSWER_TOKENS = 48, 12

# A round of Step B with its published settings (docs/method.md): K, S, epochs, share of documents for validation.
K, S, ROUND_EPOCHS, VALIDATION = 5, 3, 10, 0.2
OUTER_EPOCHS = 2


# Measured


def measured_units(count: int) -> list[Any]:
    """`count` units of fits with their exams and a third as many of edits, alike in size."""
    from selfedit.documents import load_documents
    from selfedit.engine import DecodeRequest, FitJob, TokenSequence
    from selfedit.models import load_tokenizer
    from selfedit.prompts import Prompts
    from selfedit.recipes import load_recipe
    from selfedit.workers.units import FitTask, FitUnit, WriteUnit

    tokenizer, prompts = load_tokenizer("smollm2-135m"), Prompts(None)
    recipe = load_recipe("default").with_settings({"epochs": EPOCHS})
    documents = load_documents(["news:train"], limit=FITS, seed=0, require_questions=True)

    def task(name: str, document: Any) -> FitTask:
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
        return FitTask(name, FitJob(sequences, recipe.settings(), seed=0), exam)

    def edits(number: int) -> tuple[DecodeRequest, ...]:
        return tuple(
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
                seed=number,
            )
            for document in documents
        )

    units: list[Any] = [
        FitUnit(f"fits/{n}", (), recipe.lora(), tuple(task(f"{n}/{d.id}", d) for d in documents)) for n in range(count)
    ]
    return units + [WriteUnit(f"edits/{n}", (), edits(n)) for n in range(count // 3)]


def measure(workers: int, units: int) -> dict[str, Any]:
    """One measurement in this process: units, seconds, and what each unit and worker took; 0 workers: this process."""
    import torch

    from selfedit.workers.pool import InProcess
    from selfedit.workers.worker import ModelSource

    torch.set_num_threads(1)
    source = ModelSource("smollm2-135m", device="cpu", dtype="float32")
    work = measured_units(units)
    warm_up = measured_units(1)
    if workers == 0:
        pool: Any = InProcess(source)
        list(pool.run(warm_up))
        before, states = [], []
    else:
        from selfedit.workers.ray_pool import RayPool

        pool = RayPool(source, workers=workers, cpus_per_worker=1, dashboard=False)
        while not all(state.state == "idle" for state in pool.states()):
            time.sleep(0.2)
        for n in range(2 * workers):  # each of them, whoever comes first
            list(pool.run([_renamed(unit, f"warm-up/{n}/{unit.id}") for unit in warm_up for _ in range(1)]))
        time.sleep(2.0)
        before = [state.busy_seconds for state in pool.states()]
    started = time.perf_counter()
    results = list(pool.run(work))
    wall = time.perf_counter() - started
    if workers:
        time.sleep(2.0)  # until the workers' own counts are here
        states = [state.busy_seconds - b for state, b in zip(pool.states(), before, strict=True)]
    pool.close()
    costs = {unit.id: (type(unit).__name__, unit.cost) for unit in work}
    return {
        "seconds": wall,
        "tokens": sum(unit.cost for unit in work),
        "busy": states,
        "units": [(*costs[result.unit_id], result.seconds) for result in results],
    }


def _renamed(unit: Any, name: str) -> Any:
    from dataclasses import replace

    return replace(unit, id=name)


def in_new_process(workers: int, units: int, cores: Sequence[int]) -> subprocess.Popen[str]:
    """`measure` in a process of its own, on these cores."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scaling", "--measure", str(workers), "--units", str(units)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )


def answer_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a measurement ended with {process.returncode}")
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


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
    description, context_length = "cpu, float32", 1

    def run(self, unit: Any, on_tokens: Callable[[int], None]) -> Any:
        from selfedit.workers.units import UnitResult

        del on_tokens
        return UnitResult(unit.id, 0.0)


def driver_seconds(units: int = 400) -> dict[str, float]:
    """Seconds of the driver for a unit of fits: sending and receiving it, and committing its fits."""
    import ray

    from benchmarks import scaling
    from selfedit.workers.ray_pool import RayPool

    ray.cloudpickle.register_pickle_by_value(scaling)
    unit = measured_units(3)[0]
    pool = RayPool(scaling.NoWork(), workers=1, cpus_per_worker=1, dashboard=False)
    list(pool.run([_renamed(unit, "warm-up")]))
    started = time.perf_counter()
    list(pool.run([_renamed(unit, f"u/{n}") for n in range(units)]))
    sent = (time.perf_counter() - started) / units
    pool.close()
    return {"unit": sent, "commit": commit_seconds()}


def commit_seconds(units: int = 50, fits: int = 16, answers: int = 5) -> float:
    """Seconds to commit a unit of fits with their answers to a run's store."""
    from selfedit.documents import Document, Question
    from selfedit.runs.records import Answer, FitRecord
    from selfedit.runs.store import Store

    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "run.sqlite") as store:
        questions = tuple(Question(f"q{k}", "which", ("this",)) for k in range(answers))
        store.add_documents([Document("d", "title", "text", questions)])
        started = time.perf_counter()
        for unit in range(units):
            records = [
                FitRecord(
                    condition=f"c{unit}-{k}",
                    document_id="d",
                    sequences=("x" * 400,) * 8,
                    train_tokens=1,
                    steps=1,
                    answers=tuple(Answer(q.id, "an answer", 12) for q in questions),
                )
                for k in range(fits)
            ]
            store.record_fits(records, [])
        return (time.perf_counter() - started) / units


# Simulated


@dataclass(frozen=True)
class SimulatedUnit:
    """What the schedule needs to know of a unit, and how long it takes."""

    id: str
    cost: float
    seconds: float
    policy: tuple[str, ...] = ()


def simulate(units: Sequence[SimulatedUnit], workers: int, driver: float) -> float:
    """Seconds until the last result is committed.  A worker begins a unit that waits behind another at once; the driver needs
    `driver` seconds for each result before it hands out the next unit."""
    from selfedit.workers.schedule import Schedule

    schedule = Schedule(units)  # type: ignore[arg-type]
    names = [f"w{n}" for n in range(workers)]
    behind: dict[str, deque[SimulatedUnit]] = {name: deque() for name in names}
    at_work: dict[str, bool] = dict.fromkeys(names, False)
    events: list[tuple[float, int, str, str, SimulatedUnit]] = []
    count = 0

    def begin(worker: str, unit: SimulatedUnit, now: float) -> None:
        nonlocal count
        count += 1
        at_work[worker] = True
        heapq.heappush(events, (now + unit.seconds, count, "done", worker, unit))

    def hand_out(worker: str, now: float, most: int = 2) -> None:
        for _ in range(most):
            assignment = schedule.take(worker, now)
            if assignment is None:
                return
            unit: Any = assignment.unit
            if assignment.taken_from is not None and unit in behind[assignment.taken_from]:
                behind[assignment.taken_from].remove(unit)
            if at_work[worker]:
                behind[worker].append(unit)
            else:
                begin(worker, unit, now)

    free = 0.0
    for name in names:
        schedule.join(name, name)
    for _ in range(2):
        for name in names:
            if not schedule.waiting:
                break
            free += driver
            hand_out(name, free, most=1)
    while not schedule.done:
        now, _, what, worker, unit = heapq.heappop(events)
        if what == "done":
            at_work[worker] = False
            if behind[worker]:
                begin(worker, behind[worker].popleft(), now)
            free = max(free, now) + driver
            count += 1
            heapq.heappush(events, (free, count, "handled", worker, unit))
        else:
            schedule.finish(worker, unit.id, now)
            hand_out(worker, now)
    return free


def round_of(
    documents: int, workers: int, unit_size: int, times: Mapping[str, Sequence[tuple[float, float]]], driver: float
) -> dict[str, Any]:
    """A round's phases in seconds.  `times`: for each kind of unit, (cost, seconds) as measured."""
    from selfedit.workers.units import even_groups

    draw = random.Random(documents)
    rates = {kind: [seconds / cost for cost, seconds in pairs] for kind, pairs in times.items()}

    # Costs of one edit (prompt and text), one fit with its exam, and training on one kept edit; in the published runs an edit
    # with its document has 410 tokens on average, very unequally: here between a third and three times of it.
    def fit_cost() -> float:
        size = min(1230.0, max(137.0, draw.lognormvariate(5.84, 0.6)))
        return 3 * size * ROUND_EPOCHS + 5 * (60 + 64)

    def units(name: str, costs: list[float], kind: str) -> list[SimulatedUnit]:
        costs = sorted(costs, reverse=True)
        sums = [sum(costs[k] for k in group) for group in even_groups(costs, size=unit_size)]
        return [SimulatedUnit(f"{name}/{n}", cost, cost * draw.choice(rates[kind])) for n, cost in enumerate(sums)]

    validation = round(documents * VALIDATION)
    training = documents - validation
    phases = {
        "edits": units("edits", [300.0 + 350] * (training * K), "WriteUnit"),
        "fits": units("fits", [fit_cost() for _ in range(training * K * S)], "FitUnit"),
        "editor": [],
        "validation edits": units("validation edits", [300.0 + 350] * validation, "WriteUnit"),
        "validation fits": units("validation fits", [fit_cost() for _ in range(validation * S)], "FitUnit"),
    }
    seconds = {name: simulate(work, workers, driver) if work else 0.0 for name, work in phases.items()}
    mean = sum(rates["FitUnit"]) / len(rates["FitUnit"])
    seconds["editor"] = 3 * training * (300 + 350) * OUTER_EPOCHS * mean
    busy = sum(unit.seconds for work in phases.values() for unit in work) + seconds["editor"]
    total = sum(seconds.values())
    return {
        "documents": documents,
        "workers": workers,
        "unit_size": unit_size,
        "units_of_fits": len(phases["fits"]),
        "seconds": round(total, 1),
        "speedup": round(busy / total, 2),
        "efficiency": round(busy / total / workers, 3),
        "phases": {name: round(value, 1) for name, value in seconds.items()},
        "without_editor": {
            "speedup": round((busy - seconds["editor"]) / (total - seconds["editor"]), 2),
            "efficiency": round((busy - seconds["editor"]) / (total - seconds["editor"]) / workers, 3),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=12, help="units of fits in a measurement")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--simulate-only", action="store_true", help="with the measurements of the last results file")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.units)))
        return

    if arguments.simulate_only:
        found = json.loads(RESULTS.read_text())
    else:
        found = {"cpu": _cpu(), "cores": os.cpu_count(), "units": arguments.units, **_measured(arguments)}
    times: dict[str, list[tuple[float, float]]] = {}
    for kind, cost, seconds in found["unit_times"]:
        times.setdefault(kind, []).append((cost, seconds))
    driver = found["driver_seconds"]["unit"] + found["driver_seconds"]["commit"]
    found["simulated"] = [
        round_of(documents, workers, unit_size, times, driver)
        for documents in (50, 5000)
        for unit_size in (16, 4)
        for workers in (1, 8, 64, 512)
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key not in ("unit_times", "simulated")}, indent=1))
    for row in found["simulated"]:
        print(row)


def _measured(arguments: argparse.Namespace) -> dict[str, Any]:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    runs: dict[str, list[dict[str, Any]]] = {"in_process": [], "one_worker": [], "two_workers": [], "two_processes": []}
    for _ in range(arguments.repeats):
        runs["in_process"].append(answer_of(in_new_process(0, arguments.units, [first])))
        runs["one_worker"].append(answer_of(in_new_process(1, arguments.units, [first, second])))
        runs["two_workers"].append(answer_of(in_new_process(2, arguments.units, [first, second])))
        both = [in_new_process(0, arguments.units // 2, [core]) for core in (first, second)]
        answers = [answer_of(process) for process in both]
        runs["two_processes"].append(
            {"seconds": max(a["seconds"] for a in answers), "tokens": sum(a["tokens"] for a in answers), "busy": []}
        )
        for name, made in runs.items():
            print(name, [round(run["seconds"], 1) for run in made], file=sys.stderr)
    rates = {name: max(run["tokens"] / run["seconds"] for run in made) for name, made in runs.items()}
    return {
        "seconds": {name: [round(run["seconds"], 2) for run in made] for name, made in runs.items()},
        "throughput": {name: round(rate, 1) for name, rate in rates.items()},
        "one_worker_over_in_process": round(rates["one_worker"] / rates["in_process"], 3),
        "two_workers_over_in_process": round(rates["two_workers"] / rates["in_process"], 3),
        "two_workers_over_one_worker": round(rates["two_workers"] / rates["one_worker"], 3),
        "two_processes_over_in_process": round(rates["two_processes"] / rates["in_process"], 3),
        "idle_share": {
            name: [[round(1 - busy / run["seconds"], 4) for busy in run["busy"]] for run in runs[name]]
            for name in ("one_worker", "two_workers")
        },
        "driver_seconds": {name: round(value, 5) for name, value in driver_seconds().items()},
        "unit_times": [
            [kind, cost, round(seconds, 3)] for run in runs["in_process"] for kind, cost, seconds in run["units"]
        ],
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
