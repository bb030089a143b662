"""What the model writes to general prompts: once per run and policy, and as it would write it itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counting_pool import CountingPool

from selfedit.evaluation.general import general_prompts
from selfedit.methods.general_texts import own_sequences, own_texts
from selfedit.methods.run import Run
from selfedit.methods.settings import CompareSettings


def test_no_prompt_is_for_both_uses() -> None:
    measure, retain = general_prompts("measure"), general_prompts("retain")
    assert (len(measure), len(retain)) == (40, 60)
    both = [*measure, *retain]
    assert len({p.id for p in both}) == len({p.prompt.lower() for p in both}) == 100
    assert all(p.prompt == p.prompt.strip() and len(p.prompt) >= 15 for p in both)


@pytest.mark.parametrize("kind", ["chat", "base"])
def test_texts_are_written_once_and_are_the_models_own(
    kind: str, chat_model: str, base_model: str, quick: dict[str, Any]
) -> None:
    model = chat_model if kind == "chat" else base_model
    settings = CompareSettings(**quick, model=model)
    with Run("compare", settings, pool=(pool := CountingPool(model))) as run:
        texts = own_texts(run, "measure")
        assert [t.prompt_id for t in texts] == [p.id for p in general_prompts("measure")]
        assert all(len(t.ids) <= 32 and t.text == run.workers.tokenizer.decode(t.ids) for t in texts)
        assert len({t.ids for t in texts}) > 20, "all alike"
        tasks = len(pool.tasks)
        assert own_texts(run, "measure") == texts
        assert len(pool.tasks) == tasks, "written again"
        assert len(own_texts(run, "retain")) == 60
        assert [cost.what for cost in run.store.costs()] == ["texts"] * len(pool.tasks)
        sequences = own_sequences(run, texts)
        hf = pool.worker.model.hf
    likely = []
    for text, sequence in zip(texts, sequences, strict=True):
        assert sequence.ids[sequence.prompt_length : -1] == text.ids
        with torch.no_grad():
            logits = hf(input_ids=torch.tensor([sequence.ids])).logits[0].float()
        labels = torch.tensor(sequence.ids[sequence.prompt_length : -1], dtype=torch.long)
        predicted = logits[sequence.prompt_length - 1 : -2].log_softmax(-1)
        entropy = -(predicted.exp() * predicted).sum(-1)
        likely += (-predicted.gather(1, labels[:, None])[:, 0] - entropy).tolist()
    # Sampled from the model itself, at temperature 1: as surprising as the model says.
    assert abs(sum(likely) / len(likely)) < 0.15
    with Run("compare", settings, pool=CountingPool(model)) as again:
        assert own_texts(again, "measure") == texts
