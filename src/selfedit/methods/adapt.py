"""Step A in a few lines of Python: a loaded model, documents, an adapter in memory.

It runs `learn` in a temporary directory.  For runs that are kept, resumed and reported, use `learn` or `compare`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.errors import UserError
from selfedit.evaluation.statistics import Interval
from selfedit.execution.pool import InProcess
from selfedit.execution.worker import ModelSource
from selfedit.methods.ask import Asker
from selfedit.methods.learn import learn
from selfedit.methods.policies import write_adapter
from selfedit.methods.settings import LearnSettings, make_settings
from selfedit.methods.small_models import default_editor
from selfedit.models import Model


@dataclass(frozen=True)
class Adapted:
    """An adapter that has learned documents, and what the exam says of it.

    `before` and `after` are accuracies with 95 % intervals (`evaluation.statistics`), None where no answer was graded.
    """

    model: Model
    edits: tuple[Edit, ...]
    before: Interval | None
    after: Interval | None
    files: dict[str, bytes] = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Writes the adapter in PEFT's format (`peft.PeftModel.from_pretrained` loads it)."""
        write_adapter(Path(path), self.files)
        return Path(path)

    def ask(self, question: str, *, max_tokens: int = 128) -> str:
        with tempfile.TemporaryDirectory() as folder:
            adapter = self.save(Path(folder) / "adapter")
            with Asker(adapter, model=self.model, max_tokens=max_tokens) as asker:
                return asker.answer([{"role": "user", "content": question}])


def adapt(model: Model, documents: Sequence[Document], **settings: Any) -> Adapted:
    """Has edits of the documents written, teaches them to one adapter, and examines it where there are questions.

    `settings` are those of `selfedit learn` (`editor="self"`, `edits=1`, `recipe="default"`, `seed=0`, ...).  The model
    itself is not changed.  Errors: UserError for a setting that is wrong, or a fit that failed."""
    with tempfile.TemporaryDirectory() as folder:
        usual = {"editor": default_editor(model.hf.num_parameters()), "adapters": "joint"}
        chosen = make_settings(LearnSettings, {**usual, **settings, "model": model.name, "out": Path(folder) / "run"})
        if chosen.adapters != "joint":
            other = f"adapters={chosen.adapters!r}"
            raise UserError(f"adapt gives back one adapter, which is asked directly; for {other} use learn")
        if chosen.add or chosen.retry_missed:  # either is learned on top of an adapter that is merged into the model
            raise UserError("adapt leaves the model that it is given as it is; for add and retry_missed use learn")
        pool = InProcess(ModelSource(model.name), model=model)
        learned = learn(chosen, pool=pool, documents=documents)
        accuracies: list[Interval | None] = [None, None]
        if learned.summary is not None:
            accuracies = [
                None if c.accuracy is None or c.ci95 is None else Interval(c.accuracy, *c.ci95)
                for c in learned.summary.conditions
            ]
        files = {file.name: file.read_bytes() for file in learned.adapter.iterdir()}
        return Adapted(model, learned.edits, accuracies[0], accuracies[1], files)
