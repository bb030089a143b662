"""Documents one after another into one model: steps, chains of deltas, resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from counting_pool import CountingPool
from making import Make

from selfedit.documents import Document, Question
from selfedit.errors import UserError
from selfedit.evaluation.grading import Grading
from selfedit.evaluation.lexical import LexicalGrader
from selfedit.execution.tasks import FitTask
from selfedit.methods import retention
from selfedit.methods.adapters import DOCUMENTS_FILE, find_adapters
from selfedit.methods.ask import Asker
from selfedit.methods.continual import continual
from selfedit.methods.learn import learn
from selfedit.methods.plan import plan
from selfedit.methods.retention import FIGURES, retention_summary
from selfedit.methods.sequences import Lane, can_hold
from selfedit.methods.settings import ContinualSettings, LearnSettings
from selfedit.methods.updates import replaced_by, still_true, superseded, update_summary
from selfedit.progress import Progress
from selfedit.reports.console import plain_text
from selfedit.reports.records import read_run
from selfedit.reports.table import summary_view
from selfedit.runs.records import Answer, FitRecord, ScoredAnswer
from selfedit.runs.store import Store
from selfedit.runs.summary import Spread
from selfedit.training.recipes import load_recipe
from summary_fields import undeclared
from tiny_world import rows, write_rows


def test_each_step_learns_one_document_and_asks_about_all_before_it(make: Make, chat_model: str) -> None:
    settings = make(ContinualSettings, 3, editor="self", edits=2, retain=("none",))
    pool = CountingPool(chat_model)
    summary = continual(settings, pool=pool)
    fits = [task for task in pool.tasks if isinstance(task, FitTask)]
    assert [task.policy for task in fits] == [(), ("round-01",), ("round-01", "round-02")]
    assert [len(task.fits) for task in fits] == [1, 1, 1]
    steps = summary.steps
    assert list(undeclared(summary)) == []
    assert [(step.step, step.document) for step in steps] == [(1, "d0"), (2, "d1"), (3, "d2")]
    assert [step.earlier and step.earlier.documents for step in steps] == [None, 1, 2]
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        for step in (1, 2, 3):
            answers = store.scored_answers("lexical", round=step, condition="after")
            assert {a.document_id for a in answers} == {f"d{k}" for k in range(step)}
            new = [a.score for a in answers if a.document_id == f"d{step - 1}"]
            found = steps[step - 1].new
            assert found is not None
            assert found.accuracy == pytest.approx(sum(new) / len(new))
            assert len(store.edits(round=step)) == 2
    for step in (1, 2, 3):
        assert (settings.out / "checkpoints" / f"round-{step:02d}" / "adapter_model.safetensors").exists()

    again = CountingPool(chat_model)
    assert continual(settings, pool=again) == summary
    assert again.tasks == []


def test_what_cannot_be_learned_from_is_refused(
    make: Make, quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    settings = make(ContinualSettings, 1, editor="none")
    with pytest.raises(UserError, match="there is nothing to learn from"):
        continual(settings)
    blown = {**quick, "set": {"rank": 4, "epochs": 4, "learning_rate": 1e30, "schedule": "constant"}}
    blown |= {"model": chat_model, "documents": (documents(1),), "editor": "passage"}
    with pytest.raises(UserError, match=r"step 1: the fit on d0 failed .*try a lower learning rate"):
        continual(ContinualSettings(**blown, retain=("none",)))
    blown["out"] = blown["out"].with_name("apart")
    with pytest.raises(UserError, match=r"document d0: the fit failed: .*try a lower learning rate"):
        continual(ContinualSettings(**blown))


REMEDIES = ("none", "edits", "kl", "per-document")


def test_sequences_are_learned_side_by_side_with_each_remedy(make: Make, chat_model: str, tmp_path: Path) -> None:
    more = {"sequences": 2, "length": 3, "rehearsed": 1, "general_questions": 2}
    settings = make(ContinualSettings, 5, editor="passage", retain=REMEDIES, **more)
    pool = CountingPool(chat_model)
    summary = continual(settings, pool=pool)
    assert list(undeclared(summary)) == []
    assert [one.retain for one in summary.retention] == list(REMEDIES)
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        scored = store.scored_answers("lexical")
        fits = {name: store.fits(condition=name) for name in ("passage", *(f"passage + {r}" for r in REMEDIES[1:]))}
        policies = {task.policy for task in pool.tasks if isinstance(task, FitTask)}
        own_texts = {policy: store.own_texts("/".join(policy)) for policy in policies}
    for one in summary.retention:
        assert one.sequences == 2
        assert [len(row) for row in one.accuracy] == [1, 2, 3]
        after = "after" if one.retain == "none" else f"after + {one.retain}"
        asked = {(a.replicate, a.round, a.document_id) for a in scored if a.condition == after and a.document_id}
        orders = [sorted({d for r, s, d in asked if r == n}) for n in (0, 1)]
        assert all(len(order) == 3 for order in orders)
        assert orders[0] != orders[1], "drawn, three of five"
        assert len(asked) == 2 * (1 + 2 + 3)
        last = [a.score for a in scored if (a.condition, a.round) == (after, 3) and a.document_id]
        assert one.average is not None
        assert one.average.mean == pytest.approx(sum(s for s in last if s is not None) / len(last))
        assert one.accuracy[0][0] == pytest.approx(
            sum(a.score or 0 for a in scored if (a.condition, a.round) == (after, 1) and a.document_id) / 4
        )
    plain, edits, kl, apart = fits.values()
    assert [len(some) for some in (plain, edits, kl)] == [6, 6, 6]
    learned = {(fit.replicate, fit.round): len(fit.sequences) for fit in plain}
    assert {step: len(fit.sequences) - learned[fit.replicate, step] for fit in edits for step in [fit.round]}[1] == 0
    assert all(len(fit.sequences) > learned[fit.replicate, fit.round] for fit in edits if fit.round > 1)
    for task in pool.tasks:  # kl holds to what the model wrote itself, as far as it had come
        if isinstance(task, FitTask):
            taught = {one.ids[one.prompt_length : -1] for fit in task.fits for one in fit.job.sequences if one.teacher}
            assert taught <= {text.ids for text in own_texts[task.policy].values()}
    assert [len(texts) for texts in own_texts.values()] == [60] * (1 + 2 * 2), "before each step of two sequences"
    assert len(apart) == len({fit.document_id for fit in apart}), "each document is learned once"
    assert {one.round for one in apart} == {0}
    assert {one.retain: one.train_tokens for one in summary.retention}["per-document"] == sum(
        fit.train_tokens for fit in apart
    )
    tasks = [task for task in pool.tasks if isinstance(task, FitTask)]
    assert len(tasks[0].fits) == 6, "what starts from one model shares a bank"
    held = [task for task in tasks if task.bank.rank > task.lora.rank]
    assert [(len(task.fits), task.bank.rank, task.policy) for task in held] == [(4, 8, ()), (4, 12, ())]
    # What is held is as good as merged: the first sequence alone, in that order.
    order = [next(fit.document_id for fit in plain if (fit.replicate, fit.round) == (0, step)) for step in (1, 2, 3)]
    by_id = {row["id"]: row for row in rows(5)}
    file = write_rows(tmp_path / "alone.jsonl", [by_id[str(id)] for id in order])
    single = settings.model_copy(
        update={
            "documents": (str(file),),
            "retain": ("none",),
            "sequences": 1,
            "length": None,
            "out": tmp_path / "alone",
        }
    )
    continual(single, pool=CountingPool(chat_model))
    with Store(single.out / "run.sqlite", readonly=True) as store:
        merged = [(fit.first_loss, fit.last_loss) for fit in store.fits(condition="passage")]
    beside = [(fit.first_loss, fit.last_loss) for fit in plain if fit.replicate == 0]
    assert [pytest.approx(losses, rel=1e-3) for losses in merged] == beside
    assert {(one.a, one.b) for one in summary.differences} <= {("retain none", f"retain {r}") for r in REMEDIES[1:]}
    planned = plan(continual, settings)
    assert planned.fits >= sum(map(len, fits.values()))
    assert planned.train_tokens >= sum(fit.train_tokens for some in fits.values() for fit in some)

    again = CountingPool(chat_model)
    assert continual(settings, pool=again) == summary
    assert again.tasks == []


def test_per_document_is_what_the_run_stands_for_where_it_comes_first(make: Make) -> None:
    settings = make(ContinualSettings, 2, editor="passage", retain=("per-document", "none"))
    continual(settings)
    found = find_adapters(settings.out)
    assert [document.id for document in found.documents] == ["d0", "d1"]


def test_an_adapter_per_document_is_the_default_which_is_told(make: Make, tmp_path: Path) -> None:
    notes: list[str] = []
    listener = Progress()
    listener.note = notes.append
    settings = make(ContinualSettings, 2, editor="passage", general_questions=2)
    summary = continual(settings, progress=listener)
    assert [one.retain for one in summary.retention] == ["per-document"]
    assert notes[0] == "retain: an adapter per document; --retain none merges each document into the model"
    assert summary.routing is not None
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        answers = store.scored_answers("lexical", condition="none")
    known = [answer for answer in answers if answer.document_id is None and answer.value == "right"]
    assert (summary.routing.asked, summary.routing.general) == (4, len(known))
    # The table says it.
    assert "went to their own document's" in plain_text(summary_view(read_run(settings.out)))
    assert "made by `selfedit continual`" in (settings.out / "adapters" / "README.md").read_text(encoding="utf-8")
    listed = settings.out / "adapters" / DOCUMENTS_FILE
    listed.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="damaged; delete it, and the same `selfedit continual` command writes it"):
        find_adapters(settings.out)
    listed.unlink()
    weights = settings.out / "adapters" / "documents" / "d1" / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    continual(settings)
    assert weights.read_bytes() == before
    assert len(find_adapters(settings.out).documents) == 2

    notes.clear()
    named = make(ContinualSettings, 2, editor="passage", retain=("per-document",), out=tmp_path / "named")
    continual(named, progress=listener)
    assert not any(note.startswith("retain:") for note in notes)


def test_a_run_of_several_sequences_stands_for_the_first(make: Make, chat_model: str, tmp_path: Path) -> None:
    settings = make(ContinualSettings, 6, editor="self", sequences=2, length=3, max_missing_edits=1.0, retain=("none",))
    pool = CountingPool(chat_model)
    pool.gives_up = lambda task: task.id.startswith("edits/2/self/")  # the first sequence's second document
    continual(settings, pool=pool)
    assert [folder.name for folder in find_adapters(settings.out).folders] == ["round-01", "round-03"]
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        fits = store.fits(condition="self")
    own = [fit.document_id for fit in fits if fit.replicate == 0]
    assert {fit.document_id for fit in fits} > set(own)

    added = make(LearnSettings, 6, editor="passage", add=settings.out, out=tmp_path / "added")
    new = write_rows(tmp_path / "new.jsonl", rows(8)[6:])
    learn(added.model_copy(update={"documents": (str(new),)}))
    with Store(added.out / "run.sqlite", readonly=True) as store:
        assert [document.id for document in store.documents("earlier")] == own


def test_adapters_of_no_document_are_refused_in_one_line(make: Make, chat_model: str) -> None:
    settings = make(ContinualSettings, 2, editor="self", retain=("per-document",), max_missing_edits=1.0)
    pool = CountingPool(chat_model)
    pool.gives_up = lambda task: task.id.startswith("edits/")
    with pytest.raises(UserError, match="self: no edit of the first sequence could be written"):
        continual(settings, pool=pool)
    continual(settings)
    assert len(find_adapters(settings.out).documents) == 2


def test_ask_goes_to_the_later_of_two_documents_that_match_equally_well(
    quick: dict[str, Any], chat_model: str, tmp_path: Path
) -> None:
    some = rows(6)
    some.append({**some[0], "id": "new", "text": some[0]["text"].replace("3", "9")})
    file = write_rows(tmp_path / "documents.jsonl", some)
    settings = ContinualSettings(
        **{**quick, "model": chat_model, "documents": (str(file),), "editor": "passage"}, retain=("per-document",)
    )
    continual(settings)
    with Asker(settings.out) as asker:
        asked = f"{some[0]['title']}\nDid Ada make it in Oslo?"
        found = asker.document([{"role": "user", "content": asked}])
    assert found is not None
    assert found.id == "new"


def test_a_fact_that_changes_is_asked_as_the_later_document_has_it(
    quick: dict[str, Any], chat_model: str, tmp_path: Path
) -> None:
    old, other = rows(2)
    new = {
        **old,
        "id": "new",
        "text": "Ada's kite cost 9 coins.",
        "questions": [{**old["questions"][1], "answers": ["9"]}],
    }
    file = write_rows(tmp_path / "documents.jsonl", [old, other, new])
    settings = ContinualSettings(
        **{**quick, "model": chat_model, "documents": (str(file),), "editor": "passage"}, retain=REMEDIES
    )
    summary = continual(settings)
    assert [(one.condition, one.asked) for one in summary.updates] == [
        ("after", 1),
        ("after + edits", 1),
        ("after + kl", 1),
        ("after + per-document", 1),
    ]
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        for after in ("after", "after + edits", "after + per-document"):
            asked = [
                {a.question_id for a in store.scored_answers("lexical", condition=after, round=step)} for step in (2, 3)
            ]
            assert asked == [{"d0/q0", "d0/q1", "d1/q0", "d1/q1"}, {"d0/q0", "d1/q0", "d1/q1", "new/q0"}]
        learned = {fit.round: fit.sequences for fit in store.fits(condition="passage + edits")}
    assert not any(old["text"] in text for text in learned[3]), "what is no longer true is not taught again"
    assert any(other["text"] in text for text in learned[3])


def test_what_an_answer_replaces_depends_on_its_sequence() -> None:
    first, second, last = (
        Document(id, "The ferry", "", (Question(f"{id}/0", "What is the fare?", (answer,)),))
        for id, answer in (("a", "5 crowns"), ("b", "6 crowns"), ("c", "7 crowns"))
    )
    lanes: Any = [
        SimpleNamespace(number=0, documents=(first, second, last), after="after"),
        SimpleNamespace(number=1, documents=(second, last), after="after"),
    ]
    scored = [ScoredAnswer(3 - n, "after", "f", None, n, "c", "c/0", "5 crowns", "wrong", 0.0) for n in (0, 1)]
    run: Any = SimpleNamespace(
        grading=SimpleNamespace(name="g"), store=SimpleNamespace(scored_answers=lambda *_, **__: scored)
    )
    (found,) = retention.remedy_updates(run, lanes)
    assert (found.asked, found.new, found.old) == (2, 0, 0.5), "the second never learned the 5 crowns"


def test_the_figures_of_a_document_are_of_the_same_questions_at_each_step() -> None:
    fare, colour = ("What is the fare?", ("5 crowns",)), ("What is its colour?", ("blue",))
    old = Document("a", "The ferry", "", (Question("a/0", *fare), Question("a/1", *colour)))
    new = Document("b", "The ferry", "", (Question("b/0", fare[0], ("7 crowns",)),))
    with Store(None) as store:
        store.add_documents([old, new])
        for condition, round, asked in (
            ("none", 0, ("a/0", "a/1")),
            ("none", 0, ("b/0",)),
            ("after", 1, ("a/0", "a/1")),
            ("after", 2, ("a/1",)),
            ("after", 2, ("b/0",)),
        ):
            said = tuple(Answer(id, "5 crowns", 2) for id in asked)
            store.record_fits([FitRecord(condition, round=round, document_id=asked[0][0], answers=said)])
        store.add_general_questions([Question(id, "Capital?", ("Oslo",)) for id in ("g/0", "g/1", "g/2")])
        for condition, round, answers in (("none", 0, "Oslo Oslo Rome"), ("after", 2, "Oslo Rome Oslo")):
            said = tuple(Answer(f"g/{k}", answer, 2) for k, answer in enumerate(answers.split()))
            store.record_fits([FitRecord(condition, round=round, answers=said)])
        run: Any = SimpleNamespace(store=store, grading=Grading(store, LexicalGrader()))
        run.grading.grade()
        found = retention_summary(run, [Lane("none", 0, (old, new), "passage", main=True)])
    # The old fare was known before and after the first step; it is not asked after the last one, and so not forgotten.
    assert found.accuracy == ((0.0,), (0.0, 0.0))
    assert (found.before, found.forgetting, found.backward) == (Spread(mean=0.0),) * 3
    assert found.general == Spread(mean=0.5), "of the general questions known before"


def test_longer_sequences_than_there_are_documents_are_refused(make: Make) -> None:
    with pytest.raises(UserError, match="--length 3: there are 2 documents"):
        continual(make(ContinualSettings, 2, editor="passage", length=3))


def test_a_step_is_trained_on_top_only_where_that_is_as_on_a_merged_model() -> None:
    recipe = load_recipe("tiny").with_settings({"weight_decay": 0.0, "dropout": 0.0})
    assert can_hold(recipe)
    for other in ({"weight_decay": 0.1}, {"dropout": 0.1}, {"retain": 2}, {"objectives": ["text", "distill"]}):
        assert not can_hold(recipe.with_settings(other)), other


def test_the_usual_figures_of_a_matrix() -> None:
    matrix = [[0.9], [0.4, 0.8], [0.6, 0.5, 1.0]]
    found = {name: of(matrix) for name, of in FIGURES.items()}
    assert found == pytest.approx(
        {"average": 0.7, "learned": 0.9, "backward": (-0.3 - 0.3) / 2, "forgetting": (0.3 + 0.3) / 2}
    )
    better = [[0.2], [0.7, 0.5], [0.6, 0.9, 0.5]]
    assert FIGURES["backward"](better) == pytest.approx((0.4 + 0.4) / 2)
    assert FIGURES["forgetting"](better) == pytest.approx((0.1 - 0.4) / 2)
    assert FIGURES["forgetting"]([[0.5]]) is FIGURES["backward"]([[0.5]]) is None
    assert FIGURES["backward"]([[None], [0.5, 0.5]]) is None


def test_a_question_that_a_later_document_answers_otherwise_is_an_update() -> None:
    old = Document(
        "a", "The ferry", "", (Question("a/0", "What is the fare?", ("5 crowns",)), Question("a/1", "Whose?", ("Ada",)))
    )
    same = Document("b", "The ferry", "", (Question("b/0", "What is the fare?", ("5 crowns",)),))
    new = Document("c", "the Ferry", "", (Question("c/0", "What is the Fare?", ("7 crowns", "seven")),))
    other = Document("d", "The tram", "", (Question("d/0", "What is the fare?", ("2 crowns",)),))
    assert superseded([old, same, other]) == {}
    gone = superseded([old, other, new])
    assert {id: question.id for id, question in gone.items()} == {"a/0": "c/0"}
    assert [[q.id for q in d.questions] for d in still_true([old, new])] == [["a/1"], ["c/0"]]
    replaced = replaced_by(gone, [old, new])
    said = {
        "7 crowns.": ("right", 1.0),
        "7 crowns, no longer 5 crowns": ("right", 1.0),
        "5 crowns": ("wrong", 0.0),
        "no idea": ("wrong", 0.0),
        "7?": ("ungraded", None),
    }
    answers = [
        ScoredAnswer(0, "x", "f", None, 0, "c", "c/0", text, value, score)  # type: ignore[arg-type]
        for text, (value, score) in said.items()
    ]
    found = update_summary("x", [(one, replaced[one.question_id]) for one in answers])
    assert found is not None
    assert (found.asked, found.new, found.old) == (4, 2 / 4, 1 / 4)
