"""--recite: what an adapter knows by heart is read like the document itself, with several documents in it too."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from selfedit.errors import UserError
from selfedit.methods.compare import compare
from selfedit.methods.settings import CompareSettings
from selfedit.reports import build_report
from selfedit.runs.store import Store

BY_HEART = {"targets": "all-linear", "steps": 150, "learning_rate": 1e-2}


def settings(quick: dict[str, Any], documents: str, **more: Any) -> CompareSettings:
    found = {**quick, "documents": (documents,), "editor": ("passage", "open-book"), "recite": True, **more}
    return CompareSettings(**found)


def able(model: str, folder: Path) -> str:
    """A copy of a tiny model in which every token can be the likeliest: where one has a shorter row in the output layer
    than its like, no adapter on the layers below can ever prefer it.  Whether a name has one depends on how the
    processor rounded while the model was made."""
    hf = transformers.AutoModelForCausalLM.from_pretrained(model)
    rows = hf.get_output_embeddings().weight
    with torch.no_grad():
        rows.copy_(2 * rows / rows.norm(dim=1, keepdim=True))
    shutil.copytree(model, folder)
    hf.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("regime", ["single", "joint"])
@pytest.mark.parametrize("chat", [True, False])
def test_known_by_heart_is_as_good_as_open_book(
    quick: dict[str, Any],
    documents: Callable[[int], str],
    chat_model: str,
    base_model: str,
    tmp_path: Path,
    chat: bool,
    regime: str,
) -> None:
    model = able(chat_model if chat else base_model, tmp_path / "able")
    chosen = settings(quick, documents(3), model=model, regime=regime, set=BY_HEART, replicates=2)
    summary = compare(chosen)
    store = Store(chosen.out / "run.sqlite", readonly=True)
    texts = [document.text for document in store.documents()]
    recited = store.fits(condition="passage recited")
    assert sorted(text for fit in recited for text in fit.sequences) == sorted(2 * texts)
    read = {answer.question_id: answer.text for fit in store.fits(condition="open-book") for answer in fit.answers}
    assert {answer.question_id: answer.text for fit in recited for answer in fit.answers} == read
    assert [condition.name for condition in summary.conditions] == ["none", "passage", "passage recited", "open-book"]
    by_name = {condition.name: condition for condition in summary.conditions}
    assert by_name["passage recited"].accuracy == by_name["open-book"].accuracy
    page = build_report([chosen.out]).read_text(encoding="utf-8")
    assert "passage recited" in page
    assert "recited: the same adapters" in page
    assert compare(chosen) == summary


def test_general_questions_are_recited_to_as_well(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    chosen = settings(quick, documents(2), model=chat_model, editor=("self",), edits=2, general_questions=2)
    compare(chosen)
    store = Store(chosen.out / "run.sqlite", readonly=True)
    direct, recited = store.fits(condition="self"), store.fits(condition="self recited")
    assert len(recited) == 4
    assert [fit.edit_id for fit in recited] == [fit.edit_id for fit in direct]
    assert [[a.question_id for a in fit.answers] for fit in recited] == [
        [a.question_id for a in fit.answers] for fit in direct
    ]


def test_what_cannot_be_read_is_refused(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str, tmp_path: Path
) -> None:
    own = tmp_path / "prompts.yaml"
    own.write_text("open-book:\n  chat: 'Question: {{ question }}'\n")
    with pytest.raises(UserError, match="has to show"):
        compare(settings(quick, documents(1), model=chat_model, editor=("passage",), prompt_file=own))
