"""The editors' fake API server for all tests that need one, without waits between retries and with no key in the
environment."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).with_name("editors")))


@functools.cache
def one_ssl_context() -> Callable[..., object]:
    """A client reads all certificate authorities, which takes longer than most tests: here one context serves all."""
    import httpcore2

    return functools.cache(httpcore2.default_ssl_context)


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import openai._base_client
    from fake_server import FakeServer

    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    # Private names: `editors/test_transport.py` says when a version of `openai` or `httpcore2` has changed them.
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("httpcore2.default_ssl_context", one_ssl_context())
    server = FakeServer()
    try:
        yield server
    finally:
        server.stop()


def reply(text: str) -> dict[str, Any]:
    """What a server sends that has this to say."""
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"id": "c", "choices": [choice], "usage": usage}
