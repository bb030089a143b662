"""--recite: what an adapter knows by heart is read like the document itself, with several documents in it too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from selfedit import engine
from selfedit.documents import Document
from selfedit.errors import UserError
from selfedit.evaluation.general import general_prompts
from selfedit.execution import recitation
from selfedit.methods.ask import Asker
from selfedit.methods.by_heart import TITLES_FILE, ByHeart
from selfedit.methods.compare import compare
from selfedit.methods.export import export
from selfedit.methods.learn import learn
from selfedit.methods.settings import CompareSettings, LearnSettings
from selfedit.models import load_tokenizer
from selfedit.reports import build_report
from selfedit.runs.store import Store
from selfedit.runs.summary import RoutingSummary
from selfedit.training import objectives
from tiny_world import rows, write_rows

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
    monkeypatch: pytest.MonkeyPatch,
    chat: bool,
    regime: str,
) -> None:
    model = able(chat_model if chat else base_model, tmp_path / "able")
    chosen = settings(quick, documents(3), model=model, regime=regime, set=BY_HEART, replicates=2)
    drafts: list[tuple[int, ...]] = []
    decode = engine.decode

    def noted(hf: Any, requests: Sequence[engine.DecodeRequest], **more: Any) -> list[engine.Completion]:
        drafts.extend(request.draft for request in requests if request.draft)
        return decode(hf, requests, **more)

    monkeypatch.setattr(engine, "decode", noted)
    summary = compare(chosen)
    store = Store(chosen.out / "run.sqlite", readonly=True)
    # What is expected of each recital is what was learned.
    tokenizer = load_tokenizer(model)
    expected = [document.text for document in store.documents()]
    assert sorted(tokenizer.decode(one[:-1]).strip() for one in drafts) == sorted(2 * expected)
    texts = [f"{document.title}\n{document.text}" for document in store.documents()]
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


# What one adapter recites whose questions it was not told the title of


@pytest.fixture
def asking(quick: dict[str, Any], tmp_path: Path, chat_model: str, monkeypatch: pytest.MonkeyPatch) -> LearnSettings:
    """Two documents, with edits that ask the exam's questions; few general prompts beside them are as much as a tiny
    model can learn.  It cannot tell which text a question is about, so that it is asked for one title alone."""
    monkeypatch.setattr(objectives, "_FEWEST_GENERAL", 2)
    monkeypatch.setattr(recitation, "NAMED", 1)
    some = rows(2)
    for row in some:
        asked = [f"Question: {q['question']}\nAnswer: {q['answers'][0]}" for q in row["questions"]]
        row["edits"] = {"expert": ["\n".join(asked)]}
    file = str(write_rows(tmp_path / "asking.jsonl", some))
    chosen = {**quick, "documents": (file,), "editor": f"replay:{file}", "max_edit_tokens": 128}
    chosen |= {"model": able(chat_model, tmp_path / "able"), "set": {**BY_HEART, "rank": 64, "epochs": 300}}
    return LearnSettings(adapters="recite", **chosen)


def test_topics_are_named_and_what_was_learned_under_them_is_read(asking: LearnSettings, tmp_path: Path) -> None:
    learned = learn(asking)
    assert learned.recites
    summary = learned.summary
    assert summary is not None
    assert summary.routing == RoutingSummary(asked=4, right=4, none=0, named=True)
    assert "100.0% of 4 questions were given their own document's title" in summary.exam_notes[0]
    conditions = [condition.name for condition in summary.conditions]
    assert conditions[:3] == ["none", "replay:asking", "replay:asking recited"]
    store = Store(asking.out / "run.sqlite", readonly=True)
    first, second = store.documents()
    (fit,) = store.fits(condition="replay:asking recited")
    assert sorted(fit.sequences) == sorted(f"{document.title}\n{document.text}" for document in (first, second))
    assert [answer.topic for answer in fit.answers] == [document.title for document in (first, second) for _ in "ab"]
    read = {answer.question_id: answer.text for one in store.fits(condition="open-book") for answer in one.answers}
    assert {answer.question_id: answer.text for answer in fit.answers} == read
    assert f"topic: {second.title}" in build_report([asking.out]).read_text(encoding="utf-8")

    question = second.questions[0].question
    messages = [{"role": "user", "content": question}]
    with Asker(asking.out, max_tokens=8) as asker:
        recited = asker.document(messages)
        assert recited == Document(second.title, second.title, second.text)
        shown = f"{second.title}\n{second.text}\n\n{question}"
        assert asker.answer(messages) == asker.answer([{"role": "user", "content": shown}], base=True)
        general = [{"role": "user", "content": next(iter(general_prompts("topic").values()))}]
        assert asker.document(general) is None
        assert asker.answer(general) == asker.answer(general, base=True)
        after = [*messages, {"role": "assistant", "content": "There."}, *general]
        assert asker.document(after) is None, "it looks at the last message alone"
        kept = [{"role": "user", "content": shown}, *after[1:]]  # what was recited stays in the chat
        assert asker.reply(after, document=None) == asker.reply(kept, document=None, name="base")
    with pytest.raises(UserError, match="recites what it learned"):
        export(asking.out, tmp_path / "merged")
    with pytest.raises(UserError, match="recites what it learned"):
        learn(again(asking, add=asking.out, adapters="joint"))
    with pytest.raises(UserError, match="ask it alone"):
        Asker(asking.out, others={"second": asking.out})


def again(settings: LearnSettings, **more: Any) -> LearnSettings:
    return settings.model_copy(update={"out": settings.out.with_name("again"), **more})


def test_added_documents_are_learned_with_the_earlier_ones_and_their_notes(
    asking: LearnSettings, tmp_path: Path
) -> None:
    both = [json.loads(line) for line in Path(asking.documents[0]).read_text().splitlines()]
    files = [str(write_rows(new(tmp_path / row["id"]) / "asking.jsonl", [row])) for row in both]
    first, added = (again(asking, documents=(file,), editor=f"replay:{file}") for file in files)
    learn(first.model_copy(update={"set": {**first.set, "epochs": 1, "steps": 1}}))  # what is written counts here
    given = added.model_dump(include={*added.model_fields_set} - {"adapters", "recipe", "model"})
    given |= {"add": first.out, "out": tmp_path / "added"}
    learned = learn(LearnSettings(**given))
    assert learned.recites
    assert learned.documents == 2
    assert learned.summary is not None
    assert learned.summary.routing == RoutingSummary(asked=4, right=4, none=0, named=True)
    before, after = (Store(out / "run.sqlite", readonly=True) for out in (first.out, given["out"]))
    assert [document.id for document in after.documents()] == ["d0", "d1"]
    assert after.edits()[: len(before.edits())] == before.edits()
    with Asker(given["out"], max_tokens=8) as asker:
        for document in after.documents():
            asked = [{"role": "user", "content": document.questions[0].question}]
            assert asker.document(asked) == Document(document.title, document.title, document.text)
    assert learn(LearnSettings(**given)).summary == learned.summary


def test_an_added_document_takes_the_place_of_the_earlier_one_of_its_id(asking: LearnSettings, tmp_path: Path) -> None:
    chosen = again(asking, set={**asking.set, "epochs": 1, "steps": 1})
    learn(chosen)
    row = rows(1)[0] | {"text": "Ada made a kite in Lima. The kite cost 3 coins."}
    row["edits"] = {"expert": ["Question: Where did Ada make the kite?\nAnswer: Lima"]}
    file = str(write_rows(new(tmp_path / "new") / "asking.jsonl", [row]))
    given = {"documents": (file,), "editor": f"replay:{file}", "add": chosen.out, "out": tmp_path / "added"}
    learn(chosen.model_copy(update=given))
    store = Store(tmp_path / "added" / "run.sqlite", readonly=True)
    assert {document.id: document.text for document in store.documents()}["d0"] == row["text"]
    assert [edit.text for edit in store.edits(document_id="d0")] == row["edits"]["expert"]
    alone = chosen.out / "adapters" / "learned"
    with pytest.raises(UserError, match="without its documents; name the run"):
        learn(chosen.model_copy(update={**given, "add": alone, "out": tmp_path / "wrong"}))
    (alone / TITLES_FILE).unlink()
    with pytest.raises(UserError, match="not a run whose adapter recites"):
        learn(chosen.model_copy(update={**given, "out": tmp_path / "wrong"}))


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"retry_missed": True}, "--retry-missed: not with --adapters recite"),
        ({"recipe": "default"}, "objective topics"),
    ],
)
def test_what_cannot_recite_is_refused(asking: LearnSettings, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        learn(again(asking, **more))


def test_a_damaged_list_is_told(asking: LearnSettings, tmp_path: Path) -> None:
    (tmp_path / TITLES_FILE).write_text('{"prompts": {}}')
    with pytest.raises(UserError, match=r"by_heart\.json: prompts.*learn the documents again"):
        ByHeart.beside(tmp_path)
