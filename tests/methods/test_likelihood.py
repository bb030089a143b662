"""The reward that needs no exam: how probable the accepted answers are under an edit's adapters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from counting_pool import CountingPool

from selfedit.documents import Document, Question
from selfedit.engine import AdapterBank, fit
from selfedit.errors import UserError
from selfedit.evaluation.exam import Exam
from selfedit.execution.tasks import FitTask
from selfedit.methods.restem import train
from selfedit.methods.settings import TrainSettings
from selfedit.models import load_tokenizer
from selfedit.prompts import Prompts
from selfedit.runs.store import Store


@pytest.mark.parametrize("kind", ["chat", "base"])
def test_an_accepted_answer_stands_behind_the_exams_own_prompt(kind: str, chat_model: str, base_model: str) -> None:
    tokenizer = load_tokenizer(chat_model if kind == "chat" else base_model)
    exam = Exam(tokenizer, 1024, Prompts(), max_tokens=8)
    document = Document("d", "Ada and the kite", "Ada made a kite in Oslo.")
    question = Question("q", "Where did Ada make the kite?", ("Oslo", "in Norway"))
    sequence = exam.gold(document, question)
    assert sequence.ids[: sequence.prompt_length] == exam.request(document, question).prompt
    said = tokenizer.hf.decode(sequence.ids[sequence.prompt_length :])
    assert said == ("Oslo" if kind == "chat" else " Oslo")


def test_the_reward_is_the_geometric_mean_of_the_answers_probabilities(small_train: dict[str, Any]) -> None:
    settings = TrainSettings(**{**small_train, "rounds": 1, "replicates": 2, "reward": "likelihood"})
    summary = train(settings, pool=(pool := CountingPool(small_train["model"])))
    with Store(settings.out / "run.sqlite", readonly=True) as store:
        fits, edits = store.fits(condition="train"), store.edits(writer="train")
        validated = store.fits(condition="validation")
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
    for sequence in one.gold:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([sequence.ids])).logits[0]
        answer = torch.tensor(sequence.ids[sequence.prompt_length :])
        losses.append(torch.nn.functional.cross_entropy(logits[sequence.prompt_length - 1 : -1], answer).item())
    assert len(losses) == 2
    (stored,) = (found.answer_loss for found in fits if found.id == one.id)
    assert stored == pytest.approx(sum(losses) / 2, rel=1e-3)


def test_a_baseline_of_exams_cannot_be_compared_with(small_train: dict[str, Any], tmp_path: Path) -> None:
    settings = TrainSettings(**{**small_train, "reward": "likelihood", "select": "above-baseline"})
    with pytest.raises(UserError, match="--select above-baseline compares rewards with the exam's scores"):
        train(settings, pool=CountingPool(small_train["model"]))
    assert not settings.out.exists()
