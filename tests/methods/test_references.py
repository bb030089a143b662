"""Reference lines: the model as it is, asked with passages in its prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from counting_pool import CountingPool
from making import Make
from run_content import content

from selfedit.documents import Document, Question
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.execution.tasks import CompletionTask
from selfedit.methods.compare import compare
from selfedit.methods.learn import learn
from selfedit.methods.plan import plan
from selfedit.methods.references import REFERENCES
from selfedit.methods.settings import CompareSettings, LearnSettings, SweepSettings
from selfedit.methods.sweep import sweep
from selfedit.runs.store import Store
from summary_fields import undeclared
from tiny_world import rows, write_rows


def prompts(pool: CountingPool, condition: str) -> dict[str, list[str]]:
    """The prompts of a condition's exam, by the id of the exam."""
    found: dict[str, list[str]] = {}
    for task in pool.tasks:
        if isinstance(task, CompletionTask) and task.id.startswith(f"exam/0/{condition}/"):
            for id, request in zip(task.ids, task.requests, strict=True):
                found.setdefault(id, []).append(pool.tokenizer.hf.decode(request.prompt))
    return found


@pytest.mark.parametrize("kind", ["chat", "base"])
def test_open_book_asks_each_question_with_its_own_document(
    kind: str, quick: dict[str, Any], documents: Callable[[int], str], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(f"{kind}_model")
    settings = CompareSettings(
        model=model, documents=(documents(3),), editor=("open-book", "passage"), **{**quick, "general_questions": 2}
    )
    pool = CountingPool(model)
    summary = compare(settings, pool=pool)
    assert [c.name for c in summary.conditions] == ["none", "passage", "open-book"]
    opened = summary.conditions[-1]
    assert (opened.graded, opened.train_tokens, opened.edit_tokens, opened.failed_fits) == (6, 0, 0, 0)
    assert opened.seconds > 0
    assert not any("open-book" in id for id in pool.fits)

    asked = prompts(pool, "open-book")
    # General questions are for what adapters forget; here there is none.
    assert set(asked) == {f"0|d{k}|open-book|0" for k in range(3)}
    for k, row in enumerate(rows(3)):
        texts = asked[f"0|d{k}|open-book|0"]
        assert len(texts) == 2
        for text, question in zip(texts, row["questions"], strict=True):
            assert f"{row['title']}\n{row['text']}\n\nTopic: {row['title']}\n" in text
            assert question["question"] in text
            assert not any(other["text"] in text for other in rows(3) if other["id"] != row["id"])
    assert all(row["text"] not in text for texts in prompts(pool, "none").values() for text in texts for row in rows(3))


def test_retrieval_asks_each_question_with_the_documents_found_for_it(make: Make, chat_model: str) -> None:
    editors = ("retrieval:1", "retrieval:2", "retrieval:9")
    settings = make(CompareSettings, 4, editor=editors)
    pool = CountingPool(chat_model)
    summary = compare(settings, pool=pool)
    assert [c.name for c in summary.conditions] == ["none", *editors]
    assert [c.graded for c in summary.conditions] == [8] * 4
    for name, shown in zip(editors, (1, 2, 4), strict=True):
        for id, texts in prompts(pool, name).items():
            own = next(row for row in rows(4) if f"|{row['id']}|" in id)
            for text in texts:
                at = {row["id"]: text.index(row["text"]) for row in rows(4) if row["text"] in text}
                assert len(at) == shown
                assert min(at, key=lambda id: at[id]) == own["id"]  # it has the most words in common, and comes first


def test_the_summary_has_the_share_of_open_book_and_the_cost_of_a_question(make: Make, chat_model: str) -> None:
    settings = make(
        CompareSettings, 8, editor=("open-book", "retrieval:2", "passage"), replicates=2, general_questions=2
    )
    pool = CountingPool(chat_model)
    summary = compare(settings, pool=pool)
    by_name = {c.name: c for c in summary.conditions}
    opened = by_name["open-book"].accuracy
    assert opened
    for condition in summary.conditions:
        assert condition.accuracy is not None
        assert condition.of_open_book == pytest.approx(condition.accuracy / opened)
    assert by_name["open-book"].of_open_book == 1.0
    assert by_name["passage"].question_tokens is by_name["passage"].question_seconds is None
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        seconds = {c.condition: c.seconds for c in store.costs() if c.what == "answers"}
        for name in ("none", "open-book", "retrieval:2"):  # an exam's are its share of its task's
            assert sum(exam.seconds for exam in store.fits(condition=name)) == pytest.approx(seconds[name])
    for name in ("none", "open-book", "retrieval:2"):
        tasks = [t for t in pool.tasks if isinstance(t, CompletionTask) and t.id.startswith(f"exam/0/{name}/")]
        requests = [request for task in tasks for request in task.requests]
        assert by_name[name].question_tokens == pytest.approx(sum(len(r.prompt) for r in requests) / len(requests))
        assert by_name[name].question_seconds == pytest.approx(seconds[name] / len(requests))
    cost = [by_name[name].question_tokens or 0 for name in ("none", "open-book", "retrieval:2")]
    assert cost == sorted(cost)
    assert list(undeclared(summary)) == []


def test_without_open_book_there_is_no_share(make: Make) -> None:
    settings = make(CompareSettings, 2, editor=("retrieval:1",))
    for condition in compare(settings).to_json()["conditions"]:
        assert "of_open_book" not in condition
        assert condition["question_tokens"] > 0


def found(texts: list[str], asked: str, title: str = "", k: int = 9) -> str:
    """The documents, named a, b, c, ..., that are shown with a question."""
    some = [Document(name, "", text) for name, text in zip("abcdef", texts, strict=False)]
    passages = REFERENCES["retrieval"](EditorSpec("retrieval", str(k)), some)
    return "".join(document.id for document in passages(Document("x", title, ""), Question("q", asked, ("",))))


def test_retrieval_ranks_by_rare_words_in_question_and_topic(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["the boat is in the bay", "the kite is in the bay", "a kite by Ada, in the bay"]
    assert found(texts, "Who made the boat?") == "abc"
    assert found(texts, "Whose kite?", k=2) == "bc"
    assert found(texts, "Whose kite?", "Ada") == "cba"
    assert found(["Ключ у Анны", "Дом у моря"], "Где дом?", k=1) == "b"
    assert caplog.records == []  # the library's own messages are not the user's


@pytest.mark.parametrize("texts", [["one", "two"], ["...", "!"], ["", ""]])
@pytest.mark.parametrize("asked", ["three", "?"])
def test_retrieval_shows_the_first_documents_where_nothing_is_in_common(texts: list[str], asked: str) -> None:
    assert found(texts, asked) == "ab"
    assert found(texts, asked, k=1) == "a"


def test_a_resumed_run_asks_what_is_missing_and_ends_alike(make: Make, chat_model: str, tmp_path: Path) -> None:
    settings = make(CompareSettings, 3, editor=("open-book",))
    whole = settings.model_copy(update={"out": tmp_path / "whole"})
    compare(whole)
    pool = CountingPool(chat_model)
    pool.gives_up = lambda task: task.id.startswith("exam/0/open-book/")
    broken = compare(settings, pool=pool)
    assert broken.conditions[-1].accuracy is None
    again = CountingPool(chat_model)
    compare(settings, pool=again)
    assert [task.id for task in again.tasks] == ["exam/0/open-book/0"]
    assert content(settings.out) == content(whole.out)


def test_a_plan_counts_the_longer_prompts(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    common = {"model": chat_model, "documents": (documents(3),), **quick}
    closed = plan(compare, CompareSettings(**common, editor=("none",)))
    opened = plan(compare, CompareSettings(**common, editor=("open-book",)))
    assert (opened.fits, opened.answers) == (0, closed.answers + 6)
    assert opened.flops > 2.5 * closed.flops
    found = plan(compare, CompareSettings(**common, editor=("retrieval:2",)))
    assert (found.fits, found.answers) == (0, opened.answers)
    assert found.flops - closed.flops > 1.2 * (opened.flops - closed.flops)


@pytest.mark.parametrize(
    ("editor", "times", "remedy"),
    [
        ("open-book", 200, "cut document d1 into shorter ones"),
        ("retrieval:1", 200, "cut document d1 into shorter ones"),
        ("retrieval:2", 45, "show fewer than 2 documents with it"),
    ],
)
def test_passages_that_do_not_fit_are_refused_before_any_work(
    editor: str, times: int, remedy: str, quick: dict[str, Any], chat_model: str
) -> None:
    long = rows(2)
    for row in long[1:] if times > 45 else long:
        row["text"] = " ".join([row["text"]] * times)
    file = write_rows(quick["out"].parent / "long.jsonl", long)
    settings = CompareSettings(model=chat_model, documents=(str(file),), editor=("passage", editor), **quick)
    pool = CountingPool(chat_model)
    with pytest.raises(UserError, match=rf"longer than the [\d,]+ tokens that the model reads; {remedy}"):
        compare(settings, pool=pool)
    assert pool.tasks == []
    with Store(quick["out"] / "run.sqlite") as store:
        assert store.documents() == []


def test_where_something_must_be_learned_it_is_refused(make: Make) -> None:
    settings = make(LearnSettings, 1, editor="open-book")
    with pytest.raises(UserError, match="--editor open-book: there is nothing to learn from"):
        learn(settings)
    swept = make(SweepSettings, 2, editor=("open-book",), grid=("rank=2,4",))
    with pytest.raises(UserError, match="--editor open-book: there is nothing to learn from"):
        sweep(swept)
