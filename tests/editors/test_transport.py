"""What the transport and its tests rely on in `openai` and `httpx2`: a version that changes it is named here."""

import inspect
from importlib.metadata import version
from typing import Any

import httpcore2
import httpx2
import openai
import openai._base_client
import pytest
from clients import make_client
from fake_server import FakeServer, Fault, error

from selfedit.editors.endpoint import parse_address
from selfedit.editors.replies import NoAnswer, Refused
from selfedit.editors.transport import Server, _BoundedClient

VERSIONS = f"openai {version('openai')} with httpx2 {version('httpx2')} has changed: "


def test_the_packages_are_as_the_transport_needs_them() -> None:
    def parameters(function: Any) -> set[str]:
        return set(inspect.signature(function).parameters)

    assert issubclass(openai.DefaultAsyncHttpxClient, httpx2.AsyncClient), VERSIONS + "whose the HTTP client is"
    own = parameters(_BoundedClient.send) - {"arguments"}
    assert own <= parameters(httpx2.AsyncClient.send), VERSIONS + "AsyncClient.send"
    for method in (openai.AsyncOpenAI.get, openai.AsyncOpenAI.post):
        assert {"path", "cast_to", "options"} <= parameters(method), VERSIONS + method.__name__


def test_the_packages_are_as_the_tests_need_them() -> None:
    assert hasattr(openai._base_client, "INITIAL_RETRY_DELAY"), VERSIONS + "where the first wait between retries is"
    assert hasattr(httpcore2, "default_ssl_context"), VERSIONS + "what makes the TLS context"


@pytest.mark.parametrize(("status", "tries"), [(408, 3), (409, 3), (429, 3), (500, 3), (503, 3), (400, 1), (422, 1)])
def test_the_package_tries_again_what_may_pass(server: FakeServer, status: int, tries: int) -> None:
    server.faults.extend([Fault(status, error("no"))] * tries)
    asker = make_client(server.url, max_retries=2)
    with pytest.raises(Refused) as caught:
        asker.server.ask("/chat/completions", {"messages": [{"content": "a"}]})
    asker.close()
    assert (caught.value.status, caught.value.message) == (status, "no")
    assert len(server.completions) == tries, VERSIONS + "which errors are tried again"


def test_a_broken_connection_and_a_silent_server_are_told_apart(server: FakeServer) -> None:
    asker = Server(parse_address(server.url), timeout=1, max_retries=0)
    body = {"messages": [{"content": "a"}]}
    for fault, said in ((Fault(cut=True), "the connection broke"), (Fault(hang=True), "no whole answer within 1 s")):
        server.faults.append(fault)
        with pytest.raises(NoAnswer, match=said):
            asker.ask("/chat/completions", body)
    asker.close()
