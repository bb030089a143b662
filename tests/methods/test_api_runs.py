"""Runs with API models: what they cost, what they keep, what they keep to themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api_server import reply
from selfedit.errors import UserError
from selfedit.methods.compare import compare
from selfedit.methods.settings import CompareSettings
from selfedit.reports import build_report
from selfedit.runs.directory import RunDirectory
from selfedit.runs.store import Store

YES = json.dumps({"verdict": "yes"})


@pytest.fixture
def common(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str, server: Any, tmp_path: Path
) -> dict[str, Any]:
    prices = tmp_path / "prices.yaml"
    prices.write_text(
        "models: {writer: {input: 100000.0, output: 1000000.0}, marker: {input: 100000.0, output: 1000000.0}}\n"
    )
    return {
        **quick,
        "model": chat_model,
        "documents": (documents(2),),
        "editor": ("api:writer",),
        "api_base": server.url,
        "prices": prices,
        "grader": "lexical",
    }


def ledger(out: Path, what: str = "edits") -> list[tuple[str, int, int, float | None]]:
    with Store(out / "run.sqlite", readonly=True) as store:
        return [
            (c.condition, c.input_tokens, c.output_tokens, c.usd)
            for c in store.costs()
            if c.what == what and c.model != ""
        ]


# Money

ONE = ("api:writer", 10, 5, 6.0)  # what the fake server's reply costs at these prices


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, UserError])
def test_a_stop_at_a_replys_commit_neither_loses_nor_repeats_its_cost(
    common: dict[str, Any], server: Any, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    """The second reply's edit cannot be committed: nothing of it is there, and all of the first."""
    settings = CompareSettings(**common, api_concurrency=1)
    add_edits = Store.add_edits

    def add_or_stop(store: Store, edits: Any, *more: Any) -> int:
        added = add_edits(store, edits, *more)
        if any(edit.document_id == "d1" for edit in edits):
            raise stop("here")
        return added

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_edits", add_or_stop)
        with pytest.raises(stop):
            compare(settings)
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert [edit.document_id for edit in store.edits()] == ["d0"]
        assert len(store._rows("SELECT 1 FROM api_calls")) == 1
    assert ledger(settings.out) == [ONE]
    compare(settings)
    assert ledger(settings.out) == [ONE, ONE]


def test_replies_that_come_while_the_user_interrupts_are_edits_and_costs(
    common: dict[str, Any], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CompareSettings(**{**common, "edits": 2})
    add_edits = Store.add_edits
    stopped: list[bool] = []

    def add_and_stop(store: Store, *more: Any) -> int:
        added = add_edits(store, *more)
        if not stopped:
            stopped.append(True)
            for _ in range(4):
                assert server.arrived.acquire(timeout=60)
            raise KeyboardInterrupt
        return added

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_edits", add_and_stop)
        with pytest.raises(KeyboardInterrupt):
            compare(settings)
    before = ledger(settings.out)
    assert before.count(ONE) == len(before) > 0
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert len(store.edits()) == len(before)
    summary = compare(settings)
    assert ledger(settings.out) == [ONE] * 4
    assert summary.conditions[1].cost_usd == 24.0


def test_a_refused_reply_is_booked_and_the_next_attempt_gets_a_fresh_sample(
    common: dict[str, Any], server: Any
) -> None:
    usual = server.reply

    def refuse(body: dict[str, Any]) -> dict[str, Any]:
        answer = usual(body)
        if "Bo and the lamp" in body["messages"][-1]["content"]:
            answer["choices"][0]["message"] = {"content": None, "refusal": "I must not."}
        return answer

    server.reply = refuse
    settings = CompareSettings(**common)
    with pytest.raises(UserError, match=r"1 of 2 edits .*d1.*the model refused: I must not"):
        compare(settings)
    assert ledger(settings.out) == [ONE, ONE]
    seeds = [body["seed"] for body in server.completions]
    server.reply = usual
    compare(settings)
    assert ledger(settings.out) == [ONE] * 3
    assert len(server.completions) == 3
    assert server.completions[-1]["seed"] not in seeds, "the same seed could give the same refusal"


def test_a_reply_that_was_all_reasoning_is_no_edit(common: dict[str, Any], server: Any) -> None:
    usual = server.reply
    server.reply = lambda body: (
        usual(body) | {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}
        if "Bo and the lamp" in body["messages"][-1]["content"]
        else usual(body)
    )
    settings = CompareSettings(**common)
    with pytest.raises(UserError, match=r"1 of 2 edits .*d1.*went to reasoning: --reasoning-effort low leaves some"):
        compare(settings)
    assert ledger(settings.out) == [ONE, ONE]
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert [edit.document_id for edit in store.edits()] == ["d0"]
    server.reply = usual
    compare(settings)
    assert ledger(settings.out) == [ONE] * 3, "the same command asks for it again"


def test_the_budget_remembers_what_a_refused_reply_cost(common: dict[str, Any], server: Any) -> None:
    usual = server.reply
    server.reply = lambda body: (
        usual(body) | {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}
    )
    settings = CompareSettings(**common)
    with pytest.raises(UserError, match="2 of 2 edits"):
        compare(settings)
    with pytest.raises(UserError, match=r"budget of 13\.00 USD: 12\.0000 USD are spent"):
        compare(settings.model_copy(update={"budget": 13.0}))


@pytest.mark.parametrize(
    "odd",
    [
        {"usage": {"prompt_tokens": "ten", "completion_tokens": 1e30}},
        {"choices": [{"message": {"content": [{"type": "text", "text": "x"}]}}]},
    ],
)
def test_an_odd_reply_does_not_brick_a_run_or_its_report(
    common: dict[str, Any], server: Any, odd: dict[str, Any]
) -> None:
    usual = server.reply
    server.reply = lambda body: usual(body) | (odd if "Bo and the lamp" in body["messages"][-1]["content"] else {})
    settings = CompareSettings(**common)
    for _ in range(2):
        with pytest.raises(UserError, match=r"1 of 2 edits .*d1.*the reply cannot be used"):
            compare(settings)
        build_report([settings.out])
    summary = compare(settings.model_copy(update={"max_missing_edits": 0.5}))
    assert [c.graded for c in summary.conditions] == [4, 2]
    assert "the reply cannot be used" in build_report([settings.out]).read_text(encoding="utf-8")
    server.reply = usual
    assert [c.graded for c in compare(settings).conditions] == [4, 4]


# Clients


def test_one_client_and_one_look_at_the_models_judges_all_answers(
    common: dict[str, Any], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfedit.evaluation.grading.GRADE_CHUNK", 1)
    server.reply = lambda body: reply(YES)
    compare(CompareSettings(**{**common, "editor": ("none",), "grader": "judge:marker"}))
    assert len(server.completions) > 1
    assert server.models_asked == 1


def test_a_grading_by_batch_is_one_batch(common: dict[str, Any], server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfedit.evaluation.grading.GRADE_CHUNK", 1)
    server.reply = lambda body: reply(YES)
    settings = CompareSettings(
        **{**common, "editor": ("none",), "grader": "judge:marker"}, api_batch=True, api_poll_seconds=0.01
    )
    summary = compare(settings)
    assert [len(upload) for upload in server.uploads] == [summary.conditions[0].graded]
    assert summary.conditions[0].graded == 4


def test_editor_and_judge_have_an_effort_each(common: dict[str, Any], server: Any) -> None:
    usual = server.reply
    server.reply = lambda body: reply(YES) if body["model"] == "marker" else usual(body)
    compare(CompareSettings(**{**common, "grader": "judge:marker"}, reasoning_effort="low"))
    efforts = {(body["model"], body.get("reasoning_effort")) for body in server.completions}
    assert efforts == {("writer", "low"), ("marker", None)}
    server.completions.clear()
    other = {**common, "grader": "judge:marker", "out": common["out"].with_name("other")}
    compare(CompareSettings(**other, judge_reasoning_effort="high"))
    efforts = {(body["model"], body.get("reasoning_effort")) for body in server.completions}
    assert efforts == {("writer", None), ("marker", "high")}


@pytest.fixture
def judges_server() -> Iterator[Any]:
    from fake_server import FakeServer

    other = FakeServer()
    other.reply = lambda body: reply(YES)
    yield other
    other.stop()


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({}, "Bearer of-judges"),
        ({"judge_api_key_variable": "MARKERS_KEY"}, "Bearer of-markers"),
    ],
)
def test_editor_and_judge_have_a_server_and_a_key_each(
    common: dict[str, Any],
    server: Any,
    judges_server: Any,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    key: str,
) -> None:
    for name, value in (
        ("OPENAI_API_KEY", "of-openai"),
        ("WRITERS_KEY", "of-writers"),
        ("JUDGE_API_KEY", "of-judges"),
        ("MARKERS_KEY", "of-markers"),
    ):
        monkeypatch.setenv(name, value)
    own = {
        "api_key_variable": "WRITERS_KEY",
        "judge_api_base": f"{judges_server.url}?key=hush1",
        "api_batch": True,
        "judge_api_batch": False,
        "api_poll_seconds": 0.01,
    }
    settings = CompareSettings(**{**common, "grader": "judge:marker", **own, **given})
    summary = compare(settings)
    assert [c.graded for c in summary.conditions] == [4, 4]
    assert [len(upload) for upload in server.uploads] == [2]
    assert {body["model"] for body in judges_server.completions} == {"marker"}
    assert not judges_server.uploads
    assert set(judges_server.keys) == {key}
    assert {"of-openai", "of-writers"}.isdisjoint(word for key in judges_server.keys for word in key.split())
    assert b"hush1" not in (settings.out / "config.yaml").read_bytes()
    assert "hush1" not in repr(settings)


def test_a_judge_without_an_endpoint_of_its_own_shares_the_editors() -> None:
    editor, judge = (
        CompareSettings(api_base="http://here/v1", api_key_variable="MINE", api_batch=True).endpoint(role)
        for role in ("editor", "judge")
    )
    assert (judge.base_url, judge.key_variable, judge.batch) == ("http://here/v1", "MINE", True)
    assert judge == editor
    assert not CompareSettings(api_batch=True, judge_api_batch=False).endpoint("judge").batch
    # A judge is asked in messages, however editors are.
    assert CompareSettings(api_kind="completions").endpoint("judge").kind == "chat"


# Secrets


def test_what_is_secret_in_an_address_is_in_no_file_of_a_run(common: dict[str, Any], server: Any) -> None:
    address = server.url.replace("http://", "http://me1:hush1@") + "?api-version=7&key=hush2"
    secrets = ("me1", "hush1", "hush2", "api-version")
    settings = CompareSettings(**{**common, "api_base": address})
    server.refuse = lambda body: {"error": {"message": "me1:hush1 key=hush2"}} if "lamp" in str(body) else None
    with pytest.raises(UserError) as caught:
        compare(settings)
    server.refuse = lambda body: None
    summary = compare(settings)
    page = build_report([settings.out])
    assert server.paths[-1].endswith("?api-version=7&key=hush2")
    seen = f"{caught.value} {settings!r} {summary!r}"
    assert not any(secret in seen for secret in secrets)
    files = [path for path in settings.out.rglob("*") if path.is_file()]
    assert page in files
    for path in files:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in secrets), path
    # Another password changes nothing, and another server does.
    compare(settings.model_copy(update={"api_base": address.replace("hush", "hash")}))
    with pytest.raises(UserError, match="api_base"):
        compare(settings.model_copy(update={"api_base": "http://elsewhere/v1"}))


def test_an_older_runs_secrets_are_not_shown(common: dict[str, Any], server: Any) -> None:
    settings = CompareSettings(**common)
    compare(settings)
    config = settings.out / "config.yaml"
    older = server.url.replace("http://", "http://me1:hush1@") + "?key=hush2"
    text = config.read_text(encoding="utf-8")
    assert server.url in text
    config.write_text(text.replace(server.url, older), encoding="utf-8")
    assert "hush" not in build_report([settings.out]).read_text(encoding="utf-8")
    with RunDirectory.read(settings.out) as run:
        assert run.config["api_base"] == server.url
    compare(settings)
