"""What a server's answers must look like to be used: everything else is a failure at the door, and goes no further.

Fields that are not used are ignored.  It is imported when the first reply comes (pydantic takes its time).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError

# More than any reply can have; beyond 2^63 SQLite could not store it.
Tokens = Annotated[int, Field(ge=0, le=2**40)]


def _whole(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# A reply that is cut at its bound may end in half a character, which could not be stored.
Text = Annotated[str, AfterValidator(_whole)]


class Message(BaseModel):
    content: Text | None = None
    refusal: str | None = None


class Choice(BaseModel):
    message: Message = Message()
    text: Text | None = None
    finish_reason: str | None = None


class Details(BaseModel):
    reasoning_tokens: Tokens | None = None


class Usage(BaseModel):
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    completion_tokens_details: Details | None = None


class Completion(BaseModel):
    """A completion, chat or plain."""

    choices: Annotated[list[Choice], Field(min_length=1)]
    usage: Usage | None = None


class File(BaseModel):
    """An uploaded file."""

    id: Annotated[str, Field(min_length=1)]


class Counts(BaseModel):
    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchError(BaseModel):
    code: str | None = None
    message: str | None = None


class BatchErrors(BaseModel):
    data: list[BatchError] | None = None


class Batch(BaseModel):
    """A batch under way or over."""

    id: Annotated[str, Field(min_length=1)]
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: Counts | None = None
    errors: BatchErrors | None = None


def told(error: ValidationError) -> str:
    """What is wrong, in a few words: the first of the errors."""
    first: Any = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])
