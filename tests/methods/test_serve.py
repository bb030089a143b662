"""What `selfedit serve` answers, asked by the `openai` package, is what `ask` answers."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai import APIError, BadRequestError, InternalServerError, NotFoundError, OpenAI

from selfedit.cli.main import main
from selfedit.engine import Completion, DecodeRequest
from selfedit.errors import UserError
from selfedit.methods.ask import Asker, Reply
from selfedit.methods.learn import learn
from selfedit.methods.serve import serve
from selfedit.methods.settings import LearnSettings
from serving import needs_serving, running
from tiny_world import SMALL, rows, write_rows
from waiting import wait_until

OPTIONS = ("--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1")
ASKED = [
    *(f"{row['title']}: {row['questions'][0]['question']}" for row in rows(6)[1:4]),
    "What is the largest planet?",
]


def learned(chat_model: str, folder: Path, adapters: str) -> Path:
    file = write_rows(folder / "documents.jsonl", [{k: row[k] for k in ("id", "title", "text")} for row in rows(6)])
    common = {**SMALL, "model": chat_model, "documents": (str(file),), "editor": "passage", "out": folder / "run"}
    learn(LearnSettings(**{**common, "adapters": adapters}))
    return folder / "run"


@pytest.fixture(scope="module")
def routed(chat_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(chat_model, tmp_path_factory.mktemp("routed"), "per-document")


@pytest.fixture(scope="module")
def client(routed: Path, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[OpenAI]:
    port = free_port()
    command = [sys.executable, "-m", "selfedit", "serve", str(routed), *OPTIONS, "--port", str(port)]
    with running(command, port, tmp_path_factory.mktemp("serve")) as url:
        yield OpenAI(base_url=url, api_key="none", max_retries=0)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@needs_serving
@pytest.mark.parametrize("stream", [False, True])
def test_each_question_is_answered_by_the_adapter_of_its_document(client: OpenAI, routed: Path, stream: bool) -> None:
    with Asker(routed, device="cpu", dtype="float32") as asker:
        expected = [(asker.document(user(asked)), asker.answer(user(asked))) for asked in ASKED]
    assert [document and document.id for document, _ in expected] == ["d1", "d2", "d3", None]
    for asked, (document, answer) in zip(ASKED, expected, strict=True):
        more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        reply = client.chat.completions.create(model="learned", messages=user(asked), **more)
        if stream:
            *chunks, last = reply
            assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens > 0
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert len(chunks) >= 3
            named, ended = chunks[0].document, chunks[-1].choices[0].finish_reason
        else:
            said, named, ended = reply.choices[0].message.content, reply.document, reply.choices[0].finish_reason
            assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
        assert (said, ended) == (answer, "stop")
        assert named == (document and {"id": document.id, "title": document.title})


@needs_serving
def test_a_conversation_and_the_model_as_it_is(client: OpenAI, routed: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        *user(ASKED[0]),
        {"role": "assistant", "content": "Oslo"},
        {"role": "user", "content": [{"type": "text", "text": ASKED[1]}]},
    ]
    plain = [*messages[:3], *user(ASKED[1])]
    with Asker(routed, device="cpu", dtype="float32") as asker:
        expected, base = asker.answer(plain), asker.answer(plain, base=True)
    found = client.chat.completions.create(model="learned", messages=messages)
    assert (found.choices[0].message.content, found.document["id"]) == (expected, "d2")
    found = client.chat.completions.create(model="base", messages=messages)
    assert (found.choices[0].message.content, found.document) == (base, None)
    assert [model.id for model in client.models.list()] == ["learned", "base"]


@needs_serving
def test_what_a_request_says_of_length_and_sampling_has_an_effect(client: OpenAI) -> None:
    def ask(**more: float) -> tuple[str, str]:
        (choice,) = client.chat.completions.create(model="learned", messages=user(ASKED[0]), **more).choices
        return choice.message.content, choice.finish_reason

    whole, _ = ask()
    short, ended = ask(max_tokens=2)
    assert ended == "length"
    assert whole.startswith(short)
    assert len(short) < len(whole)
    sampled = [ask(temperature=3.0, seed=seed, max_completion_tokens=8) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert ask(temperature=1e-40) == ask(), "logits divided by so little are no numbers"


@pytest.mark.parametrize(("said", "answer", "prompt"), [("Why?", 1024 - 6, 6), ("Why? " * 999, 256, 768)])
def test_the_prompt_goes_before_a_long_answer(
    routed: Path, monkeypatch: pytest.MonkeyPatch, said: str, answer: int, prompt: int
) -> None:
    asked: list[DecodeRequest] = []

    def decode(_: Any, requests: list[DecodeRequest], **__: Any) -> list[Completion]:
        asked.extend(requests)
        return [Completion((), True)]

    monkeypatch.setattr("selfedit.engine.decode", decode)
    with Asker(routed, device="cpu", dtype="float32") as asker:
        for most in (1023, 8):
            asker.reply(user(said), document=None, max_tokens=most)
        whole = tuple(asker.model.tokenizer.chat_ids(user(said)))
    assert [request.max_new_tokens for request in asked] == [answer, 8]
    assert asked[0].prompt == whole[-prompt:]
    assert asked[1].prompt == whole[-1016:]


@needs_serving
def test_errors_have_openais_form(client: OpenAI) -> None:
    create = client.chat.completions.create
    with pytest.raises(NotFoundError) as caught:
        create(model="gpt-5", messages=user("Hello"))
    assert caught.value.body == {
        "message": "no model 'gpt-5'; there are learned, base",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    with pytest.raises(NotFoundError, match="Not Found"):
        client.embeddings.create(model="learned", input="Hello")
    for more, line in (
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: Input should be"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, r"0.type: Input should be 'text'"),
        ({"n": 2}, "n: Input should be 1"),
        ({"max_tokens": 1024}, "the model reads 1024 tokens at once; ask for fewer"),
    ):
        with pytest.raises(BadRequestError, match=line):
            create(**{"model": "learned", "messages": user("Hello"), **more})


@needs_serving
def test_one_adapter_is_served_as_it_is_asked(
    chat_model: str, tmp_path: Path, free_port: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    run, port = learned(chat_model, tmp_path, "joint"), free_port()
    with Asker(run, device="cpu", dtype="float32") as asker:
        expected = [asker.answer(user(asked)) for asked in ASKED[:2]]
        with served(asker, port) as url:
            replies = [speaker(url).create(model="learned", messages=user(asked)) for asked in ASKED[:2]]
            assert [reply.choices[0].message.content for reply in replies] == expected
            # A second server on the port says why it ends.
            assert main(["serve", str(run), *OPTIONS, "--port", str(port)]) == 2
    assert "the server ended with code" in capsys.readouterr().err


class WordyAsker:
    """Answers one word after another, until there are `most`; its template takes no two messages of a user in a row."""

    names, max_tokens = ("learned",), 128

    def __init__(self, most: int) -> None:
        self.threads, self.sought = set[int](), list[str]()
        self.most, self.asked, self.dropped = most, list[str](), threading.Event()
        self.arrived = 0
        self.model = SimpleNamespace(context_length=1000, tokenizer=self)

    def chat_ids(self, messages: Any) -> None:
        self.arrived += 1
        print(f"request {self.arrived}", flush=True)
        if [message["role"] for message in messages] == ["user", "user"]:
            raise UserError("its chat template takes no messages of user, user")

    def document(self, messages: Any) -> None:
        self.threads.add(threading.get_ident())
        self.sought.append(messages[-1]["content"])

    def reply(self, messages: Any, *, on_text: Callable[[str], None], **_: Any) -> Reply:
        self.threads.add(threading.get_ident())
        self.asked.append(messages[-1]["content"])
        said = 0
        while said < self.most:
            try:
                on_text("word ")
            except ConnectionError:
                self.dropped.set()
                raise
            said += 1
            time.sleep(0.01)
        return Reply("", 1, said, finished=True)


@contextmanager
def served(asker: Asker | WordyAsker, port: int) -> Iterator[str]:
    import uvicorn

    from selfedit.methods.chat_api import make_app

    with ThreadPoolExecutor(1) as writer:
        app = make_app(asker, writer, threading.Event())  # type: ignore[arg-type]
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            if isinstance(asker, WordyAsker):
                asker.most = 0  # a test that fails does not wait for an answer without end
            server.should_exit = True
            thread.join(60)
        assert not thread.is_alive()


def speaker(url: str) -> Any:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120).chat.completions


def sent(url: str, text: str) -> HTTPConnection:
    """A request whose answer nobody has read yet; a client gives up by closing it."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=120)
    body = json.dumps({"model": "learned", "messages": user(text)})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection


@needs_serving
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_nobody_reads_any_more_does_not_keep_others_waiting(
    free_port: Callable[[], int], stream: bool
) -> None:
    asker = WordyAsker(most=10**9)
    with served(asker, free_port()) as url:
        if stream:
            chunks = speaker(url).create(model="learned", messages=user("Hello"), stream=True)
            for _, _chunk in zip(range(3), chunks, strict=False):
                pass
            chunks.close()
        else:
            given_up = sent(url, "Hello")
            wait_until(lambda: bool(asker.asked))
            given_up.close()
        assert asker.dropped.wait(120)
        asker.most = 1
        assert speaker(url).create(model="learned", messages=user("And?")).usage.completion_tokens == 1


@needs_serving
def test_health_is_told_while_many_wait_and_what_they_give_up_is_not_written(
    free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.requests import Request

    noticed = set[Request]()
    original = Request.is_disconnected

    async def is_disconnected(request: Request) -> bool:
        if found := await original(request):
            noticed.add(request)
        return found

    monkeypatch.setattr(Request, "is_disconnected", is_disconnected)
    asker = WordyAsker(most=10**9)
    with served(asker, free_port()) as url:
        first = sent(url, "first")
        wait_until(lambda: bool(asker.asked))
        waiting = [sent(url, f"{number}") for number in range(50)]
        wait_until(lambda: asker.arrived == 51)
        for path in ("/health", "/v1/models"):
            with urllib.request.urlopen(url + path, timeout=60) as reply:
                assert reply.status == 200
        for one in waiting:
            one.close()
        wait_until(lambda: len(noticed) == 50)
        asker.most = 1
        assert json.load(first.getresponse())["object"] == "chat.completion"
        assert speaker(url).create(model="learned", messages=user("last")).object == "chat.completion"
    assert asker.asked == asker.sought == ["first", "last"]


@needs_serving
def test_an_adapter_recites_and_answers_in_one_thread(free_port: Callable[[], int]) -> None:
    asker = WordyAsker(most=5)
    with served(asker, free_port()) as url, ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(speaker(url).create, model="learned", messages=user(str(k))) for k in range(8)]
        assert {one.result().object for one in asked} == {"chat.completion"}
    assert len(asker.threads) == 1


@needs_serving
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_chat_template_refuses_is_the_clients_mistake(free_port: Callable[[], int], stream: bool) -> None:
    with (
        served(WordyAsker(most=1), free_port()) as url,
        pytest.raises(BadRequestError, match="takes no messages of user, user"),
    ):
        speaker(url).create(model="learned", messages=[*user("Hello"), *user("Hello?")], stream=stream)


@needs_serving
def test_a_server_that_is_to_end_does_not_wait_for_its_answers(
    tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    script = (
        "import contextlib, os, sys; from pathlib import Path\n"
        "from selfedit.methods import serve; from test_serve import WordyAsker\n"
        f"Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "serve.Asker = lambda *_, **__: contextlib.nullcontext(WordyAsker(most=10**9))\n"
        f"sys.exit(serve.serve(Path(), host='127.0.0.1', port={port}))"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    with running([sys.executable, "-c", script], port, tmp_path) as url, ThreadPoolExecutor(3) as clients:
        speak = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120).chat.completions
        waiting = [clients.submit(speak.create, model="base", messages=user("Hello")) for _ in range(2)]
        stream = speak.create(model="base", messages=user("Hello"), stream=True)
        wait_until(lambda: "request 3\n" in (tmp_path / "log.txt").read_text())
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGINT)
        for one in waiting:
            with pytest.raises(InternalServerError, match="the server is ending"):
                one.result()
        with pytest.raises(APIError, match="the server is ending"):
            list(stream)
    assert "Traceback" not in (tmp_path / "log.txt").read_text()


def test_what_cannot_be_served_is_said_before_a_model_is_loaded(routed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such folder"):
        serve(routed / "nothing")
    with pytest.raises(UserError, match="--port 99999: give a number from 0 to 65535"):
        serve(routed, port=99999)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'selfedit\[serving\]'"):
        serve(routed)
