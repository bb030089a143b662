"""Another model of the engine beside the one that learns: it writes notes, by its own tokenizer and template."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from counting_pool import CountingPool
from making import Make

from selfedit.engine import DecodeRequest, FitJob, FitSettings, LoraSpec, TokenSequence, decode
from selfedit.errors import UserError
from selfedit.execution.tasks import CompletionTask, Fit, FitTask
from selfedit.execution.worker import ModelSource
from selfedit.methods.compare import compare
from selfedit.methods.continual import continual
from selfedit.methods.learn import learn
from selfedit.methods.settings import CompareSettings, ContinualSettings, LearnSettings
from selfedit.models import load_model
from selfedit.runs.store import Store


def test_its_edits_are_those_that_it_writes_as_a_student(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str, base_model: str
) -> None:
    """Greedily, so that the seeds of two conditions do not matter; the two models differ in weights and in prompts."""
    common = {**quick, "documents": (documents(3),), "temperature": 0.0, "edits": 1, "max_edit_tokens": 16}
    other, own = f"model:{base_model}:rewrite", "self:rewrite"
    settings = CompareSettings(**common, model=chat_model, editor=(other, own))
    pool = CountingPool(chat_model)
    summary = compare(settings, pool=pool)
    alone = CompareSettings(**{**common, "out": quick["out"].with_name("alone")}, model=base_model, editor=(own,))
    compare(alone, pool=CountingPool(base_model))
    name = "model:tiny-base:rewrite"
    assert [condition.name for condition in summary.conditions] == ["none", name, own]
    with Store(settings.out / "run.sqlite", readonly=True) as store, Store(alone.out / "run.sqlite") as expected:

        def of(store: Store, writer: str) -> list[tuple[Any, ...]]:
            edits = store.edits(writer=writer)
            return [(e.document_id, e.text, e.prompt, e.truncated, e.input_tokens, e.output_tokens) for e in edits]

        assert of(store, name) == of(expected, own)
        assert of(store, name) != of(store, own)
        assert len(of(store, name)) == 3
        costs = {(cost.condition, cost.model) for cost in store.costs() if cost.what == "edits"}
    assert costs == {(name, base_model), (own, chat_model)}
    fits = [task for task in pool.tasks if isinstance(task, FitTask)]
    assert fits, "the student is trained"
    assert pool.worker.other is None, "and the writer is gone by then"
    again = CountingPool(chat_model)
    compare(settings, pool=again)
    assert again.tasks == []


@pytest.mark.parametrize(("procedure", "kind"), [(learn, LearnSettings), (continual, ContinualSettings)])
def test_it_writes_for_other_methods_too(
    quick: dict[str, Any],
    documents: Callable[[int], str],
    chat_model: str,
    base_model: str,
    procedure: Callable[..., Any],
    kind: Any,
) -> None:
    settings = kind(**quick, model=chat_model, documents=(documents(2),), editor=f"model:{base_model}")
    procedure(settings, pool=CountingPool(chat_model))
    name = "model:tiny-base" if procedure is learn else "model:tiny-base + per-document"
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert {edit.writer for edit in store.edits()} == {name}
        assert all(fit.train_tokens for fit in store.fits(condition=name))


def test_a_template_that_has_changed_is_refused(make: Make, chat_model: str, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(chat_model, other)
    settings = make(CompareSettings, 2, editor=(f"model:{other}",))
    pool = CountingPool(chat_model)
    pool.gives_up = lambda task: isinstance(task, CompletionTask) and bool(task.model)
    with pytest.raises(UserError, match="could not be written"):
        compare(settings, pool=pool)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(UserError, match="chat template"):
        compare(settings, pool=CountingPool(chat_model))


@pytest.mark.parametrize("editor", ["model:nowhere/at/all", "model:{empty}"])
def test_a_model_that_is_not_there_is_missed_before_any_work(
    make: Make, chat_model: str, tmp_path: Path, editor: str
) -> None:
    editor = editor.format(empty=tmp_path)
    pool = CountingPool(chat_model)
    settings = make(CompareSettings, 2, editor=("self", editor))
    with pytest.raises(UserError, match=f"model {editor[6:]}: not a local folder") as caught:
        compare(settings, pool=pool)
    assert "\n" not in str(caught.value)
    assert pool.tasks == []
    assert not (settings.out / "run.sqlite").exists()


def test_it_grades_as_it_would_as_a_student(
    quick: dict[str, Any],
    documents: Callable[[int], str],
    chat_model: str,
    base_model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tiny models' grades are no words: what they reply decides all the same."""
    replies: dict[str, list[str]] = {"judge:local": [], f"judge:model:{chat_model}": []}
    for number, (grader, found) in enumerate(replies.items()):

        def parse(reply: str, found: list[str] = found) -> bool:
            found.append(reply)
            return len(reply) % 2 == 0

        monkeypatch.setattr("selfedit.evaluation.judge.parse_reply", parse)
        # The judge of the first run is its student, of the second another model: the same one.
        student = chat_model if grader == "judge:local" else base_model
        settings = CompareSettings(
            **{**quick, "out": quick["out"].with_name(f"run{number}")},
            model=student,
            documents=(documents(2),),
            editor=("none",),
            grader=grader,
        )
        # The answers that are graded are the same.
        monkeypatch.setattr("selfedit.evaluation.exam.Exam.answer", lambda exam, ids: "42")
        summary = compare(settings, pool=CountingPool(student))
        assert summary.grader == grader
        with Store(settings.out / "run.sqlite", readonly=True) as store:
            assert {cost.model for cost in store.costs() if cost.what == "grading"} == {chat_model}
    local, other = replies.values()
    assert local == other
    assert any(local)


def completions(model: str, count: int = 1) -> CompletionTask:
    return CompletionTask("edits/0", (), (DecodeRequest((5, 6, 7), 4),) * count, ("e",) * count, model=model)


def test_a_worker_keeps_one_other_model_until_fits_come(chat_model: str, base_model: str) -> None:
    source = ModelSource(chat_model, "cpu", "float32", instruct=True)
    worker = source.worker(lambda name: {})
    student = worker.model
    expected = decode(load_model(base_model, device="cpu", dtype="float32").hf, completions("").requests)
    assert list(worker.run(completions(base_model)).completions) == expected
    assert worker.other is not None
    first = weakref.ref(worker.other)
    worker.run(completions(base_model))
    worker.run(completions(""))
    assert worker.other is first(), "loaded once"
    worker.run(completions(chat_model))
    gc.collect()
    assert first() is None, "the first is gone with the second"
    second = weakref.ref(worker.other)
    job = FitJob((TokenSequence((5, 6, 7, 8)),), FitSettings(epochs=1), seed=0)
    worker.run(FitTask("fits/0", (), LoraSpec(rank=2, alpha=4.0), (Fit("f", job),)))
    gc.collect()
    assert second() is None
    assert worker.model is student


def test_a_policy_is_not_given_up_for_it(chat_model: str, base_model: str) -> None:
    """Going back from a policy to the base model takes a whole loading."""
    worker = ModelSource(chat_model, "cpu", "float32").worker(lambda name: {})
    student, worker.policy = worker.model, ("round-01",)
    worker.run(completions(base_model))
    assert (worker.model, worker.policy) == (student, ("round-01",))
