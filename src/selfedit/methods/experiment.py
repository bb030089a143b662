"""The steps that every procedure is made of: write edits, fit and examine adapters, grade, score.

Knows documents, prompts, the pool of workers and the run's store; each step commits what it has done before it counts,
and skips what was committed before.  Knows nothing of which conditions or rounds there are; that is the procedures'
part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from selfedit.documents import Document, LeftOut, Question, load_documents, load_edits
from selfedit.editors.api import ApiClient, ApiRequest, ApiResult
from selfedit.editors.base import Edit, edit_id, edit_writer
from selfedit.editors.cleaning import clean
from selfedit.editors.endpoint import shown_address
from selfedit.editors.prices import Budget, ModelPrice, Prices, load_prices
from selfedit.editors.spec import EditorSpec
from selfedit.engine.jobs import NotEnoughMemoryError, UnsupportedModelError
from selfedit.errors import UserError
from selfedit.evaluation.general import GENERAL_TITLE, general_questions
from selfedit.evaluation.grade import GradeItem, Grader
from selfedit.evaluation.graders import judge_model, make_grader
from selfedit.evaluation.judge import JudgeRequest, parse_reply
from selfedit.evaluation.statistics import DocumentScore
from selfedit.execution.pool import InProcess, Pool
from selfedit.execution.tasks import (
    Checkpoint,
    CompletionTask,
    DecodeRequest,
    Fit,
    FitJob,
    FitOutcome,
    FitTask,
    LoraSpec,
    Task,
    TaskResult,
    TokenSequence,
    completion_tasks,
    fit_tasks,
)
from selfedit.execution.worker import ModelSource
from selfedit.methods.policies import is_whole, write_adapter
from selfedit.methods.progress import Progress, Quiet
from selfedit.methods.selection import Rewarded, Selection, select
from selfedit.methods.settings import FREE, Settings
from selfedit.models import local_path
from selfedit.prompts import Prompts, edit_lead
from selfedit.runs.costs import Spent, api_cost, device_cost
from selfedit.runs.directory import RunDirectory
from selfedit.runs.records import Answer, CostRecord, FitRecord, fit_id
from selfedit.runs.seeds import derive_seed
from selfedit.text import one_line
from selfedit.training.cutting import TrainingSequence
from selfedit.training.recipes import Recipe, load_recipe
from selfedit.training.tokens import longer_than, most_characters, tokenize, training_sequences, within_bounds

_MANY_CHARACTERS = 1_000_000  # of which the cutting takes long enough to be shown
_EXAM_TASK = 64  # prompts of one task without adapters
U = TypeVar("U", CompletionTask, FitTask)
LOCAL_JUDGE = "local"  # `--grader judge:local`: the run's own model
_GRADE_CHUNK = 64  # grades committed together
NOT_WRITTEN = "edit not written"  # an event's kind; its subject is the store's id of the edit
GIVEN_UP = "given up"  # the same for everything else that `do` was asked for and did not get


@dataclass(frozen=True)
class Learning:
    """One fit to be made: which documents, from which edits, for which condition and replicate.

    With one document its questions are the exam; with several, one adapter learns them all and is asked about all of
    them. `edits` are (store id, text) in the order of `documents`; None: the passage alone.  The adapter is kept in the
    folder `keep`. A fit that is alone in its task sits `looks` exams on the way."""

    condition: str
    documents: tuple[Document, ...]
    edits: tuple[tuple[str | None, str] | None, ...]
    replicate: int = 0
    round: int = 0
    policy: tuple[str, ...] = ()
    keep: Path | None = None
    examine: bool = True
    looks: int = 0

    @property
    def id(self) -> str:
        single = len(self.documents) == 1
        edit = self.edits[0] if single else None
        return fit_id(
            round=self.round,
            condition=self.condition,
            replicate=self.replicate,
            document_id=self.documents[0].id if single else None,
            edit_id=edit[0] if edit else None,
        )


class Experiment(AbstractContextManager["Experiment"]):
    """One run under way: its settings, its directory and store, its workers.  Closes them when left."""

    def __init__(
        self,
        procedure: str,
        settings: Settings,
        *,
        progress: Progress | None = None,
        pool: Pool | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        self.procedure = procedure
        self.settings = settings
        self.progress: Progress = progress or Quiet()
        self.recipe = recipe or load_recipe(settings.recipe).with_settings(settings.set)
        self.prompts = Prompts(settings.prompt_file)
        # What the user can get wrong is looked at before the run directory is made or a model is loaded.
        self.prices: Prices = load_prices(settings.prices)
        judge_model(settings.grader)
        config = {
            "procedure": procedure,
            **settings.model_dump(mode="json"),
            "api_base": shown_address(settings.api_base),
            "recipe_settings": self.recipe.model_dump(),
        }
        self.run = RunDirectory.open(settings.out, config, free=FREE)
        self.store = self.run.store
        try:
            self.run.resolve(
                "prompts", _digest(self.prompts.content), "the prompts (--prompt-file, or the built-in ones)"
            )
        except BaseException:
            self.run.close()
            raise
        self._own_pool = pool is None
        self._pool = pool
        self._published: dict[str, Mapping[str, bytes]] = {}
        self._retried = False
        self._judging: list[CostRecord] = []  # spent on grades that are not committed yet
        self._clients: dict[tuple[str, str], ApiClient] = {}
        self._aside = False  # grading beside a step whose progress is shown
        self.budget = Budget(settings.budget)
        self.budget.spend(Spent.of(self.store.costs()).known_usd or 0.0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            client.close()
        if self._own_pool and self._pool is not None:
            self._pool.close()
        # A mistake that was found before anything was done leaves no run behind that would hold the user to it.
        unused = isinstance(error, UserError) and not self.store.documents()
        self.run.close()
        if unused:
            for name in ("run.sqlite-wal", "run.sqlite-shm", "run.sqlite", "config.yaml"):
                (self.run.path / name).unlink(missing_ok=True)

    # What is asked for

    @cached_property
    def pool(self) -> Pool:
        """Where the work is done; made at the first use, so that a finished run resumes without loading a model."""
        if self._pool is None:
            dtype = self.run.resolved.get("dtype", self.settings.dtype)
            self._pool = make_pool(self.settings.model_copy(update={"dtype": dtype}), self.progress)
        device, dtype = self._pool.description.split(", ")
        tokenizer, model = self._pool.tokenizer, f"model {self.settings.model}:"
        self.run.resolve("dtype", dtype, f"{model} its precision")
        self.run.resolve("instruct", tokenizer.instruct, f"{model} whether it is prompted through a chat template")
        self.run.resolve("chat_template", _digest(tokenizer.hf.chat_template), f"{model} its chat template")
        self.run.resolve("memory", self._pool.memory)
        kind = device.partition(":")[0]
        if (began := self.run.resolve("device", kind)) != kind:
            self.warn("device", f"this run began on {began} and goes on on {kind}: sums are rounded otherwise there")
        for name, files in self._published.items():
            self._pool.publish(name, files)
        return self._pool

    def publish(self, name: str, files: Mapping[str, bytes]) -> None:
        """Makes a policy's delta known to the workers: now, or when there are any."""
        self._published[name] = files
        if "pool" in self.__dict__:
            self.pool.publish(name, files)

    # What was resolved when the run began: a finished run tells it without its model.

    @property
    def instruct(self) -> bool:
        """Whether the model is prompted through a chat template."""
        return bool(self._resolved("instruct"))

    @property
    def description(self) -> str:
        """Device and precision."""
        return f"{self._resolved('device')}, {self._resolved('dtype')}"

    def _resolved(self, name: str) -> Any:
        if name not in self.run.resolved:
            self.load_model()
        return self.run.resolved[name]

    @cached_property
    def grader(self) -> Grader:
        model = judge_model(self.settings.grader)
        if model is None:
            return make_grader(self.settings.grader)
        judge = local_judge(self) if model == LOCAL_JUDGE else api_judge(self, model)
        # The model itself is asked again what it was asked before, so that its neighbours are the same in a resumed
        # run.
        cache = _Forgetful() if model == LOCAL_JUDGE else None
        return make_grader(self.settings.grader, complete=judge, prompts=self.prompts, cache=cache)

    @property
    def task_size(self) -> int:
        """Fits in a task: enough to fill a step, few enough to share among workers; decided when the run begins."""
        chosen = self.settings.task_size or (96 if self.pool.description.startswith("cuda") else 16)
        return int(self.run.resolve("task_size", chosen))

    def load(self, sources: Sequence[str], *, limit: int | None, require_questions: bool) -> list[Document]:
        left_out = LeftOut()
        documents = load_documents(
            list(sources),
            limit=limit,
            seed=self.settings.seed,
            require_questions=require_questions,
            strict=self.settings.strict,
            follow_links=self.settings.follow_links,
            left_out=left_out,
        )
        for line in left_out.lines():
            self.warn("left out while loading", line)
        return documents

    def check(self, documents: Sequence[Document], specs: Sequence[EditorSpec], *, count: int, prompt: str) -> None:
        """Finds what a user got wrong about model, editors or judge before a run does any work.  Errors: UserError."""
        if self.store.documents():
            return
        if self._pool is None:
            local_path(self.settings.model)
        judge = judge_model(self.settings.grader)
        if judge not in (None, LOCAL_JUDGE):
            self.api_client(str(judge), "judge")
        for spec in specs:
            if spec.kind == "replay":
                self._written_edits(spec, [(document, count - 1) for document in documents])
            elif spec.kind == "api":
                self.api_client(spec.argument, "editor")
                self.edit_prompt(prompt, documents[0], instruct=self.settings.api_kind == "chat")
            elif spec.kind == "self":
                self.prompts.check(spec.argument or prompt)
                self.edit_prompt(spec.argument or prompt, documents[0])
        self.load_model()

    def load_model(self) -> None:
        """Loads the model, or waits for the first worker: what is wrong with it is found before any work is done."""
        _ = self.pool

    def warn(self, kind: str, message: str) -> None:
        """Tells the user, and keeps it for the report (once)."""
        message = one_line(message)
        if not any(event.message == message for event in self.store.events(kind)):
            self.store.add_event(kind, self.procedure, message)
        self.progress.note(message)

    def seed(self, *parts: str | int) -> int:
        return derive_seed(self.settings.seed, *parts)

    def do(
        self,
        phase: str,
        ids: Iterable[str],
        done: Container[str],
        cut: Callable[[], Sequence[U]],
        commit: Callable[[U, TaskResult], Iterable[CostRecord]],
        *,
        after: Callable[[], None] | None = None,
        give_up: Callable[[str, str], None] | None = None,
    ) -> None:
        """The one principle of resuming: what the store lacks of a list is executed, and each task's results are
        committed with their cost in one transaction.

        `ids` name the whole list, `done` has those that the store has.  `cut` makes tasks of the whole list, never of
        what is left, and a task is committed whole: so a resumed run executes the same tasks as an uninterrupted one,
        the same fits side by side, and is equal to it to the last bit.  `commit` writes a task's results to the store
        and returns their cost; `after` is called once that is done.

        Of a task that was given up, `give_up` is told each id with the reason; if left out, the id is named in an
        event.  The same command tries it again."""
        if all(id in done for id in ids):
            return
        tasks = {left.id: self._with_checkpoint(left) for task in cut() if (left := task.without(done)).ids}
        self.progress.begin(phase, sum(task.tokens for task in tasks.values()))
        for result in self.run_tasks(list(tasks.values())):
            task = tasks[result.task_id]
            if result.error is not None:
                self.progress.note(f"{task.id} was given up: {result.error}")
                for id in task.ids:
                    (give_up or partial(self.store.set_event, GIVEN_UP))(id, result.error)
                continue
            with self.store.transaction():
                self.store.add_costs(commit(task, result))
                for id in task.ids:
                    self.store.drop_event(GIVEN_UP, id)
                for note in result.notes:
                    self.store.add_event("less memory", result.task_id, note)
            if isinstance(task, FitTask) and task.checkpoint is not None:
                task.checkpoint.file.unlink(missing_ok=True)
            for note in result.notes:
                self.progress.note(f"{result.task_id}: {note}")
            if after is not None:
                after()

    def _with_checkpoint(self, task: U) -> U:
        """The task; a fit that is alone in it, and so may be a long one, with a place for its state while it is under
        way."""
        minutes = self.settings.checkpoint_minutes
        if not isinstance(task, FitTask) or len(task.fits) != 1 or not minutes:
            return task
        name = hashlib.sha256(repr((task.id, task.policy)).encode()).hexdigest()[:16]
        return replace(task, checkpoint=Checkpoint(self.run.unfinished / f"{name}.safetensors", 60 * minutes))

    # Edits

    def write_edits(
        self,
        documents: Sequence[Document],
        spec: EditorSpec,
        *,
        count: int,
        prompt: str,
        condition: str | None = None,
        round: int = 0,
        policy: tuple[str, ...] = (),
        wanted: int | None = None,
    ) -> None:
        """Has `count` edits of each document written and committed; those that are there already are not written again.

        Edits that could not be written are named (`leave_out`), tried again once an attempt at the run, and left out.
        Errors: UserError where they are a larger share of the edits asked for (of the whole run's, `wanted`) than the
        settings allow."""
        name = condition or spec.name
        asked = {edit_id(round, d.id, name, k): (d, k) for d in documents for k in range(count)}
        done = {stored.id for stored in self.store.edits(round=round, writer=name)}
        missing = [asked[id] for id in asked if id not in done]
        # An adapter that learned all documents together is there as it was made, without the edits that were left out.
        if not missing or any(fit.document_id is None for fit in self.store.fits(round=round, condition=name)):
            return
        if spec.kind == "replay":
            self._replay(missing, spec, name, round)
        elif spec.kind == "self":
            self._write_self(asked, done, name, spec.argument or prompt, round, policy)
        elif spec.kind == "api":
            self._write_api(missing, name, spec.argument, prompt, round)
        else:
            raise ValueError(f"{spec.name} writes no edits")
        self._check_left_out(name, wanted or len(asked))

    def leave_out(self, document: Document, name: str, index: int, round: int, reason: str) -> None:
        """Names an edit that could not be written; the run goes on without it, and its next attempt tries again."""
        id = edit_id(round, document.id, name, index)
        self.store.set_event(NOT_WRITTEN, id, reason)
        self.progress.note(f"edit {id} could not be written: {reason}")

    def _check_left_out(self, name: str, wanted: int) -> None:
        left_out = [event for event in self.store.events(NOT_WRITTEN) if edit_writer(event.subject) == name]
        if len(left_out) > self.settings.max_missing_edits * wanted:
            raise UserError(
                f"{len(left_out)} of {wanted} edits by {name} could not be written, more than --max-missing-edits"
                f" {self.settings.max_missing_edits:.0%} allows (the last: {left_out[-1].subject}: "
                f"{left_out[-1].message});"
                " the others are kept: the same command tries these again"
            )

    def with_edits(self, documents: Sequence[Document], name: str, *, round: int = 0) -> list[Document]:
        """The documents of which there is an edit; the others are learned under no condition of this name, nor asked
        about."""
        there = {stored.document_id for stored in self.store.edits(round=round, writer=name)}
        return [document for document in documents if document.id in there]

    def _replay(self, missing: Sequence[tuple[Document, int]], spec: EditorSpec, name: str, round: int) -> None:
        texts = self._written_edits(spec, missing)
        found = [
            self._edit(document, name, index, text, prompt="", cut_off=False, round=round)
            for (document, index), text in zip(missing, texts, strict=True)
        ]
        self._commit_edits(found)

    def _written_edits(self, spec: EditorSpec, wanted: Sequence[tuple[Document, int]]) -> list[str]:
        """The edits of these numbers from a replay file.  Errors: UserError where one is not there."""
        source = f"{spec.argument}#{spec.writer}" if spec.writer else spec.argument
        edits = load_edits(source)
        edits.require(document.id for document, _ in wanted)
        for document, index in wanted:
            if index >= len(edits[document.id]):
                raise UserError(
                    f"--editor replay:{source}: document {document.id} has {len(edits[document.id])} edits; "
                    "--edits asks"
                    f" for {index + 1}"
                )
        return [edits[document.id][index] for document, index in wanted]

    def _write_self(
        self,
        asked: Mapping[str, tuple[Document, int]],
        done: Container[str],
        name: str,
        prompt: str,
        round: int,
        policy: tuple[str, ...],
    ) -> None:
        tokenizer = self.pool.tokenizer
        prompts: dict[str, tuple[tuple[int, ...], str]] = {}
        for document in {document.id: document for document, _ in asked.values()}.values():
            text, lead = self.edit_prompt(prompt, document)
            try:
                prompts[document.id] = self._prompt_ids(text), lead
            except UserError as error:
                for other, index in asked.values():
                    if other.id == document.id:
                        self.leave_out(document, name, index, round, f"{error}; cut the document into shorter ones")
        asked = {id: (document, index) for id, (document, index) in asked.items() if document.id in prompts}

        def request(document: Document, index: int) -> DecodeRequest:
            return DecodeRequest(
                prompts[document.id][0],
                self.settings.max_edit_tokens,
                tokenizer.stop_ids,
                temperature=self.settings.temperature,
                top_p=self.settings.top_p,
                seed=self.seed("edit", round, document.id, name, index),
            )

        def commit(task: CompletionTask, result: TaskResult) -> list[CostRecord]:
            edits = []
            for id, (completion,) in task.completions(result).items():
                document, index = asked[id]
                ids, lead = prompts[document.id]
                raw = tokenizer.decode([*tokenizer.encode(lead), *completion.ids])
                edit = self._edit(
                    document, name, index, raw, prompt=prompt, cut_off=not completion.finished, round=round
                )
                edits.append(replace(edit, input_tokens=len(ids), output_tokens=len(completion.ids)))
            self._commit_edits(edits)
            return [self.cost_of_time("edits", name, result.seconds, round)]

        self.do(
            f"writing edits ({name})",
            asked,
            done,
            lambda: completion_tasks(
                f"edits/{round}/{name}",
                policy,
                {id: [request(*one)] for id, one in asked.items()},
                size=self.task_size,
            ),
            commit,
            give_up=lambda id, reason: self.leave_out(asked[id][0], name, asked[id][1], round, reason),
        )

    def _write_api(
        self, missing: Sequence[tuple[Document, int]], name: str, model: str, prompt: str, round: int
    ) -> None:
        instruct = self.settings.api_kind == "chat"
        requests, leads = [], []
        for document, index in missing:
            text, lead = self.edit_prompt(prompt, document, instruct=instruct)
            requests.append(
                ApiRequest(
                    messages=({"role": "user", "content": text},) if instruct else (),
                    prompt=None if instruct else text,
                    max_tokens=self.settings.max_edit_tokens,
                    temperature=self.settings.temperature,
                    top_p=self.settings.top_p,
                    seed=self.seed("edit", round, document.id, name, index) % 2**31,
                    sample=index,
                )
            )
            leads.append(lead)

        def keep(number: int, result: ApiResult) -> None:
            document, index = missing[number]
            self.book_api("edits", name, model, result, round)
            if result.error is not None:
                self.leave_out(document, name, index, round, result.error)
                return
            edit = self._edit(
                document, name, index, leads[number] + result.text, prompt=prompt, cut_off=result.truncated, round=round
            )
            edit = replace(edit, input_tokens=result.input_tokens, output_tokens=result.output_tokens)
            self._commit_edits([edit])

        self.progress.begin(f"edits by {model}", len(requests))
        self.api_client(model, "editor").complete(requests, keep)

    def api_client(self, model: str, role: Literal["editor", "judge"]) -> ApiClient:
        """The run's one client of this model in this role; its replies are kept in the run's store.

        A price must be known where there is a budget.  Errors: UserError.
        """
        if (model, role) not in self._clients:
            self._clients[model, role] = self._new_client(model, role)
        return self._clients[model, role]

    def _new_client(self, model: str, role: Literal["editor", "judge"]) -> ApiClient:
        price = self.prices.model(model) if self.settings.budget is not None else self._price(model)
        return ApiClient(
            model,
            self.settings.endpoint(role),
            store=self.store,
            price=price,
            budget=self.budget,
            on_poll=lambda batch, status, done, total: self.progress.note(
                f"batch {batch}: {status}, {done} of {total}"
            ),
        )

    def ask_api(
        self, model: str, prompts: Sequence[str], *, max_tokens: int, what: str, round: int
    ) -> list[str | None]:
        """Replies to plain chat prompts, greedily; None where a call failed after its retries.  Costs go to the
        ledger."""
        results = self.api_client(model, "judge").complete(
            [
                ApiRequest(messages=({"role": "user", "content": prompt},), max_tokens=max_tokens, temperature=0.0)
                for prompt in prompts
            ],
            lambda _, result: self.book_api(what, model, model, result, round),
        )
        return [None if result.error is not None else result.text for result in results]

    def edit_prompt(self, name: str, document: Document, *, instruct: bool | None = None) -> tuple[str, str]:
        """The prompt, and what an edit begins with because a plain prompt ended with it."""
        if instruct is None:
            instruct = self.pool.tokenizer.instruct
        text = self.prompts.edit(name, instruct=instruct, title=document.title, text=document.text)
        return text, "" if instruct else edit_lead(text)

    def _edit(
        self, document: Document, name: str, index: int, raw: str, *, prompt: str, cut_off: bool, round: int
    ) -> Edit:
        cleaned = clean(raw, cut_off=cut_off)
        text = cleaned.text
        if prompt:  # not an edit from a file, which is taken as it is
            text = within_bounds(text, self.settings.max_edit_tokens, self.pool.tokenizer)
        return Edit(
            document.id,
            name,
            index,
            text,
            prompt=prompt,
            truncated=cut_off or text != cleaned.text,
            dropped_lines=cleaned.dropped,
            round=round,
        )

    def _commit_edits(self, edits: Sequence[Edit]) -> None:
        with self.store.transaction():
            self.store.add_edits(edits)
            for edit in edits:
                self.store.drop_event(NOT_WRITTEN, edit.id)
                if not edit.text:
                    self.store.add_event(
                        "empty edit", edit.id, "nothing was left of this edit; only the document is learned"
                    )

    # Fits and exams

    def examine_untrained(
        self,
        documents: Sequence[Document],
        *,
        condition: str = "none",
        round: int = 0,
        policy: tuple[str, ...] = (),
        general: bool = True,
    ) -> None:
        """Examines the policy without any adapter, document by document, and asks it the general questions."""
        exams: list[tuple[Document | None, tuple[Question, ...]]] = [(d, d.questions) for d in documents if d.questions]
        if general and self.settings.general_questions:
            asked = general_questions(self.settings.general_questions, self.settings.seed)
            self.store.add_general_questions(asked)
            exams.append((None, tuple(asked)))
        records = [FitRecord(condition, round=round, document_id=d.id if d else None) for d, _ in exams]
        by_id = {record.id: (record, *exam) for record, exam in zip(records, exams, strict=True)}

        def cut() -> list[CompletionTask]:
            requests = {
                id: [self.exam_request(d, question) for question in asked] for id, (_, d, asked) in by_id.items()
            }
            return completion_tasks(f"exam/{round}/{condition}", policy, requests, size=_EXAM_TASK)

        def commit(task: CompletionTask, result: TaskResult) -> list[CostRecord]:
            costs = []
            for id, completions in task.completions(result).items():
                record, _, asked = by_id[id]
                seconds = result.seconds * len(completions) / len(task.requests)
                answers = tuple(self._answer(q, c.ids) for q, c in zip(asked, completions, strict=True))
                self.store.record_fits([replace(record, answers=answers, seconds=seconds)])
                costs.append(self.cost_of_time("answers", condition, seconds, round))
            return costs

        self.do(f"exam ({condition})", by_id, self.store.fit_ids(), cut, commit)

    def fit_and_examine(
        self,
        learnings: Sequence[Learning],
        *,
        recipes: Mapping[str, Recipe] | None = None,
        label: str = "fits",
        beside: Callable[[Path], None] | None = None,
    ) -> None:
        """Makes the fits that are not there yet, through the engine, and commits each task with its answers.

        Every condition uses the run's recipe, but for those in `recipes`; fits whose adapters have one shape share
        banks. An adapter that is to be kept lies in its folder before its fit is committed, with what `beside` adds to
        the folder; one that has gone since is made again.  Errors: UserError where such a fit was given up."""
        by_id = {learning.id: learning for learning in learnings}
        texts: dict[str, tuple[str, ...]] = {}
        asked: dict[str, list[Question]] = {}
        done = self.store.fit_ids() - self._gone(learnings)

        def cut() -> list[FitTask]:
            known = self._known_general(learnings)
            groups: dict[tuple[tuple[str, ...], LoraSpec], list[Fit]] = {}
            characters = sum(len(document.text) for learning in learnings for document in learning.documents)
            if characters > _MANY_CHARACTERS:
                self.progress.begin(f"{label}: cutting characters into sequences", characters)
            for learning in learnings:
                recipe = (recipes or {}).get(learning.condition, self.recipe)
                advance = self.progress.advance if characters > _MANY_CHARACTERS else None
                job, texts[learning.id] = self.job(learning, recipe, advance)
                questions = self._exam_questions(learning, known)
                exam = tuple(self.exam_request(document, question) for document, question in questions)
                fit = Fit(learning.id, job, exam, learning.keep is not None, learning.looks)
                groups.setdefault((learning.policy, recipe.lora()), []).append(fit)
                asked[learning.id] = [question for _, question in questions]
            return [
                task
                for number, ((policy, lora), group) in enumerate(groups.items())
                for task in fit_tasks(f"{label}/{number}", policy, lora, group, size=self.task_size)
            ]

        def commit(task: FitTask, result: TaskResult) -> list[CostRecord]:
            return [
                self._commit_fit(by_id[fit.id], fit, outcome, texts[fit.id], asked[fit.id], beside)
                for fit, outcome in zip(task.fits, result.outcomes, strict=True)
            ]

        self.do(
            f"{label}: {len(learnings)} adapters",
            by_id,
            done,
            cut,
            commit,
            after=self._grade_new if self._grades_aside else None,
            give_up=stop_at_given_up(label) if any(learning.keep for learning in learnings) else None,
        )

    def _gone(self, learnings: Iterable[Learning]) -> set[str]:
        """Fits that are done and whose adapters, which were to be kept, are not there any more."""
        kept = {learning.id: learning.keep for learning in learnings if learning.keep and not is_whole(learning.keep)}
        gone = {fit.id for fit in self.store.fits() if fit.id in kept and fit.status == "done"} if kept else set()
        for id in gone:
            self.warn("adapter made again", f"{kept[id]}: the adapter is gone; it is made again")
        return gone

    def _commit_fit(
        self,
        learning: Learning,
        fit: Fit,
        outcome: FitOutcome,
        texts: tuple[str, ...],
        asked: Sequence[Question],
        beside: Callable[[Path], None] | None,
    ) -> CostRecord:
        result = outcome.result
        if learning.keep is not None and result.error is None:
            write_adapter(learning.keep, outcome.adapter, beside)
        single = len(learning.documents) == 1
        edit = learning.edits[0] if single else None
        record = FitRecord(
            condition=learning.condition,
            replicate=learning.replicate,
            round=learning.round,
            document_id=learning.documents[0].id if single else None,
            edit_id=edit[0] if edit else None,
            status="failed" if result.error else "done",
            error=result.error,
            sequences=texts,
            train_tokens=result.tokens,
            steps=result.steps,
            first_loss=result.first_loss,
            last_loss=result.last_loss,
            seconds=outcome.seconds,
            answers=tuple(self._answer(q, c.ids) for q, c in zip(asked, outcome.completions, strict=False)),
        )
        self.store.record_fits([record, *self._on_the_way(record, fit, outcome, asked)])
        if learning.keep is not None:
            self.store.add_curve(record.id, thinned(result.losses))
        for note in outcome.notes:
            self.store.add_event("checkpoint", record.id, note)
            self.progress.note(note)
        if record.error:
            self.store.add_event("failed fit", record.id, record.error)
            self.progress.note(f"fit {record.id} failed: {record.error}")
        return self.cost_of_time("fits", learning.condition, outcome.seconds, learning.round)

    def job(
        self, learning: Learning, recipe: Recipe, advance: Callable[[int], None] | None = None
    ) -> tuple[FitJob, tuple[str, ...]]:
        """A fit as the engine takes it, and its training sequences as a report shows them."""
        sequences = self.sequences(learning, recipe, advance)
        tokens = tuple(tokenize(sequence, recipe, self.pool.tokenizer, self.prompts) for sequence in sequences)
        return FitJob(tokens, recipe.settings(), self.seed("fit", learning.id)), tuple(map(_shown, sequences))

    def lesson(self, prompt: str, document: Document, edit: str) -> TokenSequence:
        """What the editor is trained on: the prompt for a document, and the edit that it should have written."""
        asked, lead = self.edit_prompt(prompt, document)
        ids, prompt_length = self.pool.tokenizer.example(asked, edit, lead=lead)
        return TokenSequence(tuple(ids), prompt_length)

    def select(self, edits: Sequence[Rewarded], **rule: Any) -> Selection:
        """Which edits of a round are kept (see `selection.select`)."""
        return select(edits, **rule)

    def _on_the_way(
        self, fit: FitRecord, task: Fit, outcome: FitOutcome, asked: Sequence[Question]
    ) -> Iterator[FitRecord]:
        """The exams that a fit sat before its end, each like a fit of fewer steps."""
        for look in outcome.looks:
            answers = zip(task.looked_at, look.completions, strict=True)
            yield FitRecord(
                condition=on_the_way(fit.condition, look.step, task.job.steps),
                replicate=fit.replicate,
                round=fit.round,
                document_id=fit.document_id,
                steps=look.step,
                answers=tuple(self._answer(asked[k], completion.ids) for k, completion in answers),
            )

    def sequences(
        self, learning: Learning, recipe: Recipe, advance: Callable[[int], None] | None = None
    ) -> list[TrainingSequence]:
        """The training sequences of a fit, edits and documents in order.  `advance` is told how many characters were
        cut."""
        return [
            sequence
            for document, edit in zip(learning.documents, learning.edits, strict=True)
            for sequence in training_sequences(
                document,
                edit[1] if edit else None,
                recipe,
                self.pool.tokenizer,
                self.pool.context_length,
                advance=advance,
            )
        ]

    def exam_request(self, document: Document | None, question: Question) -> DecodeRequest:
        """The prompt of one question, closed book."""
        tokenizer = self.pool.tokenizer
        title = document.title if document else GENERAL_TITLE
        text = self.prompts.exam(instruct=tokenizer.instruct, title=title, question=question.question)
        try:
            ids = self._prompt_ids(text)
        except UserError as error:
            raise UserError(f"question {question.id}: {error}; shorten the question or the title") from None
        return DecodeRequest(ids, self.settings.max_answer_tokens, tokenizer.stop_ids)

    def _prompt_ids(self, text: str) -> tuple[int, ...]:
        """A prompt's tokens.  UserError where they are more than the model can read."""
        tokenizer, most = self.pool.tokenizer, self.pool.context_length - 1  # a reply has one token at least
        if len(text) <= most or not longer_than(tokenizer, text, most):
            ids = tuple(tokenizer.prompt_ids(text))
            if len(ids) <= most:
                return ids
        raise UserError(f"the prompt is longer than the {most + 1:,} tokens that the model reads")

    def _answer(self, question: Question, ids: Sequence[int]) -> Answer:
        text = self.pool.tokenizer.decode(ids).strip()
        if not self.pool.tokenizer.instruct:
            # A base model goes on with questions of its own; the answer is its first line.
            text = text.split("\n", 1)[0].strip()
        return Answer(question.id, text[: most_characters(self.settings.max_answer_tokens)], len(ids))

    def _exam_questions(self, learning: Learning, known: Sequence[Question]) -> list[tuple[Document | None, Question]]:
        if not learning.examine:
            return []
        asked: list[tuple[Document | None, Question]] = [
            (document, question) for document in learning.documents for question in document.questions
        ]
        chosen = sorted(known, key=lambda question: self.seed("general", learning.id, question.id))
        return asked + [(None, question) for question in chosen[: self.settings.general_questions]]

    def _known_general(self, learnings: Sequence[Learning]) -> list[Question]:
        """The general questions that the model got right before any adaptation."""
        if not self.settings.general_questions or not any(learning.examine for learning in learnings):
            return []
        self.grade()
        right = {
            answer.question_id
            for answer in self.store.scored_answers(self.grader.name, condition="none")
            if answer.document_id is None and answer.value == "right"
        }
        return [question for question in self.store.general_questions() if question.id in right]

    # Grading and scores

    @property
    def _grades_aside(self) -> bool:
        """Whether answers are graded while fits go on (workers on Ray do not wait for it): not by the model itself,
        which would interrupt them, nor by an API that takes batches."""
        judge = judge_model(self.settings.grader)
        return judge is None or (judge != LOCAL_JUDGE and not self.settings.api_batch)

    def grade(self) -> None:
        """Gives every answer that has none its grade.  Errors: UserError where too many stay ungraded."""
        # Answers that a judge could not grade are tried again, once an attempt at the run.
        self._grade_new(retry_ungraded=not self._retried, label=f"grading by {self.grader.name}")
        self._retried = True
        counts = self.store.grade_counts(self.grader.name)
        total = sum(counts.values())
        if total and counts["ungraded"] / total > self.settings.max_ungraded:
            raise UserError(
                f"{counts['ungraded']} of {total} answers could not be graded by {self.grader.name}, more than"
                f" --max-ungraded {self.settings.max_ungraded:.0%} allows; nothing is reported.  The same "
                "command tries them again"
            )

    def _grade_new(self, *, retry_ungraded: bool = False, label: str | None = None) -> None:
        """Gives every answer that has none its grade; with a `label`, a judge's work is shown as a step of its own."""
        self._aside = label is None
        todo = self.store.to_grade(self.grader.name, retry_ungraded=retry_ungraded)
        if todo and label and self.grader.name.startswith("judge:"):
            self.progress.begin(label, len(todo))
        for chunk in self._graded_together(todo):
            grades = self.grader.grade([item for _, item in chunk])
            self.store.add_grades(zip((id for id, _ in chunk), grades, strict=True), self._judging)
            self._judging.clear()
        self._aside = False

    def _graded_together(self, todo: list[tuple[int, GradeItem]]) -> Iterator[list[tuple[int, GradeItem]]]:
        """Answers whose grades are committed together.  The model itself is asked about one adapter's answers together,
        whatever else is to be graded, so that a resumed run asks the same side by side."""
        judge = judge_model(self.settings.grader)
        if judge == LOCAL_JUDGE:
            fits = self.store.fits_of_answers()
            for _, group in groupby(todo, key=lambda one: fits[one[0]]):
                yield list(group)
            return
        # A batch at an API takes hours, however many requests are in it.
        size = len(todo) or 1 if judge is not None and self.settings.api_batch else _GRADE_CHUNK
        for start in range(0, len(todo), size):
            yield todo[start : start + size]

    def scores(self, condition: str, *, round: int | None = None) -> dict[str, DocumentScore]:
        """Credits and graded answers by document; ungraded answers count neither way."""
        found: dict[str, DocumentScore] = {}
        for answer in self.store.scored_answers(self.grader.name, condition=condition, round=round):
            if answer.document_id is None or answer.score is None:
                continue
            before = found.get(answer.document_id, DocumentScore(0.0, 0))
            found[answer.document_id] = DocumentScore(before.score + answer.score, before.graded + 1)
        return found

    # Costs

    def cost_of_time(self, what: str, condition: str, seconds: float, round: int) -> CostRecord:
        cost = device_cost(
            what,
            condition,
            seconds=seconds,
            usd_per_hour=self.settings.usd_per_hour,
            round=round,
            model=self.settings.model,
        )
        self.budget.spend(cost.usd or 0.0)
        return cost

    def run_tasks(self, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        """The pool's results.  Stops cleanly before a task of device time that would pass the budget, judged by those
        before it.

        Errors: UserError for a model that the engine cannot train as the recipe asks, and where memory cannot hold one
        adapter."""
        hourly = self.settings.usd_per_hour
        limited = hourly is not None and self.budget.limit is not None
        dearest = 0.0
        results = self.pool.run([replace(task, memory=self.run.resolved["memory"]) for task in tasks])
        while True:
            if hourly is not None and limited and self.budget.would_exceed(dearest):
                results.close()
                raise self.budget.reached("the next task", dearest)
            try:
                result = next(results, None)
            except (UnsupportedModelError, NotEnoughMemoryError) as error:
                raise UserError(f"model {self.settings.model}: {error}") from error
            if result is None:
                return
            if hourly is not None:
                dearest = max(dearest, result.seconds / 3600 * hourly)
            yield result

    def book_judge(self, seconds: float) -> None:
        """Has device time of judging booked with the grades that come of it."""
        self._judging.append(self.cost_of_time("grading", "grading", seconds, 0))

    def _price(self, model: str) -> ModelPrice | None:
        try:
            return self.prices.model(model)
        except UserError:  # a model without a price can be used; its cost is then unknown
            return None

    def book_api(self, what: str, condition: str, model: str, result: ApiResult, round: int) -> None:
        """Counts a reply and books what it cost, whether it can be used or not, in the transaction that keeps it."""
        if not self._aside:
            self.progress.advance(1)
        if result.paid:
            cost = api_cost(
                what,
                condition,
                model=model,
                input_tokens=result.input_tokens,
                output_tokens=result.output_tokens,
                usd=result.usd,
                round=round,
            )
            self.store.add_costs([cost])


def stop_at_given_up(what: str) -> Callable[[str, str], None]:
    """For `Experiment.do`, where nothing can be done without the task."""

    def give_up(_: str, reason: str) -> None:
        raise UserError(
            f"{what} was given up: {reason}; the run cannot go on without it.  The same command tries it again"
        )

    return give_up


def on_the_way(condition: str, step: int, steps: int) -> str:
    """The condition under which answers are stored that a fit gave before its end."""
    return f"{condition} after {step} of {steps} steps"


def thinned(losses: Sequence[float], most: int = 200) -> list[tuple[int, float]]:
    """(step, mean loss since the point before) at no more than `most` steps."""
    stride = -(-len(losses) // most) or 1
    parts = [losses[k : k + stride] for k in range(0, len(losses), stride)]
    return [(min((k + 1) * stride, len(losses)), sum(part) / len(part)) for k, part in enumerate(parts)]


def make_pool(settings: Settings, progress: Progress) -> Pool:
    """The workers that the settings ask for."""
    source = ModelSource(settings.model, settings.device, settings.dtype, settings.instruct, settings.trust_remote_code)
    if settings.workers or settings.ray:
        from selfedit.execution.ray_pool import RayPool

        return RayPool(
            source,
            workers=settings.workers or None,
            address=settings.ray,
            gpus_per_worker=settings.gpus_per_worker,
            cpus_per_worker=settings.cpus_per_worker,
            on_tokens=progress.advance,
            on_note=progress.note,
        )
    return InProcess(source, on_tokens=progress.advance)


def local_judge(experiment: Experiment) -> Callable[[Sequence[JudgeRequest]], list[Any]]:
    """Asks the run's own model, untrained, to judge, through the engine."""

    def complete(requests: Sequence[JudgeRequest]) -> list[Any]:
        tokenizer = experiment.pool.tokenizer
        prompts = {
            str(number): [
                DecodeRequest(
                    tuple(tokenizer.chat_ids([dict(message) for message in request.messages])),
                    request.max_tokens,
                    tokenizer.stop_ids,
                )
            ]
            for number, request in enumerate(requests)
        }
        tasks = {task.id: task for task in completion_tasks("judge", (), prompts, size=_EXAM_TASK)}
        replies: dict[str, Any] = {}
        for result in experiment.run_tasks(list(tasks.values())):
            task = tasks[result.task_id]
            experiment.book_judge(result.seconds)
            if result.error is not None:
                replies |= dict.fromkeys(task.ids, RuntimeError(f"{task.id} was given up: {result.error}"))
                continue
            for id, (completion,) in task.completions(result).items():
                replies[id] = tokenizer.decode(completion.ids)
        return [replies[number] for number in prompts]

    return complete


def api_judge(experiment: Experiment, model: str) -> Callable[[Sequence[JudgeRequest]], list[Any]]:
    """Asks an API model to judge; replies and their cost are kept in the run's store."""

    def complete(requests: Sequence[JudgeRequest]) -> list[Any]:
        results = experiment.api_client(model, "judge").complete(
            [
                ApiRequest(
                    messages=request.messages,
                    max_tokens=request.max_tokens,
                    temperature=0.0,
                    json_schema=request.json_schema,
                )
                for request in requests
            ],
            lambda _, result: experiment.book_api("grading", "grading", model, result, 0),
            # An answer that is tried again must not get a reply again that could not be read.
            accept=lambda result: result.error is None and parse_reply(result.text) is not None,
        )
        return [result.text if result.error is None else RuntimeError(result.error) for result in results]

    return complete


class _Forgetful(dict[str, str]):
    """A cache that keeps nothing."""

    def __setitem__(self, key: str, value: str) -> None:
        del key, value


def _digest(content: Any) -> str:
    """What a changed content is known by."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _shown(sequence: TrainingSequence) -> str:
    """A training sequence as the report shows it."""
    if sequence.question is None:
        return f"{sequence.title}\n{sequence.text}"
    return f"Question: {sequence.question}\nAnswer: {sequence.text}"
