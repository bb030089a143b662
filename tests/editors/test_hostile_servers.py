"""Servers that answer too much, too slowly, or nonsense: each ends as a failed reply or one line, in bounded time and
memory."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from clients import MemoryStore, chat, make_client
from fake_server import BatchPlan, FakeServer, Fault, error

from selfedit.editors import batch as batch_module
from selfedit.editors.api import ApiClient, ApiResult
from selfedit.editors.prices import Budget, ModelPrice
from selfedit.errors import UserError
from selfedit.runs.store import Store

PRICE = ModelPrice(input=0.0, output=1e6, batch_factor=0.5, date="2025-01-01", source="a dollar a token")


def client(server: FakeServer, **settings: Any) -> ApiClient:
    return make_client(**{"url": server.url, "max_retries": 1} | settings)


def ask(server: FakeServer, fault: Fault, times: int = 2, **settings: Any) -> ApiResult:
    server.faults.extend([fault] * times)
    (result,) = client(server, **settings).complete([chat("a")])
    return result


def head(*lines: str) -> bytes:
    return "\r\n".join(("HTTP/1.1 200 OK", "Content-Type: application/json", *lines, "", "")).encode()


# Too much


@pytest.fixture
def small_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfedit.editors.transport.MOST_BYTES", 100_000)


def endless(sent: list[int], start: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def talk(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        while sum(sent) < 300_000_000:
            handler.wfile.write(b" " * 65536)
            sent.append(65536)

    return talk


@pytest.mark.parametrize("start", [head(), head("Content-Length: 999999999999")], ids=["no length", "a lying length"])
@pytest.mark.usefixtures("small_replies")
def test_an_endless_reply_is_cut_off_and_not_asked_for_again(server: FakeServer, start: bytes) -> None:
    sent: list[int] = []
    result = ask(server, Fault(talk=endless(sent, start)), times=1)
    assert result.error == "502: the reply is larger than 0 MB"
    assert not result.paid
    assert len(server.completions) == 1
    # What lies in the sockets' buffers is sent before the server notices.
    assert sum(sent) < 100_000_000


@pytest.mark.usefixtures("small_replies")
def test_a_list_of_models_and_an_error_are_bounded_too(server: FakeServer) -> None:
    sent: list[int] = []
    talk = endless(sent, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    server.get = talk  # type: ignore[method-assign,assignment]
    assert ask(server, Fault(talk=talk), times=1).error == "502: the reply is larger than 0 MB"
    assert sum(sent) < 200_000_000


def test_a_compressed_bomb_is_not_unpacked(server: FakeServer) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    result = ask(server, Fault(raw=bomb, headers={"Content-Encoding": "gzip"}), times=1)
    assert result.error == "502: the reply is compressed (gzip), which was not asked for"
    assert server.headers[-1]["Accept-Encoding"] == "identity"


def test_a_hundred_thousand_headers(server: FakeServer) -> None:
    lines = [f"X-{number}: x" for number in range(100_000)]
    result = ask(server, Fault(talk=lambda handler: handler.wfile.write(head(*lines)) and None))
    assert result.error is not None
    assert result.error.startswith("the connection broke, tried 2 times")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"choices":' * 100_000,
        b'{"choices": [{"message": {"content": "x"}, "index": ' + b"9" * 100_000 + b"}]}",
    ],
    ids=["depth", "depth of objects", "a number of 100,000 digits"],
)
def test_json_that_only_an_attacker_sends_is_damaged(server: FakeServer, body: bytes) -> None:
    result = ask(server, Fault(raw=body))
    assert result.error == "502: the server's answer is damaged"
    assert len(server.completions) == 2


# Too slowly


def drip(server: FakeServer, start: bytes, drops: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def talk(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        while not server.released.wait(0.02):
            handler.wfile.write(drops)

    return talk


@pytest.mark.parametrize(
    ("start", "drops"),
    [(head(), b" "), (b"HTTP/1.1 200 OK\r\nX-", b"x"), (b"", b"H")],
    ids=["body", "headers", "status"],
)
def test_a_reply_that_drips_ends_at_the_time_limit(server: FakeServer, start: bytes, drops: bytes) -> None:
    result = ask(server, Fault(talk=drip(server, start, drops)), timeout=0.3)
    assert result.error is not None
    assert result.error.startswith(("no whole answer within 0.3 s, tried 2 times", "the connection broke"))
    assert len(server.completions) == 2


def test_a_list_of_models_that_drips_is_not_waited_for(server: FakeServer) -> None:
    server.get = drip(server, head(), b" ")  # type: ignore[method-assign,assignment]
    (result,) = client(server, timeout=1).complete([chat("a")])
    assert result.text == "reply to a"


@pytest.mark.parametrize("wait", ["31536000", "1e300", "inf", "nan", "-5", "Fri, 31 Dec 2400 23:59:59 GMT", "soon"])
def test_nobody_waits_a_year_because_a_server_says_so(server: FakeServer, wait: str) -> None:
    result = ask(server, Fault(429, error("slow down"), {"Retry-After": wait}))
    assert result.error == "429: slow down"


# Elsewhere


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server: FakeServer, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    elsewhere = FakeServer()
    try:
        server.faults.append(Fault(status, {}, {"Location": elsewhere.url + "/chat/completions"}))
        with pytest.raises(UserError, match=rf"sends requests on to another address \({status}\)"):
            client(server).complete([chat("a")])
        assert (elsewhere.completions, elsewhere.keys) == ([], [])
    finally:
        elsewhere.stop()


# Nonsense


def completion(**changes: Any) -> bytes:
    choice = {"message": {"content": "text"}, "finish_reason": "stop", **changes.pop("choice", {})}
    return json.dumps({"choices": [choice], **changes}).encode()


UNUSABLE = {
    "tokens in words": completion(usage={"prompt_tokens": "ten", "completion_tokens": 5}),
    "tokens out of range": completion(usage={"prompt_tokens": 1, "completion_tokens": 1e30}),
    "tokens without end": completion(usage={"prompt_tokens": 1, "completion_tokens": float("inf")}),
    "tokens that are no number": completion(usage={"prompt_tokens": float("nan"), "completion_tokens": 1}),
    "half a token": completion(usage={"prompt_tokens": 1.5, "completion_tokens": 1}),
    "negative tokens": completion(usage={"prompt_tokens": 10, "completion_tokens": -1000000}),
    "tokens as a list": completion(usage={"prompt_tokens": [1], "completion_tokens": 1}),
    "content as parts": completion(choice={"message": {"content": [{"type": "text", "text": "x"}]}}),
    "content as a number": completion(choice={"message": {"content": 7}}),
    "refusal as an object": completion(choice={"message": {"content": None, "refusal": {"why": "x"}}}),
    "a reason as an object": completion(choice={"finish_reason": {"a": 1}}),
}


@pytest.mark.parametrize("body", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("by_batch", [False, True], ids=["live", "batch"])
def test_a_reply_of_another_form_is_failed_booked_and_never_taken_for_good(
    server: FakeServer, tmp_path: Path, body: bytes, by_batch: bool
) -> None:
    if by_batch:
        server.plans.append(
            BatchPlan(raw={0: b'{"custom_id": "%s", "response": {"status_code": 200, "body": ' + body + b"}}"})
        )
    else:
        server.faults.append(Fault(raw=body))
    with Store(tmp_path / "run.sqlite") as store:
        budget = Budget(100)
        settings: dict[str, Any] = {
            "store": store,
            "budget": budget,
            "price": PRICE,
            "batch": by_batch,
        }
        (result,) = client(server, **settings).complete([chat("a", max_tokens=10)])
        assert result.error is not None
        assert result.error.startswith("the reply cannot be used (")
        assert (result.paid, result.usd) == (True, 5.0 if by_batch else 10.0), "it may have been charged for"
        assert budget.spent == result.usd
        again = client(server, **settings)
        (fresh,) = again.complete([chat("a", max_tokens=10)])
        assert (fresh.text, fresh.paid) == ("reply to a", True), "the next attempt asks for a fresh sample"
        (kept,) = again.complete([chat("a", max_tokens=10)])
        assert (kept.text, kept.paid) == ("reply to a", False)


def test_half_a_character_is_replaced(server: FakeServer) -> None:
    result = ask(server, Fault(raw=rb'{"choices": [{"message": {"content": "a \ud83d\ude00 and \ud83d"}}]}'), times=1)
    assert result.text == "a \N{GRINNING FACE} and \N{REPLACEMENT CHARACTER}"


def test_a_number_written_as_text_is_a_number(server: FakeServer) -> None:
    body = completion(usage={"prompt_tokens": "10", "completion_tokens": 5.0, "completion_tokens_details": None})
    result = ask(server, Fault(raw=body), times=1)
    assert (result.error, result.input_tokens, result.output_tokens) == (None, 10, 5)


@pytest.mark.parametrize(
    "kind", ["text/html", "application/octet-stream", "", "text/plain; charset=utf-99", "\x1b[31m"]
)
def test_the_content_type_does_not_matter(server: FakeServer, kind: str) -> None:
    result = ask(server, Fault(raw=completion(), headers={"Content-Type": kind}), times=1)
    assert result.text == "text"


def test_an_error_with_status_200_is_told(server: FakeServer) -> None:
    result = ask(server, Fault(raw=json.dumps(error("no provider is left", "503")).encode()))
    assert result.error == "502: the server's answer is no completion (no provider is left)"
    assert len(server.completions) == 2


def test_a_connection_reset_within_a_reply_is_tried_again(server: FakeServer) -> None:
    server.faults.append(
        Fault(talk=lambda handler: handler.wfile.write(head("Content-Length: 1000") + b'{"cho') and None)
    )
    (result,) = client(server).complete([chat("a")])
    assert result.text == "reply to a"


def test_servers_words_are_printed_as_words(server: FakeServer) -> None:
    words = "\x1b[2J\x1b]0;owned\x07no\u202e\u200b\nway" + "x" * 1_000_000
    said = [
        ask(server, Fault(400, error(words)), times=1).error,
        ask(server, Fault(raw=completion(choice={"message": {"content": None, "refusal": words}})), times=1).error,
        ask(
            server, Fault(raw=completion(choice={"message": {"content": None}, "finish_reason": words})), times=1
        ).error,
    ]
    for line in said:
        assert line is not None
        assert line.isprintable()
        assert "no" in line
        assert len(line) < 400


@pytest.mark.parametrize("message", [None, 7, ["x"], {"a": {"b": "c"}}, "", 1e400])
def test_errors_whose_message_is_none(server: FakeServer, message: Any) -> None:
    for payload in (
        {"error": {"message": message, "code": message, "param": message}},
        {"error": message},
        [message],
        message,
    ):
        result = ask(server, Fault(400, raw=json.dumps(payload).encode()), times=1)
        assert result.error is not None
        assert result.error.startswith("400: ")


# Secrets


def test_user_password_and_query_go_to_the_server_and_nowhere_else(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    bare = server.url.removeprefix("http://")
    url = f"http://me:hu%40sh1@{bare}/?api-version=2024-10-21&key=s%2Fcret1&key=again1"
    cache = MemoryStore()
    server.faults.append(Fault(400, error("bad: me:hu@sh1 hu%40sh1 s%2Fcret1 s/cret1 again1 sk-secret bWU6aHVAc2gx")))
    asker = client(server, url=url, store=cache)
    failed, fine = asker.complete([chat("a"), chat("b")])
    failed, fine = sorted((failed, fine), key=lambda result: result.error is None)
    assert failed.error is not None
    assert fine.error is None
    assert server.paths[-1] == "/v1/chat/completions?api-version=2024-10-21&key=s%2Fcret1&key=again1"
    assert server.keys[-1] == "Basic bWU6aHVAc2gx"
    assert asker.url == server.url
    seen = (
        f"{failed.error} {asker.url} {caplog.text} {asker.key(chat('a'))} {asker._canonical(chat('a'))} {cache.replies}"
    )
    for secret in ("hu%40sh1", "hu@sh1", "s%2Fcret1", "s/cret1", "again1", "sk-secret", "bWU6aHVAc2gx"):
        assert secret not in seen
    assert asker.key(chat("a")) == client(server).key(chat("a")), "a new password changes nothing"


@pytest.mark.parametrize("key", ["sk-\n1", "sk-é", "sk \x1b[31m"])
def test_a_key_that_cannot_be_one_is_not_repeated(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY holds characters that no key has") as caught:
        client(server)
    assert key not in str(caught.value)


def test_a_line_end_after_the_key_does_no_harm(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
    assert client(server).complete([chat("a")])[0].error is None
    assert server.keys == ["Bearer sk-secret"]


# Batches


@pytest.fixture
def quick_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "_POLL_RETRIES", 2)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"null", b'{"id": 7, "status": []}', b"[" * 100_000])
@pytest.mark.parametrize("where", ["upload", "create", "poll"])
@pytest.mark.usefixtures("quick_to_give_up")
def test_nonsense_about_a_batch_is_one_line(server: FakeServer, where: str, body: bytes) -> None:
    paths = {"upload": "/v1/files", "create": "/v1/batches", "poll": "/v1/batches/batch-0"}
    server.instead[paths[where]] = body
    with pytest.raises(UserError, match="batch") as caught:
        client(server, batch=True).complete([chat("a")])
    assert "\n" not in str(caught.value)


def test_a_result_file_has_room_for_its_requests_and_no_more(server: FakeServer, small_replies: None) -> None:
    server.plans.append(
        BatchPlan(strangers=["x" * 70_000, "y" * 70_000])
    )  # more than one reply's bound, less than the file's
    (result,) = client(server, batch=True).complete([chat("a")])
    assert result.text == "reply to a"
    server.plans.append(BatchPlan(strangers=["x" * 200_000]))
    with pytest.raises(UserError, match=r"does not give a batch's results .* larger than 0 MB"):
        client(server, batch=True).complete([chat("b")])


def test_lines_of_a_result_file_that_are_none(server: FakeServer) -> None:
    lines = [b"7", b"null", b"[]", b'"x"', b"{}", b"[" * 50_000, b"\xff\xfe", b'{"custom_id": ["%s"]}']
    lines += [b'{"custom_id": "%s", "response": 7}', b'{"custom_id": "%s", "response": {"status_code": "200"}}']
    lines += [b'{"custom_id": "%s", "response": {"status_code": 200, "body": 7}}']
    lines += [b'{"custom_id": "%s", "response": {"status_code": 1e9, "body": {}}}', b'{"custom_id": "%s", "error": 7}']
    server.plans.append(BatchPlan(raw=dict(enumerate(lines))))
    results = client(server, batch=True).complete([chat(str(number)) for number in range(len(lines))])
    assert [result.error for result in results] == [None] * len(lines), "each was asked for again"


def test_a_batch_is_stored_whole_before_anything_can_come_between(server: FakeServer, tmp_path: Path) -> None:
    class Cut(Store):
        def put_batch(self, key: str, batch_id: str, status: str) -> None:
            super().put_batch(key, batch_id, status)
            if self.get_batch(key) and len(self._rows("SELECT 1 FROM api_batches")) == 2:
                raise KeyboardInterrupt

    with Cut(tmp_path / "run.sqlite") as store:
        with pytest.raises(KeyboardInterrupt):
            client(server, batch=True, store=store).complete([chat(text) for text in "abc"])
        assert store._rows("SELECT * FROM api_batches") == []


def test_threads_end_with_their_clients(server: FakeServer) -> None:
    before = set(threading.enumerate())
    asker = client(server)
    asker.complete([chat("a")])
    (thread,) = [thread for thread in set(threading.enumerate()) - before if thread.name == "api"]
    asker.close()
    thread.join(10)
    assert not thread.is_alive()
