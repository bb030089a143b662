"""Sweeps of recipe settings: chosen on validation documents, reported on the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from counting_pool import CountingPool

from selfedit.errors import UserError
from selfedit.methods.compare import compare
from selfedit.methods.settings import CompareSettings
from selfedit.methods.sweep import parse_grid
from selfedit.runs.store import Store
from summary_fields import undeclared


def test_a_grid_has_every_combination() -> None:
    assert parse_grid(["learning_rate=1e-3,2e-3", "cutting=lines,whole"]) == [
        {"learning_rate": 1e-3, "cutting": "lines"},
        {"learning_rate": 1e-3, "cutting": "whole"},
        {"learning_rate": 2e-3, "cutting": "lines"},
        {"learning_rate": 2e-3, "cutting": "whole"},
    ]
    assert parse_grid(["rank=4,8", "with_document=true,false"])[-1] == {"rank": 8, "with_document": False}
    for wrong in ("rank", "rank=", "=4"):
        with pytest.raises(UserError, match=f"--sweep {wrong}: write NAME=A,B,C"):
            parse_grid([wrong])


def test_the_recipe_is_chosen_on_validation_documents_and_reported_on_the_others(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    """A learning rate that blows every fit up is tried too: it is the worst, not the end."""
    settings = CompareSettings(
        model=chat_model,
        documents=(documents(6),),
        editor=("none", "passage", "self"),
        edits=2,
        sweep=("learning_rate=1e30,1e-2", "epochs=1,4"),
        **quick,
    )
    pool = CountingPool(chat_model)
    summary = compare(settings, pool=pool)
    assert summary.recipe["learning_rate"] == 1e-2
    tried = summary.sweep
    assert list(undeclared(summary)) == []
    assert len(tried) == 4
    assert [set(row.accuracy) for row in tried] == [{"passage", "self"}] * 4
    chosen = {"learning_rate": 1e-2, "epochs": summary.recipe["epochs"]}
    (best,) = [row for row in tried if row.chosen]
    assert best.settings == chosen
    assert best.mean == max(row.mean for row in tried if row.mean is not None)
    # A recipe under which every fit failed has no accuracy: not one of 0.
    assert {row.mean for row in tried if row.settings["learning_rate"] == 1e30} == {None}

    with Store(settings.out / "run.sqlite", readonly=True) as store:
        validation, rest = ({d.id for d in store.documents(split)} for split in ("validation", "exam"))
        assert len(validation) + len(rest) == 6
        assert not validation & rest
        for name in ("passage", "self"):
            assert {fit.document_id for fit in store.fits(condition=name)} == rest
            assert {
                fit.document_id for fit in store.fits(condition=f"{name} [learning_rate=0.01, epochs=4]")
            } == validation
        written = [e for e in store.edits(writer="self") if e.document_id in rest]
    assert summary.documents == len(rest)
    assert [c.name for c in summary.conditions] == ["none", "passage", "self"]
    assert summary.conditions[2].graded == 2 * 2 * len(rest)
    # What the validation documents cost in tokens is no part of the condition's figures.
    assert summary.conditions[2].edit_tokens == sum(edit.output_tokens for edit in written)

    again = CountingPool(chat_model)
    assert compare(settings, pool=again) == summary
    assert again.tasks == []


def test_what_cannot_be_swept_is_refused(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    common = {"model": chat_model, "documents": (documents(3),), **quick}
    with pytest.raises(UserError, match="no editor given that recipes could be tried on"):
        compare(CompareSettings(**common, editor=("none",), sweep=("rank=4,8",)))
    with pytest.raises(UserError, match="ranks = 4: Extra inputs"):
        compare(CompareSettings(**common, editor=("passage",), sweep=("ranks=4,8",)))
    with pytest.raises(UserError, match="title 'Ada and the kite' is among the test documents too"):
        compare(CompareSettings(**common, editor=("passage",), sweep=("rank=4,8",), validation=(documents(1),)))
