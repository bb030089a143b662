"""Tasks that a pool gives up: what is named and left out, what stops a run with one line, and the same command tries
again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from counting_pool import REASON, CountingPool
from making import Make

from selfedit.documents import Document, load_documents
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.execution.tasks import FitTask, Task
from selfedit.methods.compare import compare
from selfedit.methods.continual import continual
from selfedit.methods.edits import write_edits
from selfedit.methods.learn import learn
from selfedit.methods.restem import train
from selfedit.methods.run import Run
from selfedit.methods.selection import Choices
from selfedit.methods.settings import CompareSettings, ContinualSettings, LearnSettings, TrainSettings
from selfedit.runs.store import Store

Documents = Callable[[int], str]


def events(out: Path, kind: str) -> dict[str, str]:
    with Store(out / "run.sqlite", readonly=True) as store:
        return {event.subject: event.message for event in store.events(kind)}


def results(out: Path) -> dict[str, Any]:
    """Fits with their answers, and edits."""
    with Store(out / "run.sqlite", readonly=True) as store:
        fits = {f.id: (f.status, f.answers) for f in store.fits()}
        return {"fits": fits, "edits": {s.id: (s.text, s.reward, s.kept) for s in store.edits()}}


def refused(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as raised:
        call()
    assert "\n" not in str(raised.value)
    assert REASON in str(raised.value)
    assert "same command" in str(raised.value)


def test_compare_names_what_was_given_up_and_makes_it_when_it_is_run_again(
    quick: dict[str, Any], documents: Documents, chat_model: str
) -> None:
    common = {
        **quick,
        "model": chat_model,
        "documents": (documents(4),),
        "editor": ("passage", "self"),
        "task_size": 2,
        "max_missing_edits": 0.5,
    }
    whole = CompareSettings(**{**common, "out": quick["out"].with_name("whole")})
    compare(whole, pool=CountingPool(chat_model))
    expected = results(whole.out)

    settings = CompareSettings(**common)
    pool = CountingPool(chat_model)
    pool.gives_up = lambda task: task.id in ("edits/0/self/1", "fits/0/0")
    summary = compare(settings, pool=pool)
    (task,) = (task for task in pool.tasks if task.id == "fits/0/0")
    assert isinstance(task, FitTask)
    lost = {task.id for task in task.fits}
    unwritten = expected["edits"].keys() - results(settings.out)["edits"].keys()
    assert events(settings.out, "given up") == dict.fromkeys(lost, REASON)
    assert events(settings.out, "edit not written") == dict.fromkeys(unwritten, REASON)
    assert unwritten
    assert summary.events is not None
    assert summary.events["given up"] == len(lost) > 0
    there = results(settings.out)
    assert len(there["fits"]) == len(expected["fits"]) - len(lost) - len(unwritten)
    assert all(expected["fits"][id] == fit for id, fit in there["fits"].items())

    again = CountingPool(chat_model)
    compare(settings, pool=again)
    assert results(settings.out) == expected
    assert len(again.fits) == len(lost) + len(unwritten)
    assert events(settings.out, "given up") == events(settings.out, "edit not written") == {}


def test_an_exam_that_was_given_up_is_named_and_held_later(make: Make, chat_model: str) -> None:
    settings = make(CompareSettings, 2, editor=("none",))
    pool = CountingPool(chat_model)
    pool.gives_up = lambda task: task.id.startswith("exam/")
    summary = compare(settings, pool=pool)
    assert summary.conditions[0].graded == 0
    assert events(settings.out, "given up") == dict.fromkeys(("0|d0|none|0", "0|d1|none|0"), REASON)
    assert compare(settings).conditions[0].graded == 4
    assert events(settings.out, "given up") == {}


class Halves(Choices):
    """Every second question is answered by the model as it is."""

    def __init__(self) -> None:
        self.turn = cycle((True, False))

    def route(self, found: Document | None, learned: Sequence[Document]) -> Document | None:
        return found if next(self.turn) else None


def test_a_document_is_not_examined_by_half_where_its_untrained_exam_was_given_up(make: Make, chat_model: str) -> None:
    settings = make(ContinualSettings, 2, editor="passage", task_size=2)
    pool = CountingPool(chat_model)
    pool.gives_up = lambda task: task.id.startswith("exam/")
    for part, expected in ((pool, []), (CountingPool(chat_model), [2, 2, 2])):
        continual(settings, pool=part, choices=Halves())
        with Store(settings.out / "run.sqlite", readonly=True) as store:
            assert [len(exam.answers) for exam in store.fits(condition="after + per-document")] == expected


def test_what_no_adapter_is_asked_waits_for_the_untrained_exam(make: Make, chat_model: str) -> None:
    settings = make(LearnSettings, 2, editor="passage", adapters="per-document", references=False, task_size=2)
    pool = CountingPool(chat_model)
    pool.gives_up = lambda task: task.id.startswith("exam/")
    for part, expected in ((pool, [1, 1]), (CountingPool(chat_model), [1, 1, 2])):
        learn(settings, pool=part, choices=Halves())
        with Store(settings.out / "run.sqlite", readonly=True) as store:
            assert sorted(len(exam.answers) for exam in store.fits(condition="passage")) == expected


def test_edits_that_were_given_up_count_as_missing(make: Make, chat_model: str) -> None:
    settings = make(CompareSettings, 2, editor=("self",))
    pool = CountingPool(chat_model)
    pool.gives_up = lambda task: task.id.startswith("edits/")
    refused(lambda: compare(settings, pool=pool), r"2 of 2 edits by self could not be written, more than --max-missing")


def test_answers_whose_local_judge_was_given_up_are_ungraded(make: Make, chat_model: str) -> None:
    settings = make(CompareSettings, 2, editor=("none",), grader="judge:local")
    pool = CountingPool(chat_model)
    pool.gives_up = lambda task: task.id.startswith("judge/")
    with pytest.raises(UserError, match=r"4 of 4 answers could not be graded by judge:local"):
        compare(settings, pool=pool)
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert {answer.value for answer in store.scored_answers("judge:local")} == {"ungraded"}
        assert store.to_grade("judge:local", retry_ungraded=True)


def test_step_b_goes_on_without_fits_that_were_given_up(small_train: dict[str, Any]) -> None:
    settings = TrainSettings(**{**small_train, "task_size": 2})
    pool = CountingPool(settings.model)
    lost: dict[str, set[str]] = {}

    def gives_up(task: Task) -> bool:
        if isinstance(task, FitTask) and task.id in ("round 1 rewards/0/0", "round 0 validation/0/0"):
            lost[task.id] = {task.id for task in task.fits}
        return task.id in lost or task.id == "edits/2/train/0"

    pool.gives_up = gives_up
    refused(lambda: train(settings, pool=pool), r"2 of 8 edits by train could not be written, more than --max-missing")
    assert events(settings.out, "given up").keys() == set.union(*lost.values())
    summary = train(settings, pool=CountingPool(settings.model))
    # Round 1 was over, and its policy made without them.
    assert events(settings.out, "given up") == dict.fromkeys(lost["round 1 rewards/0/0"], REASON)
    assert [round.round for round in summary.rounds] == [1, 2]


def test_missing_edits_are_counted_in_each_round_by_itself(small_train: dict[str, Any]) -> None:
    settings = TrainSettings(**small_train, task_size=1, max_missing_edits=0.1)
    pool = CountingPool(settings.model)
    pool.gives_up = lambda task: task.id in ("edits/1/train/0", "edits/2/train/0")
    documents = load_documents(settings.documents)
    spec = EditorSpec("self", settings.edit_prompt)
    with Run("train", settings, pool=pool) as run:
        run.store.add_documents(documents, split="training")
        how: Any = {"count": 2, "prompt": settings.edit_prompt, "condition": "train"}
        written = [write_edits(run, documents, spec, round=round, **how) for round in (1, 2)]
    assert [len(edits) for edits in written] == [11, 11]


def test_a_round_without_any_reward_says_why(small_train: dict[str, Any]) -> None:
    settings = TrainSettings(**{**small_train, "rounds": 1, "validation_share": 0})
    pool = CountingPool(settings.model)
    pool.gives_up = lambda task: task.id.startswith("round 1 rewards")
    refused(lambda: train(settings, pool=pool), r"round 1: no edit was kept, and 12 fits or ratings were given up")
    train(settings, pool=CountingPool(settings.model))


def test_edits_whose_rating_was_given_up_have_none(small_train: dict[str, Any]) -> None:
    settings = TrainSettings(**{**small_train, "rounds": 1, "validation_share": 0, "reward": "judge"})
    pool = CountingPool(settings.model)
    pool.gives_up = lambda task: task.id.startswith("ratings")
    refused(lambda: train(settings, pool=pool), r"round 1: no edit was kept, and 12 fits or ratings were given up")
    assert events(settings.out, "unreadable ratings") == {"round 1": "12 of 12 ratings could not be read"}


def test_what_nothing_can_be_done_without_stops_with_one_line_and_is_tried_again(
    small_train: dict[str, Any], quick: dict[str, Any], documents: Documents, chat_model: str
) -> None:
    def folder(name: str) -> dict[str, Any]:
        return {**quick, "out": quick["out"].with_name(name), "model": chat_model, "documents": (documents(2),)}

    runs: tuple[tuple[Callable[..., Any], Any, str, str], ...] = (
        (learn, LearnSettings(**folder("learn"), editor="passage"), "learning/0/0", "learning was given up"),
        (
            continual,
            ContinualSettings(**folder("continual"), editor="passage", retain=("none",)),
            "step 2 of 2/0/0",
            "step 2 of 2 was given up",
        ),
        (
            train,
            TrainSettings(**{**small_train, "rounds": 1, "out": quick["out"].with_name("train")}),
            "outer/1",
            "round 1: training the editor was given up",
        ),
    )
    for procedure, settings, name, message in runs:
        pool = CountingPool(chat_model)
        pool.gives_up = lambda task, name=name: task.id == name  # type: ignore[misc]
        refused(lambda run=procedure, s=settings, p=pool: run(s, pool=p), message)  # type: ignore[misc]
        procedure(settings, pool=CountingPool(chat_model))
        assert events(settings.out, "given up") == {}
