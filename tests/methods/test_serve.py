"""What `selfedit serve` answers, asked by the `openai` package, is what `ask` answers."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from selfedit.cli.main import main
from selfedit.errors import UserError
from selfedit.methods.ask import Asker, Reply
from selfedit.methods.learn import learn
from selfedit.methods.serve import _app, serve
from selfedit.methods.settings import LearnSettings
from serving import needs_serving, running
from tiny_world import SMALL, rows, write_rows

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
        reply = client.chat.completions.create(model="learned", messages=user(asked), stream=stream)
        if stream:
            chunks = list(reply)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert len(chunks) > 3
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
    command = [sys.executable, "-m", "selfedit", "serve", str(run), *OPTIONS, "--port", str(port)]
    with running(command, port, tmp_path) as url:
        found = OpenAI(base_url=url, api_key="none").chat.completions
        replies = [found.create(model="learned", messages=user(asked)) for asked in ASKED[:2]]
        assert [reply.choices[0].message.content for reply in replies] == expected
        # A second server on the port says why it ends.
        assert main(["serve", str(run), *OPTIONS, "--port", str(port)]) == 2
    assert "the server ended with code" in capsys.readouterr().err


class EndlessAsker:
    """Answers one word after another, for `most` of them."""

    names, max_tokens, model = ("learned",), 128, SimpleNamespace(context_length=1000)

    def __init__(self, most: int) -> None:
        self.most, self.said = most, 0

    def document(self, messages: Any) -> None: ...

    def reply(self, messages: Any, *, on_text: Callable[[str], None] | None = None, **_: Any) -> Reply:
        if on_text is not None:
            for _number in range(self.most):
                on_text("word ")
                self.said += 1
                time.sleep(0.01)
        return Reply("", 1, self.said, finished=True)


@needs_serving
def test_an_answer_that_nobody_reads_any_more_does_not_keep_others_waiting(free_port: Callable[[], int]) -> None:
    import uvicorn

    asker, port = EndlessAsker(most=6000), free_port()
    server = uvicorn.Server(uvicorn.Config(_app(asker), host="127.0.0.1", port=port, log_level="warning"))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    create = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=40).chat.completions
    stream = create.create(model="learned", messages=user("Hello"), stream=True)
    for _, _chunk in zip(range(3), stream, strict=False):
        pass
    stream.close()
    assert create.create(model="learned", messages=user("Hello")).usage.completion_tokens < asker.most
    server.should_exit = True
    thread.join(20)


def test_what_cannot_be_served_is_said_before_a_model_is_loaded(routed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such folder"):
        serve(routed / "nothing")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'selfedit\[serving\]'"):
        serve(routed)
