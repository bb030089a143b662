"""The HTML page: complete, self-contained, and every foreign word in it escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import fake_runs
import pytest

from selfedit.documents import Document, Question
from selfedit.errors import UserError
from selfedit.methods.settings import CompareSettings
from selfedit.reports import build_report, html
from selfedit.runs.records import Answer, FitRecord

HOSTILE = (
    "</script><script>document.title='run'</script>\"'><img src=x onerror=\"document.title='run'\">"
    '<svg onload=alert(1)><a href="javascript:alert(1)">x</a>{{ 7 * 7 }}{% raw '
    "%}<!--<script>]]>\u2028\u2029\x00&lt;\ud800"
)
ALLOWED = set(
    "html head meta link title style body main header section h1 h2 h3 h4 p ul li div span b a table thead "
    "tbody tr th td"
    " details summary svg g line polyline rect circle text figure figcaption article label input select option "
    "button dl dt dd"
    " noscript footer script".split()
)


class Page(HTMLParser):
    """The elements of a page with their attributes, and the texts of its scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self._in = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in self.inline:
            self._in = tag
            self.inline[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = "" if tag == self._in else self._in

    def handle_data(self, data: str) -> None:
        if self._in:
            self.inline[self._in][-1] += data

    @property
    def data(self):
        return json.loads(self.inline["script"][0])


def spell_hostile(text: str) -> str:
    return text + HOSTILE


def spell_for_store(text: str) -> str:
    return text + HOSTILE.replace("\ud800", "")  # SQLite takes no lone surrogate


def build(folder: Path, tmp_path: Path) -> Page:
    return Page(build_report([Path(shutil.copytree(folder, tmp_path / folder.name))]))


def assert_self_contained(page: Page) -> None:
    assert {tag for tag, _ in page.elements} <= ALLOWED
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("src", "srcset", "style", "action") for name in attributes), (
            tag
        )
        if "href" in attributes:
            assert re.fullmatch(r"data:,|#[a-z]+|\./[^:]*", attributes["href"] or "")
    assert len(page.inline["script"]) == 2
    assert len(page.inline["style"]) == 1
    for text in page.inline["style"]:
        assert "url(" not in text
        assert "@import" not in text


def test_page_has_everything_about_a_document(compare_run: Path, tmp_path: Path) -> None:
    page = build(compare_run, tmp_path)
    assert_self_contained(page)
    data = page.data
    assert data["groups"] == ["none", "passage", "self:implications", "self:self-qa", "api:gpt-5"]
    assert data["base"] == 0
    assert len(data["documents"]) == 6
    first = data["documents"][0]
    assert first["text"].startswith("The ")
    assert len(first["questions"]) == 5
    question = first["questions"][0]
    assert {answer[0] for answer in question["a"]} == {0, 1, 2, 3, 4}  # before and after, every condition
    assert sum(answer[4] for answer in question["a"]) <= 1 + 4 * 2
    assert all(answer[2] in ("right", "wrong", "ungraded") for answer in question["a"])
    assert len(first["edits"]) == 3
    assert {fit[0] for fit in first["fits"]} == {1, 2, 3, 4}
    for fit in first["fits"]:
        assert first["seqs"][fit[4]][-1].startswith(first["title"])


def test_policy_lets_only_the_pages_own_script_run(compare_run: Path, tmp_path: Path) -> None:
    page = build(compare_run, tmp_path)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for kind, text in (("script", page.inline["script"][1]), ("style", page.inline["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_figures_stand_in_the_page(compare_run: Path, tmp_path: Path) -> None:
    path = build_report([Path(shutil.copytree(compare_run, tmp_path / "demo"))])
    text = path.read_text(encoding="utf-8")
    summary = json.loads((compare_run / "summary.json").read_text())
    for condition in summary["conditions"]:
        assert f"{100 * condition['accuracy']:.1f}" in text
    for words in (
        "Newly learned",
        "General knowledge",
        "Costs",
        "Versions",
        "Recipe",
        "failed fit",
        "larger than noise",
    ):
        assert words.lower() in text.lower()


def test_step_b_page(train_run: Path, tmp_path: Path) -> None:
    path = build_report([Path(shutil.copytree(train_run, tmp_path / "train"))])
    assert_self_contained(Page(path))
    text = path.read_text(encoding="utf-8")
    for words in (
        "Worth it?",
        "Reward by round",
        "round 2 was selected",
        "documents without signal",
        "Best edit",
        "gpt-5",
    ):
        assert words in text


def test_continual_page_shows_its_steps(compare_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compare_run, tmp_path / "continual"))
    summary = json.loads((folder / "summary.json").read_text())
    known = {"accuracy": 0.375, "ci95": [0.25, 0.5], "documents": 1}
    summary |= {"procedure": "continual", "conditions": summary["conditions"][:1], "differences": None}
    summary["steps"] = [
        {"step": 1, "document": "d0", "new": known, "earlier": None},
        {"step": 2, "document": "d1" + spell_for_store(""), "new": None, "earlier": known},
    ]
    (folder / "summary.json").write_text(json.dumps(summary))
    path = build_report([folder])
    assert_self_contained(Page(path))
    text = path.read_text(encoding="utf-8")
    assert "Step by step" in text
    assert text.count("37.5") >= 3  # both tables' cells and the chart's label
    assert 'id="conditions"' not in text


def test_unfinished_run_says_so_and_shows_what_is_there(partial_run: Path, tmp_path: Path) -> None:
    path = build_report([Path(shutil.copytree(partial_run, tmp_path / "part"))])
    text = path.read_text(encoding="utf-8")
    assert "What is missing" in text
    assert "3 of 6 documents lack fits" in text
    assert "Accuracy so far" in text
    assert any("" in [answer[2] for answer in q["a"]] for d in Page(path).data["documents"] for q in d["questions"])


@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
def test_run_with_a_single_file_still_has_a_page(compare_run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(compare_run / name, tmp_path / "run")
    assert_self_contained(Page(build_report([tmp_path / "run"])))


def test_joint_training_shows_its_one_adapter(tmp_path: Path) -> None:
    folder = tmp_path / "joint"
    document = Document("d0", "T", "text", (Question("q", "Who?", ("A",)),))
    with fake_runs.writing(folder, "compare", CompareSettings(out=folder, regime="joint")) as writer:
        writer.store.add_documents([document])
        for condition, sequences in (("none", ()), ("passage", ("T\ntext",))):
            record = FitRecord(condition, sequences=sequences, train_tokens=9, steps=3, answers=(Answer("q", "A", 1),))
            writer.fit(record, [writer.graded(True)])
        writer.grade()
    data = Page(build_report([folder])).data
    assert data["shared"]["seqs"] == [["T\ntext"]]
    assert [answer[0] for answer in data["documents"][0]["questions"][0]["a"]] == [0, 1]


@pytest.mark.parametrize("write", [fake_runs.write_compare, fake_runs.write_train])
@pytest.mark.parametrize("finished", [True, False])
def test_hostile_fields_add_no_element(tmp_path: Path, write, finished: bool) -> None:
    calm, bad = tmp_path / "calm", tmp_path / "bad"
    write(calm, documents=3, finished=finished)
    write(bad, documents=3, finished=finished, spell=spell_for_store)
    if finished:
        for folder, words in ((calm, ""), (bad, HOSTILE)):
            path = folder / "summary.json"
            summary = json.loads(path.read_text())
            step = {"step": 1, "document": "d0" + words, "new": {"accuracy": 0.5}}
            tried = {
                "settings": {"rank" + words: "r" + words},
                "accuracy": {"self" + words: 0.5},
                "mean": 0.5,
                "chosen": True,
            }
            told = {name: f"{name}{words}" for name in ("model", "device", "grader", "worth_it", "procedure")}
            path.write_text(
                json.dumps(summary | told | {"steps": [step], "sweep": [tried], "events": {"kind" + words: 2}})
            )
    good_page, bad_page = Page(build_report([calm])), Page(build_report([bad]))
    assert_self_contained(bad_page)
    assert [tag for tag, _ in bad_page.elements] == [tag for tag, _ in good_page.elements]
    assert bad_page.inline["script"][1] == good_page.inline["script"][1]
    assert bad_page.data["documents"][0]["title"].endswith(spell_for_store(""))
    raw = (bad / "report.html").read_text(encoding="utf-8")
    assert "49" not in re.findall(r"x</a>(.{2})", raw)


def test_embedded_json_comes_back_as_it_was() -> None:
    value = {"a": [HOSTILE, "<>&", "é漢", None, 1.5], HOSTILE: True}
    text = str(html.embed(value))
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


def test_several_runs_on_one_page(compare_run: Path, partial_run: Path, train_run: Path, tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(run, tmp_path / run.name)) for run in (compare_run, partial_run, train_run)]
    build_report(folders[:1])
    path = build_report(folders)
    assert path == tmp_path / "comparison.html"
    text = path.read_text(encoding="utf-8")
    assert "3 runs compared" in text
    assert 'href="./demo/report.html"' in text
    assert "./part/report.html" not in text  # it has no page yet
    assert (tmp_path / "comparison.png").stat().st_size > 0
    assert (tmp_path / "comparison.svg").stat().st_size > 0
    assert {tag for tag, _ in Page(path).elements} <= ALLOWED


def test_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run directory"):
        build_report([tmp_path])
    with pytest.raises(UserError, match="no run given"):
        build_report([])
