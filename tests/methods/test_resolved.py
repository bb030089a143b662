"""What no setting says and a result depends on is decided when a run begins, recorded, and used or compared ever
after."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from counting_pool import CountingPool
from making import Make

from selfedit.engine import DecodeRequest, LoraSpec, decoding, memory
from selfedit.engine.jobs import FitJob, FitSettings, TokenSequence
from selfedit.errors import UserError
from selfedit.execution.pool import InProcess
from selfedit.execution.tasks import CompletionTask, Fit, FitTask
from selfedit.execution.worker import ModelSource, Worker
from selfedit.methods.compare import compare
from selfedit.methods.restem import train
from selfedit.methods.settings import CompareSettings, TrainSettings
from selfedit.methods.workers import Workers
from selfedit.models import loading
from selfedit.progress import Progress
from selfedit.runs.store import Store


@pytest.fixture
def settings(make: Make) -> CompareSettings:
    return make(CompareSettings, 2, editor=("passage",))


def resolved(settings: CompareSettings) -> dict[str, Any]:
    return dict(yaml.safe_load((settings.out / "config.yaml").read_text())["resolved"])


def forget_fits(out: Path) -> None:
    """Leaves a run that has its exams before adaptation only."""
    with Store(out / "run.sqlite") as store, store.transaction():
        for sql in (
            "DELETE FROM grades WHERE answer_id IN (SELECT id FROM answers WHERE fit_id LIKE '%passage%')",
            "DELETE FROM answers WHERE fit_id LIKE '%passage%'",
            "DELETE FROM fits WHERE id LIKE '%passage%'",
        ):
            store._execute(sql)


def refused(settings: CompareSettings, line: str) -> None:
    with pytest.raises(UserError, match=line) as raised:
        compare(settings)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("since this run began; put it back, or name another directory")


def test_a_run_records_what_it_resolved(settings: CompareSettings) -> None:
    compare(settings)
    found = resolved(settings)
    assert {name: found[name] for name in ("dtype", "instruct", "device", "task_size")} == {
        "dtype": "float32",
        "instruct": True,
        "device": "cpu",
        "task_size": 16,
    }
    assert found["memory"] > 2**20
    assert len(found["prompts"]) == len(found["chat_template"]) == 16
    compare(settings.model_copy(update={"usd_per_hour": 1.0}))
    assert resolved(settings) == found, "lost when the settings were written anew"


def test_a_changed_prompt_file_is_refused(settings: CompareSettings, tmp_path: Path) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text("study:\n  chat: 'What do you know of {{ title }}?'\n")
    mine = settings.model_copy(update={"prompt_file": file})
    compare(mine)
    file.write_text("# the same prompts\nstudy: {chat: 'What do you know of {{ title }}?'}\n")
    compare(mine)
    file.write_text("study:\n  chat: 'What do you know about {{ title }}?'\n")
    refused(mine, r"run: the prompts \(--prompt-file, or the built-in ones\) changed")


def test_the_precision_is_what_it_was_on_another_processor(
    settings: CompareSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = settings.model_copy(update={"dtype": "auto"})
    monkeypatch.setattr(loading, "best_dtype", lambda _: torch.float32)
    assert compare(auto).device == "cpu, float32"
    forget_fits(auto.out)
    monkeypatch.setattr(loading, "best_dtype", lambda _: torch.bfloat16)
    assert compare(auto).device == "cpu, float32"
    other = auto.model_copy(update={"out": auto.out.with_name("other")})
    assert compare(other).device == "cpu, bfloat16"
    forget_fits(other.out)
    with pytest.raises(UserError, match="its precision changed since this run began"):
        compare(other, pool=CountingPool(auto.model))


def test_a_changed_chat_template_is_refused(
    settings: CompareSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(settings.model, tmp_path / "model")
    mine = settings.model_copy(update={"model": str(model)})
    compare(mine)
    forget_fits(mine.out)
    (template,) = [file for file in model.iterdir() if "<|end|>" in file.read_text("latin-1") and "jinja" in file.name]
    template.write_text(template.read_text().replace("<|end|>", "<|end|> "))
    closed: list[InProcess] = []
    monkeypatch.setattr(InProcess, "close", lambda pool: closed.append(pool))
    refused(mine, "its chat template changed")
    assert len(closed) == 1, "the pool that was made is left behind"


def test_a_changed_outer_recipe_is_refused(small_train: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "outer.yaml"
    file.write_text("rank: 4\nlearning_rate: 0.003\n")
    settings = TrainSettings(**{**small_train, "outer_set": {}, "outer_recipe": str(file), "rounds": 1})
    train(settings)
    file.write_text("rank: 4\nlearning_rate: 0.004\n")
    with pytest.raises(UserError, match=r"run: the outer recipe \(--outer-recipe\) changed since this run began"):
        train(settings)


def test_tasks_and_memory_are_those_that_the_run_began_with(
    settings: CompareSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it goes on: a device of another kind would cut larger tasks, and less or more memory is free."""
    pool = CountingPool(settings.model)
    compare(settings, pool=pool)
    forget_fits(settings.out)

    class Accelerated(CountingPool):
        memory = 123

    again = Accelerated(settings.model)
    again.description = "cuda:0, float32"
    compare(settings, pool=again)
    assert again.tasks == [task for task in pool.tasks if isinstance(task, FitTask)]
    assert again.tasks[0].memory == resolved(settings)["memory"]
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert [event.message for event in store.events("device")] == [
            "this run began on cpu and goes on on cuda: sums are rounded otherwise there"
        ]


def test_a_run_that_recorded_nothing_goes_on(settings: CompareSettings) -> None:
    first = compare(settings)
    file = settings.out / "config.yaml"
    data = yaml.safe_load(file.read_text())
    found = data.pop("resolved")
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    forget_fits(settings.out)
    second = compare(settings)
    assert resolved(settings).keys() == found.keys()
    accuracies = [[condition.accuracy for condition in summary.conditions] for summary in (first, second)]
    assert accuracies[0] == accuracies[1]


# The memory that a plan may use

LITTLE = 4_900_000  # bytes; enough for a few adapters of the tiny model


@pytest.fixture
def worker(chat_model: str) -> Worker:
    return Worker(ModelSource(chat_model, "cpu", "float32"), {}.__getitem__)


def task(memory: int | None) -> FitTask:
    """Thirty fits that would like a bank of thirty."""
    jobs = [FitJob((TokenSequence(tuple(range(5, 30 + k))),), FitSettings(epochs=2), k) for k in range(30)]
    return FitTask("fits", (), LoraSpec(rank=4), tuple(Fit(str(k), job) for k, job in enumerate(jobs)), memory)


def bank_sizes(worker: Worker, monkeypatch: pytest.MonkeyPatch, some: FitTask) -> tuple[list[int], tuple[str, ...]]:
    from selfedit.engine import waves

    sizes = []
    real = waves.AdapterBank

    def bank(model: Any, spec: Any, size: int) -> Any:
        sizes.append(size)
        return real(model, spec, size)

    with monkeypatch.context() as patch:
        patch.setattr(waves, "AdapterBank", bank)
        result = worker.run(some)
    assert all(outcome.result.error is None for outcome in result.outcomes)
    return sizes, result.notes


def test_a_tasks_banks_come_from_the_memory_it_carries_not_from_what_is_free(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, notes = bank_sizes(worker, monkeypatch, task(LITTLE))
    assert sizes
    assert max(sizes) < 30
    assert notes == ()
    for free in (10**8, 10**12):
        monkeypatch.setattr(memory, "free_memory", lambda _, free=free: free)
        assert bank_sizes(worker, monkeypatch, task(LITTLE)) == (sizes, ())
    assert bank_sizes(worker, monkeypatch, task(10**10)) == ([30], ())


def test_where_memory_does_not_suffice_the_result_says_so(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: LITTLE)
    sizes, (note,) = bank_sizes(worker, monkeypatch, task(10**10))
    assert max(sizes) < 30
    assert "planned for 0.00 GiB instead of 9.31" in note
    monkeypatch.undo()
    # The run began where not even one adapter would fit.
    sizes, (note,) = bank_sizes(worker, monkeypatch, task(100))
    assert sizes == [30]
    assert "instead of 0.00" in note
    worker.halvings = 1
    _, (note,) = bank_sizes(worker, monkeypatch, task(2**30))
    assert "planned for 0.50 GiB instead of 1.00" in note


def test_where_memory_ran_out_texts_and_exams_are_written_with_less(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    real = decoding._decode_batch

    def batch(backbone: Any, requests: Any, *more: Any) -> Any:
        sizes.append(len(requests))
        return real(backbone, requests, *more)

    monkeypatch.setattr(decoding, "_decode_batch", batch)
    asked = tuple(DecodeRequest((5, 6, 7 + k), 5) for k in range(4))
    fits = task(2**40)
    for one in (CompletionTask("texts", (), asked), replace(fits, fits=(replace(fits.fits[0], exam=asked),))):
        for halvings, expected in ((0, [4]), (10, [2, 2])):  # 16,384 tokens, and 16
            worker.halvings = halvings
            sizes.clear()
            assert len(worker.run(one).notes) == (halvings > 0)
            assert sizes == expected


def test_memory_that_ran_out_is_an_event(
    settings: CompareSettings, chat_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfedit.engine import waves

    real = waves.AdapterBank

    def scarce(model: Any, spec: Any, size: int) -> Any:
        if size > 1:
            raise torch.OutOfMemoryError("no memory (made up)")
        return real(model, spec, size)

    monkeypatch.setattr(waves, "AdapterBank", scarce)
    compare(settings, pool=CountingPool(chat_model))
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        (event,) = store.events("less memory")
    assert event.subject == "fits/0/0"
    assert event.message == "out of memory: going on with banks of 1 adapters instead of 2"
    data = json.loads((settings.out / "summary.json").read_text())
    assert data["events"]["less memory"] == 1


def test_more_fits_share_a_task_on_cuda(settings: CompareSettings) -> None:
    directory: Any = SimpleNamespace(resolve=lambda name, value: value)

    def size(device: str, given: int | None = None) -> int:
        pool: Any = SimpleNamespace(description=f"{device}, float32", instruct=None)
        changed = settings.model_copy(update={"task_size": given})
        workers = Workers(changed, directory, None, Progress(), lambda *_: None)  # type: ignore[arg-type]
        workers.pool = pool
        return workers.task_size

    assert [size("cpu (2 cores)"), size("cuda (a card)"), size("cuda (a card)", 7)] == [16, 96, 7]
