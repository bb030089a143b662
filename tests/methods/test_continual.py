"""Documents one after another into one model: steps, chains of deltas, resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from counting_pool import CountingPool
from making import Make

from selfedit.errors import UserError
from selfedit.execution.tasks import FitTask
from selfedit.methods.continual import continual
from selfedit.methods.settings import ContinualSettings
from selfedit.runs.store import Store
from summary_fields import undeclared


def test_each_step_learns_one_document_and_asks_about_all_before_it(make: Make, chat_model: str) -> None:
    settings = make(ContinualSettings, 3, editor="self", edits=2)
    pool = CountingPool(chat_model)
    summary = continual(settings, pool=pool)
    fits = [task for task in pool.tasks if isinstance(task, FitTask)]
    assert [task.policy for task in fits] == [(), ("round-01",), ("round-01", "round-02")]
    assert [len(task.fits) for task in fits] == [1, 1, 1]
    steps = summary.steps
    assert list(undeclared(summary)) == []
    assert [(step.step, step.document) for step in steps] == [(1, "d0"), (2, "d1"), (3, "d2")]
    assert [step.earlier and step.earlier.documents for step in steps] == [None, 1, 2]
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        for step in (1, 2, 3):
            answers = store.scored_answers("lexical", round=step, condition="after")
            assert {a.document_id for a in answers} == {f"d{k}" for k in range(step)}
            new = [a.score for a in answers if a.document_id == f"d{step - 1}"]
            found = steps[step - 1].new
            assert found is not None
            assert found.accuracy == pytest.approx(sum(new) / len(new))
            assert len(store.edits(round=step)) == 2
    for step in (1, 2, 3):
        assert (settings.out / "checkpoints" / f"round-{step:02d}" / "adapter_model.safetensors").exists()

    again = CountingPool(chat_model)
    assert continual(settings, pool=again) == summary
    assert again.tasks == []


def test_what_cannot_be_learned_from_is_refused(
    make: Make, quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    settings = make(ContinualSettings, 1, editor="none")
    with pytest.raises(UserError, match="there is nothing to learn from"):
        continual(settings)
    blown = {**quick, "set": {"rank": 4, "epochs": 4, "learning_rate": 1e30, "schedule": "constant"}}
    with pytest.raises(UserError, match=r"step 1: the fit on d0 failed .*try a lower learning rate"):
        continual(ContinualSettings(model=chat_model, documents=(documents(1),), editor="passage", **blown))
