"""The reward that needs no exam: how probable the model's own open-book answers are under an edit's adapters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from counting_pool import CountingPool

from overlap_grader import Where
from selfedit.documents import Document, Question
from selfedit.engine import AdapterBank, fit
from selfedit.errors import UserError
from selfedit.evaluation.exam import Exam
from selfedit.execution.tasks import FitTask
from selfedit.methods.plan import plan
from selfedit.methods.restem import train
from selfedit.methods.settings import TrainSettings
from selfedit.models import load_tokenizer
from selfedit.prompts import Prompts
from selfedit.runs.store import Store
from tiny_world import rows, write_rows


@pytest.mark.parametrize("kind", ["chat", "base"])
def test_an_answer_stands_behind_the_exams_own_prompt(kind: str, chat_model: str, base_model: str) -> None:
    tokenizer = load_tokenizer(chat_model if kind == "chat" else base_model)
    exam = Exam(tokenizer, 1024, Prompts(), max_tokens=8)
    document = Document("d", "Ada and the kite", "Ada made a kite in Oslo.")
    question = Question("q", "Where did Ada make the kite?", ("Oslo", "in Norway"))
    sequence = exam.answered(document, question, "Oslo")
    assert sequence.ids[: sequence.prompt_length] == exam.request(document, question).prompt
    said = tokenizer.hf.decode(sequence.ids[sequence.prompt_length :])
    assert said == ("Oslo" if kind == "chat" else " Oslo")


def test_the_reward_is_the_geometric_mean_of_the_answers_probabilities(small_train: dict[str, Any]) -> None:
    settings = TrainSettings(**{**small_train, "rounds": 1, "replicates": 2, "reward": "likelihood"})
    pool = CountingPool(small_train["model"])
    summary = train(settings, pool=pool, grader=lambda spec: Where(spec))
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        fits, edits = store.fits(condition="train"), store.edits(writer="train")
        validated = store.fits(condition="validation")
        read = {answer.question_id: answer.text for fit in store.fits(condition="open-book") for answer in fit.answers}
        asked = {document.id: document.questions for document in store.documents("train")}
    assert len(fits) == 2 * len(edits) > 0
    assert not any(one.answers for one in fits), "the exam was taken"
    assert all(one.answers and one.answer_loss is None for one in validated)
    for edit in edits:
        losses = [one.answer_loss for one in fits if one.edit_id == edit.id]
        assert None not in losses
        assert edit.reward == pytest.approx(math.exp(-sum(map(float, losses)) / 2))  # type: ignore[arg-type]
    assert len({edit.reward for edit in edits}) == len(edits), "a continuous reward has no ties"
    assert summary.rounds[0].train_reward == pytest.approx(sum(float(e.reward or 0) for e in edits) / len(edits))

    # By plain torch: the first fit again, its adapter added to the weights.
    one = next(task for task in pool.tasks if isinstance(task, FitTask) and "rewards" in task.id).fits[0]
    task = next(task for task in pool.tasks if isinstance(task, FitTask) and one in task.fits)
    model = CountingPool(small_train["model"]).worker.model.hf
    with AdapterBank(model, task.lora, 1) as bank:
        fit(bank, [one.job])
        state = bank.state(0)
    for name, (a, b) in state.items():
        model.get_submodule(name).weight.data += task.lora.scaling * b @ a
    losses = []
    for sequence in one.known:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([sequence.ids])).logits[0]
        answer = torch.tensor(sequence.ids[sequence.prompt_length :])
        losses.append(torch.nn.functional.cross_entropy(logits[sequence.prompt_length - 1 : -1], answer).item())
    (question,) = (question for question in asked[one.id.split("|")[1]] if question.question.startswith("Where"))
    tokenizer = load_tokenizer(small_train["model"])
    said = [tokenizer.hf.decode(sequence.ids[sequence.prompt_length :]) for sequence in one.known]
    assert said == [read[question.id]], "the model's own answer, to the question that it answers rightly"
    (stored,) = (found.answer_loss for found in fits if found.id == one.id)
    assert stored == pytest.approx(losses[0], rel=1e-3)


def test_documents_and_runs_without_a_right_open_book_answer_are_named(small_train: dict[str, Any]) -> None:
    some = {**small_train, "rounds": 1, "reward": "likelihood"}
    settings = TrainSettings(**some)
    train(settings, pool=CountingPool(settings.model), grader=lambda spec: Where(spec, "Ada", "Bo", "Cy"))
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        named = {event.subject for event in store.events("no reward")}
        training = {id for id, split in store.splits().items() if split == "train"}
        edits = store.edits(writer="train")
    assert named == training - {"d0", "d1", "d2"}
    assert named
    assert {edit.document_id for edit in edits if edit.reward is None} == named
    assert {edit.document_id for edit in edits if edit.kept} == training - named

    nothing = TrainSettings(**{**some, "out": settings.out.parent / "nothing"})
    with pytest.raises(UserError, match="--reward likelihood: the model answers no question rightly") as at:
        train(nothing, pool=CountingPool(settings.model), grader=lambda spec: Where(spec, "nobody"))
    assert "\n" not in str(at.value)


def test_a_document_must_fit_before_its_questions(small_train: dict[str, Any], tmp_path: Path) -> None:
    some = rows(6)
    for row in some:
        row["text"] = row["text"] + " It was blue." * 400
    long = {**small_train, "documents": (str(write_rows(tmp_path / "long.jsonl", some)),), "reward": "likelihood"}
    with pytest.raises(UserError, match=r"question .* cut document d\d into shorter ones"):
        train(TrainSettings(**long), pool=(pool := CountingPool(small_train["model"])))
    assert not pool.tasks


def test_the_plan_holds(small_train: dict[str, Any]) -> None:
    settings = TrainSettings(**{**small_train, "rounds": 1, "reward": "likelihood"})
    planned = plan(train, settings)
    pool = CountingPool(settings.model)
    train(settings, pool=pool, grader=lambda spec: Where(spec))
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        answers = sum(len(fit.answers) for fit in store.fits())
    assert planned.answers == answers


@pytest.mark.parametrize("reward", ["likelihood", "judge"])
def test_a_baseline_of_exams_cannot_be_compared_with(small_train: dict[str, Any], reward: str) -> None:
    settings = TrainSettings(**{**small_train, "reward": reward, "select": "above-baseline"})
    with pytest.raises(UserError, match=f"above-baseline compares .* the exam's scores, and --reward {reward}"):
        train(settings, pool=CountingPool(small_train["model"]))
    assert not settings.out.exists()
