"""Where a model behind an OpenAI-compatible API is reached, and what of that may be shown and stored.

Each role of a run (editor, judge) has an `Endpoint` of its own.  Keys come from the environment and nowhere else.
Providers also take them as a user's password or in the query (`https://me:secret@host/v1?api-version=1&key=secret`), so
neither of these is ever shown or stored, and all are blotted out of a server's messages.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from selfedit.errors import UserError
from selfedit.text import one_line

DEFAULT_URL = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"

_LONGEST_MESSAGE = 300  # characters of a server's words
_SHORTEST_SECRET = 4  # replacing shorter texts would only make messages unreadable


@dataclass(frozen=True)
class Endpoint:
    """How one role's models are reached.

    `base_url` defaults to OPENAI_BASE_URL from the environment, then to OpenAI's own; the key is read from the
    environment variable `key_variable` (a server other than OpenAI's needs none).  `effort` is the reasoning effort,
    for chat only. `concurrency` is the number of live calls under way at once.  `timeout` is seconds for one attempt,
    from its start to the reply's last byte; `max_retries` counts the attempts after the first.  `poll_seconds` is the
    first wait between two looks at a batch; it grows by half to twenty times that.
    """

    base_url: str | None = field(default=None, repr=False)
    key_variable: str = KEY_VARIABLE
    kind: Literal["chat", "completions"] = "chat"
    effort: str | None = None
    batch: bool = False
    concurrency: int = 8
    poll_seconds: float = 15.0
    timeout: float = 600.0
    max_retries: int = 5

    def __post_init__(self) -> None:
        if self.effort is not None and self.kind == "completions":
            raise UserError("a reasoning effort works with chat only, not with plain completions: leave it out")

    @property
    def path(self) -> str:
        return "/chat/completions" if self.kind == "chat" else "/completions"

    def address(self, model: str) -> Address:
        """The server's address and the key to `model` there.  Errors: UserError."""
        address = parse_address(self.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL)
        key = os.environ.get(self.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(
                f"the environment variable {self.key_variable} holds characters that no key has: set it again"
            )
        if not key and address.shown == DEFAULT_URL:
            raise UserError(
                f"no API key for model '{model}' at {address.shown}: set the environment variable {self.key_variable}, "
                "or name another server with --api-base (a local one needs no key)"
            )
        return replace(address, key=key, secrets=(key, *address.secrets) if key else address.secrets)


@dataclass(frozen=True)
class Address:
    """`shown` has neither user nor query; `base` has the user but no query (a path can be added to it)."""

    shown: str
    base: str
    query: tuple[tuple[str, str], ...]
    secrets: tuple[str, ...]
    key: str = ""

    def clean(self, text: str) -> str:
        """A server's words in one short line, without anything secret."""
        text = text[: 100 * _LONGEST_MESSAGE]
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return one_line(" ".join(text.split()), _LONGEST_MESSAGE)


def parse_address(text: str) -> Address:
    """Reads what `--api-base` or OPENAI_BASE_URL says.  Errors: UserError, which does not repeat it."""
    try:
        parts = urlsplit(text)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            "--api-base or --judge-api-base (or OPENAI_BASE_URL) must be a web address like http://localhost:8000/v1,"
            " not what is given"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/")
    user, at, _ = parts.netloc.rpartition("@")
    query = tuple(parse_qsl(parts.query, keep_blank_values=True))
    name, _, password = user.partition(":")
    hidden = [user, name, password, parts.query, *(pair.partition("=")[2] for pair in parts.query.split("&"))]
    hidden += [unquote(text) for text in hidden] + [value for _, value in query]
    hidden.append(base64.b64encode(unquote(user).encode()).decode())
    return Address(
        shown=f"{parts.scheme}://{host}{port}{path}",
        base=f"{parts.scheme}://{user}{at}{host}{port}{path}",
        query=query,
        secrets=tuple(sorted({text for text in hidden if len(text) >= _SHORTEST_SECRET}, key=len, reverse=True)),
    )


def shown_address(text: object) -> object:
    """What may be stored of a setting that is an address; anything else as it is, for others to refuse."""
    return parse_address(text).shown if isinstance(text, str) else text
