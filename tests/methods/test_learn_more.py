"""What `learn` adds to an earlier run, or learns once more, is again one adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from counting_pool import CountingPool
from peft import PeftModel
from transformers import AutoModelForCausalLM

from selfedit.engine import load_adapter, merge_adapter
from selfedit.errors import UserError
from selfedit.methods.adapters import find_adapters
from selfedit.methods.ask import Asker
from selfedit.methods.learn import learn
from selfedit.methods.plan import plan
from selfedit.methods.selection import Choices
from selfedit.methods.settings import LearnSettings
from selfedit.methods.stacking import stack
from selfedit.models import load_model
from selfedit.prompts import Prompts
from selfedit.runs.store import Store
from tiny_world import SMALL, rows, write_rows

QUESTION = [{"role": "user", "content": "Where did Ada make the kite?"}]


@pytest.fixture(scope="module")
def first(chat_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    file = write_rows(folder / "first.jsonl", rows(2))
    learn(settings(chat_model, file, folder / "run"))
    return folder / "run"


def settings(model: str, file: Path, out: Path, **more: Any) -> LearnSettings:
    return LearnSettings(
        **{**SMALL, "model": model, "documents": (str(file),), "editor": "passage", "references": False, "out": out}
        | more
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 40)[None]).logits


def merged(model: str, *folders: Path) -> torch.Tensor:
    loaded = load_model(model, device="cpu", dtype="float32").hf
    for folder in folders:
        merge_adapter(loaded, folder)
    return logits(loaded)


def test_what_is_added_is_trained_on_top_and_is_one_adapter_with_both(
    chat_model: str, first: Path, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "more.jsonl", rows(4)[2:])
    asked = settings(chat_model, file, tmp_path / "run", add=first, set={**SMALL["set"], "rank": 2, "targets": "mlp"})
    pool = CountingPool(chat_model)
    found = learn(asked, pool=pool)
    (earlier,) = find_adapters(first).folders
    spec, state = load_adapter(found.adapter)
    before, _ = load_adapter(earlier)
    assert (spec.rank, found.rank, before.rank) == (6, 6, 4)
    # The earlier one is in it as it was; the rest is new, and leaves attention alone.
    for name, (a, b) in load_adapter(earlier)[1].items():
        assert torch.equal(state[name][0][:4], a)
        torch.testing.assert_close(state[name][1][:, :4] * spec.scaling, b * before.scaling)
        assert bool(state[name][1][:, 4:].any()) == ("mlp" in name)
    # What was examined before is the model with the earlier adapter, and what was trained goes on from it.
    assert all(task.policy for task in pool.tasks if task.id.startswith(("exam/0/none", "learning")))
    with Asker(tmp_path / "run", device="cpu", dtype="float32", max_tokens=8) as asker:
        assert asker.answer(QUESTION)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(chat_model), str(found.adapter)).eval()
    torch.testing.assert_close(logits(peft), merged(chat_model, found.adapter), rtol=1e-4, atol=1e-4)
    idle = CountingPool(chat_model)
    assert learn(asked, pool=idle).summary == found.summary
    assert idle.tasks == []


def test_a_stack_is_the_sum_of_its_adapters(chat_model: str, first: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "more.jsonl", rows(4)[2:])
    other = learn(settings(chat_model, file, tmp_path / "run", set={**SMALL["set"], "rank": 3})).adapter
    (earlier,) = find_adapters(first).folders
    expected = merged(chat_model, earlier, other)
    assert not torch.allclose(expected, merged(chat_model, other), atol=1e-3)
    stack([earlier], other)
    torch.testing.assert_close(merged(chat_model, other), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_another_model_is_not_gone_on_from(base_model: str, first: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "more.jsonl", rows(1))
    with pytest.raises(UserError, match=r"--add .*: an adapter of .*tiny-chat, not of .*tiny-base"):
        learn(settings(base_model, file, tmp_path / "run", add=first))
    without = LearnSettings(documents=(str(file),), add=first, editor="passage", **{**SMALL, "out": tmp_path / "run"})
    assert learn(without).model.endswith("tiny-chat")


def test_the_earlier_documents_are_asked_again_and_updates_are_counted(
    chat_model: str, first: Path, tmp_path: Path
) -> None:
    changed, same = rows(4)[0], rows(4)[2]
    changed |= {"id": "d0-new", "text": "Ada's kite cost 9 coins after all."}
    changed["questions"] = [{"question": "How many coins did the kite cost?", "answers": ["9"]}]
    file = write_rows(tmp_path / "more.jsonl", [changed, same])
    asked = settings(chat_model, file, tmp_path / "run", add=first)
    found = learn(asked)
    summary = found.summary
    assert summary is not None
    names = ["none", "passage", "earlier documents, before", "earlier documents, after"]
    assert [condition.name for condition in summary.conditions] == names
    # Of four questions about the earlier documents, one has another answer now and is not asked again.
    assert [condition.graded for condition in summary.conditions] == [3, 3, 3, 3]
    assert [(one.condition, one.asked) for one in summary.updates] == [("none", 1), ("passage", 1)]
    with Store(tmp_path / "run" / "run.sqlite", readonly=True) as store:
        assert [document.id for document in store.documents("earlier")] == ["d0", "d1"]
        said = {fit.condition: fit.answers for fit in store.fits() if fit.document_id == "d1"}
    assert set(said) == set(names[2:])
    assert plan(learn, asked.model_copy(update={"out": tmp_path / "plan"})).answers >= 12
    # A run that goes on from this one asks about all that came before; a page that is there anew takes its place.
    changed |= {"id": "d1", "questions": []}
    last = write_rows(tmp_path / "last.jsonl", [changed])
    third = learn(settings(chat_model, last, tmp_path / "third", add=tmp_path / "run"))
    assert third.summary is not None
    assert [condition.graded for condition in third.summary.conditions][-2:] == [4, 4]


def test_documents_that_contradict_each_other_are_named(chat_model: str, tmp_path: Path) -> None:
    old, new = rows(1)[0], rows(1)[0] | {"id": "new"}
    new["questions"] = [{"question": "How many coins did the kite cost?", "answers": ["9"]}]
    learn(settings(chat_model, write_rows(tmp_path / "both.jsonl", [old, new]), tmp_path / "run"))
    with Store(tmp_path / "run" / "run.sqlite", readonly=True) as store:
        (event,) = store.events("documents that contradict each other")
    assert event.message == "questions that a later document answers otherwise: 1 (first: d0/q1, by new/q0)"


class Some(Choices):
    """The first document was missed."""

    def missed(self, documents: Any, wrong: set[str]) -> set[str]:
        assert wrong <= {document.id for document in documents}
        return {documents[0].id}


def test_what_was_missed_is_learned_once_more_and_all_are_asked_again(
    chat_model: str, documents: Callable[[int], str], tmp_path: Path
) -> None:
    asked = settings(chat_model, Path(documents(3)), tmp_path / "run", retry_missed=True, general_questions=1)
    found = learn(asked, choices=Some())
    assert found.summary is not None
    assert [c.name for c in found.summary.conditions] == ["none", "passage", "passage twice"]
    assert [c.graded for c in found.summary.conditions] == [6, 6, 6]
    assert (found.documents, found.rank) == (3, 8)
    # What a question costs without an adapter is said of the model alone.
    assert [c.question_tokens is None for c in found.summary.conditions] == [False, True, True]
    with Store(asked.out / "run.sqlite", readonly=True) as store:
        fits = {fit.condition: fit for fit in store.fits() if fit.steps and " after " not in fit.condition}
        twice = store.fits(condition="passage twice")
        scored = store.scored_answers("lexical", condition="passage twice")
    assert set(fits) == {"passage", "passage twice"}
    assert fits["passage twice"].document_id == "d0"
    assert sorted(fit.document_id for fit in twice) == ["d0", "d1", "d2"]
    assert set(found.summary.missed) == {a.document_id for a in scored if a.document_id and a.value == "wrong"}
    assert find_adapters(asked.out).folders == (found.adapter,)
    # What answered the others is what is kept.
    row = rows(2)[1]
    told = Prompts().exam(instruct=True, title=row["title"], question=row["questions"][0]["question"])
    examined = {answer.question_id: answer.text for fit in twice for answer in fit.answers}
    with Asker(asked.out, device="cpu", dtype="float32", max_tokens=6) as asker:
        assert asker.answer([{"role": "user", "content": told}]) == examined["d1/q0"]


def test_an_editor_named_like_what_is_learned_once_more_is_not_taken_for_it(chat_model: str, tmp_path: Path) -> None:
    notes = write_rows(tmp_path / "notes twice.jsonl", [{"id": "d0", "text": "The kite was made in Oslo."}])
    file = write_rows(tmp_path / "one.jsonl", rows(1))
    found = learn(settings(chat_model, file, tmp_path / "run", editor=f"replay:{notes}"))
    assert find_adapters(tmp_path / "run").folders == (found.adapter,)


def test_a_plan_has_every_document_missed(chat_model: str, documents: Callable[[int], str], tmp_path: Path) -> None:
    asked = settings(chat_model, Path(documents(3)), tmp_path / "run", retry_missed=True)
    once = plan(learn, asked.model_copy(update={"retry_missed": False}))
    twice = plan(learn, asked)
    assert (once.fits, twice.fits) == (1, 2)
    assert twice.train_tokens == 2 * once.train_tokens
