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
from selfedit.reports import build_report, table
from selfedit.reports.console import plain_text
from selfedit.reports.records import mean_score, read_run
from selfedit.reports.report import report
from selfedit.runs.records import Answer, FitRecord

HOSTILE = (
    "</script><script>document.title='run'</script>\"'><img src=x onerror=\"document.title='run'\">"
    '<svg onload=alert(1)><a href="javascript:alert(1)">x</a>{{ 7 * 7 }}{% raw '
    "%}<!--<script>]]>\u2028\u2029\x00&lt;\ud800"
)
ALLOWED = set(
    "html head meta link title style body main header section h1 h2 h3 h4 p ul ol li div span b a table thead tbody tr"
    " th td details summary figure figcaption article label input select option button dl dt dd footer script"
    " svg g line rect path use text defs clippath pattern".split()
)
VOID = {"meta", "link", "input"}


class Element:
    """An element of a page: its tag, attributes and children, and the words in it."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Element | str] = []

    def all(self, tag: str, name: str = "") -> list[Element]:
        """The elements of a tag, and of a class, in here."""
        inside = [child for child in self.children if isinstance(child, Element)]
        found = [e for e in inside if e.tag == tag and (not name or name in (e.attributes.get("class") or "").split())]
        return found + [element for child in inside for element in child.all(tag, name)]

    @property
    def words(self) -> str:
        return "".join(child if isinstance(child, str) else child.words for child in self.children)


class Page(HTMLParser):
    """The elements of a page, as a list and as a tree."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == [self.root], [element.tag for element in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        element = Element(tag, dict(attrs))
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    @property
    def documents(self) -> list[Element]:
        return self.root.all("details", "doc")


def tags(element: Element) -> list[str]:
    """The tags in an element, but for the insides of charts, where a longer name is more lines."""
    chart = (element.attributes.get("class") or "") == "chart"
    inside = [child for child in element.children if isinstance(child, Element) and not chart]
    return [element.tag, *(tag for child in inside for tag in tags(child))]


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
        for name in ("href", "xlink:href"):
            if name in attributes:
                assert re.fullmatch(r"data:,|#[a-z0-9-]+|\./[^:]*", attributes[name] or "")
        for value in attributes.values():
            assert "url(" not in (value or "") or re.fullmatch(r"url\(#[a-z0-9-]+\)", value or "")
    assert len(page.root.all("script")) == 1
    (style,) = page.root.all("style")
    assert "url(" not in style.words
    assert "@import" not in style.words
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_page_has_everything_about_a_document(compare_run: Path, tmp_path: Path) -> None:
    page = build(compare_run, tmp_path)
    assert_self_contained(page)
    names = ["none", "passage", "self:implications", "self:self-qa", "api:gpt-5"]
    (judged,) = [e for e in page.root.all("select") if e.attributes["id"] == "column"]
    assert [option.words for option in judged.all("option")] == names
    assert len(page.documents) == 6
    first = page.documents[0]
    (name,), (source,) = first.all("span", "name"), first.all("div", "source")
    assert source.words.startswith("The ")
    questions = first.all("div", "q")
    assert len(questions) == 5
    for question in questions:  # before and after, every condition
        terms = [re.sub("(newly learned|forgotten)$", "", term.words) for term in question.all("dt")]
        assert terms == ["before (none)", *names[1:]]
        assert "Gold answer: " in question.words
        given = [line.words for answers in question.all("dd") for line in answers.all("div")]
        fits = [int(found[1]) if (found := re.search(r"×(\d+)", line)) else 1 for line in given]
        assert 4 <= sum(fits) <= 1 + 4 * 2
        signs = {sign.attributes["aria-label"] for sign in question.all("span", "v")}
        assert signs <= {"right", "wrong", "ungraded"}
    edits = [e for e in first.all("div", "edit") if e.all("div", "text")]
    assert [edit.all("p", "caption")[0].words.split(",")[0] for edit in edits] == names[2:]
    (passage,) = [e for e in first.all("div", "edit") if not e.all("div", "text")]
    assert passage.all("p", "caption")[0].words == "passage"
    for trained in (*edits, passage):
        assert "3,300 tokens · 72 steps · loss " in trained.words
        assert trained.all("li")[-1].words.startswith(name.words)


def test_the_page_holds_what_learned_against_open_book(tmp_path: Path) -> None:
    folder = fake_runs.write_compare(tmp_path / "run", conditions=("none", "passage", "open-book"))
    page = Page(build_report([folder]))
    summary = read_run(folder).summary
    assert summary is not None
    _, passage, opened = summary.conditions
    assert passage.of_open_book == pytest.approx((passage.accuracy or 0) / (opened.accuracy or 0))
    share = f"{100 * (passage.of_open_book or 0):.1f}"
    (said,) = page.root.all("p", "finding")
    # What looks answers up is right most often, and no rival.
    assert said.words.startswith("Accuracy: “passage”")
    assert said.words.endswith(f"That is {share} % of what “open-book” reaches.")
    table = page.root.all("table", "figures")[1]
    assert "of open book, %" in table.words
    (row,) = [row for row in table.all("tr") if row.words.startswith("passage")]
    assert row.all("td")[0].words == share
    without = Page(build_report([fake_runs.write_compare(tmp_path / "other", conditions=("none", "passage"))]))
    assert not any("open book" in table.words for table in without.root.all("table", "figures"))


def test_what_the_list_says_of_a_document_is_what_its_answers_say(compare_run: Path, tmp_path: Path) -> None:
    """Bars, figures to sort by and what was learned are computed once, and are those of the store."""
    page = build(compare_run, tmp_path)
    run = read_run(compare_run)
    names = ["none", "passage", "self:implications", "self:self-qa", "api:gpt-5"]
    for document, shown in zip(run.documents, page.documents, strict=True):
        asked = {question.id for question in document.questions}
        scores = [
            mean_score(g for g in run.answers if g.question_id in asked and g.condition == name) for name in names
        ]
        assert (shown.attributes["data-score"] or "").split() == [
            "-1.000" if score is None else f"{score:.3f}" for score in scores
        ]
        (bars,) = shown.all("svg", "spark")
        assert len(bars.all("rect")) == sum(score is not None for score in scores)
        learned = [int(number) for number in (shown.attributes["data-learned"] or "").split()]
        badges = [term.words for term in shown.all("dt") if term.all("span", "learned")]
        assert learned == [badges.count(f"{name}newly learned") for name in names]
    flags = {flag for shown in page.documents for flag in (shown.attributes["data-flags"] or "").split()}
    assert flags == {"failed", "cut", "ungraded"}


def test_without_its_script_the_page_shows_its_documents_and_no_controls(compare_run: Path, tmp_path: Path) -> None:
    page = build(compare_run, tmp_path)
    assert all("hidden" in tools.attributes for tools in page.root.all("div", "tools"))
    assert not any("hidden" in document.attributes for document in page.documents)


def test_a_column_of_the_signal_names_its_document(train_run: Path, tmp_path: Path) -> None:
    page = build(train_run, tmp_path)
    (rewards,) = [s for s in page.root.all("svg") if (s.attributes.get("aria-label") or "").endswith("in round 1")]
    titles = {document.title for document in read_run(train_run).documents[:8]}
    assert {title.words for title in rewards.all("title")} == titles


def test_policy_lets_only_the_pages_own_script_run(compare_run: Path, tmp_path: Path) -> None:
    page = build(compare_run, tmp_path)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for kind, text in ((kind, page.root.all(kind)[0].words) for kind in ("script", "style")):
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
    spread = {"mean": 0.25, "deviation": 0.125}
    summary["retention"] = [
        {"retain": retain, "sequences": 2, "accuracy": [[0.5], [None, 1.0]], "deviation": [[0.1], [None, 0.0]]}
        | {"average": spread, "backward": {"mean": -0.25}}
        for retain in ("none", "edits")
    ]
    summary["updates"] = [{"condition": "after", "asked": 8, "new": 0.75, "old": 0.125}]
    (folder / "summary.json").write_text(json.dumps(summary))
    path = build_report([folder])
    assert_self_contained(Page(path))
    text = path.read_text(encoding="utf-8")
    assert "Step by step" in text
    assert text.count("25.0 ± 12.5") == 2
    assert text.count("−25.0") == 2
    assert text.count("mean of 2 sequences</figcaption>") == 2, "a heat map each"
    assert [path.name for path in report([folder], charts=True)[1]][:1] == ["matrix-none.png"]
    console = plain_text(table.summary_view(read_run(folder)))
    assert "25.0 ± 12.5" in console
    assert "75.0% are the new one's and 12.5% still the old one's" in " ".join(console.split())
    assert text.count("37.5") >= 3  # the table's cells and the chart's label
    assert 'id="conditions"' not in text


def test_unfinished_run_says_so_and_shows_what_is_there(partial_run: Path, tmp_path: Path) -> None:
    path = build_report([Path(shutil.copytree(partial_run, tmp_path / "part"))])
    text = path.read_text(encoding="utf-8")
    assert "What is missing" in text
    assert "3 of 6 documents lack fits" in text
    assert "Accuracy so far" in text
    assert 'aria-label="no grade yet"' in text


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
    page = Page(build_report([folder]))
    (shared,) = page.root.all("div", "shared")
    assert [sequence.words for sequence in shared.all("li")] == ["T\ntext"]
    assert [term.words for term in page.documents[0].all("dt")] == ["before (none)", "passage"]


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
                "number": 1,
                "settings": {"rank" + words: "r" + words},
                "accuracy": 0.5,
                "lost": 0.1,
                "chosen": True,
            }
            told = {name: f"{name}{words}" for name in ("model", "device", "grader", "worth_it", "procedure", "choice")}
            path.write_text(
                json.dumps(summary | told | {"steps": [step], "sweep": [tried], "events": {"kind" + words: 2}})
            )
    good_page, bad_page = Page(build_report([calm])), Page(build_report([bad]))
    assert_self_contained(bad_page)
    assert tags(bad_page.root) == tags(good_page.root)
    assert bad_page.root.all("script")[0].words == good_page.root.all("script")[0].words
    for text in (bad_page.documents[0].all("span", "name")[0], *bad_page.documents[0].all("div", "text")):
        assert HOSTILE[:20] in text.words
    raw = (bad / "report.html").read_text(encoding="utf-8")
    assert "49" not in re.findall(r"x</a>(.{2})", raw)


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
    with pytest.raises(UserError, match="not the directory of a run"):
        build_report([tmp_path])
    with pytest.raises(UserError, match="no run given"):
        build_report([])
