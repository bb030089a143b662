"""An OpenAI-compatible server that answers as `ask` does; of a run with an adapter per document, with that of the
document which the last message is about, and says which.

`/v1/models` and `/v1/chat/completions`, one answer at a time.  `transformers serve` on an exported model offers more.
"""

from __future__ import annotations

import importlib.util
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from selfedit.errors import UserError
from selfedit.methods.adapters import LEARNED
from selfedit.methods.ask import BASE, Asker, Reply

if TYPE_CHECKING:
    from fastapi import FastAPI

_ENDS = {True: "stop", False: "length"}  # why an answer ends, as the API says it


def serve(
    source: Path,
    *,
    host: str = "localhost",
    port: int = 8000,
    model: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = print,
) -> int:
    """Serves what `ask` answers with as the model `learned`, and the model as it is as `base`, until it is interrupted;
    the server's exit code.

    It answers greedily unless a request says otherwise, prompted as in training.  Errors: as `Asker`, and UserError
    where fastapi and uvicorn are not installed."""
    if not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")):
        raise UserError("a server needs fastapi and uvicorn; run: pip install 'selfedit[serving]'")
    import uvicorn

    with Asker(source, model=model, device=device, dtype=dtype, trust_remote_code=trust_remote_code) as asker:
        tell(f"serving {source} as the model '{asker.names[0]}' at http://{host}:{port}/v1; Ctrl-C ends it")
        try:
            uvicorn.run(_app(asker), host=host, port=port, log_level="warning")
        except SystemExit as end:  # where it cannot listen, which it has said
            return int(end.code or 0)
    return 0


class Part(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        given = self.content
        return {"role": self.role, "content": given if isinstance(given, str) else "".join(part.text for part in given)}


class ChatRequest(BaseModel):
    """What of a request has an effect; the rest is passed over."""

    model: str = LEARNED
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = False
    n: Literal[1] | None = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None


def _app(asker: Asker) -> FastAPI:
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, StreamingResponse
    from starlette.background import BackgroundTask
    from starlette.exceptions import HTTPException

    app, lock, names = FastAPI(openapi_url=None), Lock(), (*asker.names, BASE)

    @app.exception_handler(RequestValidationError)
    def _malformed(request: Any, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse(_problem(f"{'.'.join(map(str, first['loc'][1:])) or 'body'}: {first['msg']}"), 400)

    @app.exception_handler(HTTPException)
    def _refused(request: Any, error: HTTPException) -> JSONResponse:
        return JSONResponse(_problem(error.detail), error.status_code)

    @app.exception_handler(Exception)
    def _failed(request: Any, error: Exception) -> JSONResponse:
        return JSONResponse(_problem(f"{type(error).__name__}: {error}", "server_error"), 500)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "selfedit"} for name in names]
        return {"object": "list", "data": listed}

    @app.post("/v1/chat/completions")
    def complete(asked: ChatRequest) -> Any:
        if asked.model not in names:
            raise HTTPException(404, f"no model {asked.model!r}; there are {', '.join(names)}")
        most = asked.max_completion_tokens or asked.max_tokens or asker.max_tokens
        if most >= asker.model.context_length:
            raise HTTPException(400, f"the model reads {asker.model.context_length} tokens at once; ask for fewer")
        messages = [message.plain() for message in asked.messages]
        document = asker.document(messages) if asked.model != BASE else None
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}
        head |= {"document": document and {"id": document.id, "title": document.title}}

        def reply(on_text: Callable[[str], None] | None = None) -> Reply:
            seed = random.getrandbits(31) if asked.seed is None else asked.seed
            how = {"temperature": asked.temperature or 0.0, "top_p": asked.top_p or 1.0, "seed": seed}
            with lock:
                return asker.reply(messages, name=asked.model, on_text=on_text, max_tokens=most, **how)

        if asked.stream:
            gone = Event()
            events = _events(head, reply, gone)
            return StreamingResponse(events, media_type="text/event-stream", background=BackgroundTask(gone.set))
        found = reply()
        message = {"role": "assistant", "content": found.text}
        usage = {"prompt_tokens": found.prompt_tokens, "completion_tokens": found.tokens}
        usage["total_tokens"] = found.prompt_tokens + found.tokens
        choice = {"index": 0, "message": message, "finish_reason": _ENDS[found.finished]}
        return {**head, "object": "chat.completion", "choices": [choice], "usage": usage}

    return app


def _problem(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _events(head: dict[str, Any], reply: Callable[[Callable[[str], None]], Reply], gone: Event) -> Iterator[str]:
    """An answer as it comes, in server-sent events.  Once its reader is `gone` it ends: others wait for their turn."""
    pieces: SimpleQueue[str | Reply | Exception] = SimpleQueue()

    def put(piece: str) -> None:
        if gone.is_set():
            raise ConnectionError("the client is gone")
        pieces.put(piece)

    def answer() -> None:
        try:
            pieces.put(reply(put))
        except Exception as error:
            pieces.put(error)

    def event(delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

    Thread(target=answer, daemon=True).start()
    yield event({"role": "assistant", "content": ""})
    while isinstance(piece := pieces.get(), str):
        yield event({"content": piece})
    if isinstance(piece, Exception):
        yield f"data: {json.dumps(_problem(f'{type(piece).__name__}: {piece}', 'server_error'))}\n\n"
    else:
        yield event({}, _ENDS[piece.finished])
    yield "data: [DONE]\n\n"
