"""Runs killed or interrupted at random moments, resumed until they are finished, and compared with uninterrupted ones.

    python -m benchmarks.kills [--kills 50] [--interrupts 20] [--with-workers 10] [--commands compare train] [--write]

Each of `compare`, `learn` (one adapter; `learn-each`: one per document), `train` and `continual` runs from its command
line with the tests' tiny model, in this process's forks, so that nothing but the run itself takes time, and gets
SIGKILL, or in other campaigns SIGINT: half of the times after a random time, half of the times at an event: one of a
random kind (a statement of the store's, a file synced, renamed or removed, a step of the engine), so that moments that
are rare and short are hit as well.  With two workers of a local Ray, the signal goes to the driver's process group, or
to the driver alone.  Then the same command is given again, until it ends; a campaign is all lives of one run.

Looked at after each life: whether the lock is free, and what processes are left (this process adopts orphans).  After
each campaign: whether tables, summary, adapters and checkpoints are those of the uninterrupted run without workers,
times aside; so an edit, fit, answer or cost that is there twice shows.  Whether an edit or a fit was begun again that
the store had.  Which unfinished and temporary files are left in the run's directory, in the temporary directory, and in
shared memory.  An interrupted life has to end within seconds, with exit code 130 and the promised last line, and may
leave no temporary file.

`compare` has an API's edits among its conditions, from a server on this machine: what is booked must be what came, each
reply once.  Fits are saved on the way every 30 ms.  Linux only.  With --write the figures of each command, number of
workers and signal go to `benchmarks/results/kills.json` as soon as they are there.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import fcntl
import hashlib
import importlib
import json
import math
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import processor

RESULTS = Path(__file__).parent / "results" / "kills.json"
TESTS = Path(__file__).parents[1] / "tests"
MOST_LIVES = 12  # of a campaign that are killed; then it may end
GONE_WITHIN = 90.0  # seconds that what a killed run started is waited for
LONGEST = 300.0  # seconds that a life may last
# The last line, before and after the command's words have been read.
INTERRUPTED = ("selfedit: interrupted", "selfedit: interrupted; the same command goes on from here")
ENDS_WITHIN = 3.0  # seconds from SIGINT to the end, on a machine that has a core for the run

WORDS = {
    "compare": "--editor=passage --editor=self --editor=api:writer --edits=2 --replicates=2",
    "learn": "--editor=self --edits=2 --adapters=joint",
    "learn-each": "--editor=self --edits=2 --adapters=per-document --retry-missed",
    "train": "--rounds=2 --edits=2 --replicates=1 --validation-share=0.4 --outer-set=rank=4"
    " --outer-set=learning_rate=3e-3",
    "continual": "--editor=self --edits=2 --retain=none",
}
# What of the store must be equal: all but times, and numbers that SQLite gives.
TABLES = {
    "documents": "SELECT * FROM documents",
    "questions": "SELECT * FROM questions",
    "edits": "SELECT * FROM edits",
    "fits": "SELECT id, round, condition, status, error, sequences, train_tokens, steps, first_loss, last_loss,"
    " divergence, answer_loss, neighbours, leaked, leaked_before FROM fits",
    "curves": "SELECT * FROM curves",
    "own texts": "SELECT * FROM own_texts",
    "answers": "SELECT fit_id, question_id, text, tokens, topic FROM answers",
    "grades": "SELECT fit_id, question_id, grader, value, score, note FROM grades"
    " JOIN answers ON answer_id = answers.id",
    "rounds": "SELECT round, train_reward, validation_accuracy, kept_edits, checkpoint FROM rounds",
    "costs": "SELECT what, condition, round, model, input_tokens, output_tokens, usd FROM costs",
    "api calls": "SELECT key, request, input_tokens, output_tokens FROM api_calls",
    "events": "SELECT kind, subject, message FROM events",
}
TIMES = {"seconds", "total_seconds", "device_seconds", "question_seconds", "worth_it"}


# The world


@dataclass(frozen=True)
class World:
    folder: Path
    common: list[str]
    served: Path

    def words(self, command: str, out: Path, workers: int) -> list[str]:
        documents = str(self.folder / "documents.jsonl")
        name = command.partition("-")[0]
        words = [name, *self.common, *WORDS[command].split(), f"--out={out}"]
        words += [documents] if name == "learn" else [f"--documents={documents}"]
        if command == "compare":
            words += [f"--api-base={(self.folder / 'url').read_text()}", f"--prices={self.folder / 'prices.yaml'}"]
        return words + ([f"--workers={workers}", "--cpus-per-worker=1"] if workers else [])


def make_world(folder: Path) -> World:
    from tiny_world import FEW_WORDS, model_folder, rows, write_rows

    write_rows(folder / "documents.jsonl", rows(5))
    (folder / "prices.yaml").write_text("models: {writer: {input: 1.0, output: 1.0, date: 2026-01-01, source: none}}\n")
    common = [f"--model={model_folder(folder)}", "--task-size=2", "--checkpoint-minutes=0.0005", *FEW_WORDS]
    return World(folder, common, folder / "served")


def serve(folder: Path) -> int:
    """A process that plays the API; it notes each reply that it sends."""
    child = os.fork()
    if child:
        while not (folder / "url").exists():
            time.sleep(0.01)
        return child
    from fake_server import FakeServer

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]
        with (folder / "served").open("a") as log:
            log.write(key + "\n")
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": f"The {key} is made.\nIt cost 5."},
        }
        return {"id": "c", "choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}

    server = FakeServer()
    server.reply = reply  # type: ignore[method-assign]
    (folder / "url.new").write_text(server.url)
    os.rename(folder / "url.new", folder / "url")
    while True:
        signal.pause()


# One life


class Events:
    """Counts what happens; at the chosen event the process, or its group, gets the signal in the midst of it."""

    def __init__(self, at: tuple[str, int] | None, signal_: Callable[[], None]) -> None:
        self.counts: Counter[str] = Counter()
        self.at = at
        self.signal = signal_

    def happen(self, kind: str) -> None:
        self.counts[kind] += 1
        if (kind, self.counts[kind]) == self.at:
            self.signal()

    def listen(self, target: Any, name: str) -> None:
        original = getattr(target, name)

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            statement = name == "_execute"
            self.happen(" ".join(arguments[1].split()[:4]) if statement else name)
            return original(*arguments, **keywords)

        setattr(target, name, wrapped)


@dataclass(frozen=True)
class Plan:
    """When a life gets a signal, if it does (`at` is a kind of event and which of them), which, and whether its group
    gets it too."""

    after: float | None = None
    at: tuple[str, int] | None = None
    group: bool = True
    signal: signal.Signals = signal.SIGKILL

    def send(self, process: int) -> None:
        (os.killpg if self.group else os.kill)(process, self.signal)


def live(words: list[str], folder: Path, plan: Plan) -> None:
    """In the forked process: the command, from its words to its exit."""
    from selfedit.cli import interrupt
    from selfedit.cli.main import main
    from selfedit.execution import worker
    from selfedit.runs import store

    def hit() -> None:
        (folder / "signalled").write_text(str(time.monotonic()))
        plan.send(os.getpid())
        if plan.signal == signal.SIGKILL:
            time.sleep(60)

    def watch(patience: float = interrupt.PATIENCE) -> None:
        original(patience)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores SIGINT
    original, interrupt.watch_interrupts = interrupt.watch_interrupts, watch
    events = Events(plan.at, hit)
    events.listen(store.Store, "_execute")
    for name in ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir"):
        events.listen(os, name)
    begun = os.open(folder / "begun", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    run = worker.Worker.run

    def logged(self: Any, task: Any, on_tokens: Any = None) -> Any:
        what = "edits" if task.id.startswith("edits/") else "fits"
        os.write(begun, "".join(f"{what} {id}\n" for id in task.ids).encode())

        def count(tokens: int) -> None:
            events.happen("step")
            if on_tokens is not None:
                on_tokens(tokens)

        return run(self, task, count)

    worker.Worker.run = logged  # type: ignore[method-assign]
    sys.argv = ["selfedit", *words]
    code = main()
    (folder / "events").write_text(json.dumps(events.counts))
    (folder / "modules").write_text("\n".join(sys.modules))
    # What the interpreter does at its end.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@dataclass
class Life:
    """How it ended: `code` is None where a signal ended it; `ending` are seconds from the signal to its end, None where
    none was sent; `orphans` are seconds until nothing of it was left."""

    code: int | None
    seconds: float
    ending: float | None
    orphans: float
    problems: list[str]


def one_life(world: World, words: list[str], out: Path, plan: Plan) -> Life:
    folder = out.parent
    (folder / "tmp").mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    before = committed(out)
    (folder / "begun").write_text("")
    (folder / "signalled").unlink(missing_ok=True)
    started = time.monotonic()
    # A signal that comes before the command has begun waits for it.
    before_fork = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            live(words, folder, plan)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(99)
    signal.pthread_sigmask(signal.SIG_SETMASK, before_fork)
    with contextlib.suppress(OSError):  # the child was faster
        os.setpgid(child, child)
    signalled = None
    status = None
    while status is None:
        now = time.monotonic()
        ended, found = os.waitpid(child, os.WNOHANG)
        if ended:
            status = found
        elif plan.after is not None and signalled is None and now > started + plan.after:
            signalled = now
            plan.send(child)
        elif now > started + LONGEST:
            os.killpg(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        else:
            time.sleep(0.002)
    ended_at = time.monotonic()
    seconds = ended_at - started
    if plan.at is not None and (folder / "signalled").exists():
        signalled = float((folder / "signalled").read_text())
    problems = []
    code = None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    said = (folder / "log").read_text()
    interrupted = plan.signal == signal.SIGINT and signalled is not None
    if interrupted and code != 0:  # 0: it had finished when the signal came
        problems += unlike_promised(code, said, folder)
    elif code not in (None, 0):
        problems.append(f"exit code {code}: {said[-1500:]}")
    if seconds > LONGEST:
        problems.append(f"it hung: {said[-1500:]}")
    again = before & set((folder / "begun").read_text().split("\n"))
    if again:
        problems.append(f"begun again though committed: {sorted(again)[:3]}")
    orphans = wait_for_orphans(world)
    if orphans is None:
        problems.append(f"still alive after {GONE_WITHIN:.0f} s: {end_orphans(world)}")
    if (out / "lock").exists():
        with (out / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                problems.append("the lock is held")
    return Life(code, seconds, None if signalled is None else ended_at - signalled, orphans or 0.0, problems)


def unlike_promised(code: int | None, said: str, folder: Path) -> Iterator[str]:
    """What is wrong about the end of an interrupted life."""
    from selfedit.cli import interrupt

    if code != interrupt.EXIT_CODE:
        yield f"exit code {code} after SIGINT: {said[-1500:]}"
    elif said.rstrip("\n").split("\n")[-1] not in INTERRUPTED or "Traceback" in said:
        yield f"last words after SIGINT: {said[-1500:]}"
    left = [path.name for path in (folder / "tmp").iterdir()]
    if left:
        yield f"temporary files left after SIGINT: {left[:5]}"


def committed(out: Path) -> set[str]:
    """Ids of the edits and fits that are in the store."""
    path = out / "run.sqlite"
    if not path.exists():
        return set()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            return {
                f"{table} {id}"
                for table in ("edits", "fits")
                for (id,) in connection.execute(f"SELECT id FROM {table}")
            }
        except sqlite3.OperationalError:  # killed before the tables were made
            return set()


def descendants(world: World) -> Iterator[Any]:
    import psutil

    server = int((world.folder / "server").read_text())
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.pid == server:
                continue
            if process.status() == psutil.STATUS_ZOMBIE:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
                continue
            yield process


def wait_for_orphans(world: World) -> float | None:
    """Seconds until nothing that a life started is left; None where something stays."""
    started = time.monotonic()
    while any(True for _ in descendants(world)):
        if time.monotonic() - started > GONE_WITHIN:
            return None
        time.sleep(0.05)
    return time.monotonic() - started


def end_orphans(world: World) -> list[str]:
    found = []
    for process in descendants(world):
        found.append(" ".join(process.cmdline())[:100])
        process.kill()
    return found


# A run and what it came to


def content(out: Path) -> dict[str, Any]:
    """All that must be equal."""
    found: dict[str, Any] = {}
    with contextlib.closing(sqlite3.connect(out / "run.sqlite")) as connection:
        for table, query in TABLES.items():
            found[table] = sorted(connection.execute(query), key=repr)
    found["summary"] = timeless(json.loads((out / "summary.json").read_text()))
    for name in ("adapters", "checkpoints"):
        files = sorted(path for path in (out / name).rglob("*") if path.is_file())
        found[name] = {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    # SQLite's own files come and go.
    there = {str(path.relative_to(out)) for path in out.rglob("*")}
    found["names"] = sorted(there - {"run.sqlite-wal", "run.sqlite-shm"})
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [timeless(inner) for inner in value]
    return value


@dataclass
class Tally:
    command: str
    workers: int
    signal: str
    hits: int = 0
    lives: int = 0
    lives_with_saved_fits: int = 0
    campaigns: int = 0
    equal: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    depths: Counter[int] = field(default_factory=Counter)
    endings: list[float] = field(default_factory=list)
    slowest_orphan: float = 0.0
    replies_served_twice: int = 0
    temporary_left: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        endings = sorted(self.endings)
        return {
            **vars(self),
            "moments": dict(self.moments),
            "depths": dict(sorted(self.depths.items())),
            "endings": {
                f"{share:.0%}": round(endings[math.ceil(share * len(endings)) - 1], 2)
                for share in (0.5, 0.9, 1.0)
                if endings
            },
        }


def attack(
    world: World,
    command: str,
    workers: int,
    number: signal.Signals,
    hits: int,
    choose: random.Random,
    expected: dict[str, Any],
    whole: Life,
    events: dict[str, int],
    limit: float,
) -> Tally:
    """Campaigns until `hits` signals hit, or the time is over."""
    tally = Tally(command, workers, number.name)
    started = time.monotonic()
    while tally.hits < hits and time.monotonic() - started < limit and len(tally.problems) < 5:
        tally.campaigns += 1
        folder = world.folder / f"{command}-{workers}-{number.name}-{tally.campaigns}"
        folder.mkdir()
        out = folder / "run"
        words = world.words(command, out, workers)
        served = len(world.served.read_text().split()) if world.served.exists() else 0
        # Some campaigns die early and often, others late.
        share = choose.choice((1.0, 1.0, 0.5, 0.25))
        hit, problems = 0, []
        while True:
            plan = Plan()
            if hit < MOST_LIVES and tally.hits < hits:
                group = not workers or choose.random() < 0.5
                if choose.random() < 0.5:
                    plan = Plan(after=choose.random() * share * whole.seconds, group=group, signal=number)
                else:
                    kind = choose.choice(sorted(events))
                    nth = 1 + int(choose.random() * share * events[kind])
                    plan = Plan(at=(kind, nth), group=group, signal=number)
            tally.lives_with_saved_fits += any((out / "unfinished").glob("*"))
            life = one_life(world, words, out, plan)
            tally.lives += 1
            tally.slowest_orphan = max(tally.slowest_orphan, life.orphans)
            problems += life.problems
            if life.code == 0 or life.ending is None:
                break
            hit += 1
            tally.hits += 1
            tally.moments["time" if plan.after is not None else "event"] += 1
            tally.endings.append(life.ending)
        tally.depths[hit] += 1
        if life.code == 0:
            found = content(out)
            different = [part for part in expected if found[part] != expected[part]]
            problems += [f"{part} differs: {difference(expected[part], found[part])}" for part in different]
            tally.equal += not different
        if command == "compare":
            replies = world.served.read_text().split()[served:]
            tally.replies_served_twice += len(replies) - len(set(replies))
        # Random parts of names left out.
        tally.temporary_left.update(re.sub(r"\w{8}$", "*", path.name) for path in (folder / "tmp").iterdir())
        tally.problems += [f"campaign {tally.campaigns} ({hit} hits): {problem}" for problem in problems]
        print(
            f"  {command}, {workers} workers, campaign {tally.campaigns}: {hit} {number.name}"
            f"{', ' + '; '.join(problems) if problems else ''}",
            file=sys.stderr,
            flush=True,
        )
        if not problems:
            shutil.rmtree(folder)
    tally.seconds = time.monotonic() - started
    slow = [ending for ending in tally.endings if ending > ENDS_WITHIN]
    if number == signal.SIGINT and slow:
        tally.problems.append(f"{len(slow)} lives ended more than {ENDS_WITHIN:.0f} s after SIGINT: {max(slow):.1f} s")
    return tally


def difference(expected: Any, found: Any) -> str:
    if isinstance(expected, dict):
        keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
        return "; ".join(f"{key}: {expected.get(key)!r:.200} became {found.get(key)!r:.200}" for key in keys[:3])
    missing, more = Counter(map(repr, expected)), Counter(map(repr, found))
    lost, new = missing - more, more - missing
    return f"{lost.total()} lost {list(lost)[:2]!s:.300}, {new.total()} new {list(new)[:2]!s:.300}"


def write(tally: Tally, seed: int) -> None:
    """In the place of what is there of its command, workers and signal."""
    runs = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    key = ("command", "workers", "signal")
    new = {**tally.record(), "processor": processor(), "seed": seed}
    runs = [old for old in runs if any(old[name] != new[name] for name in key)] + [new]
    RESULTS.write_text(json.dumps(sorted(runs, key=lambda run: [run[name] for name in key]), indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", choices=WORDS, default=list(WORDS))
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs of each command without workers")
    parser.add_argument("--interrupts", type=int, default=20, help="SIGINTs of each command without workers")
    parser.add_argument(
        "--with-workers", type=int, default=10, help="signals of either kind of each command with two workers"
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="at the most for a command, workers and signal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()

    sys.path += [str(TESTS), str(TESTS / "editors")]
    # What a life leaves behind when its parent is gone becomes this process's child.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        os.environ.pop(name, None)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", MPLBACKEND="agg")
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    os.environ["RAY_TMPDIR"] = str(folder / "ray")
    (folder / "ray").mkdir()
    server = serve(folder)
    (folder / "server").write_text(str(server))
    tallies = []
    shared = set(os.listdir("/dev/shm"))
    try:
        world = make_world(folder)
        import torch

        torch.set_num_threads(1)
        for command in arguments.commands:
            reference = folder / f"{command}-whole"
            reference.mkdir()
            for name in ("run-first", "run"):
                whole = one_life(world, world.words(command, reference / name, 0), reference / name, Plan())
                assert whole.code == 0, whole.problems
                # What this imports is there in all later lives, which then have only their own work to do.
                for module in (reference / "modules").read_text().split():
                    with contextlib.suppress(Exception):
                        importlib.import_module(module)
            events = json.loads((reference / "events").read_text())
            expected = content(reference / "run")
            print(f"{command}: {whole.seconds:.1f} s, events {events}", file=sys.stderr, flush=True)
            timed, counted = whole, events
            for workers, number, hits in (
                (0, signal.SIGKILL, arguments.kills),
                (0, signal.SIGINT, arguments.interrupts),
                (2, signal.SIGKILL, arguments.with_workers),
                (2, signal.SIGINT, arguments.with_workers),
            ):
                if not hits:
                    continue
                if workers and timed is whole:
                    first = folder / f"{command}-workers"
                    first.mkdir()
                    timed = one_life(world, world.words(command, first / "run", workers), first / "run", Plan())
                    counted = json.loads((first / "events").read_text())
                    print(f"{command}, {workers} workers: {timed.seconds:.1f} s", file=sys.stderr, flush=True)
                choose = random.Random(f"{arguments.seed} {command} {workers} {number.name}")
                tally = attack(
                    world, command, workers, number, hits, choose, expected, timed, counted, 60 * arguments.minutes
                )
                tallies.append(tally)
                print(json.dumps(tally.record()), flush=True)
                if arguments.write:
                    write(tally, arguments.seed)
        left = sorted(set(os.listdir("/dev/shm")) - shared)
        print(f"shared memory left: {left}", file=sys.stderr)
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
    if any(tally.problems for tally in tallies):
        sys.exit(f"problems; what is left of their runs is in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
