"""Where a model is: folders, the hub's local cache, the hub; what cannot be had is told at once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from selfedit.errors import UserError
from selfedit.models import finding, load_model, local_path


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch, status: int) -> Iterator[list[str]]:
    """A stand-in for the hub that answers every request with a status; gives the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    finding._on_hub.cache_clear()
    yield tmp_path
    finding._on_hub.cache_clear()


@pytest.fixture
def cached(cache: Path) -> Path:
    """`someone/small` in the local cache."""
    snapshot = cache / "models--someone--small" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    return snapshot


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert local_path(str(tmp_path)) == str(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"not a local folder with a causal language model \(config.json is missing"):
        local_path(str(tmp_path / "empty"))
    for name in (str(tmp_path / "typo"), "../typo", "a/b/c", "", "a b", "a\nb", "~/x", "a b" * 1000):
        with pytest.raises(UserError, match=r"there is no such folder\), and no name on the hub"):
            local_path(name)
    for name in ("-typo", "a--b", "typo.git"):
        with pytest.raises(UserError, match="no name on the hub"):
            local_path(name)


def test_a_name_that_is_nowhere_is_told_after_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(monkeypatch, 404) as asked, pytest.raises(UserError, match=r"someone/typo: .* is the name right\?"):
        load_model("someone/typo")
    assert asked == ["/someone/typo/resolve/main/config.json"]


@pytest.mark.parametrize("status", [200, 302, 403, 429, 500])
def test_what_the_hub_may_have_is_left_to_its_library(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with hub(monkeypatch, status) as asked:
        assert local_path("someone/large") == local_path("someone/large") == "someone/large"
    assert len(asked) == 1


def test_no_hub(monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int], cached: Path) -> None:
    at(monkeypatch, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match=r"someone/typo: no local folder, .* cannot be reached"):
        load_model("someone/typo")
    # What is in the cache is loaded from there, without a further look at the hub.
    assert local_path("someone/small") == cached


def test_a_slow_hub_is_no_missing_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "_PATIENCE", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes the call and says nothing
        at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert local_path("someone/large") == "someone/large"


def test_offline_by_choice(monkeypatch: pytest.MonkeyPatch, cached: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_path("someone/small") == cached
    with pytest.raises(UserError, match=r"someone/typo: .* HF_HUB_OFFLINE"):
        local_path("someone/typo")
