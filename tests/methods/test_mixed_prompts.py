"""Several edit prompts for the edits of one document: edit k is written from prompt k, and begins again after the
last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from counting_pool import CountingPool
from making import Make

from api_server import reply
from selfedit.documents import load_documents
from selfedit.errors import UserError
from selfedit.execution.tasks import FitTask
from selfedit.methods.compare import compare
from selfedit.methods.restem import train
from selfedit.methods.settings import CompareSettings, TrainSettings
from selfedit.models import load_tokenizer
from selfedit.prompts import Prompts
from selfedit.runs.store import Store
from selfedit.training.jobs import Jobs

MIXED = ("rewrite", "self-qa", "rewrite")


@pytest.mark.parametrize("chat", [True, False])
def test_each_edit_is_that_of_its_prompt(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str, base_model: str, chat: bool
) -> None:
    """Greedily, so that the seeds do not matter."""
    model, other = (chat_model, base_model) if chat else (base_model, chat_model)
    settings = CompareSettings(
        **{**quick, "temperature": 0.0, "max_edit_tokens": 16},
        model=model,
        documents=(documents(2),),
        editor=("self:rewrite, self-qa", "self", f"model:{other}", "self:self-qa", "self:rewrite"),
        edit_prompt="rewrite,self-qa",
        edits=3,
    )
    compare(settings, pool=CountingPool(model))
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        found = {(e.writer, e.document_id, e.index): (e.prompt, e.text, e.input_tokens) for e in store.edits()}
    for document in ("d0", "d1"):
        for index, prompt in enumerate(MIXED):
            alone = found[f"self:{prompt}", document, index]
            assert alone[0] == prompt
            assert found["self:rewrite, self-qa", document, index] == found["self", document, index] == alone
            assert found[next(w for w, _, _ in found if w.startswith("model:")), document, index][0] == prompt
    assert found["self", "d0", 0][2] != found["self", "d0", 1][2], "the prompts differ in length"


def test_an_api_editor_is_asked_with_each(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str, server: Any
) -> None:
    asked: list[str] = []

    def write(body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body["messages"][-1]["content"])
        return reply("Ada made a kite.")

    server.reply = write
    file = documents(1)
    settings = CompareSettings(
        **quick,
        model=chat_model,
        documents=(file,),
        editor=("api:writer",),
        edit_prompt="rewrite,self-qa",
        edits=3,
        api_base=server.url,
    )
    compare(settings, pool=CountingPool(chat_model))
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert [edit.prompt for edit in store.edits()] == list(MIXED)
    (document,) = load_documents([file])
    texts = [Prompts().edit(name, instruct=True, title=document.title, text=document.text) for name in MIXED]
    assert sorted(asked) == sorted(texts)


def test_the_editor_is_trained_on_the_prompt_of_each_edit(small_train: dict[str, Any]) -> None:
    settings = TrainSettings(
        **{**small_train, "rounds": 1, "validation_share": 0, "edit_prompt": "rewrite,implications"},
        select="top-fraction",
        top_fraction=1.0,
    )
    pool = CountingPool(settings.model)
    train(settings, pool=pool)
    (outer,) = (task for task in pool.tasks if isinstance(task, FitTask) and task.id == "outer/1")
    lessons = outer.fits[0].job.sequences
    tokenizer, prompts = load_tokenizer(settings.model), Prompts()
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        kept = [edit for edit in store.edits(round=1) if edit.kept]
        by_id = {document.id: document for document in store.documents()}
    assert {edit.prompt for edit in kept} == {"rewrite", "implications"}
    for edit, lesson in zip(kept, lessons, strict=True):
        document = by_id[edit.document_id]
        asked = prompts.edit(edit.prompt, instruct=True, title=document.title, text=document.text)
        assert list(lesson.ids[: lesson.prompt_length]) == tokenizer.prompt_ids(asked)
        # Where an edit was cut off, the editor is not taught to end.
        cut_off = Jobs(tokenizer, 1024, prompts).lesson(document, replace(edit, truncated=True))
        assert (cut_off.ids, lesson.ids[-1] in tokenizer.stop_ids) == (lesson.ids[:-1], True)


@pytest.mark.parametrize(
    ("prompts", "says"), [("rewrite,poem", "no edit prompt 'poem'"), ("rewrite,self-qa,implications", "give --edits 3")]
)
@pytest.mark.parametrize("editor", ["self", "api:writer"])
def test_mistakes_are_found_before_any_work(
    make: Make, chat_model: str, server: Any, prompts: str, says: str, editor: str
) -> None:
    pool = CountingPool(chat_model)
    settings = make(CompareSettings, 1, editor=(editor,), edit_prompt=prompts, edits=2, api_base=server.url)
    with pytest.raises(UserError, match=says):
        compare(settings, pool=pool)
    assert pool.tasks == []
