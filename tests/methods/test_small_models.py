"""The editor that a model gets where none was named, by its size; and the warning where one was named for a small
model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfedit.documents import load_documents
from selfedit.methods import small_models
from selfedit.methods.adapt import adapt
from selfedit.methods.continual import continual
from selfedit.methods.learn import learn
from selfedit.methods.plan import plan
from selfedit.methods.settings import ContinualSettings, LearnSettings
from selfedit.methods.small_models import editor_of
from selfedit.models import load_model
from selfedit.progress import Progress
from selfedit.runs.directory import read_recorded
from selfedit.runs.store import Store
from tiny_world import SMALL


def events(out: Path) -> dict[str, str]:
    with Store(out / "run.sqlite", readonly=True) as store:
        return {event.kind: event.message for event in store.events()}


def conditions(out: Path) -> set[str]:
    with Store(out / "run.sqlite", readonly=True) as store:
        # A fit is examined on the way too, under conditions of its own.
        return {fit.condition for fit in store.fits() if fit.steps and " after " not in fit.condition}


@pytest.fixture
def settings(quick: dict[str, Any], documents: Callable[[int], str], chat_model: str) -> LearnSettings:
    return LearnSettings(model=chat_model, documents=(documents(1),), **quick)


def test_a_small_model_learns_the_passages_alone(settings: LearnSettings) -> None:
    learn(settings)
    assert conditions(settings.out) == {"passage"}
    assert read_recorded(settings.out / "config.yaml")[0]["editor"] == "passage"
    assert "million parameters, too few to write notes worth learning" in events(settings.out)["editor chosen"]
    assert plan(learn, settings).write_tokens == 0


def test_a_larger_model_writes_its_own_notes(settings: LearnSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_models, "SMALL", 1000)
    learn(settings)
    assert conditions(settings.out) == {"self"}
    assert not {"editor chosen", "small editor"} & events(settings.out).keys()
    # The run goes on with what it began with, whatever the rule says later.
    monkeypatch.setattr(small_models, "SMALL", 10**9)
    learn(settings)
    assert read_recorded(settings.out / "config.yaml")[0]["editor"] == "self"


def test_an_editor_that_was_named_is_taken_with_a_warning(settings: LearnSettings) -> None:
    notes: list[str] = []

    listener = Progress()
    listener.note = notes.append
    named = settings.model_copy(update={"editor": "self"})
    learn(named, progress=listener)
    assert conditions(settings.out) == {"self"}
    assert [line for line in notes if "too few to write notes" in line] == [events(settings.out)["small editor"]]
    learn(named.model_copy(update={"editor": "passage", "out": settings.out / "passage"}))
    assert "small editor" not in events(settings.out / "passage")


def test_continual_follows_the_same_rule(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    settings = ContinualSettings(model=chat_model, documents=(documents(1),), **quick)
    continual(settings)
    assert conditions(settings.out) == {"passage + per-document"}


def test_adapt_goes_by_the_model_in_memory(chat_model: str, documents: Callable[[int], str]) -> None:
    model = load_model(chat_model, device="cpu", dtype="float32")
    assert adapt(model, load_documents([documents(1)]), **SMALL).edits == ()


def test_what_is_to_recite_asks_itself_questions(settings: LearnSettings) -> None:
    few = {**SMALL["set"], "epochs": 1}
    recites = LearnSettings(**{**settings.model_dump(exclude={"recipe"}), "adapters": "recite", "set": few})
    for asked, editor in (("auto", "self:exam-questions"), ("passage", "passage")):
        named = editor_of(recites.model_copy(update={"editor": asked}))[0].editor
        assert named == editor
    assert editor_of(settings)[0].editor == "passage"
    learn(recites)
    assert conditions(settings.out) == {"self:exam-questions"}
    assert not {"editor chosen", "small editor"} & events(settings.out).keys()
