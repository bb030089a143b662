"""Edits whose questions the model itself answers, with the document before them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from counting_pool import CountingPool
from run_content import content

from selfedit.editors.cleaning import questions
from selfedit.engine import decode
from selfedit.errors import UserError
from selfedit.execution.tasks import CompletionTask
from selfedit.methods.compare import compare
from selfedit.methods.plan import plan
from selfedit.methods.selection import Choices
from selfedit.methods.settings import CompareSettings
from selfedit.reports.findings import missing
from selfedit.reports.records import read_run
from selfedit.reports.watching import planned_fits
from selfedit.runs.directory import RunDirectory
from selfedit.runs.store import Store
from tiny_world import rows, write_rows

EDIT = "{0} was busy.\nQuestion: Where did {0} make it?\nAnswer: Nowhere\nQuestion: What did it cost?\nAnswer: Much"


def test_an_answer_is_kept_if_most_samples_agree_with_it() -> None:
    answers = {
        "Where?": ["in\nOslo", "Oslo", "It was in Oslo.", "Lima", ""],
        "Who?": ["Ada", "Ada", "Bo", "Cy", "Bo"],
        "When?": ["", "", "", "", ""],  # was cut off
    }
    edit = "Ada made it.\nQuestion: Where?\nAnswer: Rome\nQuestion: Who?\nAnswer: Bo\nQuestion: Why?\nIt was blue."
    assert Choices().answered(edit, answers) == "Ada made it.\nIt was blue.\nQuestion: Where?\nAnswer: in Oslo"
    assert Choices().answered("Ada made it.", {}) == "Ada made it."


def test_a_question_is_found_in_whatever_form_it_was_written() -> None:
    lines = [
        "Question: Where was it?",
        "Answer: Oslo",
        "**Who made it?**",
        "Response: Ada made it.",
        "Anna: What did it cost?",
        "Ben: It cost 3 coins.",
        "Q2: Name the maker",
        "Was it blue? No.",
        "Where was it?",
        "Ada made it. Who else?",
    ]
    asked = ["Where was it?", "Who made it?", "What did it cost?", "Name the maker", "Was it blue?"]
    assert questions(lines) == (asked, ["Response: Ada made it.", "Ben: It cost 3 coins.", "Ada made it. Who else?"])


@pytest.fixture
def settings(quick: dict[str, Any], tmp_path: Path, chat_model: str) -> Callable[..., CompareSettings]:
    """Three documents; the edits of the first two ask questions."""
    some = rows(3)
    for row in some[:2]:
        row["edits"] = {"expert": [EDIT.format(row["title"].split()[0])]}
    some[2]["edits"] = {"expert": [some[2]["text"]]}
    file = str(write_rows(tmp_path / "asking.jsonl", some))

    def make(out: str = "run", **more: Any) -> CompareSettings:
        chosen = {**quick, "out": tmp_path / out, "editor": (f"replay:{file}",), "max_edit_tokens": 64, **more}
        return CompareSettings(model=chat_model, documents=(file,), teacher="open-book", **chosen)

    return make


class Certain(Choices):
    """All samples agree with the first answer."""

    def answered(self, edit: str, answers: Any) -> str:
        return super().answered(edit, {question: [some[0]] * len(some) for question, some in answers.items()})


def test_the_model_answers_with_the_document_in_its_prompt(settings: Callable[..., CompareSettings]) -> None:
    chosen = settings(task_size=64)
    compare(chosen, pool=(pool := CountingPool(chosen.model)), choices=Certain())
    (task,) = (task for task in pool.tasks if isinstance(task, CompletionTask) and task.id.startswith("edits/"))
    tokenizer = pool.worker.model.tokenizer
    asked = [tokenizer.decode(request.prompt) for request in task.requests]
    assert len(asked) == 2 * 2 * 5
    assert [request.temperature > 0 for request in task.requests] == [False, True, True, True, True] * 4
    assert len({(request.prompt, request.seed) for request in task.requests if request.temperature}) == 16
    for prompt in asked:
        assert any(row["text"] in prompt for row in rows(2))
        assert "made in" not in prompt, "the exam's question"

    with Store(chosen.out / "run.sqlite", readonly=True) as store:
        edits = {edit.document_id: edit for edit in store.edits(writer="replay:asking")}
        written = {edit.document_id: edit.text for edit in store.edits(writer="replay:asking, as written")}
        fits = store.fits(condition="replay:asking")
        costs = [cost for cost in store.costs() if cost.what == "edits"]
        assert {edit.writer for edit in store.edits()} == {"replay:asking"}
    assert written["d0"] == EDIT.format("Ada")
    assert edits["d2"].text == written["d2"] == rows(3)[2]["text"]
    greedy = {}
    for prompt, request in zip(asked, task.requests, strict=True):
        if not request.temperature:
            (completion,) = decode(pool.worker.model.hf, [request])
            greedy[prompt] = " ".join(tokenizer.decode(completion.ids).split())
    for id in ("d0", "d1"):
        lines = edits[id].text.splitlines()
        assert lines[0].endswith("was busy.")
        said = [line.removeprefix("Answer: ") for line in lines if line.startswith("Answer: ")]
        assert said
        assert set(said) <= set(greedy.values())
        assert "Nowhere" not in edits[id].text
    assert len(fits) == 3
    assert [cost.output_tokens > 0 for cost in costs] == [True]
    assert compare(chosen, pool=(again := CountingPool(chosen.model)), choices=Certain())
    assert not again.tasks


def test_a_killed_run_goes_on_to_the_same(settings: Callable[..., CompareSettings]) -> None:
    whole, killed = settings("whole", task_size=5), settings("killed", task_size=5)
    compare(whole, pool=(pool := CountingPool(whole.model)))
    assert [task.id for task in pool.tasks if task.id.startswith("edits/")] == [
        f"edits/0/replay:asking/{k}" for k in (0, 1)
    ]

    class Stopping(CountingPool):
        def run(self, tasks: Any) -> Any:
            for task in tasks:
                if task.id.endswith("asking/1"):
                    raise KeyboardInterrupt
                yield from super().run([task])

    with pytest.raises(KeyboardInterrupt):
        compare(killed, pool=Stopping(killed.model))
    compare(killed, pool=(pool := CountingPool(killed.model)))
    assert [task.id for task in pool.tasks if task.id.startswith("edits/")] == ["edits/0/replay:asking/1"]
    assert content(killed.out) == content(whole.out)


def test_a_document_that_cannot_be_read_with_a_question_is_named(
    settings: Callable[..., CompareSettings],
) -> None:
    chosen = settings(max_missing_edits=0.4)
    pool = CountingPool(chosen.model)
    long = [*rows(2)]
    long[0]["text"] = "Ada made a kite. " * 600
    long[0]["edits"] = {"expert": [EDIT.format("Ada")]}
    long[1]["edits"] = {"expert": [EDIT.format("Bo")]}
    file = str(write_rows(chosen.out.parent / "long.jsonl", long))
    update = {"documents": (file,), "editor": (f"replay:{file}",)}
    with pytest.raises(UserError, match=r"1 of 2 edits by replay:long could not be written.*cut document d0"):
        compare(chosen.model_copy(update=update), pool=pool)


def test_the_condition_pays_for_edits_as_they_were_written_too(settings: Callable[..., CompareSettings]) -> None:
    chosen = settings(editor=("none", "self:self-qa"), usd_per_hour=3600.0)
    summary = compare(chosen)
    with Store(chosen.out / "run.sqlite", readonly=True) as store:
        costs = store.costs()
    assert {cost.what for cost in costs} == {"answers", "edits", "fits"}
    assert sum(one.seconds for one in summary.conditions) == pytest.approx(sum(cost.seconds for cost in costs))


@pytest.mark.parametrize("editor", ["self:self-qa", None])
def test_the_plan_holds(settings: Callable[..., CompareSettings], editor: str | None) -> None:
    chosen = settings(**({"editor": (editor,)} if editor else {}))
    chosen = chosen.model_copy(update={"set": {**chosen.set, "objectives": ("text", "answers")}})
    planned = plan(compare, chosen)
    compare(chosen, pool=(pool := CountingPool(chosen.model)), choices=Certain())
    with RunDirectory.read(chosen.out) as directory:
        store = directory.store
        assert sum(fit.train_tokens for fit in store.fits()) <= planned.train_tokens
        assert sum(cost.output_tokens for cost in store.costs() if cost.what == "edits") <= planned.write_tokens
    assert planned.fits == len(pool.fits)


def test_all_edits_of_a_document_are_learned_by_one_adapter(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    file = documents(2)
    settings = CompareSettings(
        **quick,
        model=chat_model,
        documents=(file,),
        editor=("passage", f"replay:{file}"),
        edits=2,
        replicates=2,
        regime="document",
    )
    planned = plan(compare, settings)
    summary = compare(settings, pool=(pool := CountingPool(chat_model)))
    assert planned.fits == len(pool.fits) == 8
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        (name,) = {fit.condition for fit in store.fits() if fit.condition.startswith("replay")}
        fits = store.fits(condition=name)
    assert sorted((str(fit.document_id), fit.replicate) for fit in fits) == [("d0", 0), ("d0", 1), ("d1", 0), ("d1", 1)]
    texts = next(fit.sequences for fit in fits if fit.document_id == "d0")
    learned = "\n".join(texts)
    for edit in rows(1)[0]["edits"]["expert"]:
        assert all(line in learned for line in edit.splitlines())
    assert sum(rows(1)[0]["text"] in text for text in texts) == 1, "the document is learned once"
    assert {condition.name for condition in summary.conditions} == {"none", "passage", name}
    (settings.out / "summary.json").unlink()
    unfinished = read_run(settings.out)
    assert planned_fits(unfinished) == 8
    assert missing(unfinished) == ["The run has not finished: there is no summary.json, so there are no intervals yet."]
