"""The chat completions API of OpenAI, answered by an `Asker`: what `selfedit serve` listens with.

`/v1/models`, `/v1/chat/completions` and `/health`.  One answer is written at a time, in a thread of its own and in the
order in which they were asked for; the server itself never waits for it.  An answer ends early, or is never begun, once
its client is gone or the server is to end.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from threading import Event
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from selfedit.errors import UserError
from selfedit.methods.adapters import LEARNED
from selfedit.methods.ask import BASE, Asker, Reply

_ENDS = {True: "stop", False: "length"}  # why an answer ends, as the API says it

Write = Callable[[Callable[[str], None], Event], Reply]
"""Writes an answer, piece by piece; ConnectionError once the event says that its client is gone, or the server ends."""


class Part(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        given = self.content
        return {"role": self.role, "content": given if isinstance(given, str) else "".join(part.text for part in given)}


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """What of a request has an effect; the rest is passed over."""

    model: str = LEARNED
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None


def make_app(asker: Asker, writer: Executor, ending: Event) -> FastAPI:
    """The API as an ASGI application; `writer`, of one thread, writes the answers, until the server is `ending`."""
    app, names = FastAPI(openapi_url=None), (*asker.names, BASE)

    @app.exception_handler(RequestValidationError)
    def _malformed(request: Any, error: RequestValidationError) -> JSONResponse:
        # Of a field that may be several things, the mistake that lies deepest.
        found = max(error.errors(), key=lambda one: len(one["loc"]))
        where = "" if found["type"] == "json_invalid" else ".".join(map(str, found["loc"][1:]))
        return JSONResponse(_problem(f"{where or 'body'}: {found['msg']}"), 400)

    @app.exception_handler(HTTPException)
    def _refused(request: Any, error: HTTPException) -> JSONResponse:
        return JSONResponse(_problem(error.detail), error.status_code)

    @app.exception_handler(Exception)
    def _failed(request: Any, error: Exception) -> JSONResponse:
        return JSONResponse(_problem(f"{type(error).__name__}: {error}", "server_error"), 500)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "selfedit"} for name in names]
        return {"object": "list", "data": listed}

    @app.post("/v1/chat/completions")
    async def complete(asked: ChatRequest, request: Request) -> Any:
        if asked.model not in names:
            raise HTTPException(404, f"no model {asked.model!r}; there are {', '.join(names)}")
        most = asked.max_completion_tokens or asked.max_tokens or asker.max_tokens
        if most >= asker.model.context_length:
            raise HTTPException(400, f"the model reads {asker.model.context_length} tokens at once; ask for fewer")
        messages = [message.plain() for message in asked.messages]
        try:
            await asyncio.to_thread(asker.model.tokenizer.chat_ids, messages)
        except UserError as error:  # of the chat template
            raise HTTPException(400, str(error)) from None
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}

        def write(on_text: Callable[[str], None], gone: Event) -> Reply:
            """The document is found here too, since an adapter that recites writes it; the head tells it from the first
            piece on."""

            def check() -> None:
                if gone.is_set() or ending.is_set():
                    raise ConnectionError("the server is ending")  # which a client that is gone does not read

            def put(piece: str) -> None:
                check()
                on_text(piece)

            check()
            document = None if asked.model == BASE else asker.document(messages)
            head["document"] = document and {"id": document.id, "title": document.title}
            put("")
            seed = random.getrandbits(31) if asked.seed is None else asked.seed
            how = {"temperature": asked.temperature or 0.0, "top_p": asked.top_p or 1.0, "seed": seed}
            return asker.reply(messages, document=document, name=asked.model, on_text=put, max_tokens=most, **how)

        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            return StreamingResponse(_events(head, writer, write, usage), media_type="text/event-stream")
        gone = Event()
        writing = asyncio.wrap_future(writer.submit(write, lambda piece: None, gone))
        try:
            while not writing.done():
                await asyncio.wait([writing], timeout=1)
                if await request.is_disconnected():
                    gone.set()
            found = await writing
        except ConnectionError as error:
            raise HTTPException(503, str(error)) from None
        message = {"role": "assistant", "content": found.text}
        choice = {"index": 0, "message": message, "finish_reason": _ENDS[found.finished]}
        return {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(found)}

    return app


def _problem(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _usage(reply: Reply) -> dict[str, int]:
    found = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.tokens}
    return found | {"total_tokens": sum(found.values())}


async def _events(head: dict[str, Any], writer: Executor, write: Write, usage: bool) -> AsyncIterator[str]:
    """An answer as it comes, in server-sent events; with `usage`, the last one counts tokens."""
    loop, gone = asyncio.get_running_loop(), Event()
    pieces: asyncio.Queue[str | Reply | Exception] = asyncio.Queue()

    def answer() -> None:
        def put(piece: str | Reply | Exception) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        try:
            put(write(put, gone))
        except Exception as error:
            put(error)

    def event(data: dict[str, Any]) -> str:
        return f"data: {json.dumps(data)}\n\n"

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return event({**head, "object": "chat.completion.chunk", "choices": [choice]})

    try:
        writer.submit(answer)
        role = {"role": "assistant"}
        while isinstance(piece := await pieces.get(), str):
            if piece or role:
                yield chunk({**role, "content": piece})
            role = {}
        if isinstance(piece, Exception):
            yield event(_problem(f"{type(piece).__name__}: {piece}", "server_error"))
        else:
            yield chunk({}, _ENDS[piece.finished])
            if usage:
                yield event({**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(piece)})
        yield "data: [DONE]\n\n"
    finally:
        gone.set()
