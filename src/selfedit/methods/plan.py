"""What a run will take, before anything is done: fits, tokens, operations, memory, money, and documents for a finding.

The run is rehearsed: the same procedure cuts the same tasks and asks the same requests, in a directory that is thrown
away. Only what would take time or money is played: a pool that counts and trains nothing, an API client that counts and
sends nothing, a grader to whom every answer is right (so that all general questions are asked again), a selection that
keeps what it can.  What is not written yet counts at its bound (`training.tokens.within_bounds`).  So each figure is
the most that the run can take; only replies of an API that are paid for and cannot be used are asked for again on top.
Beside it stands what is likely: edits as long as they may be, in lines of 16 tokens, and 4 characters to a token of an
API."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

from selfedit.documents import Document, Question
from selfedit.editors.api import ApiClient, ApiRequest, ApiResult
from selfedit.editors.base import Edit
from selfedit.editors.prices import estimate_tokens
from selfedit.evaluation.grade import Grade, GradeItem, Grader
from selfedit.evaluation.graders import judge_model
from selfedit.evaluation.statistics import documents_needed
from selfedit.execution.tasks import (
    Completion,
    FitJob,
    FitOutcome,
    FitResult,
    FitTask,
    Look,
    LoraSpec,
    Task,
    TaskResult,
    TokenSequence,
)
from selfedit.methods.experiment import Experiment, Learning
from selfedit.methods.policies import DELTA_FILES
from selfedit.methods.selection import Rewarded, Selection, select
from selfedit.methods.settings import Settings
from selfedit.models import load_tokenizer, local_path
from selfedit.runs.records import Answer
from selfedit.training.cutting import TrainingSequence, part_size
from selfedit.training.recipes import Recipe
from selfedit.training.tokens import most_characters, most_own_tokens, tokenize

_POINTS = 0.03
_LINE_TOKENS = 16  # likely, of a line of an edit
_VERDICT_TOKENS = 8  # likely, of a judge's reply
_SEAM = 4  # tokens that two texts can have more as one than each alone, with what stands between them
# Stand for what is not written yet, in texts of which only the length counts.
_EDIT, _ANSWER = "\ue000edit\ue000", "\ue000answer {}\ue000"
_ANSWERS = re.compile(_ANSWER.replace("{}", r"\d+"))


@dataclass(frozen=True)
class Plan:
    """The most that a run can take, and what is likely (`..._likely`).

    `fits` has the editor's own too.  Tokens are the whole run's, memory is bytes, operations are multiply-adds counted
    as two; `judge_tokens` are a local judge's; `cost_usd` is the price of `calls` calls of APIs (None: a model's price
    is not known)."""

    documents: int
    questions: int
    fits: int
    answers: int
    train_tokens: int
    train_tokens_likely: int
    write_tokens: int
    answer_tokens: int
    judge_tokens: int
    flops: float
    flops_likely: float
    memory_bytes: int
    calls: int
    cost_usd: float | None
    cost_usd_likely: float | None
    documents_for_three_points: int

    def text(self) -> str:
        """The plan for people."""

        def most(amount: str, likely: str) -> str:
            return amount if amount == likely else f"at most {amount}, likely {likely}"

        judged = f", {self.judge_tokens:,} of grades and ratings" if self.judge_tokens else ""
        if not self.calls:
            money = "none"
        elif self.cost_usd is None:
            money = f"at most {self.calls:,} calls; unknown price (no price for the model)"
        else:
            money = (
                f"at most {self.calls:,} calls for {self.cost_usd:,.2f} US dollars, likely {self.cost_usd_likely:,.2f}"
            )
        return "\n".join(
            [
                f"documents        {self.documents:,}, with {self.questions:,} questions",
                f"fits             {self.fits:,}",
                f"training tokens  {most(f'{self.train_tokens:,}', f'{self.train_tokens_likely:,}')}",
                f"written tokens   at most {self.write_tokens:,} of edits, {self.answer_tokens:,} of answers{judged}",
                f"operations       {most(f'{self.flops / 1e15:,.2f}', f'{self.flops_likely / 1e15:,.2f}')} PFLOP",
                f"memory           about {self.memory_bytes / 1e9:,.1f} GB",
                f"APIs             {money}",
                f"to see {100 * _POINTS:.0f} points     {self.documents_for_three_points:,} documents, if "
                "documents vary as"
                " is assumed in docs/grading.md",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(procedure: Callable[..., Any], settings: Settings) -> Plan:
    """Counts what a procedure (`compare`, `learn`, `train`, `continual`) will do.  Errors: UserError, as the run would
    give."""
    shape = _Shape(settings)
    counts = _Counts()
    with tempfile.TemporaryDirectory() as folder:
        # What changes no amount is left out.
        aside = {"out": Path(folder) / "run", "budget": None, "workers": 0, "ray": None, "track": None}
        rehearsed = settings.model_copy(update={k: v for k, v in aside.items() if k in type(settings).model_fields})
        procedure(rehearsed, pool=_Counting(settings, shape, counts), kind=partial(_Rehearsal, counts=counts))
    written = 2 * shape.weights
    return Plan(
        documents=len(counts.documents),
        questions=sum(len(document.questions) for document in counts.documents),
        fits=counts.fits,
        answers=counts.answers,
        train_tokens=counts.train_tokens,
        train_tokens_likely=counts.train_tokens_likely,
        write_tokens=counts.written["edits"],
        answer_tokens=counts.written["exam"],
        judge_tokens=counts.written["judge"] + counts.written["ratings"],
        flops=float(written * counts.passed + counts.train_flops),
        flops_likely=float(written * counts.passed_likely + counts.train_flops_likely),
        # An adapter has float32 parameters, gradients and two moments.
        memory_bytes=shape.weights * (2 if settings.dtype == "bfloat16" else 4) + counts.together * 16,
        calls=counts.calls,
        cost_usd=counts.cost if counts.priced else None,
        cost_usd_likely=counts.cost_likely if counts.priced else None,
        documents_for_three_points=documents_needed(_POINTS),
    )


@dataclass
class _Counts:
    """What a rehearsal has come to so far.  `passed` are tokens that go forward without being trained; `together` is
    the most parameters of adapters in one bank."""

    fits: int = 0
    answers: int = 0
    train_tokens: int = 0
    train_tokens_likely: int = 0
    train_flops: int = 0
    train_flops_likely: int = 0
    written: Counter[str] = field(default_factory=Counter)
    passed: int = 0
    passed_likely: int = 0
    together: int = 0
    calls: int = 0
    cost: float = 0.0
    cost_likely: float = 0.0
    priced: bool = True
    documents: list[Document] = field(default_factory=list)
    likely: dict[str, int] = field(default_factory=dict)  # training tokens, by fit


class _Shape:
    """A model's sizes, from its configuration alone."""

    def __init__(self, settings: Settings) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        trust = settings.trust_remote_code
        config = AutoConfig.from_pretrained(local_path(settings.model), trust_remote_code=trust)
        with torch.device("meta"):
            self.model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
        # Weights that every token passes through.
        self.weights = sum(m.weight.numel() for m in self.model.modules() if isinstance(m, torch.nn.Linear))
        self.context_length = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2048)
        self.adapter = cache(self._adapter)

    def _adapter(self, lora: LoraSpec) -> int:
        """Parameters of one adapter.  Errors: UnsupportedModelError."""
        from selfedit.engine.bank import target_layers

        layers = [self.model.get_submodule(name) for name in target_layers(self.model, lora)]
        return sum(lora.rank * (int(layer.in_features) + int(layer.out_features)) for layer in layers)


class _Counting:
    """A pool that counts tasks, and answers as quickly as it can what keeps the procedure going."""

    description = "cpu, float32"
    memory = 0

    def __init__(self, settings: Settings, shape: _Shape, counts: _Counts) -> None:
        self.settings, self.shape, self.counts = settings, shape, counts
        self.tokenizer = load_tokenizer(
            settings.model, instruct=settings.instruct, trust_remote_code=settings.trust_remote_code
        )
        self.context_length = shape.context_length

    def publish(self, name: str, files: Mapping[str, bytes]) -> None:
        del name, files

    def close(self) -> None:
        """Nothing to stop."""

    def run(self, tasks: Iterable[Task]) -> Generator[TaskResult]:
        for task in tasks:
            yield self._fit(task) if isinstance(task, FitTask) else self._write(task)

    def _write(self, task: Any) -> TaskResult:
        kind = task.id.split("/")[0]
        counts, settings = self.counts, self.settings
        counts.written[kind] += task.tokens
        counts.answers += len(task.requests) * (kind == "exam")
        passed = sum(len(request.prompt) + request.max_new_tokens for request in task.requests)
        # A judge reads what is not written yet.
        most = {"judge": _most_bytes(settings.max_answer_tokens), "ratings": _most_bytes(settings.max_edit_tokens)}
        likely = {"judge": settings.max_answer_tokens, "ratings": settings.max_edit_tokens}
        counts.passed += passed + len(task.requests) * most.get(kind, 0)
        counts.passed_likely += passed + len(task.requests) * likely.get(kind, 0)
        said = Completion(tuple(self.tokenizer.encode("10" if kind == "ratings" else "yes")), True)
        return TaskResult(task.id, 0.0, completions=(said,) * len(task.requests))

    def _fit(self, task: FitTask) -> TaskResult:
        counts = self.counts
        adapter = self.shape.adapter(task.lora)
        counts.together = max(counts.together, len(task.fits) * adapter)
        # Forward and backward through frozen weights are 4 operations a weight and token, through an adapter 6; writing
        # is 2.
        per_token = 4 * self.shape.weights + 6 * adapter
        outcomes = []
        for fit in task.fits:
            most = fit.job.tokens
            likely = counts.likely.get(fit.id, most)
            if fit.id.startswith("outer/"):
                read = sum(sequence.prompt_length + self.settings.max_edit_tokens for sequence in fit.job.sequences)
                likely = read * fit.job.settings.epochs
            counts.fits += 1
            counts.train_tokens += most
            counts.train_tokens_likely += likely
            passed = sum(len(request.prompt) + request.max_new_tokens for request in fit.sat)
            counts.train_flops += most * per_token + 2 * passed * adapter
            counts.train_flops_likely += likely * per_token + 2 * passed * adapter
            counts.passed += passed
            counts.passed_likely += passed
            counts.answers += len(fit.sat)
            counts.written["exam"] += sum(request.max_new_tokens for request in fit.sat)
            result = FitResult(fit.job.steps, most, 1.0, 1.0)
            files = dict.fromkeys(DELTA_FILES, b"") if fit.keep else {}
            answers = (Completion((), True),) * len(fit.exam)
            looks = tuple(Look(step, answers[: len(fit.looked_at)]) for step in fit.looks_at)
            outcomes.append(FitOutcome(fit.id, result, answers, 0.0, files, looks))
        return TaskResult(task.id, 0.0, outcomes=tuple(outcomes))


class _Rehearsal(Experiment):
    """An experiment in which what is written and answered is a stand-in, and nothing is sent."""

    def __init__(self, *arguments: Any, counts: _Counts, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.counts = counts
        self._tried: list[Recipe] = []
        self._numbers = itertools.count()
        self._sizes: dict[tuple[str, int, str], tuple[int, int]] = {}

    def __exit__(self, *error: Any) -> None:
        self.counts.documents = self.store.documents()
        super().__exit__(*error)

    @cached_property
    def grader(self) -> Grader:
        return _AllRight(self.settings.grader) if judge_model(self.settings.grader) is None else super().grader

    def _new_client(self, model: str, role: Literal["editor", "judge"]) -> ApiClient:
        return _Unsent(self, model, role)

    def _edit(
        self, document: Document, name: str, index: int, raw: str, *, prompt: str, cut_off: bool, round: int
    ) -> Edit:
        if not prompt:  # from a file: it is there
            return super()._edit(document, name, index, raw, prompt=prompt, cut_off=cut_off, round=round)
        return Edit(document.id, name, index, _EDIT, prompt=prompt, round=round)

    def _answer(self, question: Question, ids: Sequence[int]) -> Answer:
        return Answer(question.id, _ANSWER.format(next(self._numbers)), len(ids))

    def fit_and_examine(
        self, learnings: Sequence[Learning], *, recipes: Mapping[str, Recipe] | None = None, **more: Any
    ) -> None:
        if recipes is not None:
            self._tried = list(recipes.values())
        elif self._tried:  # any of them may be chosen
            self.recipe = max(self._tried, key=lambda recipe: sum(self.job(one, recipe)[0].tokens for one in learnings))
        super().fit_and_examine(learnings, recipes=recipes, **more)

    def job(
        self, learning: Learning, recipe: Recipe, advance: Callable[[int], None] | None = None
    ) -> tuple[FitJob, tuple[str, ...]]:
        unwritten = [(edit[1] if edit else "").split("\n").count(_EDIT) for edit in learning.edits]
        if not any(unwritten):
            return super().job(learning, recipe, advance)
        sizes = [self._size(*one, recipe) for one in zip(learning.documents, unwritten, strict=True)]
        self.counts.likely[learning.id] = sum(likely for _, likely in sizes) * recipe.epochs
        return FitJob((_blank(sum(most for most, _ in sizes)),), recipe.settings(), 0), ()

    def _size(self, document: Document, edits: int, recipe: Recipe) -> tuple[int, int]:
        """Training tokens of one epoch on a document with so many edits that are not written yet: the most, and the
        likely."""
        key = document.id, edits, recipe.model_dump_json()
        if key not in self._sizes:
            self._sizes[key] = self._new_size(document, edits, recipe)
        return self._sizes[key]

    def _new_size(self, document: Document, edits: int, recipe: Recipe) -> tuple[int, int]:
        def tokens(*sequences: TrainingSequence) -> int:
            return sum(len(tokenize(one, recipe, self.pool.tokenizer, self.prompts).ids) for one in sequences)

        alone = tokens(*self.sequences(Learning("", (document,), (None,)), recipe))
        frame = tokens(TrainingSequence(document.title, "x"))
        exam = tokens(TrainingSequence(document.title, "x", "x")) if recipe.questions_as_exam else 0
        written = edits * self.settings.max_edit_tokens
        whole = recipe.cutting == "whole"
        # At the most each token of an edit is a line, whose frame may be an exam question's.
        own = most_own_tokens(written) + whole * 2 * written
        pieces = written if not whole or recipe.questions_as_exam else 1
        title = len(self.pool.tokenizer.encode(document.title))
        room = part_size(title, min(recipe.max_sequence_tokens, self.pool.context_length))
        if own > room:  # then longer texts are cut into parts, which overlap
            pieces += 8 * own // room + 1
            own *= 3
        most = pieces * (max(frame, exam) + _SEAM) + own
        likely = written + frame * (1 if whole else -(-written // _LINE_TOKENS))
        if recipe.with_document:
            return most + alone, likely + alone
        return max(most, alone), likely

    def lesson(self, prompt: str, document: Document, edit: str) -> TokenSequence:
        del edit
        asked = len(self.pool.tokenizer.prompt_ids(self.edit_prompt(prompt, document)[0]))
        written = self.settings.max_edit_tokens
        # Lines are counted by themselves; here line ends are learned too.
        return replace(_blank(asked + most_own_tokens(written) + 2 * written + _SEAM), prompt_length=asked)

    def select(self, edits: Sequence[Rewarded], **rule: Any) -> Selection:
        if rule["rule"] == "above-baseline":  # perhaps all of them
            return Selection(tuple(edit.id for edit in edits), ())
        prompt = str(getattr(self.settings, "edit_prompt", ""))
        lengths = {d.id: self.lesson(prompt, d, "").prompt_length for d in self.store.documents()}
        longest_first = [replace(edit, reward=1.0, tokens=-lengths[edit.document_id]) for edit in edits]
        return select(longest_first, **{**rule, "keep_ties": True})


class _AllRight:
    """Grades without looking."""

    def __init__(self, name: str) -> None:
        self.name = name

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]:
        return [Grade("right", 1.0, self.name)] * len(items)


class _Unsent(ApiClient):
    """Counts calls and their price; to all it says yes, and 10."""

    def __init__(self, rehearsal: _Rehearsal, model: str, role: Literal["editor", "judge"]) -> None:
        settings = rehearsal.settings
        self.counts, self.settings, self.role = rehearsal.counts, settings, role
        nowhere = replace(settings.endpoint(role), base_url="http://nowhere.invalid")  # so that no key is asked for
        super().__init__(model, nowhere, price=rehearsal._price(model))

    def complete(self, requests: Sequence[ApiRequest], on_result: Any = None, accept: Any = None) -> list[ApiResult]:
        del accept
        results = []
        for number, request in enumerate(requests):
            self._count(request)
            results.append(ApiResult('{"verdict": "yes"}' if request.json_schema else "10", "stop"))
            if on_result is not None:
                on_result(number, results[-1])
        return results

    def _count(self, request: ApiRequest) -> None:
        counts, settings = self.counts, self.settings
        counts.calls += 1
        if self.role == "editor":
            counts.written["edits"] += request.max_tokens
        if self.price is None:
            counts.priced = False
            return

        def filled(edit: int, answer: int) -> ApiRequest:
            def fill(text: str) -> str:
                return _ANSWERS.sub("x" * answer, text.replace(_EDIT, "x" * edit))

            messages = tuple({**message, "content": fill(message["content"])} for message in request.messages)
            return replace(request, messages=messages)

        most = filled(_most_bytes(settings.max_edit_tokens), _most_bytes(settings.max_answer_tokens))
        counts.cost += self.most(most)
        likely = filled(4 * settings.max_edit_tokens, 4 * settings.max_answer_tokens)
        text = "".join(message["content"] for message in likely.messages) or request.prompt or ""
        reply = request.max_tokens if request.json_schema is None else _VERDICT_TOKENS
        counts.cost_likely += self.price.cost(estimate_tokens(text), reply, self.endpoint.batch)

    def close(self) -> None:
        """Nothing to close."""


def _most_bytes(tokens: int) -> int:
    """The longest that so many tokens can be where they are shown to a judge: each character escaped (`\\u003c`)."""
    return 6 * most_characters(tokens)


@cache
def _blank(tokens: int) -> TokenSequence:
    return TokenSequence((0,) * tokens)
