"""The API client against a fake server: what is sent, kept and counted, and what every fault becomes."""

import dataclasses
import hashlib
import json
import socket
import subprocess
import sys
import threading

import pytest
from clients import MemoryStore, chat, make_client
from fake_server import FakeServer, Fault, error

from selfedit.editors.api import REASONING_TOKENS, ApiClient, ApiRequest, ApiResult
from selfedit.editors.endpoint import Endpoint
from selfedit.editors.prices import Budget, BudgetReached, ModelPrice
from selfedit.errors import UserError

TIRED = Fault(429, error("slow down", "rate_limit_exceeded"), {"Retry-After": "0.01"})
BROKEN = Fault(500, error("oops"))
HALF = Fault(raw=b'{"choices": [{"message": {"role": "assist')


def client(server: FakeServer, **settings) -> ApiClient:
    return make_client(server.url, **settings)


def test_replies_come_in_order_with_their_tokens(server: FakeServer) -> None:
    seen: dict[int, ApiResult] = {}
    results = client(server).complete([chat(f"q{i}") for i in range(20)], on_result=seen.__setitem__)
    assert [result.text for result in results] == [f"reply to q{i}" for i in range(20)]
    assert results[0] == ApiResult("reply to q0", "stop", 10, 5, paid=True)
    assert [seen[i] for i in range(20)] == results
    assert len(server.completions) == 20
    assert not results[0].truncated


def test_all_settings_are_sent(server: FakeServer) -> None:
    schema = {"type": "object", "properties": {"verdict": {"enum": ["yes", "no"]}}}
    asker = client(server, effort="low")
    asker.complete([chat("q", max_tokens=7, temperature=0.5, top_p=0.9, seed=3, json_schema=schema, sample=4)])
    assert server.completions == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "q"}],
            "reasoning_effort": "low",
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": schema},
            },
            "max_tokens": 7 + REASONING_TOKENS,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 3,
        }
    ]


def test_what_is_not_asked_for_is_not_sent(server: FakeServer) -> None:
    client(server).complete([chat("q")])
    assert set(server.completions[0]) == {"model", "messages", "max_tokens"}


def test_plain_completions(server: FakeServer) -> None:
    (result,) = client(server, kind="completions").complete([ApiRequest("once", max_tokens=3)])
    assert result.text == "reply to once"
    assert server.completions == [{"model": "m", "prompt": "once", "max_tokens": 3}]


def test_plain_completions_take_no_messages(server: FakeServer) -> None:
    with pytest.raises(ValueError, match="plain completions need a prompt, not messages"):
        client(server, kind="completions").complete([chat("once")])


def test_a_prompt_becomes_a_message_for_chat(server: FakeServer) -> None:
    client(server).complete([ApiRequest("once")])
    assert server.completions[0]["messages"] == [{"role": "user", "content": "once"}]


def test_openai_itself_is_sent_the_new_name_of_max_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    body = ApiClient("gpt-5", Endpoint(), store=MemoryStore()).body(chat("q", max_tokens=9))
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body


def test_the_key_comes_from_the_environment(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    client(server).complete([chat("a")])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    client(server).complete([chat("b")])
    assert server.keys == ["Bearer none", "Bearer sk-secret"]


def test_the_address_comes_from_the_environment_too(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
    assert ApiClient("m", Endpoint(), store=MemoryStore()).complete([chat("a")])[0].text == "reply to a"


def test_no_more_than_so_many_at_once(server: FakeServer) -> None:
    server.gate = threading.Barrier(3)  # passes only three at a time
    results = client(server, concurrency=3).complete([chat(f"q{i}") for i in range(9)])
    assert all(result.error is None for result in results)
    assert server.most_at_once == 3


# What is kept


def test_nothing_is_asked_twice(server: FakeServer) -> None:
    cache = MemoryStore()
    requests = [chat("a"), chat("b"), chat("a"), chat("a", sample=1)]
    first = client(server, store=cache).complete(requests)
    assert len(server.completions) == 3
    assert first[2] == dataclasses.replace(first[0], paid=False, usd=0.0), "paid for once"
    again = client(server, store=cache).complete(requests)
    assert len(server.completions) == 3
    assert [result.text for result in again] == [result.text for result in first]
    assert not any(result.paid for result in again)


def test_cached_replies_need_no_server(server: FakeServer) -> None:
    cache = MemoryStore()
    asker = client(server, store=cache)
    asker.complete([chat("a")])
    server.stop()
    assert asker.complete([chat("a")])[0].text == "reply to a"


def test_the_key_of_a_request_is_its_content(server: FakeServer) -> None:
    asker = client(server)
    content = {
        "url": server.url + "/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": "ä"}], "max_tokens": 1024},
        "sample": 0,
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert asker.key(chat("ä")) == hashlib.sha256(text.encode()).hexdigest()
    other = [chat("b"), chat("ä", seed=1), chat("ä", sample=1), chat("ä", temperature=0.0), chat("ä", max_tokens=2)]
    keys = {asker.key(request) for request in [chat("ä"), *other]}
    keys.add(client(server, effort="low").key(chat("ä")))
    keys.add(make_client(server.url, "n").key(chat("ä")))
    keys.add(make_client("http://localhost:1/v1").key(chat("ä")))
    assert len(keys) == 9


def test_what_the_cache_is_given(server: FakeServer) -> None:
    rows: list[tuple] = []

    class Rows(MemoryStore):
        def put(self, *row) -> None:
            assert threading.current_thread() is threading.main_thread()  # a store belongs to one thread
            rows.append(row)

    asker = client(server, store=Rows())
    asker.complete([chat("a")])
    ((key, model, request, response, input_tokens, output_tokens),) = rows
    assert key == asker.key(chat("a"))
    assert (model, input_tokens, output_tokens) == ("m", 10, 5)
    assert request["body"]["messages"][0]["content"] == "a"
    assert response["body"]["choices"][0]["message"]["content"] == "reply to a"
    assert response["batch"] is False
    json.dumps([request, response])


def test_what_is_paid_for_a_new_reply(server: FakeServer) -> None:
    price = ModelPrice(input=1e5, output=1e6, batch_factor=0.5, date="2025-01-01", source="a dollar a token")
    (result,) = client(server, price=price).complete([chat("a")])
    assert (result.paid, result.usd) == (True, 6.0)
    (result,) = client(server).complete([chat("a")])
    assert (result.paid, result.usd) == (True, None), "no price is known"


def test_without_a_word_about_tokens_a_reply_costs_the_most_that_it_can(server: FakeServer) -> None:
    said = b'{"choices": [{"message": {"content": "x"}}], "usage": %s}'
    server.faults.extend([reply_with(), Fault(raw=said % b'{"prompt_tokens": 1}'), Fault(raw=said % b"[1, 2]")])
    asker = client(server, price=PRICE, budget=(budget := Budget(100)))
    results = asker.complete([chat(text, max_tokens=10) for text in "abc"])
    assert [(result.error, result.usd) for result in results] == [(None, 10.0)] * 3
    assert budget.spent == 30.0


def test_what_came_back_before_a_fatal_error_is_kept(server: FakeServer) -> None:
    cache = MemoryStore()
    server.gate = threading.Barrier(2)  # both arrive before one is refused
    server.faults.append(Fault(401, error("no")))
    with pytest.raises(UserError, match="401"):
        client(server, store=cache, concurrency=2).complete([chat("a"), chat("b")])
    assert len(cache.replies) == 1
    assert len(server.completions) == 2


# What a reply may be


def reply_with(**choice) -> Fault:
    message = choice.pop("message", {"content": "text"})
    return Fault(raw=json.dumps({"choices": [{"message": message, **choice}]}).encode())


def test_a_reply_cut_at_its_length_is_truncated(server: FakeServer) -> None:
    server.faults.append(reply_with(finish_reason="length"))
    (result,) = client(server).complete([chat("a")])
    assert (result.text, result.truncated, result.error) == ("text", True, None)
    assert (result.input_tokens, result.output_tokens) == (0, 0)  # this server does not say


def test_a_model_that_only_thinks_gives_an_empty_truncated_reply(server: FakeServer) -> None:
    server.faults.append(reply_with(finish_reason="length", message={"content": None}))
    (result,) = client(server).complete([chat("a")])
    assert (result.text, result.truncated, result.error) == ("", True, None)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (reply_with(finish_reason="content_filter"), "content filter"),
        (reply_with(message={"content": None, "refusal": "I must not."}), "refused: I must not."),
        (reply_with(finish_reason="tool_calls", message={"content": None}), "no text (finish reason: tool_calls)"),
    ],
)
def test_replies_without_a_text_are_errors(server: FakeServer, fault: Fault, reason: str) -> None:
    server.faults.append(fault)
    (result,) = client(server).complete([chat("a")])
    assert result.error is not None
    assert reason in result.error


# Faults


@pytest.mark.parametrize("fault", [TIRED, BROKEN, HALF, Fault(503, raw=b"<html>"), Fault(cut=True), Fault(raw=b"[]")])
def test_passing_faults_are_retried(server: FakeServer, fault: Fault) -> None:
    server.faults.extend([fault, fault])
    (result,) = client(server).complete([chat("a")])
    assert result == ApiResult("reply to a", "stop", 10, 5, paid=True)
    assert len(server.completions) == 3


def test_a_silent_server_is_asked_again(server: FakeServer) -> None:
    server.faults.append(Fault(hang=True))
    (result,) = client(server, timeout=1).complete([chat("a")])
    assert result.text == "reply to a"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (TIRED, "429: slow down"),
        (BROKEN, "500: oops"),
        (HALF, "502: the server's answer is damaged"),
        (Fault(cut=True), "the connection broke, tried 3 times"),
        (Fault(hang=True), "no whole answer within 0.5 s, tried 3 times"),
    ],
)
def test_lasting_faults_are_errors_of_their_request_alone(server: FakeServer, fault: Fault, reason: str) -> None:
    cache = MemoryStore()
    asker = client(server, concurrency=1, store=cache, timeout=0.5 if fault.hang else 60)
    server.faults.extend([fault] * 3)
    failed, fine = asker.complete([chat("a"), chat("b")])
    assert failed.error is not None
    assert reason in failed.error
    assert failed.text == ""
    assert fine.text == "reply to b"
    assert len(cache.replies) == 1  # a failure is not kept: the next run asks again


def test_a_bad_request_is_an_error_of_that_request_and_not_retried(server: FakeServer) -> None:
    server.faults.append(
        Fault(400, error("This model's maximum context length is 8 tokens", "context_length_exceeded"))
    )
    failed, fine = client(server, concurrency=1).complete([chat("a"), chat("b")])
    assert failed.error == "400: This model's maximum context length is 8 tokens"
    assert fine.error is None
    assert len(server.completions) == 2


def test_a_server_without_a_list_of_models_will_do(server: FakeServer) -> None:
    get = server.get
    server.get = lambda handler: server._send(handler, 404, b"<html>") if "models" in handler.path else get(handler)
    assert client(server).complete([chat("a")])[0].error is None


# Parameters that a model refuses


def refuse_temperature(body: dict) -> dict | None:
    if "temperature" not in body:
        return None
    return error(
        "Unsupported value: 'temperature' does not support 0 with this model.", "unsupported_value", "temperature"
    )


def test_a_refused_temperature_is_left_out_from_then_on(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server.refuse = refuse_temperature
    asker = client(server, concurrency=1)
    results = asker.complete([chat("a", temperature=0.0, seed=1), chat("b", temperature=0.0)])
    assert [result.text for result in results] == ["reply to a", "reply to b"]
    assert asker.refused == {"temperature"}
    assert ["temperature" in body for body in server.completions] == [True, False, False]
    assert server.completions[1]["seed"] == 1
    assert [record.getMessage() for record in caplog.records].count(
        f"model 'm' at {server.url} refuses 'temperature': requests go without it"
    ) == 1


@pytest.mark.parametrize("said", ["Unexpected fields: {'response_format'}", "Grammar error: cannot compile the schema"])
def test_a_refused_schema_is_left_out_by_message(server: FakeServer, said: str) -> None:
    server.refuse = lambda body: {"detail": said} if "response_format" in body else None
    asker = client(server)
    assert asker.complete([chat("a", json_schema={"type": "object"})])[0].error is None
    assert asker.refused == {"response_format"}


def test_max_tokens_is_sent_under_its_new_name_where_the_old_one_is_refused(server: FakeServer) -> None:
    said = error(
        "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        "unsupported_parameter",
        "max_tokens",
    )
    server.refuse = lambda body: said if "max_tokens" in body else None
    assert client(server).complete([chat("a", max_tokens=6)])[0].error is None
    assert server.completions[1]["max_completion_tokens"] == 6
    assert "max_tokens" not in server.completions[1]


def test_a_refused_reasoning_effort_stops(server: FakeServer) -> None:
    server.refuse = lambda body: error("Unrecognized request argument supplied: reasoning_effort")
    with pytest.raises(UserError, match="refuses the reasoning effort 'low'"):
        client(server, effort="low").complete([chat("a")])


# Mistakes of the user's


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(401, error("Incorrect API key provided: sk-secret", "invalid_api_key")), ["401", "OPENAI_API_KEY"]),
        (Fault(403, error("no access for sk-secret")), ["403", "'m'"]),
        (
            Fault(404, error("The model `m` does not exist", "model_not_found")),
            ["404", "'m'", "check the model's name"],
        ),
        (Fault(400, {"detail": "Server is pinned to 'n'; requested 'm'."}), ["400", "'m'", "pinned to 'n'"]),
        (
            Fault(429, error("You exceeded your current quota", "insufficient_quota"), {"Retry-After": "0.01"}),
            ["no credit left", "429"],
        ),
    ],
)
def test_what_no_request_can_survive_stops_at_once(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, fault: Fault, words: list[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.faults.extend([fault] * 3)
    with pytest.raises(UserError) as caught:
        client(server, concurrency=1).complete([chat("a"), chat("b")])
    message = str(caught.value)
    assert all(word in message for word in [*words, server.url])
    assert "\n" not in message
    assert "sk-secret" not in message
    assert all(body["messages"][0]["content"] == "a" for body in server.completions)


def test_a_server_that_wants_a_key_says_so(server: FakeServer) -> None:
    server.faults.append(Fault(401, error("who are you")))
    with pytest.raises(UserError, match="set the environment variable OPENAI_API_KEY"):
        client(server).complete([chat("a")])


def test_a_missing_key_for_openai_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(
        UserError, match=r"no API key for model 'gpt-5' at https://api\.openai\.com/v1: set .*OPENAI_API_KEY"
    ):
        ApiClient("gpt-5", Endpoint(), store=MemoryStore())


def test_an_unreachable_server_is_named_and_no_request_is_tried() -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(UserError) as caught:
            make_client(url).complete([chat("a")])
    assert url in str(caught.value)
    assert "cannot reach the server" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_goes_away_stops_the_work(server: FakeServer) -> None:
    asker = client(server)
    asker.complete([chat("a")])
    server.stop()
    with pytest.raises(UserError, match="cannot reach the server"):
        asker.complete([chat("b")])


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://x/v1", "http://", "http://x:port/hush", "http:/me:hush@x/v1", "http://[::1/v1"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UserError, match=r"--api-base .* must be a web address") as caught:
        make_client(url)
    assert "hush" not in str(caught.value), "it may hold a password"


def test_a_password_in_the_address_is_not_shown() -> None:
    asker = make_client("http://me:hush@localhost:8000/v1/")
    assert asker.url == "http://localhost:8000/v1"


def test_a_reasoning_effort_needs_chat(server: FakeServer) -> None:
    with pytest.raises(UserError, match="works with chat only"):
        client(server, kind="completions", effort="low")


# Budget

PRICE = ModelPrice(input=0.0, output=1e6, batch_factor=0.5, date="2025-01-01", source="a dollar a token")


def test_a_budget_is_not_passed(server: FakeServer) -> None:
    cache, budget = MemoryStore(), Budget(32)
    asker = client(server, store=cache, budget=budget, price=PRICE)
    # Each may cost 10 dollars and does cost 5: after the fifth, 7 dollars are left, too few for another.
    with pytest.raises(BudgetReached, match=r"budget of 32\.00 USD: 25\.0000 USD are spent"):
        asker.complete([chat(f"q{i}", max_tokens=10) for i in range(20)])
    assert budget.spent == 25
    assert budget.held == 0
    assert len(cache.replies) == len(server.completions) == 5


def test_calls_that_might_pass_the_budget_together_go_one_by_one(server: FakeServer) -> None:
    budget = Budget(20)
    results = client(server, budget=budget, price=PRICE).complete([chat(f"q{i}", max_tokens=10) for i in range(3)])
    assert [result.error for result in results] == [None] * 3
    assert server.most_at_once <= 2
    assert (budget.spent, budget.held) == (15, 0)


def test_failed_calls_free_their_share_of_the_budget(server: FakeServer) -> None:
    server.faults.append(Fault(400, error("no")))
    budget = Budget(10)
    failed, fine = client(server, budget=budget, price=PRICE).complete([chat(t, max_tokens=10) for t in "ab"])
    assert failed.error == "400: no"
    assert fine.error is None
    assert budget.spent == 5


def test_the_most_that_a_call_can_cost_counts_bytes(server: FakeServer) -> None:
    price = ModelPrice(input=1e6, output=1e6, batch_factor=0.5, date="2025-01-01", source="a dollar a token")
    asker = client(server, price=price)
    assert asker.most(chat("ää", max_tokens=10)) == 4 + 16 + 10
    assert asker.most(chat("ää", max_tokens=10, json_schema={"a": 1})) == 4 + 16 + 10 + 16 + len('{"a": 1}')
    assert client(server).most(chat("a")) == 0.0


def test_importing_the_client_imports_no_heavy_library() -> None:
    code = "import sys, selfedit.editors.api, selfedit.editors.batch, selfedit.editors.spec; " + (
        "print([name for name in ('openai', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
