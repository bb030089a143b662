"""What is asked of a server, what comes of it, and what an answer must look like to be used.

A server's answer is checked here once; anything of another form is a failed reply and goes no further.  Fields that are
not used are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, AliasPath, BaseModel, Field, ValidationError

from selfedit.errors import first_error


@dataclass(frozen=True)
class ApiRequest:
    """One completion to ask for: `asked` is a prompt, or a chat's messages, which only a chat endpoint takes.

    `max_tokens` bounds the reply; with a reasoning effort `REASONING_TOKENS` more are allowed.  `sample` tells samples
    of one prompt apart in the store; it is not sent.  `seed` is sent, but few servers honour it.  `json_schema` asks
    for a reply of that JSON schema; a server that does not offer it answers in free text, and plain completions go
    without it.  `attempt` counts the earlier replies that could not be used; each has a seed of its own
    (`ApiClient.complete` sets it).
    """

    asked: str | Sequence[dict[str, str]]
    max_tokens: int = 1024
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    json_schema: Mapping[str, Any] | None = None
    sample: int = 0
    attempt: int = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """A prompt is one message of the user's."""
        return [{"role": "user", "content": self.asked}] if isinstance(self.asked, str) else list(self.asked)


@dataclass(frozen=True)
class ApiResult:
    """What became of a request.  `error` says in words why there is no text; it is None where there is one.

    `output_tokens` counts those of reasoning too; tokens are 0 where the server does not say, and where a call failed.
    `paid`: a reply came now and is to be booked, whether it can be used or not; else nothing was sent and it is an
    earlier one, or none came.  `usd` is its price: None where no price is known, and the most that it can have cost
    where the server does not say its tokens.
    """

    text: str = ""
    finish_reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    paid: bool = False
    usd: float | None = None

    @property
    def truncated(self) -> bool:
        """Whether the reply ended because `max_tokens` were used up."""
        return self.finish_reason == "length"

    def failure(self, flag: str = "--reasoning-effort") -> str | None:
        """Why there is nothing to use, in words; None where there is a text.  `flag` is the one that sets the reasoning
        effort: a reasoning model may use up all tokens before its first word."""
        if self.error is None and self.truncated and not self.text.strip():
            return f"all tokens of the reply went to reasoning: {flag} low leaves some for the text"
        return self.error


class Refused(Exception):
    """A server answers with an error, or with no completion: `status` (502 for the latter) and what it says."""

    def __init__(self, status: int, payload: object) -> None:
        if isinstance(payload, dict) and isinstance(payload.get("error"), dict | str):
            payload = payload["error"]
        # The forms that OpenAI, vLLM and FastAPI servers use.
        fields: dict[str, Any] = payload if isinstance(payload, dict) else {"message": str(payload or "no message")}
        message = fields.get("message") or fields.get("detail") or json.dumps(fields)
        self.status, self.message = status, str(message)
        self.code, self.param = str(fields.get("code") or ""), str(fields.get("param") or "")
        super().__init__(f"{status}: {message}")


class NoAnswer(Exception):
    """No whole answer came from a server, in all attempts."""


# More than any reply can have; beyond 2^63 SQLite could not store it.
Tokens = Annotated[int, Field(ge=0, le=2**40)]


def _whole(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# A reply that is cut at its bound may end in half a character, which could not be stored.
Text = Annotated[str, AfterValidator(_whole)]


def _at(first: str, *path: str | int, default: Any = None) -> Any:
    return Field(default, validation_alias=AliasPath(first, *path))


class Completion(BaseModel):
    """A completion, chat (`content`) or plain (`text`)."""

    content: Text | None = _at("choices", 0, "message", "content")
    refusal: str | None = _at("choices", 0, "message", "refusal")
    text: Text | None = _at("choices", 0, "text")
    finish_reason: str | None = _at("choices", 0, "finish_reason")
    input_tokens: Tokens | None = _at("usage", "prompt_tokens")
    output_tokens: Tokens | None = _at("usage", "completion_tokens")


class File(BaseModel):
    id: Annotated[str, Field(min_length=1)]


class BatchError(BaseModel):
    code: str | None = None
    message: str | None = None


class Batch(BaseModel):
    id: Annotated[str, Field(min_length=1)]
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    total: int = _at("request_counts", "total", default=0)
    completed: int = _at("request_counts", "completed", default=0)
    failed: int = _at("request_counts", "failed", default=0)
    errors: list[BatchError] = _at("errors", "data", default=[])


class Listed(BaseModel):
    id: str
    input_file_id: str | None = None


class Batches(BaseModel):
    """One page of the list of batches, the newest first."""

    data: list[Listed]
    has_more: bool = False


def read_json(content: bytes | str) -> Any:
    """What a server's JSON says; None where it is none, or one that only an attacker would send."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def is_completion(reply: object) -> bool:
    """Whether a reply has choices, and so may have been charged for."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    return isinstance(choices, list) and bool(choices) and isinstance(choices[0], dict)


def read_completion(reply: Mapping[str, Any], kind: str, clean: Callable[[str], str]) -> ApiResult:
    """A reply's body as a result; one that cannot be used is a result with an error.  `clean` makes a server's words
    printable."""
    try:
        completion = Completion.model_validate(reply)
    except ValidationError as wrong:
        return ApiResult(error=f"the reply cannot be used ({clean(first_error(wrong))})")
    finish_reason = completion.finish_reason or ""
    text = completion.content if kind == "chat" else completion.text
    error = None
    if finish_reason == "content_filter":
        error = "the server's content filter cut the reply"
    elif completion.refusal:
        error = f"the model refused: {clean(completion.refusal)}"
    elif text is None and finish_reason != "length":
        error = f"the reply has no text (finish reason: {clean(finish_reason) or 'none'})"
    # Half of the tokens would make a reply look cheaper than it was.
    told = None not in (completion.input_tokens, completion.output_tokens)
    return ApiResult(
        text=text or "",
        finish_reason=finish_reason,
        input_tokens=(told and completion.input_tokens) or 0,
        output_tokens=(told and completion.output_tokens) or 0,
        error=error,
    )
