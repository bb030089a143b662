"""The address of a server: what is shown and stored of it, and what stays between the user and the server.

Providers take keys as a user's password or in the query (`https://me:secret@host/v1?api-version=1&key=secret`), so
neither is ever shown or stored."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from selfedit.errors import UserError

_SHORTEST_SECRET = 4  # replacing shorter texts would only make messages unreadable


@dataclass(frozen=True)
class Address:
    """`shown` has neither user nor query, `base` has the user but no query (a path can be added to it); `secrets` are
    texts that must not be seen in a message of the server's either."""

    shown: str
    base: str
    query: tuple[tuple[str, str], ...]
    secrets: tuple[str, ...]


def parse_address(text: str) -> Address:
    """Reads what `--api-base` or OPENAI_BASE_URL says.  Errors: UserError, which does not repeat it."""
    try:
        parts = urlsplit(text)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            "--api-base (or OPENAI_BASE_URL) must be a web address like http://localhost:8000/v1, and what is "
            "given is none"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/")
    user, at, _ = parts.netloc.rpartition("@")
    query = tuple(parse_qsl(parts.query, keep_blank_values=True))
    name, _, password = user.partition(":")
    seen = [user, name, password, unquote(user), unquote(name), unquote(password), parts.query]
    seen += [value for _, value in query] + [pair.partition("=")[2] for pair in parts.query.split("&")]
    seen.append(base64.b64encode(unquote(user).encode()).decode())
    return Address(
        shown=f"{parts.scheme}://{host}{port}{path}",
        base=f"{parts.scheme}://{user}{at}{host}{port}{path}",
        query=query,
        secrets=tuple(sorted({secret for secret in seen if len(secret) >= _SHORTEST_SECRET}, key=len, reverse=True)),
    )


def shown_address(text: object) -> object:
    """What may be stored of a setting that is an address; anything else as it is, for others to refuse."""
    return parse_address(text).shown if isinstance(text, str) else text
