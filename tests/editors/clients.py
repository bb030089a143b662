"""Clients and requests as these tests need them."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from selfedit.editors.api import ApiClient, ApiRequest, ApiStore
from selfedit.editors.endpoint import Endpoint
from selfedit.editors.prices import Budget


class MemoryStore(ApiStore):
    """An ApiStore that lasts as long as the process."""

    def __init__(self) -> None:
        self.replies: dict[str, dict[str, Any]] = {}
        self.batches: dict[str, tuple[str, str]] = {}

    def transaction(self) -> AbstractContextManager[None]:
        return nullcontext()

    def get(self, key: str) -> dict[str, Any] | None:
        return self.replies.get(key)

    def put(self, key: str, model: str, request: Any, response: dict[str, Any], *tokens: int) -> None:
        self.replies[key] = response

    def get_batch(self, key: str) -> tuple[str, str] | None:
        return self.batches.get(key)

    def put_batch(self, key: str, batch_id: str, status: str) -> None:
        self.batches[key] = (batch_id, status)


def make_client(
    url: str,
    model: str = "m",
    *,
    store: Any = None,
    price: Any = None,
    budget: Any = None,
    on_poll: Any = None,
    **more: Any,
) -> ApiClient:
    """A client of an endpoint with these settings: by default few retries and next to no wait."""
    store = MemoryStore() if store is None else store
    settings = {"max_retries": 2, "poll_seconds": 0.002} | more
    return ApiClient(model, Endpoint(url, **settings), store, price, budget or Budget(), on_poll)


def chat(text: str, **settings: Any) -> ApiRequest:
    return ApiRequest(({"role": "user", "content": text},), **settings)
