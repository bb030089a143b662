"""Clients and requests as these tests need them."""

from typing import Any

from selfedit.editors.api import ApiClient, ApiRequest
from selfedit.editors.endpoint import Endpoint


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
    settings = {"max_retries": 2, "poll_seconds": 0.002} | more
    return ApiClient(model, Endpoint(url, **settings), store=store, price=price, budget=budget, on_poll=on_poll)


def chat(text: str, **settings: Any) -> ApiRequest:
    return ApiRequest(messages=({"role": "user", "content": text},), **settings)
