"""Stand-ins with which `plan` rehearses a run: nothing is trained, sent or asked, and all that would be is counted.

A pool that counts tasks, an API client that counts calls, a grader to which every answer is right (so that all general
questions are asked again), choices that take what costs most.  What is not written yet is a mark, in texts of which
only the length counts, and its training tokens count at their bound (`training.tokens.within_bounds`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from selfedit.documents import Document
from selfedit.editors.api import ApiClient
from selfedit.editors.base import Edit
from selfedit.editors.prices import estimate_tokens
from selfedit.editors.replies import ApiRequest, ApiResult
from selfedit.engine.jobs import Completion, FitJob, FitResult, LoraSpec, TokenSequence
from selfedit.evaluation.grade import Grade, GradeItem
from selfedit.evaluation.graders import make_grader
from selfedit.execution.tasks import CompletionTask, FitOutcome, FitTask, Look, Recited, Task, TaskResult
from selfedit.methods.frontier import Trial
from selfedit.methods.policies import DELTA_FILES
from selfedit.methods.run import Parts, Run
from selfedit.methods.selection import Choices, Selection, select
from selfedit.methods.settings import Role, Settings
from selfedit.models import Model, Tokenizer, load_outline
from selfedit.training.cutting import TrainingSequence, part_size
from selfedit.training.jobs import EditTexts, Jobs
from selfedit.training.objectives import beside_documents
from selfedit.training.recipes import Recipe
from selfedit.training.tokens import most_characters, most_own_tokens, tokenize

if TYPE_CHECKING:
    from selfedit.methods.plan import Plan

_LINE_TOKENS = 16  # likely, of a line of an edit
_VERDICT_TOKENS = 8  # likely, of a judge's reply
_NUMBER = 16  # tokens of "Question 1: ", before an edit whose prompt ended with it
_SEAM = 4  # tokens that two texts can have more as one than each alone, with what stands between them
_QUESTION_TOKENS = 40  # of a question that is not written yet
# Marks for what is not written yet.  Each answer has its own, so that a judge is asked about each.
_EDIT, _ANSWER = "\ue000\ue000", "\ue001{}\ue001"
_ANSWERS = re.compile(_ANSWER.replace("{}", r"\d+"))
_EDIT_ID = -1  # the token of an edit's mark; an answer's are below


def stand_ins(settings: Settings, shape: Shape, plan: Plan) -> Parts:
    """What a method is given for a rehearsal, which is counted in `plan`."""
    return Parts(
        pool=_CountingPool(settings, shape, plan),
        reader=lambda model, **how: shape.of(model, **how),
        client=lambda run, model, role: _UnsentClient(run, model, role, plan),
        grader=lambda spec, **judge: make_grader(spec, **judge) if judge else _AllRight(spec),
        jobs=lambda *student: _BoundedJobs(*student, most=settings.max_edit_tokens),
        choices=_Dearest(),
    )


class Shape:
    """A model's sizes, from its configuration alone, and a tokenizer that decodes marks too; `of` gives another's."""

    def __init__(self, outline: Model) -> None:
        import torch

        self.model: Any = outline.hf
        tokenizer = outline.tokenizer
        # Weights that every token passes through.
        self.weights = sum(m.weight.numel() for m in self.model.modules() if isinstance(m, torch.nn.Linear))
        self.context_length = outline.context_length
        self.tokenizer = _MarkingTokenizer(tokenizer.hf, tokenizer.instruct, tokenizer.stop_ids)
        self.adapter = cache(self._adapter)
        self.of = cache(lambda model, **how: Shape(load_outline(model, **how)))

    def _adapter(self, lora: LoraSpec) -> int:
        from selfedit.engine.bank import target_layers

        layers = [self.model.get_submodule(name) for name in target_layers(self.model, lora)]
        return sum(lora.rank * (int(layer.in_features) + int(layer.out_features)) for layer in layers)


class _MarkingTokenizer(Tokenizer):
    def decode(self, ids: Sequence[int]) -> str:
        marks = [_EDIT if id == _EDIT_ID else _ANSWER.format(-id) for id in ids if id < 0]
        return super().decode([id for id in ids if id >= 0]) + "".join(marks)


class _CountingPool:
    """Counts tasks, and answers as quickly as it can what keeps the method going."""

    description = "cpu, float32"
    memory = 0

    def __init__(self, settings: Settings, shape: Shape, plan: Plan) -> None:
        self.settings, self.shape, self.plan = settings, shape, plan
        self.bytes_each = 2 if settings.dtype == "bfloat16" else 4  # of a weight
        self._holds(0)
        self.tokenizer, self.context_length = shape.tokenizer, shape.context_length
        self._answers = itertools.count(_EDIT_ID - 1, -1)

    def publish(self, name: str, files: Mapping[str, bytes]) -> None:
        del name, files

    def close(self) -> None:
        """Nothing to stop."""

    def run(self, tasks: Iterable[Task]) -> Generator[TaskResult]:
        for task in tasks:
            yield self._fit(task) if isinstance(task, FitTask) else self._complete(task)

    def _holds(self, more: int) -> None:
        """Memory for the weights, and so many bytes beside them."""
        self.plan.memory_bytes = max(self.plan.memory_bytes, self.shape.weights * self.bytes_each + more)

    def _complete(self, task: CompletionTask) -> TaskResult:
        kind = task.id.split("/")[0]
        plan, settings, number = self.plan, self.settings, len(task.requests)
        plan.write_tokens += task.tokens * (kind == "edits")
        plan.answer_tokens += task.tokens * (kind == "exam")
        plan.judge_tokens += task.tokens * (kind in ("judge", "ratings"))
        passed = sum(len(request.prompt) + request.max_new_tokens for request in task.requests)
        # A judge reads what is not written yet.
        unread = {"judge": settings.max_answer_tokens, "ratings": settings.max_edit_tokens}.get(kind, 0)
        shape = self.shape.of(task.model) if task.model else self.shape
        if task.model:  # it is gone when adapters come
            self._holds(shape.weights * self.bytes_each)
        plan.flops += 2 * shape.weights * (passed + number * _most_bytes(unread))
        plan.flops_likely += 2 * shape.weights * (passed + number * unread)
        if kind == "texts":
            blank = tuple(Completion((0,) * request.max_new_tokens, False) for request in task.requests)
            return TaskResult(task.id, 0.0, completions=blank)
        if kind == "exam":
            return TaskResult(task.id, 0.0, completions=self._answered(number))
        said = [_EDIT_ID] if kind == "edits" else shape.tokenizer.encode("10" if kind == "ratings" else "yes")
        return TaskResult(task.id, 0.0, completions=(Completion(tuple(said), True),) * number)

    def _answered(self, number: int) -> tuple[Completion, ...]:
        self.plan.answers += number
        return tuple(Completion((next(self._answers),), True) for _ in range(number))

    def _fit(self, task: FitTask) -> TaskResult:
        plan = self.plan
        adapter = self.shape.adapter(task.bank)
        self._holds(16 * len(task.fits) * adapter)  # float32 parameters, gradients and two moments
        # Forward and backward through frozen weights are 4 operations per weight and token, through an adapter 6;
        # writing is 2.
        per_token = 4 * self.shape.weights + 6 * adapter
        # What the policy expects of their texts is computed once.
        taught = (
            2 * self.shape.weights * sum(len(text.ids) for text in {text for fit in task.fits for text in fit.texts})
        )
        plan.flops += taught
        plan.flops_likely += taught
        outcomes = []
        for fit in task.fits:
            most = fit.job.tokens
            likely = fit.job.likely if isinstance(fit.job, _UnwrittenJob) else most
            plan.fits += 1
            plan.train_tokens += most
            plan.train_tokens_likely += likely
            passed = sum(len(request.prompt) + request.max_new_tokens for request in fit.sat)
            passed += sum(len(sequence.ids) for sequence in (*fit.texts, *fit.known))
            passed += len(fit.known) * self.settings.max_answer_tokens + fit.recital.passed
            plan.flops += most * per_token + 2 * passed * (self.shape.weights + adapter)
            plan.flops_likely += likely * per_token + 2 * passed * (self.shape.weights + adapter)
            plan.answer_tokens += sum(request.max_new_tokens for request in fit.sat) + fit.recital.written
            result = FitResult(fit.job.steps, most, 1.0, 1.0)
            files = dict.fromkeys(DELTA_FILES, b"") if fit.keep else {}
            answers = self._answered(len(fit.exam))
            looks = tuple(Look(step, self._answered(len(fit.looked_at))) for step in fit.looks_at)
            readings = len(fit.recital.readings)
            recited = Recited((), (None,) * readings, self._answered(readings))
            outcomes.append(FitOutcome(fit.id, result, answers, 0.0, files, looks, (), 0.0, 0.0, recited))
        return TaskResult(task.id, 0.0, outcomes=tuple(outcomes))


@dataclass(frozen=True)
class _UnwrittenJob(FitJob):
    """A job of the most tokens that it can have; `likely` are those that it probably will."""

    likely: int = 0


class _BoundedJobs(Jobs):
    """Jobs on edits that are not written yet, of at most so many tokens each, have the most tokens that they can."""

    def __init__(self, *student: Any, most: int) -> None:
        super().__init__(*student)
        self.most = most
        self._sizes: dict[tuple[str, int, str], tuple[int, int, int]] = {}

    def job(
        self, documents: Sequence[Document], edits: Sequence[EditTexts], recipe: Recipe, **how: Any
    ) -> tuple[FitJob, tuple[str, ...]]:
        unwritten = [" ".join([edit] if isinstance(edit, str) else edit or ()).count(_EDIT) for edit in edits]
        if not any(unwritten):
            return super().job(documents, edits, recipe, **how)
        sizes = [self._size(*one, recipe) for one in zip(documents, unwritten, strict=True)]
        retained = sorted(how.get("own", ()), key=lambda one: -len(one.ids))[: recipe.retain]
        beside = beside_documents(documents, recipe.objectives)
        tokens = self.tokens(beside, recipe)
        known = [*(tokens[one] for one in beside), *retained]
        likely = sum(likely for _, likely, _ in sizes) + sum(len(one.ids) for one in known)
        blanks = [_blank(-(-most // parts)) for most, _, parts in sizes for _ in range(parts)]
        settings = recipe.settings(len(blanks))
        return _UnwrittenJob((*blanks, *known), settings, how["seed"], likely=likely * recipe.epochs), ()

    def _size(self, document: Document, edits: int, recipe: Recipe) -> tuple[int, int, int]:
        """Training tokens of one epoch on a document with so many edits that are not written yet, the most and the
        likely; and in how many parts the document itself is learned."""
        key = document.id, edits, recipe.model_dump_json()
        if key not in self._sizes:
            self._sizes[key] = self._new_size(document, edits, recipe)
        return self._sizes[key]

    def _new_size(self, document: Document, edits: int, recipe: Recipe) -> tuple[int, int, int]:

        def tokens(*sequences: TrainingSequence) -> int:
            return sum(len(tokenize(one, recipe, self.tokenizer, self.prompts).ids) for one in sequences)

        texts = self.sequences([document], [None], recipe)
        parts = sum(text.of_document for text in texts)
        alone = tokens(*texts)
        frame = tokens(TrainingSequence(document.title, "x"))
        in_exam_form = not {"answers", "distill"}.isdisjoint(recipe.objectives)
        exam = tokens(TrainingSequence(document.title, "x", "x")) if in_exam_form else 0
        if "topics" in recipe.objectives:
            exam = max(exam, tokens(TrainingSequence(document.title, document.title, about="x")))
        written = edits * self.most
        whole, joined = recipe.cutting in ("whole", "seal-whole"), recipe.cutting != "lines"
        published = recipe.cutting.startswith("seal")
        # At the most each token of an edit is a line, whose frame may be an exam question's, for each objective.
        own = most_own_tokens(written) + joined * 2 * written
        pieces = written if not whole or exam else 1
        if published:  # an edit that is not cleaned may have line ends of other kinds, which are not counted
            pieces = most_own_tokens(written)
        title = len(self.tokenizer.encode(document.title))
        room = part_size(title, min(recipe.max_sequence_tokens, self.context_length))
        if own > room:  # then longer texts are cut into parts, which overlap
            pieces += 8 * own // room + 1
            own *= 3
        most = len(recipe.objectives) * (pieces * (max(frame, exam) + _SEAM) + own) + published * edits * _NUMBER
        likely = written + frame * (1 if whole else -(-written // _LINE_TOKENS))
        if recipe.document_copies:
            times = max(1, edits) if recipe.each_edit else 1
            return most + times * alone, likely + times * alone, parts // recipe.document_copies
        return max(most, alone), likely, 1

    def lesson(self, document: Document, edit: Edit) -> TokenSequence:
        asked = super().lesson(document, replace(edit, text="", truncated=False)).prompt_length
        # Lines are counted by themselves; here line ends are learned too.
        return replace(_blank(asked + most_own_tokens(self.most) + 2 * self.most + _SEAM), prompt_length=asked)


class _Dearest(Choices):
    """Keeps the edits that take most to learn, as many as a rule can keep, and the recipes that trained most so far."""

    def edits(self, edits: Sequence[Edit], **rule: Any) -> Selection:
        if rule["rule"] == "above-baseline":  # perhaps all of them
            return Selection(tuple(edit.id for edit in edits), ())
        # All seem equally good, and the one with the longest prompt the shortest.
        longest_first = [replace(edit, reward=1.0, output_tokens=-edit.input_tokens) for edit in edits]
        return select(longest_first, **{**rule, "keep_ties": True, "ties": "shorter"})

    def pairs(self, written: str) -> list[tuple[str, str]]:
        """More questions than are tried, each longer than most."""
        return [(f"{number} " + "what " * _QUESTION_TOKENS, "x") for number in range(1000)]

    def questions(self, written: str) -> list[str]:
        return [asked for asked, _ in self.pairs(written)] if _EDIT in written else super().questions(written)

    def answered(self, edit: str, answers: Mapping[str, Sequence[str]]) -> str:
        return _EDIT  # of as many tokens as an edit can have

    def exam(self, documents: Sequence[Document], read: Any, known: Any, most: int) -> set[str]:
        return {question.id for document in documents for question in document.questions[:most]}

    def missed(self, documents: Sequence[Document], wrong: set[str]) -> set[str]:
        return {document.id for document in documents if document.questions}

    def route(self, found: Document | None, documents: Sequence[Document]) -> Document | None:
        return found or documents[0]  # a question that is not written yet is asked of some adapter

    def recipes(self, trials: Sequence[Trial], most_lost: float) -> list[Trial]:
        number = len(super().recipes(trials, most_lost))
        return sorted(trials, key=lambda trial: -trial.tokens)[:number]


@dataclass
class _AllRight:
    name: str

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]:
        return [Grade("right", 1.0, self.name)] * len(items)


class _UnsentClient(ApiClient):
    """Counts calls and their price; it writes marks as an editor, and as a judge says yes, or 10, to all."""

    def __init__(self, run: Run, model: str, role: Role, plan: Plan) -> None:
        self.plan, self.settings, self.role = plan, run.settings, role
        nowhere = replace(run.settings.endpoint(role), base_url="http://nowhere.invalid")  # so that no key is asked for
        super().__init__(model, nowhere, store=run.store, price=run.ledger.price(model))

    def complete(self, requests: Sequence[ApiRequest], on_result: Any = None, accept: Any = None) -> list[ApiResult]:
        del accept
        results = []
        for number, request in enumerate(requests):
            self._count(request)
            said = '{"verdict": "yes"}' if request.json_schema else "10"
            results.append(ApiResult(_EDIT if self.role == "editor" else said, "stop"))
            if on_result is not None:
                on_result(number, results[-1])
        return results

    def _count(self, request: ApiRequest) -> None:
        plan, settings = self.plan, self.settings
        plan.calls += 1
        if self.role == "editor":
            plan.write_tokens += request.max_tokens
        if self.price is None:
            plan.cost_usd = plan.cost_usd_likely = plan.edits_usd = None
        if self.price is None or plan.cost_usd is None or plan.cost_usd_likely is None or plan.edits_usd is None:
            return

        def filled(edit: int, answer: int) -> ApiRequest:
            def fill(text: str) -> str:
                return _ANSWERS.sub("x" * answer, text.replace(_EDIT, "x" * edit))

            messages = tuple({**message, "content": fill(message["content"])} for message in request.messages)
            return replace(request, asked=messages)

        most = filled(_most_bytes(settings.max_edit_tokens), _most_bytes(settings.max_answer_tokens))
        plan.cost_usd += self.most(most)
        plan.edits_usd += self.most(most) * (self.role == "editor")
        likely = filled(4 * settings.max_edit_tokens, 4 * settings.max_answer_tokens)
        text = "".join(message["content"] for message in likely.messages)
        reply = request.max_tokens if request.json_schema is None else _VERDICT_TOKENS
        plan.cost_usd_likely += self.price.cost(estimate_tokens(text), reply, self.endpoint.batch)


def _most_bytes(tokens: int) -> int:
    """The longest that so many tokens can be where they are shown to a judge: each character escaped (`\\u003c`)."""
    return 6 * most_characters(tokens)


@cache
def _blank(tokens: int) -> TokenSequence:
    return TokenSequence((0,) * tokens)
