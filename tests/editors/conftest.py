"""Fixtures for the editors' tests."""

import functools
from collections.abc import Callable, Iterator

import pytest
from fake_server import FakeServer


@pytest.fixture(scope="session")
def one_ssl_context() -> Callable[..., object]:
    """Every client reads all certificate authorities, which takes longer than most tests: here one context serves
    all."""
    import httpcore2

    return functools.cache(httpcore2.default_ssl_context)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, one_ssl_context: Callable[..., object]) -> Iterator[FakeServer]:
    """A fake OpenAI server, no key in the environment, and next to no wait between the library's retries."""
    import openai._base_client

    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("httpcore2.default_ssl_context", one_ssl_context)
    fake = FakeServer()
    yield fake
    fake.stop()
