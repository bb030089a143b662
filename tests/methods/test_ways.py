"""Whether `learn` trains one adapter or one per document, where it was not told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from counting_pool import CountingPool

from selfedit.errors import UserError
from selfedit.methods import ways
from selfedit.methods.adapt import adapt
from selfedit.methods.adapters import find_adapters
from selfedit.methods.learn import learn
from selfedit.methods.plan import plan
from selfedit.methods.settings import MANY, LearnSettings
from selfedit.models import load_model
from selfedit.progress import Progress
from tiny_world import SMALL, rows, write_rows


class Told(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)


def bare(count: int) -> list[dict[str, Any]]:
    """Documents without questions, so that nothing but fits is done."""
    return [{key: row[key] for key in ("id", "title", "text")} for row in rows(8)[:count]]


def settings(model: str, folder: Path, some: list[dict[str, Any]], name: str = "run", **more: Any) -> LearnSettings:
    file = write_rows(folder / f"{name}.jsonl", some)
    common = {**SMALL, "model": model, "documents": (str(file),), "editor": "passage", "out": folder / name}
    return LearnSettings(**{**common, "set": {**SMALL["set"], "epochs": 1}, **more})


def test_from_five_documents_on_each_has_an_adapter_and_the_run_keeps_to_it(
    chat_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (settings(chat_model, tmp_path, bare(n), f"run-{n}") for n in (MANY - 1, MANY))
    told = Told()
    assert not learn(few, progress=told).routed
    line = "adapters: one for all (4 documents or parts); other ways: --adapters per-document, recite"
    assert [note for note in told.notes if "adapters" in note] == [line]
    pool, told = CountingPool(chat_model), Told()
    pool.gives_up = lambda task: True
    with pytest.raises(UserError, match="learning was given up"):
        learn(many, pool=pool, progress=told)
    line = "adapters: one per document (5 documents or parts); other ways: --adapters joint, recite"
    assert [note for note in told.notes if "adapters:" in note] == [line]
    assert plan(learn, many).fits == 5
    # What began one way goes on that way.
    monkeypatch.setattr(ways, "MANY", 100)
    found = learn(many)
    assert (found.routed, found.documents) == (True, 5)
    assert len(find_adapters(many.out).documents) == 5
    monkeypatch.setattr(ways, "MANY", 1)
    assert not learn(few).routed
    assert find_adapters(few.out).documents == ()


def test_what_is_added_goes_the_way_of_the_earlier_run(chat_model: str, tmp_path: Path) -> None:
    routed = settings(chat_model, tmp_path, bare(2), "routed", adapters="per-document")
    joint = settings(chat_model, tmp_path, bare(2), "joint")
    for first in (routed, joint):
        learn(first)
    one = settings(chat_model, tmp_path, bare(8)[7:], "one", add=routed.out)
    many = settings(chat_model, tmp_path, bare(8)[2:], "many", add=joint.out)
    told = Told()
    assert learn(one, progress=told).routed
    assert f"adapters: one per document (as in {routed.out}); other ways: --adapters joint, recite" in told.notes
    assert len(find_adapters(one.out).documents) == 3
    assert not learn(many).routed


def test_a_run_that_does_not_say_is_asked_and_not_gone_on_with(chat_model: str, tmp_path: Path) -> None:
    """As one that an older version began, all of whose runs had one adapter."""
    old = settings(chat_model, tmp_path, bare(6), adapters="joint")
    learn(old)
    auto = old.model_copy(update={"adapters": "auto"})
    with pytest.raises(UserError, match="this run began with adapters = 'joint', now it is 'auto'; put it back"):
        learn(auto)
    file = old.out / "config.yaml"
    config = yaml.safe_load(file.read_text())
    del config["adapters"]
    file.write_text(yaml.safe_dump(config))
    assert find_adapters(old.out).folders == (old.out / "adapters" / "learned",)
    with pytest.raises(UserError, match="this run began with adapters = not set, now it is 'auto'; put it back"):
        learn(auto)


def test_adapt_gives_back_one_adapter_of_any_number_of_documents(chat_model: str, tmp_path: Path) -> None:
    from selfedit.documents import Document

    documents = [Document(**row) for row in bare(6)]
    model = load_model(chat_model, device="cpu", dtype="float32")
    small = {key: value for key, value in SMALL.items() if key not in ("device", "dtype")}
    adapted = adapt(model, documents, editor="passage", **small)
    assert "adapter_model.safetensors" in adapted.files
    with pytest.raises(UserError, match="adapt gives back one adapter"):
        adapt(model, documents, adapters="auto")
    for more in ({"add": adapted.save(tmp_path / "adapter")}, {"retry_missed": True}):
        with pytest.raises(UserError, match="for add and retry_missed use learn"):
            adapt(model, documents, editor="passage", **small, **more)
