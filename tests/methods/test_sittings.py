"""Questions of other documents: who is asked which, and what counts as a leak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from counting_pool import CountingPool

from selfedit.documents import Document, Question, load_documents
from selfedit.execution.tasks import FitTask
from selfedit.methods.compare import compare
from selfedit.methods.examining import exam_questions
from selfedit.methods.learnings import all_in_one, one_each
from selfedit.methods.run import Run
from selfedit.methods.settings import CompareSettings
from selfedit.methods.sittings import Sitting, leaks, sittings
from selfedit.methods.summarise import neighbours
from selfedit.runs.records import FitRecord
from selfedit.runs.seeds import derive_seed
from selfedit.runs.store import Store
from tiny_world import rows, write_rows


def test_a_leak_is_wrong_and_right_about_the_own_document() -> None:
    own = Document("a", "A", "", (Question("a1", "Where did Ada make the kite?", ("Oslo", "in Norway")),))
    asked = [Question(f"b{k}", "Where did Bo make the lamp?", gold) for k, gold in enumerate([("Lima",)] * 4)]
    both = Question("b4", "Where did Cy make the drum?", ("Oslo",))
    pairs = [(question, (own,)) for question in (*asked, both)]
    said = ["In Oslo, of course.", "Lima", "It was made in Norway.", "I do not know.", "Oslo"]
    assert leaks(pairs, dict(zip(["b0", "b1", "b2", "b3", "b4"], said, strict=True))) == 2
    assert leaks([pairs[1], pairs[4]], {"b1": "Lima", "b4": "Oslo"}) == 0
    assert leaks([], {}) == 0


def test_leaks_of_the_untrained_model_are_unknown_where_some_are() -> None:
    """As where its exam on one of the documents was given up."""
    first = FitRecord("passage", document_id="a", neighbours=2, leaked=1, leaked_before=1)
    second = FitRecord("passage", document_id="b", neighbours=2)
    run: Any = SimpleNamespace(store=SimpleNamespace(fits=lambda condition: [first, second]))
    (found,) = neighbours(run, ["passage"])
    assert (found.asked, found.leaked, found.before) == (4, 0.25, None)


def test_leaks_before_are_told_where_the_untrained_model_was_asked() -> None:
    own = Document("a", "A", "", (Question("a1", "Where did Ada make the kite?", ("Oslo",)),))
    other = Document("b", "B", ""), Question("b1", "Where did Bo make the lamp?", ("Lima",))
    run: Any = SimpleNamespace(exam=SimpleNamespace(answer=lambda ids: "Oslo"))
    completion: Any = SimpleNamespace(ids=())
    leaked = {"answers": (), "neighbours": 1, "leaked": 1}
    for before, found in (({}, leaked), ({"b1": "Oslo"}, {**leaked, "leaked_before": 1})):
        assert Sitting((), (other,), {}, before, (), ()).results(run, [own], [completion]) == found


def test_each_adapter_is_asked_general_questions_of_its_own() -> None:
    run: Any = SimpleNamespace(seed=derive_seed, settings=SimpleNamespace(general_questions=3))
    known = [Question(f"general|{k}", "?", ("a",)) for k in range(30)]
    first, second, again = (exam_questions(run, [], known, id) for id in ("0|a|x|0", "0|b|x|0", "0|a|x|0"))
    assert first == again
    assert len(first) == len(second) == 3
    assert first != second


def test_neighbours_are_of_other_documents_and_of_the_same_title_first(
    quick: dict[str, Any], tmp_path: Path, chat_model: str
) -> None:
    some = rows(6)
    some[4]["title"] = some[0]["title"]
    documents = load_documents(str(write_rows(tmp_path / "documents.jsonl", some)))
    settings = CompareSettings(model=chat_model, **{**quick, "neighbour_questions": 3})
    with Run("compare", settings, pool=CountingPool(chat_model)) as run:
        learnings = [*one_each("passage", documents, None, 2), *one_each("other", documents, None, 2)]
        found = sittings(run, learnings)
        together = sittings(run, all_in_one("joint", documents, None))
    (joint,) = together.values()
    assert not joint.neighbours
    for document in documents:
        for question in document.questions:
            assert len({other.id for other in joint.confusable[question.id]} - {document.id}) == 3
    for learning in learnings:
        (own,) = learning.documents
        near = found[learning.id].neighbours
        assert len({question.id for _, question in near}) == 3
        assert own not in [document for document, _ in near]
        assert found[learning.id].questions == list(own.questions)
        if own.id in ("d0", "d4"):
            other = {"d0": "d4", "d4": "d0"}[own.id]
            assert sum(document is not None and document.id == other for document, _ in near) == 2
    passage, other = ([found[one.id].neighbours for one in some] for some in (learnings[:12], learnings[12:]))
    assert passage == other, "conditions are compared on the same questions"
    assert len({tuple(question.id for _, question in near) for near in passage}) == 12


def test_leaks_are_counted_beside_the_untrained_models_and_in_no_accuracy(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    file = documents(4)
    common: dict[str, Any] = {"model": chat_model, "documents": (file,), "editor": ("none", "passage")}
    with_them = CompareSettings(**common, **{**quick, "neighbour_questions": 2, "set": {"rank": 8, "epochs": 40}})
    summary = compare(with_them, pool=(pool := CountingPool(chat_model)))
    without = with_them.model_copy(update={"neighbour_questions": 0, "out": quick["out"].with_name("without")})
    expected = compare(without, pool=CountingPool(chat_model))
    for one, other in zip(summary.conditions, expected.conditions, strict=True):
        assert (one.accuracy, one.correct, one.graded) == (other.accuracy, other.correct, other.graded)
    assert expected.neighbours == ()
    (entry,) = summary.neighbours
    with Store(with_them.out / "run.sqlite", readonly=True) as store:
        fits = store.fits(condition="passage")
        untrained = {a.question_id: a.text for fit in store.fits(condition="none") for a in fit.answers}
        asked_by = {fit.id: fit for task in pool.tasks if isinstance(task, FitTask) for fit in task.fits}
    assert [fit.neighbours for fit in fits] == [2] * 4
    assert all(len(asked_by[fit.id].exam) == 4 and len(fit.answers) == 2 for fit in fits)
    assert (entry.condition, entry.asked, entry.leaked) == ("passage", 8, sum(fit.leaked for fit in fits) / 8)
    assert entry.before == sum(fit.leaked_before or 0 for fit in fits) / 8
    assert all(fit.leaked_before is not None for fit in fits)
    assert len(untrained) == 8


def test_an_adapter_of_all_documents_leaks_where_it_says_what_another_says(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    settings = CompareSettings(
        model=chat_model,
        documents=(documents(3),),
        editor=("none", "passage"),
        regime="joint",
        **{**quick, "neighbour_questions": 2, "set": {"rank": 8, "epochs": 10}},
    )
    summary = compare(settings)
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        (fit,) = store.fits(condition="passage")
        examined = store.documents()
        said = {answer.question_id: answer.text for answer in fit.answers}
    # Of three documents both others are drawn: the count can be made again from the answers.
    pairs = [(q, (other,)) for d in examined for q in d.questions for other in examined if other.id != d.id]
    (entry,) = summary.neighbours
    assert (entry.asked, fit.neighbours, fit.leaked) == (12, 12, leaks(pairs, said))
    assert fit.leaked_before is not None
