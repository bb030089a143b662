"""The workers of a run, made when they are first needed, and what was resolved with them when the run began.

A finished run resumes without loading its model: what it has to say of it is in `config.yaml`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from selfedit.engine.jobs import NotEnoughMemoryError, UnsupportedModelError
from selfedit.errors import UserError
from selfedit.execution.pool import InProcess, Pool
from selfedit.execution.tasks import Task, TaskResult
from selfedit.execution.worker import ModelSource
from selfedit.methods.settings import Settings
from selfedit.models import Tokenizer, local_path
from selfedit.progress import Progress
from selfedit.runs.directory import RunDirectory
from selfedit.runs.ledger import Ledger


@dataclass(eq=False)
class Workers:
    """Executes tasks.  A pool that is `given` stays open when the workers are closed."""

    settings: Settings
    directory: RunDirectory
    ledger: Ledger
    progress: Progress
    warn: Callable[[str, str], None]
    given: Pool | None = None
    _made: Pool | None = field(default=None, init=False)
    _published: dict[str, Mapping[str, bytes]] = field(default_factory=dict)

    @cached_property
    def pool(self) -> Pool:
        """Where tasks are executed.  The first use loads the model, or waits for the first worker: what is wrong with
        it is found before any work is done."""
        pool, resolve = self.given or self._made, self.directory.resolve
        if pool is None:
            dtype = self.directory.resolved.get("dtype", self.settings.dtype)
            pool = self._made = make_pool(self.settings.model_copy(update={"dtype": dtype}), self.progress)
        device, dtype = pool.description.split(", ")
        model = f"model {self.settings.model}:"
        resolve("dtype", dtype, f"{model} its precision")
        resolve("instruct", pool.tokenizer.instruct, f"{model} whether it is prompted through a chat template")
        if pool.tokenizer.doubt:
            self.warn("chat or base model", pool.tokenizer.doubt)
        resolve("chat_template", digest(pool.tokenizer.hf.chat_template), f"{model} its chat template")
        resolve("memory", pool.memory)
        kind = device.partition(":")[0]
        if (began := resolve("device", kind)) != kind:
            self.warn("device", f"this run began on {began} and goes on on {kind}: sums are rounded otherwise there")
        for name, files in self._published.items():
            pool.publish(name, files)
        return pool

    def check(self, others: Iterable[str] = ()) -> None:
        """Errors: UserError where the files of the model, or of others that are asked, are not there."""
        for model in (*(() if self.given else (self.settings.model,)), *others):
            local_path(model)

    def publish(self, name: str, files: Mapping[str, bytes]) -> None:
        """Makes a policy's delta known to the workers: now, or when there are any."""
        self._published[name] = files
        if "pool" in self.__dict__:
            self.pool.publish(name, files)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.pool.tokenizer

    @property
    def context_length(self) -> int:
        return self.pool.context_length

    @property
    def instruct(self) -> bool:
        """Whether the model is prompted through a chat template."""
        return bool(self._resolved("instruct"))

    @property
    def description(self) -> str:
        return f"{self._resolved('device')}, {self._resolved('dtype')}"

    @property
    def task_size(self) -> int:
        """Fits in a task: enough to fill a step, few enough to share among workers; decided when the run begins."""
        chosen = self.settings.task_size or (96 if self.pool.description.startswith("cuda") else 16)
        return int(self.directory.resolve("task_size", chosen))

    def _resolved(self, name: str) -> Any:
        if name not in self.directory.resolved:
            _ = self.pool
        return self.directory.resolved[name]

    def run(self, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        """The tasks' results, within the budget.

        Errors: UserError for a model that the engine cannot train as the recipe asks, where memory cannot hold one
        adapter, and where the next task would pass the budget.
        """
        results = self.pool.run([replace(task, memory=self._resolved("memory")) for task in tasks])
        try:
            yield from self.ledger.within_budget(results)
        except (UnsupportedModelError, NotEnoughMemoryError) as error:
            raise UserError(f"model {self.settings.model}: {error}") from error

    def close(self) -> None:
        if self._made is not None:
            self._made.close()


def make_pool(settings: Settings, progress: Progress) -> Pool:
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


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
