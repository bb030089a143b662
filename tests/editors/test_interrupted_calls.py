"""Ctrl-C while calls are under way: it ends at once, and what has been paid for is kept and booked."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from clients import chat as any_chat
from clients import make_client
from fake_server import FakeServer, Fault

from selfedit.editors.api import ApiRequest, ApiResult
from selfedit.editors.prices import ModelPrice
from selfedit.runs.records import CostRecord
from selfedit.runs.store import Store

PRICE = ModelPrice(input=0.0, output=1e6, batch_factor=0.5, date="2025-01-01", source="a dollar a token")


def chat(text: str) -> ApiRequest:
    return any_chat(text, max_tokens=10)


def booked(store: Store) -> list[float | None]:
    return [cost.usd for cost in store.costs()]


def book(store: Store, result: ApiResult) -> None:
    if result.paid:
        store.add_costs([CostRecord("edits", "c", model="m", output_tokens=result.output_tokens, usd=result.usd)])


def test_replies_that_come_at_the_last_moment_are_kept_and_booked(server: FakeServer, tmp_path: Path) -> None:
    """Three calls are under way; at the first reply the user interrupts; the others come while the client is giving
    up."""
    held, interrupted = threading.Event(), threading.Event()

    def hold(body: dict[str, Any]) -> dict[str, Any] | None:
        if body["messages"][0]["content"] != "a":
            assert held.wait(30)
        return None

    server.refuse = hold

    def stop(_: int, result: ApiResult) -> None:
        book(store, result)
        if not interrupted.is_set():
            for _number in range(3):
                assert server.arrived.acquire(timeout=30)
            interrupted.set()
            held.set()
            raise KeyboardInterrupt

    with Store(tmp_path / "run.sqlite") as store:
        asker = make_client(server.url, store=store, price=PRICE)
        with pytest.raises(KeyboardInterrupt):
            asker.complete([chat(text) for text in "abc"], stop)
        assert booked(store) == [5.0] * 3
        results = asker.complete([chat(text) for text in "abc"], lambda _, result: book(store, result))
        assert [(result.error, result.paid) for result in results] == [(None, False)] * 3
        assert booked(store) == [5.0] * 3
    assert len(server.completions) == 3


def test_calls_that_never_come_are_cut_off_and_said(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server.faults.extend([Fault(hang=True)] * 2)

    def stop(_: int, result: ApiResult) -> None:
        raise KeyboardInterrupt

    def wait_for_both(body: dict[str, Any]) -> None:
        for _ in range(3):
            assert server.arrived.acquire(timeout=30)

    server.refuse = wait_for_both
    asker = make_client(server.url, price=PRICE)
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        asker.complete([chat(text) for text in "abc"], stop)
    assert not server.released.is_set(), "the server is still silent"
    assert asker.budget.held == 0
    assert "2 calls of 'm' were cut off: the provider may charge for them (20.0000 USD at the most)" in caplog.text


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_an_interruption_at_any_moment_of_keeping_a_reply_books_it_once(
    server: FakeServer, tmp_path: Path, moment: str
) -> None:
    class Interrupting(Store):
        def put(self, *row: Any) -> None:
            if moment == "before" and armed.pop("put", None):
                raise KeyboardInterrupt
            super().put(*row)
            if moment == "within" and armed.pop("put", None):
                raise KeyboardInterrupt

    armed = {"put": True, "spend": True}
    with Interrupting(tmp_path / "run.sqlite") as store:
        asker = make_client(server.url, store=store, price=PRICE)
        spend = asker.budget.spend

        def spend_or_stop(usd: float) -> None:
            if moment == "after" and armed.pop("spend", None):
                raise KeyboardInterrupt
            spend(usd)

        asker.budget.spend = spend_or_stop  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            asker.complete([chat("a")], lambda _, result: book(store, result))
        assert booked(store) == [5.0]
        (result,) = asker.complete([chat("a")], lambda _, result: book(store, result))
        assert not result.paid
        assert booked(store) == [5.0]


def test_a_reply_and_what_is_made_of_it_are_kept_together_or_not_at_all(server: FakeServer, tmp_path: Path) -> None:
    def fail(_: int, result: ApiResult) -> None:
        book(store, result)
        raise RuntimeError("the machine stops here")

    with Store(tmp_path / "run.sqlite") as store:
        asker = make_client(server.url, store=store, price=PRICE)
        with pytest.raises(RuntimeError, match="stops here"):
            asker.complete([chat("a")], fail)
        assert booked(store) == []
        assert store.get(asker.key(chat("a"))) is None


# A process of its own, with a real signal


def listen() -> None:
    """Called in the new process: background jobs of a shell, as the tests may be, ignore SIGINT, and so do children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def dripping(server: FakeServer) -> Callable[[BaseHTTPRequestHandler], None]:
    def talk(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while not server.released.wait(0.1):
            handler.wfile.write(b" ")

    return talk


def test_control_c_ends_a_command_whose_server_drips(server: FakeServer, tmp_path: Path) -> None:
    """The server would drip for ten minutes, and then be asked again."""
    server.faults.extend([Fault(talk=dripping(server))] * 8)
    rows = tmp_path / "rows.jsonl"
    row = {"title": "T", "question": "Who?", "gold": "Ada", "answer": "Ada made it"}
    rows.write_text("".join(json.dumps(row | {"answer": f"Ada {n}"}) + "\n" for n in range(3)))
    command = [sys.executable, "-m", "selfedit", "grade", str(rows), "--grader", "judge:m", "--api-base", server.url]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen, cwd=tmp_path
    )
    try:
        for _ in range(3):
            assert server.arrived.acquire(timeout=60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "selfedit: interrupted; the same command goes on from here"
    assert "3 calls of 'm' were cut off" in err
    assert "Traceback" not in err


# Its handler stands for code that swallows the KeyboardInterrupt, wherever that is raised.
STUBBORN = """
import os, signal, sys, threading
from selfedit.cli.interrupt import watch_interrupts
watch_interrupts(float(sys.argv[1]))
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"caught\\n"))
os.write(1, b"ready\\n")
while True:
    threading.Event().wait(60)
"""


@pytest.mark.parametrize(("patience", "signals"), [(0.05, 1), (3600.0, 2)])
def test_what_does_not_stop_is_ended_after_a_moment_or_by_a_second_control_c(patience: float, signals: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN, str(patience)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        if signals == 2:
            assert process.stdout.readline() == "caught\n"
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == "selfedit: interrupted\n"
