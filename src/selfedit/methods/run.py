"""A run under way: what a method works with.  It holds things; what is done with them is the methods' part."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from functools import cached_property, partial
from typing import TypedDict, Unpack

from selfedit.editors.api import ApiClient
from selfedit.editors.base import Reader
from selfedit.editors.endpoint import shown_address
from selfedit.editors.prices import load_prices
from selfedit.editors.replies import ApiResult
from selfedit.errors import UserError
from selfedit.evaluation.exam import Exam
from selfedit.evaluation.grade import Grader
from selfedit.evaluation.graders import engine_judge, judge_model, make_grader
from selfedit.evaluation.grading import Grading, Together
from selfedit.evaluation.judge import api_judge, local_judge
from selfedit.execution.pool import Pool
from selfedit.methods.resuming import completer
from selfedit.methods.selection import Choices
from selfedit.methods.settings import FREE, Role, Settings
from selfedit.methods.workers import Workers, digest
from selfedit.models import load_outline
from selfedit.progress import Progress
from selfedit.prompts import Prompts
from selfedit.runs.directory import RunDirectory
from selfedit.runs.ledger import Ledger
from selfedit.runs.records import CostRecord
from selfedit.runs.seeds import derive_seed
from selfedit.text import one_line
from selfedit.training.jobs import Jobs
from selfedit.training.recipes import load_recipe


class Parts(TypedDict, total=False):
    """What a method may be given in place of what it makes itself: a listener, a pool that is there already, and the
    stand-ins with which `plan` rehearses it."""

    progress: Progress | None
    pool: Pool | None
    client: Callable[[Run, str, Role], ApiClient]
    grader: Callable[..., Grader]
    jobs: Callable[..., Jobs]
    choices: Choices
    reader: Callable[..., Reader]


class Run(AbstractContextManager["Run"]):
    """`with Run("compare", settings, **parts) as run`: opens the run's directory, and closes all when left.

    `settings`, `recipe`, `prompts`: what was asked for.  `directory`, `store`: where it is kept.  `workers`: what
    executes tasks, and the student's tokenizer.  `ledger`: what is spent.  `exam`, `grading`, `jobs`, `choices`: what
    asks, grades, makes training jobs, and chooses by results.
    """

    def __init__(self, method: str, settings: Settings, **parts: Unpack[Parts]) -> None:
        self.method = method
        self.settings = settings
        self.progress = parts.get("progress") or Progress()
        self.recipe = load_recipe(settings.recipe).with_settings(settings.set)
        self.prompts = Prompts(settings.prompt_file)
        # What the user can get wrong is looked at before the run directory is made or a model is loaded.
        prices = load_prices(settings.prices)
        self.judge = judge_model(settings.grader)
        config = {
            "procedure": method,
            **settings.model_dump(mode="json"),
            "api_base": shown_address(settings.api_base),
            "judge_api_base": shown_address(settings.judge_api_base),
            "recipe_settings": self.recipe.model_dump(mode="json"),
        }
        self.directory = RunDirectory.open(settings.out, config, free=FREE)
        self.store = self.directory.store
        try:
            self.directory.resolve(
                "prompts", digest(self.prompts.content), "the prompts (--prompt-file, or the built-in ones)"
            )
        except BaseException:
            self.directory.close()
            raise
        hourly, budget = settings.usd_per_hour, settings.budget
        self.ledger = Ledger(self.store, prices, model=settings.model, usd_per_hour=hourly, budget=budget)
        self.workers = Workers(settings, self.directory, self.ledger, self.progress, self.warn, parts.get("pool"))
        self.choices = parts.get("choices") or Choices()
        self._parts = parts
        self._readers: dict[str, Reader] = {"": self.workers}
        self._clients: dict[tuple[str, Role], ApiClient] = {}

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self.directory:  # until the end, so that what is removed is no other process's
            with closing(self.workers):
                for client in self._clients.values():
                    client.close()
            # A mistake that was found before anything was done leaves no run behind that would hold the user to it.
            if isinstance(error, UserError) and not self.store.documents():
                self.store.close()
                for name in ("run.sqlite-wal", "run.sqlite-shm", "run.sqlite", "config.yaml"):
                    (self.directory.path / name).unlink(missing_ok=True)

    @cached_property
    def jobs(self) -> Jobs:
        return self._parts.get("jobs", Jobs)(self.workers.tokenizer, self.workers.context_length, self.prompts)

    @cached_property
    def exam(self) -> Exam:
        student, settings = self.workers, self.settings
        most, whole = settings.max_answer_tokens, settings.whole_answers
        return Exam(student.tokenizer, student.context_length, self.prompts, max_tokens=most, whole=whole)

    @cached_property
    def grading(self) -> Grading:
        """By a rule, by a judge behind an API, or by a model of the engine."""
        settings, judge, make = self.settings, self.judge, self._parts.get("grader", make_grader)
        grading = partial(Grading, self.store, max_ungraded=settings.max_ungraded, begin=self.progress.begin)
        if judge is None:
            return grading(grader=make(settings.grader))
        if (model := engine_judge(judge)) is not None:
            # It is asked about one adapter's answers together, whatever else is to be graded, so that a request's
            # neighbours are the same in a resumed run.
            spent: list[CostRecord] = []
            complete = completer(
                self,
                "judge",
                lambda seconds: spent.append(self.ledger.time("grading", "grading", seconds, model=model)),
                model=model,
            )
            ask = local_judge(lambda: self.reader(model), complete)
            return grading(
                grader=make(settings.grader, complete=ask, prompts=self.prompts), together="fit", spent=spent
            )

        def book(result: ApiResult) -> None:
            if not self.grading.beside:
                self.progress.advance(1)
            self.ledger.book("grading", "grading", judge, result)

        ask = api_judge(lambda: self.client(judge, "judge"), book)
        # A batch takes hours, however many requests are in it.
        together: Together = "all" if settings.endpoint("judge").batch else "chunk"
        return grading(grader=make(settings.grader, complete=ask, prompts=self.prompts), together=together)

    def client(self, model: str, role: Role) -> ApiClient:
        """The run's one client of this API model in this role; its replies are kept in the run's store.  Errors:
        UserError, also where there is a budget and the model has no price."""
        if (model, role) not in self._clients:
            make = self._parts.get("client")
            self._clients[model, role] = make(self, model, role) if make else self._client(model, role)
        return self._clients[model, role]

    def _client(self, model: str, role: Role) -> ApiClient:
        def tell(batch: str, status: str, done: int, total: int) -> None:
            self.progress.note(f"batch {batch}: {status}, {done} of {total}")

        price, budget = self.ledger.price(model), self.ledger.budget
        endpoint = self.settings.endpoint(role)
        return ApiClient(model, endpoint, store=self.store, price=price, budget=budget, on_poll=tell)

    def reader(self, model: str) -> Reader:
        """What a model of the engine reads by, without its weights; "" is the student."""
        if model not in self._readers:
            make = self._parts.get("reader", load_outline)
            reader = make(model, trust_remote_code=self.settings.trust_remote_code)
            template = digest(reader.tokenizer.hf.chat_template)
            self.directory.resolve(f"chat_template of {model}", template, f"model {model}: its chat template")
            if reader.tokenizer.doubt:
                self.warn("chat or base model", reader.tokenizer.doubt)
            self._readers[model] = reader
        return self._readers[model]

    def warn(self, kind: str, message: str) -> None:
        """Tells the user, and keeps it for the report (once)."""
        message = one_line(message)
        self.store.add_event(kind, self.method, message)
        self.progress.note(message)

    def seed(self, *parts: str | int) -> int:
        return derive_seed(self.settings.seed, *parts)
