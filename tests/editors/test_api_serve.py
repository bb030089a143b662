"""The API client against a real server: `transformers serve` with the bundled model, started here, offline.

What that server does not offer: batches (no files either), a JSON schema and a reasoning effort (it ignores them), a
key; and it samples only if the model's own generation settings say so, whatever the temperature."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from clients import MemoryStore, chat, make_client

from selfedit.editors.api import ApiClient, ApiRequest
from selfedit.editors.endpoint import Endpoint
from selfedit.errors import UserError
from serving import needs_serving, serving

pytestmark = [
    pytest.mark.model,
    needs_serving,
]


@dataclass(frozen=True)
class Served:
    url: str
    model: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Served]:
    from selfedit.models import local_path

    try:
        model = str(local_path("smollm2-135m"))
    except UserError as error:
        pytest.skip(f"the bundled model is not there: {error}")
    with serving(model, free_port(), tmp_path_factory.mktemp("serve")) as url:
        yield Served(url, model)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def hello(max_tokens: int = 6, **settings) -> ApiRequest:
    return chat("What is the capital of France?", max_tokens=max_tokens, temperature=0.0, **settings)


def test_chat(served: Served) -> None:
    cache = MemoryStore()
    asker = make_client(served.url, served.model, store=cache)
    whole, cut = asker.complete([hello(40), hello(3)])
    assert whole.error is None
    assert "Paris" in whole.text
    assert not whole.truncated
    assert cut.truncated
    assert cut.output_tokens == 3
    assert whole.text.startswith(cut.text)
    assert whole.input_tokens == cut.input_tokens > 10
    assert whole.paid
    assert len(cache.replies) == 2
    assert not asker.complete([hello(3)])[0].paid


def test_plain_completions(served: Served) -> None:
    asker = make_client(served.url, served.model, kind="completions")
    (result,) = asker.complete([ApiRequest("The capital of France is", max_tokens=4, temperature=0.0)])
    assert result.error is None
    assert "Paris" in result.text
    assert (result.input_tokens, result.output_tokens) == (5, 4)


def test_what_the_server_does_not_offer_does_no_harm(served: Served) -> None:
    schema = {"type": "object", "properties": {"verdict": {"type": "string"}}}
    asker = make_client(served.url, served.model, effort="low")
    (result,) = asker.complete([hello(json_schema=schema)])
    assert result.error is None
    # More than the reply's own bound: the effort makes room for reasoning.
    assert 6 < result.output_tokens < 20


def test_the_server_samples_when_its_own_settings_say_so(served: Served) -> None:
    # `generation_config` is this server's own addition to a request.
    settings = json.dumps({"do_sample": True, "eos_token_id": 2, "pad_token_id": 2})

    class Sampling(ApiClient):
        def body(self, request: ApiRequest) -> dict[str, Any]:
            return super().body(request) | {"generation_config": settings}

    endpoint = Endpoint(served.url, concurrency=1)
    requests = [chat("Write a story.", max_tokens=8, temperature=1.0, seed=s, sample=s) for s in range(3)]
    texts, again = (
        [result.text for result in Sampling(served.model, endpoint, MemoryStore()).complete(requests)] for _ in range(2)
    )
    assert len(set(texts)) > 1
    assert again == texts


def test_a_model_that_the_server_does_not_have(served: Served) -> None:
    with pytest.raises(UserError, match="does not know model 'nonesuch'"):
        make_client(served.url, "nonesuch").complete([hello()])


def test_the_server_has_no_batches(served: Served) -> None:
    with pytest.raises(UserError, match="offers no batches"):
        make_client(served.url, served.model, batch=True).complete([hello()])
