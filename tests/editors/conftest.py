"""Fixtures for the editors' tests."""

from collections.abc import Iterator

import pytest
from fake_server import FakeServer

from api_server import running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A fake OpenAI server, no key in the environment, and next to no wait between the `openai` package's retries."""
    with running(monkeypatch) as fake:
        yield fake
