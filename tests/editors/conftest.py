"""Fixtures for the editors' tests."""

from collections.abc import Iterator

import pytest
from fake_server import FakeServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A fake OpenAI server, no key in the environment, and next to no wait between the library's retries."""
    import openai._base_client

    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.001)
    fake = FakeServer()
    yield fake
    fake.stop()
