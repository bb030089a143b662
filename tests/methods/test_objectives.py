"""Objectives and retention in a whole run: what reaches the engine, what is planned, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from counting_pool import CountingPool

from selfedit.errors import UserError
from selfedit.execution.tasks import CompletionTask, FitTask
from selfedit.methods.compare import compare
from selfedit.methods.plan import plan
from selfedit.methods.settings import CompareSettings
from selfedit.runs.directory import RunDirectory
from tiny_world import rows, write_rows

PAIR = "Question: Who made it?\nAnswer: {0}"


@pytest.fixture
def settings(quick: dict[str, Any], tmp_path: Path, chat_model: str) -> Callable[..., CompareSettings]:
    """Two documents with an edit of a line and a pair, and of the passage alone; the recipe's settings are given."""
    some = rows(2)
    for row in some:
        row["edits"] = {"expert": [f"{row['text']}\n{PAIR.format(row['title'].split()[0])}"]}
    file = str(write_rows(tmp_path / "pairs.jsonl", some))

    def make(out: str = "run", **recipe: Any) -> CompareSettings:
        chosen = {**quick, "out": tmp_path / out, "set": {**quick["set"], **recipe}}
        return CompareSettings(model=chat_model, documents=(file,), editor=("passage", f"replay:{file}"), **chosen)

    return make


def run(settings: CompareSettings) -> tuple[list[Any], list[Any]]:
    pool = CountingPool(settings.model)
    compare(settings, pool=pool)
    return pool.tasks, [fit for task in pool.tasks if isinstance(task, FitTask) for fit in task.fits]


def test_every_condition_takes_the_recipes_steps(settings: Callable[..., CompareSettings]) -> None:
    chosen = settings(steps=3, epochs=2)
    _, fits = run(chosen)
    assert {(len(fit.job.sequences), fit.job.steps) for fit in fits} == {(1, 3), (3, 3)}
    with RunDirectory.read(chosen.out) as directory:
        stored = [fit for fit in directory.store.fits() if fit.condition != "none"]
    assert [fit.steps for fit in stored] == [3] * 4
    assert sum(fit.train_tokens for fit in stored) == sum(fit.job.tokens for fit in fits)
    assert plan(compare, settings("planned", steps=3, epochs=2)).train_tokens == sum(fit.job.tokens for fit in fits)


def test_one_adapter_for_several_documents_takes_the_steps_of_each(settings: Callable[..., CompareSettings]) -> None:
    chosen = settings(steps=3, epochs=2).model_copy(update={"regime": "joint"})
    _, fits = run(chosen)
    assert {(len(fit.job.sequences), fit.job.steps) for fit in fits} == {(2, 6), (6, 6)}


def test_distill_has_the_passage_read_before_the_same_prompt(settings: Callable[..., CompareSettings]) -> None:
    chosen = settings(objectives=("distill",))
    _, fits = run(chosen)
    tokenizer = CountingPool(chosen.model).worker.model.tokenizer
    seen = 0
    for fit in fits:
        passages = [s for s in fit.job.sequences if not s.teacher]
        assert len(passages) == 1, "the document itself is learned as a text"
        for sequence in fit.job.sequences:
            if not sequence.teacher:
                continue
            seen += 1
            prompt, read = (tokenizer.decode(ids) for ids in (sequence.ids[: sequence.prompt_length], sequence.teacher))
            document = rows(2)[int(fit.id.split("|")[1].removeprefix("d"))]
            assert document["text"] in read
            assert document["text"] not in prompt
            assert read.endswith(prompt[prompt.index("Topic:") :])
    assert seen == 4, "of each document, a line and a pair"


def test_retained_texts_are_the_models_own_and_drawn_for_each_fit(settings: Callable[..., CompareSettings]) -> None:
    chosen = settings(retain=4, retain_weight=0.5)
    tasks, fits = run(chosen)
    assert sum(len(task.requests) for task in tasks if isinstance(task, CompletionTask) and "texts" in task.id) == 60
    drawn = [tuple(s for s in fit.job.sequences if s.weight == 0.5) for fit in fits]
    assert [len(some) for some in drawn] == [4] * 4
    assert len(set(drawn)) == 4
    assert all(s.teacher == s.ids[: s.prompt_length] for some in drawn for s in some)
    assert run(chosen) == ([], []), "the same command does nothing again"


def test_a_document_longer_than_the_teacher_reads_is_refused_in_one_line(
    quick: dict[str, Any], tmp_path: Path, chat_model: str
) -> None:
    row = rows(1)[0]
    row["text"] = "Ada made a kite. " * 600
    file = str(write_rows(tmp_path / "long.jsonl", [row]))
    chosen = {**quick, "set": {**quick["set"], "objectives": ("distill",), "epochs": 1}}
    settings = CompareSettings(model=chat_model, documents=(file,), editor=(f"replay:{file}",), **chosen)
    with pytest.raises(UserError, match=r"objective distill shows the model the document .* cut the document") as at:
        compare(settings)
    assert "\n" not in str(at.value)
