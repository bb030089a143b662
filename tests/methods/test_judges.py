"""Judges, by API and local: as the reward of an edit, with its correlation with real fits, and as the grader of
answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from counting_pool import CountingPool
from making import Make

from api_server import reply
from selfedit.errors import UserError
from selfedit.evaluation.statistics import spearman, spearman_interval
from selfedit.methods.compare import compare
from selfedit.methods.continual import continual
from selfedit.methods.learn import learn
from selfedit.methods.restem import train
from selfedit.methods.rewards import read_rating
from selfedit.methods.settings import CompareSettings, ContinualSettings, LearnSettings, TrainSettings
from selfedit.runs.store import Store


@pytest.mark.parametrize(
    ("text", "rating"),
    [("7", 0.7), (" 10\n", 1.0), ("0", 0.0), ("8/10", 0.8), ("9.0", 0.9), ("3.", 0.3), ("10 / 10", 1.0)],
)
def test_a_number_from_0_to_10_is_a_rating(text: str, rating: float) -> None:
    assert read_rating(text) == pytest.approx(rating)


@pytest.mark.parametrize("text", ["", "11", "-1", "seven", "7 or 8", "Rating: 7", "I say 7", "7\n8"])
def test_anything_else_is_none(text: str) -> None:
    assert read_rating(text) is None


def judged(small_train: dict[str, Any], **more: Any) -> TrainSettings:
    return TrainSettings(
        **{**small_train, "rounds": 1, "validation_share": 0, "edits": 3, "reward": "judge", "judge_sample": 6}, **more
    )


def notes_in(prompt: str) -> str:
    """The edit that a rating prompt has between its two fences."""
    fence = next(line for line in prompt.splitlines() if line.startswith("====="))
    return prompt.split(f"\n{fence}\n")[1].strip()


def test_an_api_judges_ratings_are_rewards_and_are_compared_with_real_fits(
    small_train: dict[str, Any], server: Any
) -> None:
    """This judge likes long notes; of one document's it says nothing readable."""

    def rate(body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["messages"][-1]["content"]
        return reply("Splendid!" if "Title: Bo and" in prompt else str(min(10, len(notes_in(prompt)) // 8)))

    server.reply = rate
    settings = judged(small_train, judge="some-judge", api_base=server.url)
    pool = CountingPool(settings.model)
    summary = train(settings, pool=pool)
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        edits = store.edits(round=1)
        assert len(edits) == 18
        for edit in edits:
            expected = None if edit.document_id == "d1" else min(10, len(edit.text) // 8) / 10
            assert edit.reward == expected
        assert not any(e.kept for e in edits if e.document_id == "d1")
        scores: dict[str, list[float]] = {}
        for answer in store.scored_answers("lexical", condition="train"):
            scores.setdefault(str(answer.edit_id), []).append(answer.score or 0.0)
        assert [(event.subject, event.message) for event in store.events("unreadable ratings")] == [
            ("round 1", "3 of 18 ratings could not be read (most often: no number from 0 to 10: Splendid!)")
        ]
        ledger = [line for line in store.costs() if line.model == "some-judge"]
    assert len(pool.fits) == len(scores) == 6, "only the sample is really fitted"
    known = {e.id: e.reward for e in edits if e.id in scores}
    assert None not in known.values()
    rated = [e.id for e in edits if e.reward is not None]
    assert scores.keys() != set(rated[:6]), "the sample is drawn"
    assert summary.rounds is not None
    (first,) = summary.rounds[:1]
    expected_correlation = spearman(
        [float(known[id] or 0) for id in scores], [sum(found) / len(found) for found in scores.values()]
    )
    assert first.judge_correlation == pytest.approx(expected_correlation)
    if first.judge_correlation is not None:
        assert first.judge_correlation_ci95 == pytest.approx(spearman_interval(first.judge_correlation, 6))
    assert first.judge_sample == 6
    assert sum(line.input_tokens for line in ledger) == 10 * len(server.completions)


def test_the_local_model_can_be_the_judge(small_train: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model rates at random; what it writes is read as a rating or not at all."""
    replies: list[str] = []

    def remember(text: str) -> float | None:
        replies.append(text)
        # Whatever it says, half of the edits get a rating, so that there is something to select.
        return read_rating(text) if read_rating(text) is not None else (len(replies) % 2) * 0.5

    monkeypatch.setattr("selfedit.methods.rewards.read_rating", remember)
    settings = judged(small_train)
    pool = CountingPool(settings.model)
    summary = train(settings, pool=pool)
    ratings = [task for task in pool.tasks if task.id.startswith("ratings/1/")]
    assert sum(len(task.requests) for task in ratings) == len(replies) == 18  # type: ignore[union-attr]
    assert {task.policy for task in ratings} == {()}
    assert summary.rounds is not None
    assert summary.rounds[0].kept_edits


def test_where_nothing_is_rated_the_run_says_why_and_asks_again(small_train: dict[str, Any], server: Any) -> None:
    def think(body: dict[str, Any]) -> dict[str, Any]:
        answer = reply("")
        answer["choices"][0]["finish_reason"] = "length"
        return answer

    server.reply = think
    settings = judged(small_train, judge="thinker", api_base=server.url)
    told = r"round 1: no edit was kept: 18 of 18 ratings could not be read .*: --judge-reasoning-effort low .*--out"
    with pytest.raises(UserError, match=told):
        train(settings)
    asked = len(server.completions)
    # What could not be read is no answer from then on: the same command asks again.
    server.reply = lambda body: reply(str(len(notes_in(body["messages"][-1]["content"])) % 10))
    assert train(settings).rounds[0].kept_edits
    assert len(server.completions) == 2 * asked
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert not store.events("unreadable ratings")


def test_a_judge_without_a_key_is_missed_before_any_work(
    small_train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    pool = CountingPool(small_train["model"])
    with pytest.raises(UserError, match=r"no API key for model 'gpt-4\.1'.*OPENAI_API_KEY"):
        train(judged(small_train, judge="gpt-4.1"), pool=pool)
    with pytest.raises(UserError, match=r"no API key for model 'gpt-4\.1'"):
        train(TrainSettings(**{**small_train, "grader": "judge:gpt-4.1"}), pool=pool)
    assert pool.tasks == []


def test_an_api_grader_answers_yes_no_or_nothing(make: Make, server: Any) -> None:
    """One reply in four is neither yes nor no: that answer is ungraded; the same command asks about it again."""
    calls: list[str] = []

    def mark(body: dict[str, Any]) -> dict[str, Any]:
        question = body["messages"][-1]["content"]
        calls.append(question)
        if "coins did the lamp" in question and len(calls) < 20:
            return reply("hard to say")
        return reply(json.dumps({"verdict": "yes" if "Where" in question else "no"}))

    server.reply = mark
    settings = make(
        CompareSettings, 2, editor=("none",), grader="judge:marker", api_base=server.url, max_answer_tokens=2
    )
    with pytest.raises(UserError, match=r"1 of 4 answers could not be graded by judge:marker"):
        compare(settings)
    asked = len(calls)
    calls += [""] * 20
    summary = compare(settings)
    assert len(calls) == asked + 20 + 1, "only the ungraded answer is asked about again"
    (condition,) = summary.conditions
    assert (condition.correct, condition.graded, condition.ungraded) == (2, 4, 0)
    assert summary.grader == "judge:marker"


def test_an_api_grader_marks_a_tasks_answers_while_later_tasks_are_under_way(make: Make, server: Any) -> None:
    happened: list[str] = []

    def mark(body: dict[str, Any]) -> dict[str, Any]:
        happened.append("call")
        return reply(json.dumps({"verdict": "yes"}))

    class Watched(CountingPool):
        def run(self, tasks: Any) -> Any:
            for result in super().run(tasks):
                happened.append("task")
                yield result

    server.reply = mark
    settings = make(CompareSettings, 3, editor=("passage",), grader="judge:marker", api_base=server.url, task_size=1)
    condition = compare(settings, pool=Watched(settings.model)).conditions[-1]
    assert condition.correct == condition.graded > 0
    fits = [k for k, what in enumerate(happened) if what == "task"][-3:]
    assert "call" in happened[fits[0] : fits[1]]
    assert "call" in happened[fits[1] : fits[2]]


def test_an_api_editors_edits_are_stored_with_tokens_and_asked_for_once(make: Make, server: Any) -> None:
    server.reply = lambda body: reply(
        "Sure, some notes:\n1. It was made.\n2. It was made.\n3. Someone made it in 1990."
    )
    settings = make(CompareSettings, 2, editor=("api:writer",), edits=2, api_base=server.url)
    summary = compare(settings)
    assert [c.name for c in summary.conditions] == ["none", "api:writer"]
    assert (summary.conditions[1].edit_tokens, summary.conditions[1].cost_usd) == (20, None)
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        edits = store.edits()
    assert {(e.text, e.dropped_lines, e.input_tokens) for e in edits} == {
        ("It was made.\nSomeone made it in 1990.", 2, 10)
    }
    assert len(server.completions) == 4
    compare(settings)
    assert len(server.completions) == 4


# Edits that cannot be written


def refuse_lamp(body: dict[str, Any]) -> dict[str, Any] | None:
    """A server that takes nothing about the second document."""
    if "Bo and the lamp" not in body["messages"][-1]["content"]:
        return None
    return {"error": {"message": "content refused", "type": "error", "code": None, "param": None}}


def left_out(out: Path) -> list[tuple[str, str]]:
    with Store(out / "run.sqlite", readonly=True) as store:
        return [(event.subject, event.message) for event in store.events("edit not written")]


def test_an_api_editor_that_fails_keeps_what_came(make: Make, server: Any) -> None:
    server.refuse = refuse_lamp
    settings = make(CompareSettings, 2, editor=("api:writer",), api_base=server.url)
    with pytest.raises(UserError, match=r"1 of 2 edits by api:writer .*--max-missing-edits 2%.*d1.*the same command"):
        compare(settings)
    assert left_out(settings.out) == [("0|d1|api:writer|0", "400: content refused")]
    server.refuse = lambda body: None
    compare(settings)
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert [e.document_id for e in store.edits()] == ["d0", "d1"]
    assert left_out(settings.out) == []


@pytest.mark.parametrize("regime", ["single", "joint"])
def test_documents_without_an_edit_are_named_and_left_out_of_their_condition_alone(
    make: Make, server: Any, regime: str
) -> None:
    server.refuse = refuse_lamp
    settings = make(
        CompareSettings, 3, editor=("api:writer", "passage"), regime=regime, api_base=server.url, max_missing_edits=0.4
    )
    summary = compare(settings)
    assert [(c.name, c.graded) for c in summary.conditions] == [("none", 6), ("api:writer", 4), ("passage", 6)]
    assert summary.events["edit not written"] == 1
    assert left_out(settings.out) == [("0|d1|api:writer|0", "400: content refused")]
    asked = len(server.completions)
    server.refuse = lambda body: None
    again = compare(settings)
    if regime == "single":  # the next attempt has it written, learned and counted
        assert len(server.completions) == asked + 1
        assert [c.graded for c in again.conditions] == [6, 6, 6]
        assert left_out(settings.out) == []
    else:  # the one adapter is there, without it
        assert len(server.completions) == asked
        assert again == summary


def test_learning_goes_on_without_a_document_that_has_no_edit(make: Make, server: Any) -> None:
    server.refuse = refuse_lamp
    settings = make(LearnSettings, 3, editor="api:writer", api_base=server.url, max_missing_edits=0.4)
    learned = learn(settings)
    assert learned.documents == 2
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        (fit,) = store.fits(condition="api:writer")
    assert not any("lamp" in text for text in fit.sequences)
    assert not any("d1" in answer.question_id for answer in fit.answers)
    asked = len(server.completions)
    assert learn(settings) == learned
    assert len(server.completions) == asked, "the adapter is there; nothing more is asked for"


def test_continual_learning_passes_over_a_document_that_has_no_edit(make: Make, server: Any) -> None:
    server.refuse = refuse_lamp
    more = {"editor": "api:writer", "api_base": server.url, "max_missing_edits": 0.4}
    settings = make(ContinualSettings, 3, retain=("none",), **more)
    summary = continual(settings)
    assert [step.new is None for step in summary.steps] == [False, True, False]
    assert [step.earlier and step.earlier.documents for step in summary.steps] == [None, None, 1]
    (figures,) = summary.retention
    assert [[cell is not None for cell in row] for row in figures.accuracy] == [
        [True],
        [True, False],
        [True, False, True],
    ]
    assert figures.accuracy[1][0] == figures.accuracy[0][0], "the model is as it was"
    server.refuse = lambda body: None
    asked = len(server.completions)
    assert continual(settings) == summary, "later steps were made without it"
    assert len(server.completions) == asked
