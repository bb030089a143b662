"""Step A as an experiment, end to end on a tiny model: what is done, stored, reported, resumed and refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from counting_pool import CountingPool, blow_up
from making import Make

from selfedit.documents import Document, Question
from selfedit.errors import UserError
from selfedit.evaluation.grade import Grade, GradeItem
from selfedit.evaluation.grading import Grading
from selfedit.evaluation.lexical import LexicalGrader
from selfedit.methods.compare import compare
from selfedit.methods.plan import plan
from selfedit.methods.settings import CompareSettings
from selfedit.methods.summarise import forgetting
from selfedit.reports import build_report
from selfedit.reports.report import report
from selfedit.runs.records import Answer, FitRecord
from selfedit.runs.store import Store
from selfedit.runs.summary import ForgettingSummary, Summary
from summary_fields import undeclared
from tiny_world import SMALL, rows, write_rows

SELF = ("self", "self:implications-long", "self:implications-very-long", "self:rewrite", "self:self-qa")


@dataclass(frozen=True)
class Finished:
    settings: CompareSettings
    summary: Summary
    pool: CountingPool

    @property
    def store(self) -> Store:
        return Store(self.settings.out / "run.sqlite", readonly=True)


@pytest.fixture(scope="module")
def finished(chat_model: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two documents, every kind of condition that needs no API, K = 2, S = 2."""
    folder = tmp_path_factory.mktemp("compare")
    some = rows(2)
    # One edit with a repeated, a bare and a numbered line.
    some[0]["edits"]["expert"][1] = "1. Bo sold it.\n\nBo sold it.\nThe kite was new."
    file = write_rows(folder / "documents.jsonl", some)
    settings = CompareSettings(
        model=chat_model,
        documents=(str(file),),
        editor=("none", "passage", *SELF, f"replay:{file}#expert"),
        edits=2,
        replicates=2,
        **{**SMALL, "out": folder / "run", "max_edit_tokens": 16},
    )
    pool = CountingPool(chat_model)
    return Finished(settings, compare(settings, pool=pool), pool)


def test_summary_json_is_schema_1_and_has_every_condition(finished: Finished) -> None:
    data = json.loads((finished.settings.out / "summary.json").read_text())
    assert data == finished.summary.to_json()
    assert (data["schema"], data["procedure"], data["documents"], data["questions"]) == (1, "compare", 2, 4)
    assert data["instruct"] is True
    assert data["recipe"]["learning_rate"] == 1e-2
    names = ["none", "passage", *SELF, "replay:documents#expert"]
    assert [c["name"] for c in data["conditions"]] == names
    for condition in data["conditions"]:
        exams = {"none": 1, "passage": 2}.get(condition["name"], 4)
        assert condition["graded"] == 4 * exams
        low, high = condition["ci95"]
        assert low <= condition["accuracy"] <= high
        assert (condition["train_tokens"] > 0) == (condition["name"] != "none")
        assert (condition["edit_tokens"] > 0) == condition["name"].startswith("self")
        assert condition["seconds"] > 0
    pairs = {(d["a"], d["b"]) for d in data["differences"]}
    assert len(pairs) == len(names) * (len(names) - 1) // 2
    assert "rounds" not in data
    assert "selected_round" not in data


def test_accuracies_follow_from_the_stored_grades(finished: Finished) -> None:
    with finished.store as store:
        answers = store.scored_answers("lexical")
    for condition in finished.summary.conditions:
        scores = [a.score for a in answers if a.condition == condition.name]
        assert condition.accuracy == pytest.approx(sum(scores) / len(scores))
        assert condition.correct == sum(a.value == "right" for a in answers if a.condition == condition.name)


def test_store_has_each_edit_fit_and_answer_once(finished: Finished) -> None:
    with finished.store as store:
        edits = store.edits()
        fits = store.fits()
        assert Counter((e.writer, e.document_id) for e in edits) == {
            (writer, document): 2 for writer in (*SELF, "replay:documents#expert") for document in ("d0", "d1")
        }
        counted = Counter(fit.condition for fit in fits)
        assert counted == {"none": 2, "passage": 4, **dict.fromkeys((*SELF, "replay:documents#expert"), 8)}
        for fit in fits:
            assert [a.question_id for a in fit.answers] == [
                q.id for d in store.documents() if d.id == fit.document_id for q in d.questions
            ]
    texts = {(e.writer, e.prompt) for e in edits}
    assert ("self", "implications") in texts
    assert ("self:self-qa", "self-qa") in texts
    assert len(finished.pool.fits) == len(set(finished.pool.fits)) == 52


def test_replicates_differ_and_edits_are_trained_with_their_document(finished: Finished) -> None:
    with finished.store as store:
        fits = [fit for fit in store.fits(condition="replay:documents#expert") if fit.document_id == "d1"]
        passage = [fit for fit in store.fits(condition="passage") if fit.document_id == "d1"]
    title = "Bo and the lamp"
    document = f"{title}\nBo made a lamp in Lima. The lamp cost 4 coins."
    assert {fit.sequences for fit in passage} == {(document,)}
    assert fits[0].sequences == (
        f"{title}\nThe lamp was made in Lima.",
        f"{title}\nIts maker was Bo.",
        document,
    )
    one, two = fits[0], fits[1]
    assert one.edit_id == two.edit_id
    assert one.sequences == two.sequences
    assert one.last_loss != two.last_loss
    assert all(fit.last_loss < fit.first_loss for fit in fits)


def test_edits_cut_off_and_lines_dropped_are_counted(finished: Finished) -> None:
    with finished.store as store:
        edits = store.edits()
    by_id = {(e.writer, e.document_id, e.index): e for e in edits}
    messy = by_id["replay:documents#expert", "d0", 1]
    assert (messy.text, messy.dropped_lines, messy.truncated) == ("Bo sold it.\nThe kite was new.", 2, False)
    assert any(e.truncated for e in edits)
    for edit in edits:
        if edit.truncated:
            assert edit.output_tokens == 16
    assert finished.summary.events is not None
    assert finished.summary.events["edits cut off"] == sum(e.truncated for e in edits)
    assert finished.summary.events["lines dropped"] == sum(e.dropped_lines for e in edits)


def test_chart_and_report_are_written(finished: Finished) -> None:
    written = report([finished.settings.out], charts=True)[1]
    assert {path.suffix for path in written} == {".png", ".svg"}
    assert {path.parent for path in written} == {finished.settings.out}
    by_suffix = {path.suffix: path.read_bytes() for path in written}
    assert by_suffix[".png"].startswith(b"\x89PNG")
    assert b"<svg" in by_suffix[".svg"]
    page = build_report([finished.settings.out]).read_text(encoding="utf-8")
    for text in ("self:rewrite", "replay:documents#expert", "Where did Bo make the lamp?", "The kite was new."):
        assert text in page


def test_the_same_command_does_nothing_again(finished: Finished) -> None:
    before = (finished.settings.out / "summary.json").read_bytes()
    pool = CountingPool(finished.settings.model)
    compare(finished.settings, pool=pool)
    assert pool.tasks == []
    assert (finished.settings.out / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value"), [("edits", 3), ("seed", 1), ("editor", ("none",)), ("set", {"rank": 4, "epochs": 5})]
)
def test_a_changed_setting_is_refused_by_name(finished: Finished, name: str, value: Any) -> None:
    changed = finished.settings.model_copy(update={name: value})
    with pytest.raises(UserError, match=rf"this run began with \S*{name}"):
        compare(changed)


def test_documents_that_changed_are_refused(make: Make) -> None:
    settings = make(CompareSettings, 1, editor=("none",))
    compare(settings)
    changed = rows(1)
    changed[0]["text"] += " It was red."
    write_rows(Path(settings.documents[0]), changed)
    with pytest.raises(UserError, match="document 'd0' has changed since this run began"):
        compare(settings)


def test_a_fit_that_turns_nan_fails_and_the_others_go_on(make: Make, chat_model: str) -> None:
    settings = make(CompareSettings, 3, editor=("passage",), replicates=2)
    pool = CountingPool(chat_model)

    pool.alter = blow_up("0|d1|passage|1")
    summary = compare(settings, pool=pool)
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        fits = {fit.id: fit for fit in store.fits(condition="passage")}
        failed = fits.pop("0|d1|passage|1")
        assert (failed.status, failed.answers) == ("failed", ())
        assert failed.error
        assert [e.subject for e in store.events("failed fit")] == ["0|d1|passage|1"]
    assert {fit.status for fit in fits.values()} == {"done"}
    assert len(fits) == 5
    passage = summary.conditions[1]
    assert passage.graded == 10
    assert passage.failed_fits == 1
    assert summary.events is not None
    assert summary.events["failed fit"] == 1


class Unsure:
    """A grader that says nothing about answers to questions of coins."""

    name = "lexical"

    def grade(self, items: list[GradeItem]) -> list[Grade]:
        return [
            Grade("ungraded", None, self.name, "no idea")
            if "coins" in item.question
            else Grade("right", 1.0, self.name)
            for item in items
        ]


def test_ungraded_answers_count_neither_way(make: Make) -> None:
    settings = make(CompareSettings, 2, editor=("none",), max_ungraded=0.5)
    (condition,) = compare(settings, grader=lambda *_: Unsure()).conditions
    assert (condition.accuracy, condition.correct, condition.graded, condition.ungraded) == (1.0, 2, 2, 2)


class Silent:
    """A grader that can say nothing."""

    name = "lexical"

    def grade(self, items: list[GradeItem]) -> list[Grade]:
        return [Grade("ungraded", None, self.name, "no idea") for _ in items]


def test_where_nothing_was_graded_nothing_is_known(make: Make) -> None:
    settings = make(CompareSettings, 2, editor=("none", "passage"), max_ungraded=1.0)
    summary = compare(settings, grader=lambda *_: Silent())
    assert [(c.accuracy, c.ci95, c.graded, c.ungraded) for c in summary.conditions] == [(None, None, 0, 4)] * 2
    assert summary.differences == ()
    written = json.loads((settings.out / "summary.json").read_text())
    assert [(c["accuracy"], c["ci95"]) for c in written["conditions"]] == [(None, None)] * 2
    assert list(undeclared(summary)) == []


def test_too_many_ungraded_answers_stop_the_run(make: Make, chat_model: str) -> None:
    settings = make(CompareSettings, 2, editor=("passage",))
    with pytest.raises(UserError, match=r"answers could not be graded by lexical, more than --max-ungraded 2%"):
        compare(settings, grader=lambda *_: Unsure())
    assert not (settings.out / "summary.json").exists()
    # Once the grader is there again, the same command grades what is left and fits nothing anew.
    pool = CountingPool(chat_model)
    compare(settings, pool=pool)
    assert pool.fits == []
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        assert store.grade_counts("lexical")["ungraded"] == 0


def test_the_plan_counts_the_tokens_that_are_trained(finished: Finished) -> None:
    def planned(*editors: str) -> int:
        return plan(compare, finished.settings.model_copy(update={"editor": editors})).train_tokens

    trained = {c.name: c.train_tokens for c in finished.summary.conditions}
    assert planned("none", "passage") == trained["passage"]
    replay = finished.settings.editor[-1]
    assert planned(replay) == trained["replay:documents#expert"]
    assert planned("self") >= trained["self"]


def test_joint_trains_one_adapter_on_all_documents(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    file = documents(3)
    settings = CompareSettings(
        model=chat_model,
        documents=(file,),
        editor=("none", "passage", "self", f"replay:{file}#expert"),
        edits=2,
        replicates=2,
        regime="joint",
        **quick,
    )
    summary = compare(settings)
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        fits = {fit.id: fit for fit in store.fits()}
    assert set(fits) - {"0|d0|none|0", "0|d1|none|0", "0|d2|none|0"} == {
        f"0||{condition}|{replicate}"
        for condition in ("passage", "self", "replay:documents-3#expert")
        for replicate in (0, 1)
    }
    assert [len(fits["0||passage|0"].sequences), len(fits["0||replay:documents-3#expert|0"].sequences)] == [3, 15]
    assert [c.graded for c in summary.conditions] == [6, 12, 12, 12]
    for condition in summary.conditions:
        assert condition.ci95 is not None
        assert condition.accuracy is not None
        assert condition.ci95[0] <= condition.accuracy <= condition.ci95[1]


def test_forgetting_is_the_share_of_what_was_known_before(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's own answers are made the gold answers of two general questions; a third it cannot know."""
    asked = [Question(f"general|{k}", text, ("Zanzibar",)) for k, text in enumerate(("Who?", "Where?", "When?"))]
    monkeypatch.setattr("selfedit.methods.examining.general_questions", lambda *_: asked)
    common = {"model": chat_model, "documents": (documents(2),), "grader": "lexical"}
    quick = {**quick, "general_questions": 2}
    first = CompareSettings(**common, editor=("none",), **{**quick, "out": quick["out"].with_name("first")})
    assert not compare(first).forgetting
    with Store(first.out / "run.sqlite", readonly=True) as store:
        said = {a.question_id: a.answer for a in store.scored_answers("lexical") if a.document_id is None}
    asked[:2] = [replace(question, answers=(said[question.id],)) for question in asked[:2]]

    settings = CompareSettings(**common, editor=("none", "passage"), **quick)
    summary = compare(settings)
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        answers = [a for a in store.scored_answers("lexical", condition="passage") if a.document_id is None]
    assert {a.question_id for a in answers} == {"general|0", "general|1"}
    assert summary.forgetting is not None
    (line,) = summary.forgetting
    kept = sum(a.value == "right" for a in answers)
    assert (line.condition, line.asked, line.kept) == ("passage", 4, kept)
    assert line.lost == pytest.approx(1 - kept / 4)
    # General questions are no part of the exam's score.
    assert summary.conditions[1].graded == 4


def test_what_was_lost_has_an_interval_over_documents_and_of_one_adapter_over_questions() -> None:
    def lost(*fits: tuple[str | None, int]) -> ForgettingSummary:
        """Of adapters by document and replicate, those of the first two documents have lost all."""
        with Store(None) as store:
            store.add_documents([Document(f"d{k}", "", "Text.", ()) for k in range(6)])
            asked = [Question(f"general|{k}", "Is it?", ("yes",)) for k in range(12)]
            store.add_general_questions(asked)
            for id, replicate in fits:
                said = "no" if id in ("d0", "d1") else "yes"
                given = tuple(Answer(question.id, said, 1) for question in asked)
                store.record_fits([FitRecord("passage", replicate, document_id=id, steps=1, answers=given)])
            run: Any = SimpleNamespace(store=store, grading=Grading(store, LexicalGrader()))
            run.grading.grade()
            (found,) = forgetting(run, ["none", "passage"], routed=False)
            return found

    once = lost(*((f"d{d}", 0) for d in range(6)))
    often = lost(*((f"d{d}", r) for d in range(6) for r in range(5)))
    assert (once.asked, once.lost, often.asked, often.lost) == (72, pytest.approx(1 / 3), 360, pytest.approx(1 / 3))
    assert once.ci95 == pytest.approx(often.ci95), "five adapters of a document are no five documents"
    joint = lost((None, 0))
    assert (joint.asked, joint.lost) == (12, 0)
    assert joint.ci95 is not None
    assert joint.ci95[1] < 0.4, "questions are what was sampled, not adapters"


def test_a_base_model_is_prompted_in_plain_text_and_answers_in_one_line(
    quick: dict[str, Any], documents: Callable[[int], str], base_model: str
) -> None:
    settings = CompareSettings(
        model=base_model,
        documents=(documents(2),),
        editor=("none", "self:self-qa"),
        **{**quick, "max_answer_tokens": 12},
    )
    summary = compare(settings)
    assert summary.instruct is False
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        answers = [answer.text for fit in store.fits() for answer in fit.answers]
        edits = [stored.text for stored in store.edits()]
    assert not any("\n" in answer for answer in answers)
    # The plain prompt ends with "Question:"; the edit keeps it, so that its first line is a question too.
    assert all(edit.startswith("Question:") for edit in edits if edit)


def test_documents_without_questions_are_refused(quick: dict[str, Any], tmp_path: Path, chat_model: str) -> None:
    some = rows(2)
    del some[1]["questions"]
    file = write_rows(tmp_path / "some.jsonl", some)
    with pytest.raises(UserError, match=r"some\.jsonl.*question"):
        compare(CompareSettings(model=chat_model, documents=(str(file),), **quick))
