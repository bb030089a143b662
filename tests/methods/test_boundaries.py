"""A run that ends after any task, or in the middle of its commit, and is begun again: equal to a whole one, losses to
the last bit.

`test_resume` kills processes at random moments of `train`; here every procedure is ended at every boundary, in this
process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from all_methods import METHODS
from counting_pool import CountingPool
from run_content import content

from selfedit.execution.tasks import FitTask, Task, TaskResult
from selfedit.methods import resuming, rewards
from selfedit.methods.compare import compare
from selfedit.methods.restem import train
from selfedit.methods.settings import CompareSettings, TrainSettings
from selfedit.models import Model, load_model
from selfedit.runs.store import Store
from tiny_world import SMALL, rows, write_rows

# The method, how many documents, and settings.
GRADED = {"editor": ("passage", "self"), "max_ungraded": 1.0, "task_size": 2}
STEP_B = {"edits": 2, "replicates": 1, "task_size": 2}
RUNS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "compare": (
        "compare",
        3,
        {"editor": ("passage", "self"), "edits": 2, "task_size": 2}
        | {"general_questions": 2, "general_texts": 3, "neighbour_questions": 2},
    ),
    "compare on an own grader": ("compare", 2, {**GRADED, "grader": "judge:local"}),
    "compare on another model's grades": ("compare", 2, {**GRADED, "grader": "judge:model:{other}"}),
    "compare on another model's notes": (
        "compare",
        3,
        {"editor": ("model:{other}:rewrite", "self"), "edits": 2, "task_size": 2},
    ),
    "train": (
        "train",
        5,
        {**STEP_B, "validation_share": 0.4, "rounds": 2, "outer_set": {"rank": 4, "learning_rate": 3e-3}},
    ),
    "train on opinions": (
        "train",
        4,
        {
            **STEP_B,
            "validation_share": 0.3,
            "rounds": 1,
            "outer_set": {"rank": 4},
            "reward": "judge",
            "judge_sample": 2,
        },
    ),
    "learn": ("learn", 3, {"editor": "self", "edits": 2, "task_size": 2}),
    "continual": ("continual", 3, {"editor": "self", "task_size": 2, "general_questions": 1, "retain": ("none",)}),
    "continual with remedies": (
        "continual",
        3,
        {"editor": "self", "task_size": 2, "general_questions": 1, "max_edit_tokens": 16}
        | {"retain": ("edits", "per-document"), "sequences": 2, "length": 2},
    ),
}


class End(BaseException):
    """The process ends here."""


class EndingPool(CountingPool):
    """Ends before its second task."""

    def run(self, tasks: Iterable[Task]) -> Generator[TaskResult]:
        for task in sorted(tasks, key=lambda task: (len(task.policy), task.policy, -task.cost)):
            if self.tasks:
                raise End
            yield from super().run([task])


MakePool = Callable[[type[CountingPool]], CountingPool]


@pytest.fixture(scope="module")
def loaded(chat_model: str) -> Model:
    return load_model(chat_model, device="cpu", dtype="float32")


@pytest.fixture
def make_pool(loaded: Model) -> MakePool:
    """A pool of this kind with the model as it was loaded, since there are hundreds of short attempts."""
    return lambda kind: kind(loaded.name, loaded=replace(loaded, hf=deepcopy(loaded.hf)))


@pytest.fixture(params=RUNS)
def begin(
    request: pytest.FixtureRequest,
    chat_model: str,
    base_model: str,
    make_pool: MakePool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[str, Any]]:
    """`begin(name, pool)`: one attempt at a run in a directory of that name; what it came to."""
    # The tiny model's ratings are no numbers, and its grades no words.
    monkeypatch.setattr("selfedit.evaluation.judge.parse_reply", lambda reply: len(reply) % 2 == 0)
    monkeypatch.setattr(rewards, "read_rating", lambda reply: len(reply) % 11 / 10)
    name, count, changes = RUNS[request.param]
    method, kind = METHODS[name]
    file = write_rows(tmp_path / "documents.jsonl", rows(count))
    common = {**SMALL, "model": chat_model, "documents": (str(file),), **changes}
    if isinstance(editors := changes.get("editor"), tuple):
        common["editor"] = tuple(editor.format(other=base_model) for editor in editors)
    common["grader"] = changes.get("grader", "lexical").format(other=base_model)

    def attempt(name: str, pool: CountingPool | None = None) -> dict[str, Any]:
        settings = kind(**{**common, "out": tmp_path / name})
        method(settings, pool=pool or make_pool(CountingPool))
        return content(settings.out)

    return attempt


def executed(tasks: Iterable[Task]) -> list[Task]:
    # The state of a long fit lies in the run's own directory.
    return sorted(
        (replace(task, memory=None, **({"checkpoint": None} if isinstance(task, FitTask) else {})) for task in tasks),
        key=repr,
    )


def ended(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except End:
        return True
    return False


def test_a_run_that_ends_after_every_task_and_within_every_commit(
    begin: Callable[..., dict[str, Any]], make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(CountingPool)
    expected = begin("whole", pool)
    pools = [make_pool(EndingPool)]
    while ended(lambda: begin("ended", pools[-1])):
        assert len(pools) <= len(pool.tasks), "an attempt that did nothing"
        pools.append(make_pool(EndingPool))
    assert begin("ended") == expected
    done = [task for one in pools for task in one.tasks]
    assert len({task.memory for task in done}) == 1, "the memory to plan with is the run's"
    assert executed(done) == executed(pool.tasks), "other tasks than in a whole run, or one twice"

    # Where a task's results are written, files too, but its cost is not yet: nothing of it counts.
    original = Store.add_costs
    seen: Counter[tuple[str, ...]] = Counter()

    def add_costs(store: Store, costs: Iterable[Any]) -> None:
        costs = list(costs)
        key = tuple(f"{cost.what} {cost.condition} {cost.round}" for cost in costs)
        seen[key] += 1
        if seen[key] == 1:
            original(store, costs)
            raise End
        original(store, costs)

    monkeypatch.setattr(Store, "add_costs", add_costs)
    ends = 0
    while ended(lambda: begin("cut")):
        ends += 1
    monkeypatch.setattr(Store, "add_costs", original)
    assert ends >= 2
    assert begin("cut") == expected


def test_what_is_left_of_a_task_is_done_alone(chat_model: str, tmp_path: Path) -> None:
    """A run of an older version, which cut what was left into tasks: what it has is not done again."""
    file = write_rows(tmp_path / "documents.jsonl", rows(3))
    settings = CompareSettings(
        **{**SMALL, "model": chat_model, "documents": (str(file),), "editor": ("passage",), "out": tmp_path / "run"}
    )
    compare(settings, pool=CountingPool(chat_model))
    with Store(settings.out / "run.sqlite") as store, store.transaction():
        for id in ("0|d1|passage|0", "0|d2|none|0"):
            for sql in (
                "DELETE FROM grades WHERE answer_id IN (SELECT id FROM answers WHERE fit_id = ?)",
                "DELETE FROM answers WHERE fit_id = ?",
                "DELETE FROM fits WHERE id = ?",
            ):
                store._execute(sql, (id,))
    pool = CountingPool(chat_model)
    compare(settings, pool=pool)
    assert [set(task.ids) for task in pool.tasks] == [{"0|d2|none|0"}, {"0|d1|passage|0"}]


def test_exams_count_task_by_task(chat_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "PROMPTS", 4)
    file = write_rows(tmp_path / "documents.jsonl", rows(3))
    settings = CompareSettings(
        **{**SMALL, "model": chat_model, "documents": (str(file),), "editor": ("none",), "out": tmp_path / "run"}
    )
    assert ended(lambda: compare(settings, pool=EndingPool(chat_model)))
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert len(store.fits()) == 2
        assert len(store.costs()) == 1


def test_a_checkpoint_counts_with_its_line_in_the_ledger(chat_model: str, tmp_path: Path) -> None:
    """One without it, left by a crash between the two, is made again; one that is gone too."""
    file = write_rows(tmp_path / "documents.jsonl", rows(5))
    settings = TrainSettings(
        **{**SMALL, **RUNS["train"][2], "model": chat_model, "documents": (str(file),), "out": tmp_path / "run"}
    )

    class AtOuter(CountingPool):
        def run(self, tasks: Iterable[Task]) -> Generator[TaskResult]:
            for task in tasks:
                yield from super().run([task])
                if task.id == "outer/1":
                    raise End

    folder = settings.out / "checkpoints" / "round-01"
    assert ended(lambda: train(settings, pool=AtOuter(chat_model)))
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert [cost.round for cost in store.costs() if cost.what == "outer"] == [1]
    made = {file.name: file.read_bytes() for file in folder.iterdir()}
    with Store(settings.out / "run.sqlite") as store, store.transaction():
        store._execute("DELETE FROM costs WHERE what = 'outer'")
    (folder / "adapter_model.safetensors").write_bytes(b"half of it")
    train(settings, pool=CountingPool(chat_model))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == made
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert [cost.round for cost in store.costs() if cost.what == "outer"] == [1, 2]
