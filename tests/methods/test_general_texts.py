"""What the model writes to general prompts: once per run and policy, and as it would write it itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counting_pool import CountingPool
from making import Make
from run_content import content

from selfedit.engine import AdapterBank, FitJob, FitSettings, LoraSpec
from selfedit.evaluation.general import general_prompts, general_questions
from selfedit.evaluation.text import tokens
from selfedit.execution.measures import Measures
from selfedit.execution.tasks import Fit, FitTask
from selfedit.methods.compare import compare
from selfedit.methods.general_texts import own_sequences, own_texts
from selfedit.methods.run import Run
from selfedit.methods.settings import CompareSettings
from selfedit.runs.directory import RunDirectory


def test_no_prompt_is_for_two_uses_or_asked_in_the_exam() -> None:
    measure, retain, topic = (general_prompts(use) for use in ("measure", "retain", "topic"))
    assert (len(measure), len(retain), len(topic)) == (40, 60, 360)
    prompts = [*measure.values(), *retain.values(), *topic.values()]
    assert len(measure | retain | topic) == len({prompt.lower() for prompt in prompts}) == 460
    assert all(prompt == prompt.strip() for prompt in prompts)
    assert all(len(prompt) >= 15 for prompt in [*measure.values(), *retain.values()])
    for asked in general_questions():
        words = set(tokens(asked.question))
        alike = [p for p in topic.values() if len(words & set(tokens(p))) > 0.6 * len(words | set(tokens(p)))]
        assert alike == [], asked.question


@pytest.mark.parametrize("kind", ["chat", "base"])
def test_texts_are_written_once_and_are_the_models_own(
    kind: str, chat_model: str, base_model: str, quick: dict[str, Any]
) -> None:
    model = chat_model if kind == "chat" else base_model
    settings = CompareSettings(**quick, model=model)
    with Run("compare", settings, pool=(pool := CountingPool(model))) as run:
        texts = own_texts(run, "measure")
        assert [t.prompt_id for t in texts] == list(general_prompts("measure"))
        assert all(len(t.ids) <= 32 and t.text == run.workers.tokenizer.decode(t.ids) for t in texts)
        assert len({t.ids for t in texts}) > 2, "all alike"  # a base model this small writes few different texts
        tasks = len(pool.tasks)
        assert own_texts(run, "measure") == texts
        assert len(pool.tasks) == tasks, "written again"
        assert len(own_texts(run, "retain")) == 60
        assert [cost.what for cost in run.store.costs()] == ["texts"] * len(pool.tasks)
        sequences = own_sequences(run, texts)
        hf = pool.worker.model.hf
    for text, sequence in zip(texts, sequences, strict=True):
        assert sequence.ids[sequence.prompt_length : -1] == text.ids
        with torch.no_grad():
            best = (
                hf(input_ids=torch.tensor([sequence.ids]))
                .logits[0]
                .argmax(-1)
                .tolist()[sequence.prompt_length - 1 : -1]
            )
        assert tuple(best[:-1]) == text.ids, "not what the model itself expects"
        assert len(text.ids) == 32 or best[-1] in run.workers.tokenizer.stop_ids
    with Run("compare", settings, pool=CountingPool(model)) as again:
        assert own_texts(again, "measure") == texts


def test_each_adapter_is_measured_on_texts_of_its_own(make: Make, chat_model: str) -> None:
    settings = make(CompareSettings, 3, editor=("none", "passage", "self"), replicates=4, general_texts=3)
    summary = compare(settings, pool=(pool := CountingPool(chat_model)))
    with RunDirectory.read(settings.out) as run:
        fits = run.store.fits()
        assert len(run.store.own_texts()) == 40
    assert all((fit.divergence is not None) == (fit.condition != "none") for fit in fits)
    given = {fit.id: fit.texts for task in pool.tasks if isinstance(task, FitTask) for fit in task.fits}
    assert {len(texts) for texts in given.values()} == {3}
    assert len(set(given.values())) == 12, "a part for each document and replicate"
    assert all(given[f"0|d{d}|passage|{r}"] == given[f"0|d{d}|self|0|{r}"] for d in range(3) for r in range(4))
    by_name = {entry.condition: entry for entry in summary.forgetting}
    assert set(by_name) == {"passage", "self"}
    for name, entry in by_name.items():
        measured = [fit.divergence for fit in fits if fit.condition == name and fit.divergence is not None]
        assert entry.measured == len(measured) == 12
        assert entry.divergence == pytest.approx(sum(measured) / 12)
        assert entry.divergence_ci95 is not None
        assert 0 <= entry.divergence_ci95[0] < entry.divergence < entry.divergence_ci95[1]
        assert (entry.asked, entry.lost) == (0, None)
    # The seed, and nothing else, decides which texts.
    again = settings.model_copy(update={"out": settings.out.with_name("again")})
    compare(again, pool=CountingPool(chat_model))
    assert content(again.out)["fits"] == content(settings.out)["fits"]


def test_few_adapters_are_measured_on_all_texts(make: Make, chat_model: str) -> None:
    settings = make(CompareSettings, 2, editor=("passage",), general_texts=3)
    compare(settings, pool=(pool := CountingPool(chat_model)))
    assert [len(fit.texts) for task in pool.tasks if isinstance(task, FitTask) for fit in task.fits] == [20, 20]


def test_the_divergence_is_that_of_plain_torch(chat_model: str, quick: dict[str, Any]) -> None:
    with Run("compare", CompareSettings(**quick, model=chat_model), pool=(pool := CountingPool(chat_model))) as run:
        texts = own_sequences(run, own_texts(run, "measure"))[:5]
    model = pool.worker.model.hf

    def log_probs(ids: tuple[int, ...]) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)

    before = [log_probs(text.ids) for text in texts]
    with AdapterBank(model, LoraSpec(rank=4), 2) as bank:
        for place in (0, 1):
            bank.reset(place, place)
        for _, b_OR in bank.state(1).values():
            b_OR.fill_(0.02)
        bank.publish([1])
        fits = [Fit(name, FitJob((), FitSettings(), 0), texts=tuple(texts)) for name in "abc"]
        found = {number: one.divergence for number, one in Measures(model)(bank, fits, {2: 1, 1: 0}).items()}
    assert found.keys() == {1, 2}
    assert found[1] < 1e-7, "a fresh adapter predicts what the model does"
    for name, (a, b) in bank.state(1).items():
        layer = model.get_submodule(name)
        layer.weight.data += bank.spec.scaling * b @ a
    total = tokens = 0.0
    for text, p in zip(texts, before, strict=True):
        q = log_probs(text.ids)
        for k in range(text.prompt_length - 1, len(text.ids) - 1):
            named = p[k].topk(20).indices
            rest_p, rest_q = 1 - p[k, named].exp().sum(), 1 - q[k, named].exp().sum()
            total += float((p[k, named].exp() * (p[k, named] - q[k, named])).sum() + rest_p * (rest_p / rest_q).log())
            tokens += 1
    assert found[2] == pytest.approx(total / tokens, rel=1e-3)
    assert found[2] > 1e-3
