"""An adapter per document, and questions that go to the adapter of the document that they are about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from counting_pool import CountingPool
from making import Make
from peft import AutoPeftModelForCausalLM, PeftModel
from run_content import content
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfedit.cli.main import main
from selfedit.engine import AdapterBank, DecodeRequest, decode, load_adapter
from selfedit.errors import UserError
from selfedit.evaluation.general import general_questions
from selfedit.evaluation.grade import Grade, GradeItem
from selfedit.execution.tasks import FitTask
from selfedit.methods.adapters import find_adapters
from selfedit.methods.ask import Asker
from selfedit.methods.export import export
from selfedit.methods.learn import Learned, learn
from selfedit.methods.plan import plan
from selfedit.methods.selection import Choices
from selfedit.methods.settings import LearnSettings
from selfedit.methods.summarise import summarise
from selfedit.models import load_model
from selfedit.prompts import Prompts
from selfedit.reports.console import plain_text
from selfedit.reports.records import read_run
from selfedit.reports.table import summary_view
from selfedit.runs.store import Store
from selfedit.runs.summary import Summary
from summary_fields import undeclared
from tiny_world import SMALL, rows, write_rows

STRAY = "Did Eli, who made a ring in Cork, know its price of 7 coins?"
LOST = "What is the largest planet?"


def routed_rows(count: int = 6) -> list[dict[str, Any]]:
    """Rows, of which the first two have no title, and a third question each: about document d4, and about none."""
    found = rows(count)
    for row, question in zip(found, (STRAY, LOST), strict=False):
        row["title"] = "Notes"
        row["questions"].append({"question": question, "answers": ["yes"]})
    return found


def settings(model: str, file: Path, out: Path, **more: Any) -> LearnSettings:
    common = {**SMALL, "model": model, "documents": (str(file),), "editor": "passage", "references": False, "out": out}
    return LearnSettings(**{**common, "adapters": "per-document", "general_questions": 3, **more})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("documents") / "documents.jsonl", routed_rows())


@pytest.fixture(scope="module")
def learned(chat_model: str, file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LearnSettings, Learned]:
    asked = settings(chat_model, file, tmp_path_factory.mktemp("routed") / "run", neighbour_questions=1)
    return asked, learn(asked)


def answered(out: Path, condition: str = "passage") -> dict[str, tuple[str | None, str]]:
    """By question: the document of the adapter that answered it, and the answer."""
    with Store(out / "run.sqlite", readonly=True) as store:
        fits = store.fits(condition=condition)
    return {answer.question_id: (fit.document_id, answer.text) for fit in fits for answer in fit.answers}


def test_each_question_is_answered_by_the_adapter_of_the_document_that_it_is_about(
    chat_model: str, learned: tuple[LearnSettings, Learned]
) -> None:
    asked, found = learned
    by = {id: document for id, (document, _) in answered(asked.out).items() if not id.startswith("general|")}
    expected = {f"d{k}/q{n}": f"d{k}" for k in range(6) for n in range(2)} | {"d0/q2": "d4", "d1/q2": None}
    # Without a title of its own, the thing's name is not enough.
    assert by == expected | {"d0/q1": None, "d1/q1": None}
    assert (found.routed, found.documents, found.rank) == (True, 6, 4)
    # The adapters lie in a folder each; one bank answers a mixed batch as the run did.
    folders = [asked.out / "adapters" / "documents" / f"d{k}" for k in range(6)]
    model = load_model(chat_model, device="cpu", dtype="float32")
    bank = AdapterBank(model.hf, load_adapter(folders[0])[0], len(folders))
    for number, folder in enumerate(folders):
        bank.load_state(number, load_adapter(folder, model.hf)[1])
    requests, said = [], []
    for k, row in enumerate(routed_rows()):
        for n, question in enumerate(row["questions"]):
            document, text = answered(asked.out)[f"d{k}/q{n}"]
            if document is None:
                continue
            prompt = Prompts().exam(instruct=True, title=row["title"], question=question["question"])
            ids = tuple(model.tokenizer.prompt_ids(prompt))
            requests.append(DecodeRequest(ids, 6, model.tokenizer.stop_ids, adapter=int(document[1:])))
            said.append(text)
    completions = decode(model.hf, requests, bank=bank)
    assert [model.tokenizer.decode(one.ids).strip() for one in completions] == said
    # What no adapter answered is what the untrained model had said.
    assert answered(asked.out)["d1/q2"][1] == answered(asked.out, "none")["d1/q2"][1]


def test_the_table_counts_all_questions_and_says_how_they_were_routed(learned: tuple[LearnSettings, Learned]) -> None:
    asked, found = learned
    assert found.summary is not None
    assert list(undeclared(found.summary)) == []
    routing = found.summary.routing
    assert routing is not None
    by = answered(asked.out)
    own = [(id.partition("/")[0], document) for id, (document, _) in by.items() if not id.startswith("general|")]
    assert (routing.asked, routing.right, routing.none) == (14, 10, 3)
    assert routing.right == sum(id == document for id, document in own)
    assert [c.graded for c in found.summary.conditions] == [14, 14]
    text = " ".join(plain_text(summary_view(read_run(asked.out))).split())
    assert "One adapter per document: 71.4% of 14 questions went to their own document's, 21.4% to none" in text
    # Each adapter's answer is compared with one other document's; no adapter is measured where it is not asked.
    (near,) = found.summary.neighbours
    assert near.asked == sum(document is not None for _, document in own)
    with Store(asked.out / "run.sqlite", readonly=True) as store:
        assert {fit.divergence for fit in store.fits()} == {None}


class AllRight:
    name = "all right"

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]:
        return [Grade("right", 1.0, self.name) for _ in items]


def test_general_questions_are_asked_through_the_routing_too(chat_model: str, tmp_path: Path) -> None:
    given = routed_rows()
    asked = settings(chat_model, write_rows(tmp_path / "documents.jsonl", given), tmp_path / "run")
    known = general_questions(asked.general_questions, asked.seed)
    # One of them is about a document of the run.
    given[5]["text"] += f" {known[7].question} {known[7].question}"
    write_rows(tmp_path / "documents.jsonl", given)
    summary = learn(asked, grader=lambda spec, **judge: AllRight()).summary
    assert summary is not None
    assert summary.routing is not None
    assert len(known) == summary.routing.general == 60
    by = answered(asked.out)
    routed = [id for id, (document, _) in by.items() if id.startswith("general|") and document is not None]
    assert known[7].id in routed
    assert len(routed) == summary.routing.general_to_adapters < 10
    before = answered(asked.out, "none")
    assert all(by[q.id][1] == before[q.id][1] for q in known if q.id not in routed)
    (lost,) = summary.forgetting
    assert (lost.asked, lost.kept, lost.divergence) == (60, 60, None)
    assert lost.ci95 is not None
    assert lost.ci95[1] < 0.1, "questions are what was sampled"


def test_an_answer_of_the_adapter_that_was_asked_by_mistake_is_a_leak(
    chat_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model learns little: so what it says is said for it."""
    from selfedit.evaluation.exam import Exam

    file = write_rows(tmp_path / "documents.jsonl", routed_rows())
    monkeypatch.setattr(Exam, "answer", lambda self, ids: "Cork")
    found = learn(settings(chat_model, file, tmp_path / "run", neighbour_questions=1, general_questions=0))
    with Store(tmp_path / "run" / "run.sqlite", readonly=True) as store:
        (fit,) = (fit for fit in store.fits(condition="passage") if fit.document_id == "d4")
    assert "d0/q2" in {answer.question_id for answer in fit.answers}
    assert fit.leaked == 1  # the answer to the stray question is right about d4, and those to d4's own are not leaks
    assert found.summary is not None


def test_several_edits_of_a_document_are_learned_by_its_one_adapter(
    chat_model: str, file: Path, tmp_path: Path
) -> None:
    pool = CountingPool(chat_model)
    found = learn(settings(chat_model, file, tmp_path / "run", editor=f"replay:{file}#expert", edits=2), pool=pool)
    (task,) = [task for task in pool.tasks if isinstance(task, FitTask)]
    assert len(task.fits) == 6, "trained side by side"
    with Store(tmp_path / "run" / "run.sqlite", readonly=True) as store:
        fits = [fit for fit in store.fits(condition="replay:documents#expert") if fit.steps]
    assert [len(fit.sequences) for fit in fits] == [5] * 6  # four lines of two edits, and the document
    assert sum(fit.train_tokens for fit in fits) == found.train_tokens


def test_a_run_that_was_cut_off_goes_on_and_a_finished_one_does_nothing(
    chat_model: str, file: Path, tmp_path: Path, learned: tuple[LearnSettings, Learned]
) -> None:
    asked = settings(chat_model, file, tmp_path / "run", neighbour_questions=1, task_size=2)
    whole = settings(chat_model, file, tmp_path / "whole", neighbour_questions=1, task_size=2)
    learn(whole)
    pool = CountingPool(chat_model)
    pool.gives_up = lambda task: task.id == "learning/0/1"
    with pytest.raises(UserError, match="learning was given up"):
        learn(asked, pool=pool)
    learn(asked)
    after, expected = content(asked.out), content(whole.out)
    assert {k: v for k, v in after.items() if k != "events"} == {k: v for k, v in expected.items() if k != "events"}
    idle = CountingPool(chat_model)
    again = learn(learned[0], pool=idle)
    assert (again.summary, idle.tasks) == (learned[1].summary, [])
    # An adapter that has gone is made again, and it alone.
    weights = asked.out / "adapters" / "documents" / "d3" / "adapter_model.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(weights.parent)
    learn(asked, pool=idle)
    assert idle.fits == [fit for fit in idle.fits if "|d3|" in fit] != []
    assert weights.read_bytes() == before


@pytest.mark.parametrize("more", [{}, {"editor": "self"}, {"editor": "self", "edits": 2, "exam": "auto"}])
def test_a_plan_bounds_it(chat_model: str, make: Make, tmp_path: Path, more: dict[str, Any]) -> None:
    given = routed_rows(4)
    if more.get("exam"):
        for row in given[2:]:
            row.pop("questions")
    file = write_rows(tmp_path / "some.jsonl", given)
    asked = settings(chat_model, file, tmp_path / "run", **more)
    planned = plan(learn, asked)
    pool = CountingPool(chat_model)
    found = learn(asked, pool=pool)
    assert planned.fits == len(pool.fits) == 4
    assert found.train_tokens <= planned.train_tokens
    answers = len([id for id, (document, _) in answered(asked.out, "passage").items() if document is not None])
    assert answers <= planned.answers


class Some(Choices):
    """Two documents were missed."""

    def missed(self, documents: Any, wrong: set[str]) -> set[str]:
        assert wrong <= {document.id for document in documents}
        return {"d1", "d4"}


@pytest.mark.parametrize("recipe", [{}, {"weight_decay": 0.1}])
def test_what_was_missed_is_learned_once_more_on_top_of_its_own_adapter(
    chat_model: str, file: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    asked = settings(chat_model, file, tmp_path / "run", retry_missed=True, task_size=1 if recipe else None)
    asked = asked.model_copy(update={"set": asked.set | recipe})
    pool = CountingPool(chat_model)
    if recipe:  # one after another: it ends between the two
        pool.gives_up = lambda task: task.id.startswith("learning once more/") and len(pool.fits) == 8
        with pytest.raises(UserError, match="learning once more was given up"):
            learn(asked, pool=pool, choices=Some())
        pool.gives_up = lambda task: False
    found = learn(asked, pool=pool, choices=Some())
    assert found.summary is not None
    assert [c.name for c in found.summary.conditions] == ["none", "passage", "passage twice"]
    assert [c.graded for c in found.summary.conditions] == [14, 14, 14]
    assert len(pool.fits) == (9 if recipe else 8), "one was given up, and asked for again"
    last = [task for task in pool.tasks if isinstance(task, FitTask)][-1]
    assert len(last.fits) == (1 if recipe else 2), "side by side, where holding an adapter is the same as merging it"
    assert bool(last.policy) == bool(recipe)
    # The run stands for one adapter of each document: those learned twice have both, the others are the same files.
    assert (found.rank, found.documents) == (8, 6)
    assert find_adapters(asked.out).folders == tuple(found.adapter / f"d{k}" for k in range(6))
    for k in range(6):
        once, now = (folder / f"d{k}" for folder in (asked.out / "adapters" / "once", found.adapter))
        (first, state), (last_spec, both) = load_adapter(once), load_adapter(now)
        assert last_spec.rank == first.rank * (2 if k in (1, 4) else 1)
        for name, (a, b) in state.items():
            assert torch.equal(both[name][0][:4], a)
            assert torch.allclose(both[name][1][:, :4] * last_spec.scaling, b * first.scaling)
    before, after = answered(asked.out), answered(asked.out, "passage twice")
    assert {id: by for id, (by, _) in after.items()} == {id: by for id, (by, _) in before.items()}
    assert {by for id, (by, _) in after.items() if after[id] != before[id]} <= {"d1", "d4"}
    for k, n in ((4, 0), (3, 0)):
        assert ask(asked.out, prompt(k, n)) == after[f"d{k}/q{n}"]
    idle = CountingPool(chat_model)
    assert learn(asked, pool=idle, choices=Some()).summary == found.summary
    assert idle.tasks == []


def test_a_plan_has_every_document_learned_once_more(chat_model: str, file: Path, tmp_path: Path) -> None:
    asked = settings(chat_model, file, tmp_path / "run", retry_missed=True)
    assert plan(learn, asked).fits == 2 * plan(learn, asked.model_copy(update={"retry_missed": False})).fits == 12


def test_the_mean_loss_of_all_adapters_is_tracked(
    chat_model: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[str, int, float]] = []

    def log(values: dict[str, float], step: int) -> None:
        logged.extend((name, step, value) for name, value in values.items())

    monkeypatch.setattr("selfedit.methods.tracking.open_tracker", lambda *_: nullcontext(log))
    asked = settings(chat_model, file, tmp_path / "run")
    found = learn(asked)
    assert found.summary is not None
    steps = found.steps // 6
    assert [(name, step) for name, step, _ in logged] == [
        *(("loss", step) for step in range(1, steps + 1)),
        ("accuracy", steps),
    ]
    assert logged[-1][2] == found.summary.conditions[1].accuracy
    with Store(asked.out / "run.sqlite", readonly=True) as store:
        ends = [store.curves()[fit.id][-1][1] for fit in store.fits(condition="passage") if fit.steps]
    assert logged[-2][2] == pytest.approx(sum(ends) / 6)

    # Where some is learned once more, the end is after that.
    def better(*some: Any, **more: Any) -> Summary:
        *others, last = summarise(*some, **more).conditions
        return found.summary.model_copy(update={"conditions": (*others, last.model_copy(update={"accuracy": 0.9}))})

    monkeypatch.setattr("selfedit.methods.learn.summarise", better)
    learn(settings(chat_model, file, tmp_path / "twice", retry_missed=True), choices=Some())
    assert logged[-1] == ("accuracy", steps, 0.9)


def ask(out: Path, question: str) -> tuple[str | None, str]:
    messages = [{"role": "user", "content": question}]
    with Asker(out, device="cpu", dtype="float32", max_tokens=6) as asker:
        document = asker.document(messages)
        return document and document.id, asker.answer(messages)


def prompt(k: int, n: int = 0) -> str:
    """What the exam asked."""
    row = routed_rows()[k]
    return Prompts().exam(instruct=True, title=row["title"], question=row["questions"][n]["question"])


def test_ask_routes_each_question_and_says_where(learned: tuple[LearnSettings, Learned]) -> None:
    asked, _ = learned
    given = answered(asked.out)
    for k, n in ((4, 0), (3, 0), (0, 2)):
        assert ask(asked.out, prompt(k, n)) == given[f"d{k}/q{n}"]
    assert ask(asked.out, prompt(1, 2)) == (None, answered(asked.out, "none")["d1/q2"][1])
    # One chat, with another adapter for each question, beside the model as it is.
    with Asker(asked.out, device="cpu", dtype="float32", max_tokens=6) as asker:
        assert asker.names == ("learned",)
        for k in (2, 5, 2):
            messages = [{"role": "user", "content": "Hello."}, {"role": "user", "content": prompt(k)}]
            assert asker.document(messages) == asker.document(messages[1:])
            found = asker.compare(messages[1:], asker.document(messages[1:]))
            assert found["learned"] == given[f"d{k}/q0"][1]
            assert found["base"] == asker.answer(messages[1:], base=True)
        assert asker.answer([{"role": "user", "content": "Thanks!"}]) == asker.answer(
            [{"role": "user", "content": "Thanks!"}], base=True
        )


def test_another_model_is_refused_before_a_question_is_asked(
    learned: tuple[LearnSettings, Learned], another_model: str
) -> None:
    settings, _ = learned
    with pytest.raises(UserError, match=r"belongs to another model; name its model with --model"):
        Asker(settings.out, model=another_model, device="cpu")


def test_the_command_line_names_the_document(
    learned: tuple[LearnSettings, Learned], capsys: pytest.CaptureFixture[str]
) -> None:
    asked, _ = learned
    words = ["--device=cpu", "--dtype=float32", "--max-tokens=6", "--json"]
    for question, document, line in (
        (prompt(4), "d4", "[Eli and the ring (d4)]"),
        ("What is the largest planet?", None, "[no document is about that: the model as it is]"),
    ):
        assert main(["ask", str(asked.out), question, *words]) == 0
        told = capsys.readouterr()
        assert line in told.err
        assert json.loads(told.out)["document"] == document


def test_what_makes_one_model_is_refused_and_one_of_the_adapters_is_not(
    learned: tuple[LearnSettings, Learned],
    tmp_path: Path,
    chat_model: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, found = learned
    line = r"an adapter per document, which make no one model; give the folder of one of them \(they are in PEFT's"
    monkeypatch.setattr("selfedit.methods.export.find_converter", lambda name: Path(name))
    with pytest.raises(UserError, match=line):
        export(asked.out, tmp_path / "model", gguf="f32")
    with pytest.raises(UserError, match="of which each question has its own; ask it alone"):
        Asker(asked.out, others={"other": found.adapter / "d1"})
    joint = settings(chat_model, file, tmp_path / "joint", adapters="joint", add=asked.out)
    with pytest.raises(UserError, match=line):
        learn(joint)
    for more, flag in (({"dtype": "float32"}, "--dtype"), ({"model": chat_model}, "--model")):
        with pytest.raises(UserError, match=f"copied as they are; leave out {flag}"):
            export(asked.out, tmp_path / "all", **more)  # type: ignore[arg-type]
    exported = export(found.adapter / "d3", tmp_path / "d3", dtype="float32")
    assert exported.merged == 1
    peft = AutoPeftModelForCausalLM.from_pretrained(found.adapter / "d3").eval()
    tokenizer = AutoTokenizer.from_pretrained(found.adapter.parent / "tokenizer")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt(3)}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    said = peft.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    text = tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert text == answered(asked.out)["d3/q0"][1]


def test_an_export_has_all_adapters_for_peft_and_is_asked_like_the_run(
    learned: tuple[LearnSettings, Learned], tmp_path: Path, chat_model: str
) -> None:
    asked, _ = learned
    exported = export(asked.out, tmp_path / "all")
    assert (exported.merged, exported.copied) == (0, 6)
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert names == {"README.md", "documents", "documents.jsonl", "tokenizer"}
    # All as private as in the run: the list has the documents' texts.
    files = [path for path in (tmp_path / "all").rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}
    head = yaml.safe_load((tmp_path / "all" / "README.md").read_text().split("---\n")[1])
    assert head["library_name"] == "peft"
    given = answered(asked.out)
    # As the card says.
    base = AutoModelForCausalLM.from_pretrained(chat_model)
    peft = PeftModel.from_pretrained(base, tmp_path / "all", subfolder="documents/d3").eval()
    peft.load_adapter(tmp_path / "all", "another", subfolder="documents/d4")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "all", subfolder="tokenizer")
    for k, name in ((3, "default"), (4, "another")):
        peft.set_adapter(name)
        chat = [{"role": "user", "content": prompt(k)}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        said = peft.generate(input_ids=ids["input_ids"], max_new_tokens=6, do_sample=False)
        text = tokenizer.decode(said[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert text == given[f"d{k}/q0"][1]
        assert ask(tmp_path / "all", prompt(k)) == (f"d{k}", text)
    shutil.rmtree(tmp_path / "all" / "documents" / "d2")
    with pytest.raises(UserError, match="d2: no adapter there; export the run again"):
        Asker(tmp_path / "all")
    listed = tmp_path / "all" / "documents.jsonl"
    first, *others = map(json.loads, listed.read_text().splitlines())
    for change in ({"id": ["d0"]}, {"text": 5}, {"title": None}):
        listed.write_text("".join(json.dumps(row) + "\n" for row in (first | change, *others)))
        with pytest.raises(UserError, match=r"documents.jsonl: damaged; export the run again"):
            Asker(tmp_path / "all")


def test_an_unfinished_or_damaged_run_is_not_asked(learned: tuple[LearnSettings, Learned], tmp_path: Path) -> None:
    out = shutil.copytree(learned[0].out, tmp_path / "run")
    shutil.rmtree(out / "adapters" / "documents" / "d2")
    with pytest.raises(UserError, match="d2: no adapter there; the same `selfedit learn` command makes it again"):
        Asker(out)
    (out / "adapters" / "documents.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"documents.jsonl: damaged; delete it"):
        Asker(out)
    (out / "adapters" / "documents.jsonl").unlink()
    with pytest.raises(UserError, match=r"documents.jsonl: not there, so the run has not finished"):
        Asker(out)


def test_more_documents_are_more_adapters_and_the_earlier_ones_stay(
    learned: tuple[LearnSettings, Learned], chat_model: str, tmp_path: Path
) -> None:
    earlier, found = learned
    more = [row | {"text": f"{row['text']} Now."} for row in rows(8)[5:]]  # d5 anew, d6 and d7
    more[1]["questions"].append({"question": STRAY, "answers": ["yes"]})
    more[1]["title"] = "Notes"
    file = write_rows(tmp_path / "more.jsonl", more)
    asked = settings(chat_model, file, tmp_path / "run", add=earlier.out, set={**SMALL["set"], "rank": 2})
    planned = plan(learn, asked)
    pool = CountingPool(chat_model)
    shared = found.adapter / "d3" / "adapter_model.safetensors"
    shared.chmod(0o644)
    added = learn(asked, pool=pool)
    assert shared.stat().st_mode & 0o777 == 0o644, "the same file, of which the earlier run's owner has decided"
    shared.chmod(0o600)
    assert (planned.fits, len(pool.fits), added.documents) == (3, 3, 3)
    assert all(not task.policy for task in pool.tasks if isinstance(task, FitTask)), "not on top of the earlier ones"
    for k in range(5):
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert (added.adapter / f"d{k}" / name).samefile(found.adapter / f"d{k}" / name)
    assert not (added.adapter / "d5" / "adapter_model.safetensors").samefile(
        found.adapter / "d5" / "adapter_model.safetensors"
    )
    documents = {document.id: document for document in find_adapters(asked.out).documents}
    assert sorted(documents) == [f"d{k}" for k in range(8)]
    assert documents["d5"].text.endswith("Now.")
    # The question that is about an earlier document is answered by its adapter.
    given = answered(asked.out)
    assert given["d6/q2"][1] == ask(earlier.out, prompt_of("Notes", STRAY))[1]
    assert ask(asked.out, prompt_of("Notes", STRAY)) == ("d4", given["d6/q2"][1])
    assert ask(asked.out, prompt(3)) == ask(earlier.out, prompt(3))
    assert added.summary is not None
    assert added.summary.routing is not None
    assert added.summary.routing.asked == 7
    assert added.summary.routing.none == sum(
        by is None for id, (by, _) in given.items() if not id.startswith("general|") and id != "d6/q2"
    )
    assert [c.graded for c in added.summary.conditions] == [7, 7]
    assert added.summary.conditions[1].question_tokens is None, "one answer of seven was not given in a fit"
    idle = CountingPool(chat_model)
    assert learn(asked, pool=idle).summary == added.summary
    assert idle.tasks == []
    joint = learn(settings(chat_model, file, tmp_path / "joint", adapters="joint"))
    with pytest.raises(UserError, match="not a run with an adapter per document; leave out --adapters"):
        learn(settings(chat_model, file, tmp_path / "again", add=joint.adapter.parents[1]))


def prompt_of(title: str, question: str) -> str:
    return Prompts().exam(instruct=True, title=title, question=question)


def test_documents_without_questions_and_with_awkward_names(chat_model: str, tmp_path: Path) -> None:
    """Nothing beside the adapters' folders has a document's name."""
    given = [{k: v for k, v in row.items() if k != "questions"} for row in rows(4)]
    for row, id in zip(given, ("README.md", "documents.jsonl", "tokenizer", "a/../b"), strict=True):
        row["id"] = id
    asked = settings(chat_model, write_rows(tmp_path / "documents.jsonl", given), tmp_path / "run")
    found = learn(asked)
    assert (found.summary, found.documents) == (None, 4)
    assert len(list(found.adapter.iterdir())) == 4
    assert ask(asked.out, "Bo and the lamp\nWhere did Bo make the lamp?")[0] == "documents.jsonl"
    assert {path.stat().st_mode & 0o777 for path in asked.out.rglob("*") if path.is_file()} == {0o600}


@pytest.mark.parametrize("add", [False, True])
def test_of_two_documents_that_match_equally_well_the_later_answers(chat_model: str, tmp_path: Path, add: bool) -> None:
    some = rows(6)
    some[0]["questions"][1]["question"] = "Did Ada make it in Oslo?"
    new = {**some[0], "id": "new", "text": some[0]["text"].replace("3", "9")}
    # The earlier one is the first of its run, or the last.
    some = [*some[1:], some[0]] if add else [*some, new]
    first = settings(chat_model, write_rows(tmp_path / "first.jsonl", some), tmp_path / "first")
    learn(first)
    if add:
        asked = settings(chat_model, write_rows(tmp_path / "new.jsonl", [new]), tmp_path / "run", add=first.out)
        learn(asked)
    else:
        asked = first
    assert answered(asked.out)["new/q1"][0] == "new"
    assert ask(asked.out, f"{new['title']}\n{new['questions'][1]['question']}")[0] == "new"
    if not add:
        assert answered(asked.out)["d0/q1"][0] == "new"
