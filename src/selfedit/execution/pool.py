"""Where tasks are done: what every pool offers, and the pool that is this process.

Tasks of one policy go together, the longest first.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Protocol

from selfedit.editors.base import Reader
from selfedit.execution.tasks import Task, TaskResult
from selfedit.execution.worker import ModelSource, OnTokens, Worker
from selfedit.models import Model, Tokenizer


class Pool(Reader, Protocol):
    """Does tasks, in any order, and yields each result as it comes.  `description` has device and dtype; `memory` is
    what a plan of one worker should use, bytes.

    `publish` makes a policy's delta (an adapter's files, by name) known under a name that tasks can then follow.
    """

    @property
    def description(self) -> str: ...

    @property
    def memory(self) -> int: ...

    def publish(self, name: str, files: Mapping[str, bytes]) -> None: ...

    def run(self, tasks: Iterable[Task]) -> Generator[TaskResult]: ...

    def close(self) -> None: ...


class InProcess:
    """One worker, in this process, with a model that is loaded already or loads now.

    `on_tokens` is called with the tokens trained and written while a task is under way.
    """

    def __init__(self, source: ModelSource, *, on_tokens: OnTokens | None = None, model: Model | None = None) -> None:
        self.deltas: dict[str, Mapping[str, bytes]] = {}
        self.worker = Worker(source, self.deltas.__getitem__, model)
        self.on_tokens: Callable[[int], None] | None = on_tokens
        self.tokenizer: Tokenizer = self.worker.model.tokenizer
        self.context_length = self.worker.context_length
        self.description = self.worker.description

    @property
    def memory(self) -> int:
        """Bytes that a plan should use now."""
        return self.worker.memory

    def publish(self, name: str, files: Mapping[str, bytes]) -> None:
        self.deltas[name] = dict(files)

    def run(self, tasks: Iterable[Task]) -> Generator[TaskResult]:
        # Tasks of one policy together: merging takes a moment, going back to the base model a whole loading.
        for task in sorted(tasks, key=lambda task: (len(task.policy), task.policy, -task.cost)):
            yield self.worker.run(task, self.on_tokens)

    def close(self) -> None:
        """Nothing to stop."""
