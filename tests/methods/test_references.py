"""Reference lines: the model as it is, asked with passages in its prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from counting_pool import CountingPool
from run_content import content

from selfedit.errors import UserError
from selfedit.execution.tasks import CompletionTask
from selfedit.methods.compare import compare
from selfedit.methods.learn import learn
from selfedit.methods.plan import plan
from selfedit.methods.settings import CompareSettings, LearnSettings
from selfedit.runs.store import Store
from tiny_world import rows, write_rows


def prompts(pool: CountingPool, condition: str) -> dict[str, list[str]]:
    """The prompts of a condition's exam, by the id of the exam."""
    found: dict[str, list[str]] = {}
    for task in pool.tasks:
        if isinstance(task, CompletionTask) and task.id.startswith(f"exam/0/{condition}/"):
            for id, request in zip(task.ids, task.requests, strict=True):
                found.setdefault(id, []).append(pool.tokenizer.hf.decode(request.prompt))
    return found


@pytest.mark.parametrize("kind", ["chat", "base"])
def test_open_book_asks_each_question_with_its_own_document(
    kind: str, quick: dict[str, Any], documents: Callable[[int], str], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(f"{kind}_model")
    settings = CompareSettings(
        model=model, documents=(documents(3),), editor=("open-book", "passage"), **{**quick, "general_questions": 2}
    )
    pool = CountingPool(model)
    summary = compare(settings, pool=pool)
    assert [c.name for c in summary.conditions] == ["none", "passage", "open-book"]
    opened = summary.conditions[-1]
    assert (opened.graded, opened.train_tokens, opened.edit_tokens, opened.failed_fits) == (6, 0, 0, 0)
    assert opened.seconds > 0
    assert not any("open-book" in id for id in pool.fits)

    asked = prompts(pool, "open-book")
    # General questions are for what adapters forget; here there is none.
    assert set(asked) == {f"0|d{k}|open-book|0" for k in range(3)}
    for k, row in enumerate(rows(3)):
        texts = asked[f"0|d{k}|open-book|0"]
        assert len(texts) == 2
        for text, question in zip(texts, row["questions"], strict=True):
            assert f"{row['title']}\n{row['text']}\n\nTopic: {row['title']}\n" in text
            assert question["question"] in text
            assert not any(other["text"] in text for other in rows(3) if other["id"] != row["id"])
    assert all(row["text"] not in text for texts in prompts(pool, "none").values() for text in texts for row in rows(3))


def test_a_resumed_run_asks_what_is_missing_and_ends_alike(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str, tmp_path: Path
) -> None:
    settings = CompareSettings(model=chat_model, documents=(documents(3),), editor=("open-book",), **quick)
    whole = settings.model_copy(update={"out": tmp_path / "whole"})
    compare(whole)
    pool = CountingPool(chat_model)
    pool.gives_up = lambda task: task.id.startswith("exam/0/open-book/")
    broken = compare(settings, pool=pool)
    assert broken.conditions[-1].accuracy is None
    again = CountingPool(chat_model)
    compare(settings, pool=again)
    assert [task.id for task in again.tasks] == ["exam/0/open-book/0"]
    assert content(settings.out) == content(whole.out)


def test_a_plan_counts_the_longer_prompts(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    common = {"model": chat_model, "documents": (documents(3),), **quick}
    closed = plan(compare, CompareSettings(**common, editor=("none",)))
    opened = plan(compare, CompareSettings(**common, editor=("open-book",)))
    assert (opened.fits, opened.answers) == (0, closed.answers + 6)
    assert opened.flops > 2.5 * closed.flops


def test_a_document_that_does_not_fit_is_refused_before_any_work(quick: dict[str, Any], chat_model: str) -> None:
    long = rows(2)
    long[1]["text"] = " ".join([long[1]["text"]] * 200)
    file = write_rows(quick["out"].parent / "long.jsonl", long)
    settings = CompareSettings(model=chat_model, documents=(str(file),), editor=("passage", "open-book"), **quick)
    pool = CountingPool(chat_model)
    with pytest.raises(UserError, match=r"longer than the [\d,]+ tokens that the model reads; d1: cut into shorter"):
        compare(settings, pool=pool)
    assert pool.tasks == []
    with Store(quick["out"] / "run.sqlite") as store:
        assert store.documents() == []


def test_where_something_must_be_learned_it_is_refused(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    settings = LearnSettings(model=chat_model, documents=(documents(1),), editor="open-book", **quick)
    with pytest.raises(UserError, match="--editor open-book: there is nothing to learn from"):
        learn(settings)
    sweep = CompareSettings(
        model=chat_model, documents=(documents(2),), editor=("open-book",), sweep=("rank=2,4",), **quick
    )
    with pytest.raises(UserError, match="no editor given that recipes could be tried on"):
        compare(sweep)
