"""The page in a real browser, with script tags and worse in every field: nothing runs, nothing loads."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import fake_runs
import pytest
import yaml

from selfedit.reports import build_report

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
CANARY = "CANARY-RAN"


class Listener:
    """A local server that answers nothing and remembers that somebody called."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                try:
                    self.calls.append(connection.recv(2000))
                    connection.sendall(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                except OSError:
                    self.calls.append(b"")

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)


@pytest.fixture
def listener() -> Iterator[Listener]:
    server = Listener()
    yield server
    server.close()


def payload(address: str) -> str:
    run = f"document.title='{CANARY}'"
    return (
        f"</script><script>{run};fetch('{address}/fetch')</script><script src={address}/script.js></script>"
        f'"\'><img src={address}/image.png onerror="{run}" onload="{run}">'
        f'<svg/onload="{run}"><svg><script>{run}</script>'
        f'<a href="javascript:{run}" autofocus onfocus="{run}" tabindex=1>x</a>'
        f"<iframe src={address}/frame srcdoc='<script>parent.{run}</script>'></iframe>"
        f"<object data={address}/object></object>"
        f"<link rel=stylesheet href={address}/style.css><style>@import '{address}/import.css';</style>"
        f'<meta http-equiv=refresh content="0;url={address}/refresh"><base href="{address}/">'
        f'<details open ontoggle="{run}"></details><video src={address}/video onerror="{run}"></video>'
        f'<body onload="{run}"></title></textarea></style></noscript></template>--><!--<script>]]>'
        f"{{{{ 7*191 }}}}{{% raw %}}${{7*191}}\\u003cscript>{run}\\u003c/script>"
        f"\u2028{run}\u2029\u0085\x0b\x00`;{run};//\\"
    )


def dump_dom(chromium: str, page: Path, profile: Path, fragment: str = "") -> str:
    done = subprocess.run(
        [
            *(chromium, *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=4000"),
            *("--dump-dom", page.as_uri() + fragment),
        ],
        capture_output=True,
        timeout=180,
        check=True,
    )
    return done.stdout.decode("utf-8", "replace")


def title_of(dom: str) -> str:
    found = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert found is not None, dom[:500]
    return found.group(1)


def test_the_canary_would_sing(chromium: str, listener: Listener, tmp_path: Path) -> None:
    """The same words unescaped do run and do load: the tests below can fail."""
    page = tmp_path / "raw.html"
    text = payload(listener.address).replace("http-equiv=refresh", "")
    page.write_text(f"<!doctype html><title>calm</title><script>var a = `{text}", encoding="utf-8")
    dom = dump_dom(chromium, page, tmp_path / "profile")
    assert CANARY in title_of(dom)
    assert listener.calls


@pytest.mark.parametrize("policy", [True, False], ids=["with policy", "escaping alone"])
@pytest.mark.parametrize("write", [fake_runs.write_compare, fake_runs.write_train], ids=["compare", "train"])
def test_nothing_runs_and_nothing_loads(chromium: str, listener: Listener, tmp_path: Path, write, policy: bool) -> None:
    words = payload(listener.address)
    folder = write(tmp_path / "run", documents=3, spell=lambda text: text + words)
    page = build_report([folder])
    if not policy:  # what the page is worth without the browser's help
        text, count = re.subn(
            r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page.read_text(encoding="utf-8")
        )
        assert count == 1
        page = page.with_name("bare.html")
        page.write_text(text, encoding="utf-8")
    dom = dump_dom(chromium, page, tmp_path / "profile", "#all")

    assert listener.calls == []
    assert not title_of(dom).startswith(CANARY)
    opened = re.findall(r'<details class="doc" [^>]*open="">', dom)
    assert len(opened) == (3 if write is fake_runs.write_compare else 7)  # all are open
    assert "training sequence" in dom
    assert "1337" not in re.sub(r"127\.0\.0\.1:\d+", "", dom)  # no template was evaluated
    tags = set(re.findall(r"<([a-z]+)", re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)))
    assert not tags & {"img", "iframe", "object", "video", "base", "textarea", "template", "embed", "form"}
    assert not re.search(
        r"<[a-z]+[^<>]* on[a-z]+=", re.sub(r"<(script|style).*?</\1>|\"[^\"]*\"", "", dom, flags=re.DOTALL)
    )
    assert len(re.findall(r"<script[ >]", dom)) == 1
    assert "&lt;/script&gt;&lt;script&gt;" in dom  # and the words are there to be read


def test_several_hostile_runs_on_one_page(chromium: str, listener: Listener, tmp_path: Path) -> None:
    words = payload(listener.address)
    folders = [
        fake_runs.write_compare(tmp_path / name, documents=1, replicates=1, spell=lambda text: text + words)
        for name in ("a", "b <script>document.title='CANARY-RAN'</script>".replace("/", "_"))
    ]
    page = build_report(folders)
    dom = dump_dom(chromium, page, tmp_path / "profile")
    assert listener.calls == []
    assert title_of(dom) == "2 runs compared"
    assert "<img" not in dom


def test_search_sort_and_filter(chromium: str, tmp_path: Path) -> None:
    """Drives the page's own controls by a script added behind it, in a copy without the policy."""
    folder = fake_runs.write_compare(tmp_path / "run", documents=8, conditions=("none", "passage"))
    text = build_report([folder]).read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", text)
    driver = """<script>
      const list = document.getElementById("list");
      const shown = () => [...document.querySelectorAll(".doc:not([hidden]) .name")].map((node) => node.textContent);
      const set = (id, value, kind) => {
        const box = document.getElementById(id);
        box.value = value;
        box.dispatchEvent(new Event(kind));
        return shown();
      };
      const told = { all: shown() };
      told.search = set("search", " CLOCK port ", "input");
      told.none = set("search", "no such words", "input");
      set("search", "", "input");
      told.title = set("sort", "title", "change");
      told.order = set("sort", "order", "change");
      told.high = set("sort", "high", "change").map((_, index) => list.children[index].dataset.score);
      set("column", "0", "change");
      told.base = [...list.children].map((row) => row.dataset.score);
      told.deltas = document.querySelectorAll(".delta:not([hidden])").length;
      set("column", "1", "change");
      told.changed = document.querySelectorAll(".delta:not([hidden])").length;
      told.learned = set("filter", "learned", "change");
      told.failed = set("filter", "failed", "change");
      const out = document.createElement("pre");
      out.id = "told";
      out.textContent = JSON.stringify(told);
      document.body.append(out);
    </script>"""
    page = tmp_path / "driven.html"
    page.write_text(text.replace("</body>", driver + "</body>"), encoding="utf-8")
    dom = dump_dom(chromium, page, tmp_path / "profile")
    found = re.search(r'<pre id="told">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    told = json.loads(found.group(1))
    assert len(told["all"]) == 8
    assert [name for name in told["all"] if "clock" in name and "Port" in name] == told["search"] != []
    assert told["none"] == []
    assert told["title"] == sorted(told["all"])
    assert told["order"] == told["all"]
    for column, scores in ((1, told["high"]), (0, told["base"])):  # "Judge by" passage at first, then no adaptation
        found = [float(text.split()[column]) for text in scores]
        assert found == sorted(found, reverse=True)
    assert told["deltas"] == 0 < told["changed"]  # what no adaptation changed is nothing
    assert 0 < len(told["learned"]) <= told["changed"]
    assert told["all"][0] in told["failed"]  # a fit of "passage" on the first document fails always
    assert len(told["failed"]) < 8


def test_settings_with_long_names_leave_room_for_their_values(chromium: str, train_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(train_run, tmp_path / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config["resolved"] = {"outer_recipe": {"max_sequence_tokens": 2048}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    text = build_report([folder]).read_text(encoding="utf-8")
    assert "resolved.outer_recipe.max_sequence_tokens" in text
    script = (
        "<script>document.title = Math.min(...[...document.querySelectorAll('.pairs dd')].map("
        "one => one.getBoundingClientRect().width))</script>"
    )
    page = tmp_path / "measured.html"
    page.write_text(re.sub(r"<meta http-equiv=[^>]*>", "", text) + script, encoding="utf-8")
    assert float(title_of(dump_dom(chromium, page, tmp_path / "profile"))) > 100  # else a value has a letter a line
