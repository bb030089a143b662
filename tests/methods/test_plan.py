"""`--plan` against what a run then did: the same fits, and never more tokens, answers, calls or money."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
from counting_pool import CountingPool
from hypothesis import given, settings
from hypothesis import strategies as st
from making import Make

from overlap_grader import Where
from selfedit.documents import Document
from selfedit.editors.cleaning import clean
from selfedit.errors import UserError
from selfedit.execution.tasks import FitTask, Task, TaskResult
from selfedit.methods.compare import compare
from selfedit.methods.continual import continual
from selfedit.methods.learn import learn
from selfedit.methods.plan import Plan, plan
from selfedit.methods.restem import train
from selfedit.methods.settings import (
    CompareSettings,
    ContinualSettings,
    LearnSettings,
    Settings,
    SweepSettings,
    TrainSettings,
)
from selfedit.methods.sweep import sweep
from selfedit.models import load_tokenizer
from selfedit.prompts import Prompts
from selfedit.runs.costs import Spent
from selfedit.runs.directory import RunDirectory
from selfedit.training.jobs import Jobs
from selfedit.training.recipes import load_recipe
from selfedit.training.tokens import tokenize, within_bounds
from tiny_world import rows, write_rows


class Measuring(CountingPool):
    """What a run really took."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.trained = self.answers = 0
        self.written: Counter[str] = Counter()

    def run(self, tasks: Iterable[Task]) -> Generator[TaskResult]:
        for task in tasks:
            for result in super().run([task]):
                kind = "exam" if isinstance(task, FitTask) else task.id.split("/")[0]
                sat = [c for one in result.outcomes for c in (*one.completions, *one.recited.completions)]
                said = [*result.completions, *sat]
                recited = [text.partition("\n")[2] for outcome in result.outcomes for text in outcome.recited.texts]
                recited += [topic for outcome in result.outcomes for topic in outcome.recited.topics if topic]
                self.written[kind] += sum(len(completion.ids) for completion in said)
                self.written[kind] += sum(len(self.tokenizer.encode(text)) for text in recited)
                self.answers += len(said) * (kind == "exam")
                self.trained += sum(outcome.result.tokens for outcome in result.outcomes)
                yield result

    @property
    def all_fits(self) -> int:
        return sum(len(task.fits) for task in self.tasks if isinstance(task, FitTask))


def planned_and_run(procedure: Callable[..., Any], chosen: Settings, **parts: Any) -> tuple[Plan, Measuring]:
    planned = plan(procedure, chosen)
    assert not chosen.out.exists()
    pool = Measuring(chosen.model)
    procedure(chosen, pool=pool, **parts)
    assert planned.fits == pool.all_fits
    assert pool.trained <= planned.train_tokens
    assert planned.train_tokens_likely <= planned.train_tokens
    assert pool.answers <= planned.answers
    assert pool.written["exam"] <= planned.answer_tokens
    assert pool.written["edits"] <= planned.write_tokens
    assert pool.written["judge"] + pool.written["ratings"] <= planned.judge_tokens
    with RunDirectory.read(chosen.out) as run:
        assert len(run.store.documents()) == planned.documents
        spent = Spent.of(run.store.costs())
        assert (spent.known_usd or 0.0) <= (planned.cost_usd or 0.0)
    return planned, pool


@pytest.mark.parametrize(
    "more",
    [
        {
            "editor": ("none", "passage", "self"),
            "edits": 2,
            "replicates": 2,
            "general_questions": 2,
            "general_texts": 2,
            "neighbour_questions": 2,
        },
        {"editor": ("self", "passage"), "regime": "joint", "edits": 2, "replicates": 2},
        {"editor": ("self", "passage"), "recite": True, "edits": 2, "general_questions": 2},
        {"editor": ("self", "passage"), "recite": True, "regime": "joint"},
        # Four copies of each document and of its edit's parts, so of few documents and once.
        {"editor": ("self", "passage"), "recite": True, "recipe": "recite", "general_questions": 2, "limit": 2}
        | {"set": {"epochs": 1}},
        {"editor": ("self", "passage"), "regime": "joint", "edits": 2, "set": {"each_edit": True, "epochs": 1}},
        {
            "editor": ("self",),
            "set": {"cutting": "whole", "document_copies": 0, "epochs": 1},
            "grader": "judge:local",
            "max_ungraded": 1.0,
        },
        {"editor": ("none", "self"), "grader": "judge:model:{other}", "max_ungraded": 1.0},
        {"editor": ("self:self-qa",), "set": {"objectives": ("text", "answers"), "epochs": 2}, "edits": 2},
        {"editor": ("self",), "set": {"max_sequence_tokens": 64, "epochs": 1}, "max_edit_tokens": 90},
        {"editor": ("model:{other}:rewrite", "self"), "edits": 2},
        {"editor": ("self", "passage"), "set": {"pad_to": 96, "epochs": 1, "rank": 4}},
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_compare(
    quick: dict[str, Any],
    documents: Callable[[int], str],
    chat_model: str,
    base_model: str,
    chat: bool,
    more: dict[str, Any],
) -> None:
    file = documents(5)
    model, other = (chat_model, base_model) if chat else (base_model, chat_model)
    more = {**more, "editor": tuple(editor.format(file=file, other=other) for editor in more["editor"])}
    if "grader" in more:
        more["grader"] = more["grader"].format(other=other)
    chosen = CompareSettings(**{**quick, "model": model, "documents": (file,), "temperature": 1.0, **more})
    planned, pool = planned_and_run(compare, chosen)
    if not chosen.general_questions:
        assert planned.answers == pool.answers


@pytest.mark.parametrize(
    ("editor", "grid"),
    [
        (("passage", "self"), ("epochs=1,3", "cutting=whole,lines")),
        (("self:self-qa",), ("steps=2,6", "objectives=[text],[distill]")),
        (("self",), ("retain=0,2", "rank=4,8")),
    ],
)
def test_sweep(
    quick: dict[str, Any],
    documents: Callable[[int], str],
    chat_model: str,
    editor: tuple[str, ...],
    grid: tuple[str, ...],
) -> None:
    chosen = SweepSettings(
        **quick
        | {"model": chat_model, "documents": (documents(8),), "validation_share": 0.75, "editor": editor}
        | {"grid": grid, "general_questions": 1}
    )
    planned, _ = planned_and_run(sweep, chosen)
    assert planned.fits == (4 * 2 + 2 * 6) * len(editor)


def test_what_is_there_is_planned_exactly(
    quick: dict[str, Any], documents: Callable[[int], str], chat_model: str
) -> None:
    file = documents(3)
    chosen = CompareSettings(
        **quick, model=chat_model, documents=(file,), editor=("passage", f"replay:{file}"), edits=2, replicates=2
    )
    planned, pool = planned_and_run(compare, chosen)
    assert planned.train_tokens == planned.train_tokens_likely == pool.trained
    assert planned.fits == 3 * 2 + 3 * 2 * 2


@pytest.mark.parametrize(
    "more",
    [
        {"general_questions": 1},
        {"select": "top-fraction", "top_fraction": 0.5, "edits": 3, "rounds": 1},
        {"reward": "judge", "judge_sample": 2, "rounds": 1, "validation_share": 0.0},
        {"reward": "likelihood", "rounds": 1},
    ],
)
def test_train_and_its_policy(small_train: dict[str, Any], tmp_path: Path, more: dict[str, Any]) -> None:
    chosen = TrainSettings(**{**small_train, **more})
    if chosen.reward == "judge":  # the tiny model's ratings cannot be read, so that nothing is kept
        with pytest.raises(UserError, match="no edit was kept"):
            planned_and_run(train, chosen)
        return
    # The likelihood is that of right answers, of which the tiny model gives none.
    planned_and_run(train, chosen, **({"grader": Where} if chosen.reward == "likelihood" else {}))
    shared = {k: small_train[k] for k in ("model", "device", "dtype", "set", "max_edit_tokens", "general_questions")}
    other = write_rows(tmp_path / "others.jsonl", rows(8)[6:])
    planned, pool = planned_and_run(
        compare,
        CompareSettings(
            **shared,
            documents=(str(other),),
            editor=("self",),
            edits=2,
            policy=chosen.out,
            policy_round=1,
            out=tmp_path / "with",
        ),
    )
    assert planned.fits == pool.all_fits == 2 * 2 + 2 * 2


def test_above_baseline_plans_for_every_edit(small_train: dict[str, Any]) -> None:
    best = plan(train, TrainSettings(**small_train))
    all_edits = plan(train, TrainSettings(**small_train, select="above-baseline"))
    assert all_edits.fits == best.fits
    assert all_edits.train_tokens > best.train_tokens
    assert all_edits.answers == best.answers + 4 * 2  # the later round's students before they learn


@pytest.mark.parametrize("adapters", ["joint", "recite"])
@pytest.mark.parametrize("editor", ["passage", "self"])
def test_learn(make: Make, editor: str, adapters: str) -> None:
    chosen = make(LearnSettings, 3, editor=editor, edits=2, adapters=adapters)
    planned, _ = planned_and_run(learn, chosen)
    assert planned.fits == 1


@pytest.mark.parametrize("editor", ["passage", "self"])
def test_continual(make: Make, editor: str) -> None:
    chosen = make(ContinualSettings, 3, editor=editor, edits=2, retain=("none",))
    planned, pool = planned_and_run(continual, chosen)
    assert planned.fits == 3
    assert planned.answers == pool.answers == 2 * (3 + 1 + 2 + 3)


@pytest.mark.parametrize("editor", ["passage", "self"])
def test_continual_with_an_adapter_per_document(make: Make, editor: str) -> None:
    planned, pool = planned_and_run(continual, make(ContinualSettings, 3, editor=editor, edits=2))
    assert planned.fits == 3
    assert planned.answers >= pool.answers


def test_another_model_is_planned_by_its_own_size(make: Make, base_model: str, tmp_path: Path) -> None:
    """A writer of four times the layers, otherwise the same: more operations and memory, the same tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(base_model)
    config.num_hidden_layers *= 4
    config.layer_types = None
    large = tmp_path / "large"
    AutoModelForCausalLM.from_config(config).save_pretrained(large)
    AutoTokenizer.from_pretrained(base_model).save_pretrained(large)
    chosen = make(CompareSettings, 3, editor=(f"model:{base_model}",))
    small_plan = plan(compare, chosen)
    large_plan = plan(compare, chosen.model_copy(update={"editor": (f"model:{large}",)}))
    assert large_plan.write_tokens == small_plan.write_tokens
    assert large_plan.flops > small_plan.flops
    assert large_plan.memory_bytes > small_plan.memory_bytes


# APIs


PRICES = "models:\n  writer: {input: 100, output: 1000}\n  judge: {input: 50, output: 500}\n"


@pytest.fixture
def greedy(server: Any) -> Any:
    """A server whose replies are as long as they may be, and which counts a token for every two bytes that it reads."""

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        asked = json.dumps(body["messages"], ensure_ascii=False)
        text = "10" if "Rate the notes" in asked else "Notes, of which\nthere are many.\n" * 40
        text = '{"verdict": "yes"}' if "response_format" in body else text
        usage = {"prompt_tokens": len(asked.encode()) // 2, "completion_tokens": body["max_tokens"]}
        choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": text}}
        return {"id": "c", "choices": [choice], "usage": usage}

    server.reply = reply
    return server


@pytest.mark.parametrize("effort", [None, "low"])
def test_money_of_compare(make: Make, greedy: Any, tmp_path: Path, effort: str | None) -> None:
    (tmp_path / "prices.yaml").write_text(PRICES)
    chosen = make(
        CompareSettings,
        3,
        general_questions=1,
        editor=("api:writer", "passage"),
        edits=2,
        grader="judge:judge",
        api_base=greedy.url,
        prices=tmp_path / "prices.yaml",
        reasoning_effort=effort,
        judge_reasoning_effort=effort,
    )
    planned, _ = planned_and_run(compare, chosen)
    assert 0 < len(greedy.completions) <= planned.calls
    with RunDirectory.read(chosen.out) as run:
        spent = Spent.of(run.store.costs()).known_usd or 0.0
    assert planned.cost_usd_likely is not None
    assert 0 < planned.cost_usd_likely < (planned.cost_usd or 0)
    assert spent > 0


def test_money_of_rewards(small_train: dict[str, Any], greedy: Any, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(PRICES)
    more = {"reward": "judge", "judge": "judge", "judge_sample": 1, "rounds": 1, "grader": "judge:judge"}
    chosen = TrainSettings(**{**small_train, **more}, api_base=greedy.url, prices=tmp_path / "prices.yaml")
    planned, _ = planned_and_run(train, chosen)
    assert 0 < len(greedy.completions) <= planned.calls


def test_a_plan_needs_no_key_and_says_where_a_price_is_unknown(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    chosen = make(CompareSettings, 2, editor=("api:gpt-4.1",))
    planned = plan(compare, chosen)
    assert planned.cost_usd is not None
    assert planned.calls == 2
    unknown = plan(compare, chosen.model_copy(update={"editor": ("api:nobody",)}))
    assert unknown.cost_usd is None
    assert "unknown price" in unknown.text()


def test_mistakes_are_told_as_by_the_run(make: Make) -> None:
    chosen = make(CompareSettings, 2, policy=Path("nowhere"))
    with pytest.raises(UserError, match="nowhere: no such directory"):
        plan(compare, chosen)
    with pytest.raises(UserError, match="no layer matches the targets"):
        plan(compare, chosen.model_copy(update={"policy": None, "set": {"targets": ["query"]}}))


# The bound of a fit on an edit that is not written yet


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cutting": "whole", "document_copies": 0},
        {"objectives": ("text", "answers")},
        {"cutting": "whole", "objectives": ("text", "answers"), "max_sequence_tokens": 16},
        {"max_sequence_tokens": 80},
        {"cutting": "packed", "pack_tokens": 9, "objectives": ("distill", "text")},
        {"cutting": "seal"},
        {"cutting": "seal-whole", "max_sequence_tokens": 40},
    ],
)
def test_no_edit_is_more_than_planned(
    quick: dict[str, Any], chat_model: str, base_model: str, tmp_path: Path, chat: bool, changes: dict[str, Any]
) -> None:
    model, most_tokens = (chat_model if chat else base_model), 24
    recipe = load_recipe("default").with_settings({"epochs": 1, **changes})
    row = rows(1)[0]
    document = Document(row["id"], row["title"], row["text"])
    chosen = LearnSettings(
        **{**quick, "set": {"epochs": 1, **changes}},
        model=model,
        editor="self",
        documents=(str(write_rows(tmp_path / "one.jsonl", [{k: v for k, v in row.items() if k != "questions"}])),),
    )
    assert chosen.max_edit_tokens == most_tokens
    planned = plan(learn, chosen).train_tokens
    tokenizer, prompts = load_tokenizer(model), Prompts()
    jobs = Jobs(tokenizer, 1024, prompts)
    vocabulary = st.lists(st.integers(0, len(tokenizer.hf) - 1), max_size=most_tokens).map(tokenizer.decode)
    lines = st.lists(st.text(max_size=6), max_size=60).map("\n".join)
    pairs = st.lists(
        st.sampled_from("Question: a|Answer: b|Q. c?|A: ♜|x|Question 2: d|---".split("|")), max_size=40
    ).map("\n".join)

    @settings(max_examples=150, deadline=None)
    @given(st.one_of(vocabulary, lines, pairs, st.text(max_size=2000), st.text("a \n", max_size=2000)))
    def check(raw: str) -> None:
        written = raw.strip() if recipe.cutting.startswith("seal") else clean(raw, cut_off=False)[0]
        text = within_bounds(written, most_tokens, tokenizer)
        sequences = jobs.sequences([document], [text], recipe)
        assert sum(len(tokenize(one, recipe, tokenizer, prompts).ids) for one in sequences) <= planned

    check()
