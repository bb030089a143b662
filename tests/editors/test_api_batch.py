"""Batches against a fake server: incomplete, out of order, damaged, expired, failed, and taken up after a restart."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from clients import MemoryStore, chat, make_client
from fake_server import BatchPlan, FakeServer, error

from selfedit.editors import batch as batch_module
from selfedit.editors.api import ApiClient, ApiRequest, ApiResult, ApiStore
from selfedit.editors.prices import Budget, BudgetReached, ModelPrice
from selfedit.errors import UserError


def client(server: FakeServer, cache: ApiStore | None = None, **settings) -> ApiClient:
    return make_client(server.url, store=cache, **{"max_retries": 1, "batch": True} | settings)


def asked(texts: str, **settings) -> list[ApiRequest]:
    return [chat(text, **settings) for text in texts]


def in_upload(server: FakeServer, number: int) -> list[str]:
    return [item["body"]["messages"][0]["content"] for item in server.uploads[number]]


def test_a_batch_is_uploaded_polled_and_fetched(server: FakeServer) -> None:
    seen, polls = {}, []
    cache = MemoryStore()
    asker = client(
        server,
        cache,
        on_poll=lambda *poll: polls.append(poll),
        effort="low",
    )
    requests = asked("abc", max_tokens=9, seed=2)
    results = asker.complete(requests, on_result=seen.__setitem__)
    assert results == [ApiResult(f"reply to {text}", "stop", 10, 5, paid=True) for text in "abc"]
    assert [seen[index] for index in range(3)] == results
    (items,) = server.uploads
    assert [item["custom_id"] for item in items] == [asker.key(request) for request in requests]
    assert items[0]["url"] == "/v1/chat/completions"
    assert items[0]["body"] == asker.body(requests[0])
    assert items[0]["body"]["reasoning_effort"] == "low"
    assert polls == [("batch-0", status, 3, 3) for status in ("validating", "in_progress", "completed")]
    assert server.completions == []
    assert set(cache.batches.values()) == {("batch-0", "done")}


def test_batched_replies_are_kept_for_live_calls_too(server: FakeServer) -> None:
    cache = MemoryStore()
    client(server, cache).complete(asked("ab"))
    results = make_client(server.url, store=cache).complete(asked("ab"))
    assert [(result.text, result.paid) for result in results] == [("reply to a", False), ("reply to b", False)]
    assert server.completions == []


def test_plain_completions_by_batch(server: FakeServer) -> None:
    (result,) = client(server, kind="completions").complete([ApiRequest("once")])
    assert result.text == "reply to once"
    assert server.uploads[0][0]["url"] == "/v1/completions"


def test_replies_are_matched_by_id_in_any_order(server: FakeServer) -> None:
    server.plans.append(BatchPlan(reverse=True, twice={1}, strangers=["who", ""]))
    told: list[int] = []
    results = client(server).complete(asked("abc"), on_result=lambda index, _: told.append(index))
    assert [result.text for result in results] == ["reply to a", "reply to b", "reply to c"]
    assert sorted(told) == [0, 1, 2]


def test_line_separators_within_a_reply_do_not_cut_it(server: FakeServer) -> None:
    text = "a\u2028b\u0085c\nd"
    (result,) = client(server).complete([chat(text)])
    assert result.text == "reply to " + text


@pytest.mark.parametrize(
    "plan",
    [
        BatchPlan(missing={1}),
        BatchPlan(half_a_line={1}),
        BatchPlan(expired={1}, end="expired"),
        BatchPlan(failed={1: (500, error("oops"))}),
        BatchPlan(failed={1: (429, error("slow down"))}),
    ],
)
def test_what_a_batch_lacks_goes_into_another(server: FakeServer, plan: BatchPlan) -> None:
    server.plans.append(plan)
    cache = MemoryStore()
    results = client(server, cache).complete(asked("abc"))
    assert [result.text for result in results] == ["reply to a", "reply to b", "reply to c"]
    assert in_upload(server, 1) == ["b"]
    assert len(server.uploads) == 2
    assert {batch_id for batch_id, _ in cache.batches.values()} == {"batch-0", "batch-1"}


def test_an_expired_batch_without_any_file_is_sent_again(server: FakeServer) -> None:
    server.plans.append(BatchPlan(missing={0, 1}, end="expired"))
    results = client(server).complete(asked("ab"))
    assert [result.error for result in results] == [None, None]


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (BatchPlan(missing={1}), "(completed) came back without it, tried in 2 batches"),
        (BatchPlan(expired={1}, end="expired"), "503: This request could not be executed in time., tried in 2 batches"),
        (BatchPlan(failed={1: (500, error("oops"))}), "500: oops, tried in 2 batches"),
    ],
)
def test_tries_are_bounded(server: FakeServer, monkeypatch: pytest.MonkeyPatch, plan: BatchPlan, reason: str) -> None:
    again = BatchPlan(end=plan.end, missing={0} if plan.missing else set(), expired={0} if plan.expired else set())
    again.failed = {place - 1: failure for place, failure in plan.failed.items()}
    server.plans.extend([plan, again])
    seen: dict[int, ApiResult] = {}
    monkeypatch.setattr(batch_module, "_TRIES", 2)
    results = client(server).complete(asked("abc"), on_result=seen.__setitem__)
    assert [result.error is None for result in results] == [True, False, True]
    assert reason in (results[1].error or "")
    assert seen[1] == results[1]
    assert len(server.uploads) == 2


def test_a_bad_request_is_an_error_at_once(server: FakeServer) -> None:
    server.plans.append(BatchPlan(failed={0: (400, error("too long", "context_length_exceeded"))}))
    failed, fine = client(server).complete(asked("ab"))
    assert failed.error == "400: too long"
    assert fine.text == "reply to b"
    assert len(server.uploads) == 1


@pytest.mark.parametrize("most", [2, 1])
def test_a_refused_parameter_is_left_out_of_the_next_batch(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Of one batch, and of two under way, both sent with it."""
    monkeypatch.setattr(batch_module, "MAX_REQUESTS", most)
    server.refuse = lambda body: (
        error("Unsupported parameter", "unsupported_parameter", "temperature") if "temperature" in body else None
    )
    results = client(server).complete(asked("ab", temperature=0.0))
    assert [result.error for result in results] == [None, None]
    assert "temperature" not in server.uploads[-1][0]["body"]


# Restarts


class Interrupted(Exception):
    pass


def test_polling_goes_on_after_a_restart(server: FakeServer) -> None:
    cache = MemoryStore()

    def stop(batch_id: str, status: str, done: int, total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        client(server, cache, on_poll=stop).complete(asked("ab"))
    assert set(cache.batches.values()) == {("batch-0", "submitted")}
    # The restart asks for one of them and for another: the one is waited for, the other sent.
    results = client(server, cache).complete(asked("bc"))
    assert [result.text for result in results] == ["reply to b", "reply to c"]
    assert in_upload(server, 1) == ["c"]
    # What was in the first batch and not asked for is still there.
    assert client(server, cache).complete(asked("a"))[0].text == "reply to a"
    assert len(server.uploads) == 2


def test_the_id_is_stored_before_the_first_poll(server: FakeServer) -> None:
    cache = MemoryStore()
    at_polls: list[int] = []
    client(server, cache, on_poll=lambda *poll: at_polls.append(len(cache.batches))).complete(asked("ab"))
    assert at_polls[0] == 2


def test_a_crash_while_results_are_kept_pays_for_none_twice(server: FakeServer) -> None:
    cache = MemoryStore()

    def crash(index: int, result: ApiResult) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        client(server, cache).complete(asked("abc"), on_result=crash)
    assert len(cache.replies) == 1
    results = client(server, cache).complete(asked("abc"))
    assert [result.text for result in results] == ["reply to a", "reply to b", "reply to c"]
    assert len(server.uploads) == 1


def test_the_store_of_a_run_outlives_a_restart(server: FakeServer, tmp_path: Path) -> None:
    from selfedit.runs.store import Store

    def stop(batch_id: str, status: str, done: int, total: int) -> None:
        raise Interrupted

    store = Store(tmp_path / "run.sqlite")
    with pytest.raises(Interrupted):
        client(server, store, on_poll=stop).complete(asked("aé"))
    store.close()
    for asked_before in (False, True):
        store = Store(tmp_path / "run.sqlite")
        again = client(server, store)
        results = again.complete(asked("aé"))
        store.close()
        assert [(result.text, result.paid) for result in results] == [
            ("reply to a", not asked_before),
            ("reply to é", not asked_before),
        ]
    assert len(server.uploads) == 1


def test_a_batch_that_the_server_has_forgotten_is_sent_again(server: FakeServer) -> None:
    cache = MemoryStore()
    asker = client(server, cache)
    (request,) = asked("a")
    cache.put_batch(asker.key(request), "batch-of-another-account", "submitted")
    assert asker.complete([request])[0].text == "reply to a"
    assert len(server.uploads) == 1


# Batches that were created and not yet stored

KILLED = """
import sys
from clients import MemoryStore, chat, make_client
from selfedit.runs.store import Store
store = Store(sys.argv[2])
make_client(sys.argv[1], batch=True, store=store).complete([chat(text) for text in "ab"])
"""


@pytest.mark.parametrize("created", [True, False], ids=["after", "before"])
def test_a_batch_created_before_a_kill_is_found_again(server: FakeServer, tmp_path: Path, created: bool) -> None:
    """SIGKILL between a batch's creation (or, before it, the upload of its file) and the answer to it."""
    from selfedit.runs.store import Store

    def kill() -> None:
        process.kill()
        process.wait()

    server.create_faults.append(kill)
    if not created:
        create = server._create_batch
        server._create_batch = lambda body: {}  # type: ignore[method-assign]
    command = [sys.executable, "-c", KILLED, server.url, str(tmp_path / "run.sqlite")]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})
    assert process.wait(60) == -signal.SIGKILL
    if not created:
        server._create_batch = create  # type: ignore[method-assign]
    for other in range(2):
        client(server).complete([chat(f"another run's {other}")])
    server.page = 1
    with Store(tmp_path / "run.sqlite") as store:
        results = client(server, store).complete(asked("ab"))
    assert [result.text for result in results] == ["reply to a", "reply to b"]
    assert [in_upload(server, number) for number in range(len(server.uploads))].count(["a", "b"]) == 1


def test_where_batches_are_not_listed_one_may_be_paid_for_twice_and_that_is_said(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    asker = client(server, store)
    (request,) = asked("a")
    store.put_batch(asker.key(request), "file-9", "uploaded")
    server.lists_batches = False
    assert asker.complete([request])[0].text == "reply to a"
    assert "does not list its batches" in caplog.text


@pytest.mark.parametrize("fault", [-504, lambda: None], ids=["a gateway's time-out", "a broken connection"])
def test_a_batch_whose_creation_was_not_confirmed_is_not_created_again(server: FakeServer, fault: Any) -> None:
    server.create_faults.append(fault)
    assert [result.error for result in client(server).complete(asked("ab"))] == [None, None]
    assert len(server.uploads) == 1


def test_a_creation_that_failed_is_tried_again(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "_CREATE_SECONDS", 0.001)
    server.create_faults.extend([503, 429])
    assert client(server, max_retries=2).complete(asked("a"))[0].text == "reply to a"
    server.create_faults.extend([503] * 2)
    with pytest.raises(UserError, match=r"did not take the batch \(503: create failed\): .*same command again"):
        client(server).complete(asked("b"))
    server.create_faults.append(400)
    with pytest.raises(UserError, match=r"did not take the batch \(400: create failed\)"):
        client(server).complete(asked("b"))


def test_a_server_that_cannot_say_what_it_has_started_is_not_sent_a_batch_again(server: FakeServer) -> None:
    store = MemoryStore()
    server.create_faults.append(-504)
    server.list_faults.extend([500] * 2)
    with pytest.raises(UserError, match=r"does not say whether it has started a batch \(500: list failed\)"):
        client(server, store).complete(asked("a"))
    assert client(server, store).complete(asked("a"))[0].text == "reply to a"
    assert len(server.uploads) == 1


# Batches that fail as a whole


def test_a_failed_batch_stops_with_its_reason(server: FakeServer) -> None:
    server.plans.append(BatchPlan(end="failed", errors=[{"code": "model_not_found", "message": "no model m\nhere"}]))
    cache = MemoryStore()
    with pytest.raises(UserError, match=r"batch batch-0 of model 'm' failed \(no model m here\) at "):
        client(server, cache).complete(asked("ab"))
    # The next start does not wait for the failed one.
    assert [result.error for result in client(server, cache).complete(asked("ab"))] == [None, None]


def test_a_cancelled_batch_keeps_what_it_has_and_stops(server: FakeServer) -> None:
    server.plans.append(BatchPlan(end="cancelled", missing={0, 1}))
    cache = MemoryStore()
    with pytest.raises(UserError, match=r"was cancelled at .*: 1 of 3 replies are kept"):
        client(server, cache).complete(asked("abc"))
    assert len(cache.replies) == 1


def test_an_item_refused_for_all_stops_after_the_rest_is_kept(server: FakeServer) -> None:
    server.plans.append(BatchPlan(failed={0: (404, error("no model m", "model_not_found"))}))
    cache = MemoryStore()
    with pytest.raises(UserError, match="does not know model 'm'"):
        client(server, cache).complete(asked("ab"))
    assert len(cache.replies) == 1


def test_polls_may_fail_for_a_while(server: FakeServer) -> None:
    server.poll_faults.extend([500, 503] * 4)
    assert client(server).complete(asked("a"))[0].text == "reply to a"


def test_a_server_that_stays_broken_is_left_and_found_again(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "_POLL_RETRIES", 3)
    server.poll_faults.extend([500] * 4)
    cache = MemoryStore()
    with pytest.raises(
        UserError, match=r"does not answer questions about batch batch-0 \(500: poll failed\).*same command again"
    ):
        client(server, cache).complete(asked("a"))
    assert client(server, cache).complete(asked("a"))[0].text == "reply to a"
    assert len(server.uploads) == 1


def test_a_server_without_batches_is_named(server: FakeServer) -> None:
    post = server.post

    def no_files(handler) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        server._send(handler, 404, {"detail": "Not Found"})

    server.post = no_files
    with pytest.raises(UserError, match=r"offers no batches .*leave out --api-batch"):
        client(server).complete(asked("a"))
    server.post = post


# Limits


def test_large_batches_are_split(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "MAX_REQUESTS", 2)
    results = client(server).complete(asked("abcde"))
    assert [result.text for result in results] == [f"reply to {text}" for text in "abcde"]
    assert [in_upload(server, number) for number in range(3)] == [["a", "b"], ["c", "d"], ["e"]]


def test_batches_are_split_by_size_too(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "MAX_BYTES", 10)  # less than any line: one request per batch
    assert [result.error for result in client(server).complete(asked("ab"))] == [None, None]
    assert len(server.uploads) == 2


PRICE = ModelPrice(input=0.0, output=2e6, batch_factor=0.5, date="2025-01-01", source="a dollar a batched token")


def test_a_batch_holds_only_what_the_budget_has_room_for(server: FakeServer) -> None:
    budget = Budget(30)
    # Each may cost 10 dollars and does cost 5.
    results = client(server, budget=budget, price=PRICE).complete(asked("abcde", max_tokens=10))
    assert [result.error for result in results] == [None] * 5
    assert [len(upload) for upload in server.uploads] == [3, 1, 1]
    assert (budget.spent, budget.held) == (25, 0)


def test_a_batch_stops_before_the_budget(server: FakeServer) -> None:
    cache = MemoryStore()
    with pytest.raises(BudgetReached, match=r"budget of 12\.00 USD"):
        client(server, cache, budget=Budget(12), price=PRICE).complete(asked("abc", max_tokens=10))
    assert len(cache.replies) == 1


def test_the_store_is_used_from_one_thread(server: FakeServer) -> None:
    threads: set[str] = set()

    class Watched(MemoryStore):
        def put_batch(self, key: str, batch_id: str, status: str) -> None:
            threads.add(threading.current_thread().name)
            super().put_batch(key, batch_id, status)

    client(server, Watched()).complete(asked("ab"))
    assert threads == {threading.current_thread().name}
