"""The published experiment's table, for several models: what do an untrained, a trained and another editor teach?

for each model:
    train: the model becomes a better editor (Step B)
    compare: what is learned from its own edits before and after, and from an external editor's

The runs are those of `train` and `compare`, in directories of their own, and resuming is theirs.  What the external
editor wrote for the first model is replayed for the others: all learn from the same edits, which are paid for once.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from selfedit.editors.base import AS_WRITTEN
from selfedit.editors.prices import load_prices
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError, checked
from selfedit.evaluation.graders import engine_judge, judge_model
from selfedit.grouping import grouped
from selfedit.methods.compare import compare
from selfedit.methods.naming import run_names
from selfedit.methods.plan import Plan, rehearse
from selfedit.methods.policies import selected_round
from selfedit.methods.restem import train
from selfedit.methods.settings import CompareSettings, Role, Settings, TrainSettings, make_settings
from selfedit.models import local_path
from selfedit.prompts import Prompts
from selfedit.runs.directory import RunDirectory
from selfedit.runs.files import write_atomically
from selfedit.yaml_file import read_yaml

Perform = Callable[[Callable[..., Any], Settings], object]


class Student(BaseModel):
    """A model of a plan, with settings that differ from those of all; `name` is its row's, by default the model's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    name: str = ""
    settings: dict[str, Any] = {}
    train: dict[str, Any] = {}
    compare: dict[str, Any] = {}


class Reproduction(BaseModel):
    """A plan.  `settings` are those of all runs, `train` and `compare` those of one kind; `external` is the external
    editor, as --editor has it.  `reported` puts figures that others report into the table.  `device_tflops` is what the
    device does, in 10^12 operations per second, with which --plan tells hours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, Any] = {}
    train: dict[str, Any] = {}
    compare: dict[str, Any] = {}
    external: str | None = None
    reported: bool = True
    device_tflops: float | None = Field(None, gt=0)
    models: tuple[
        Annotated[Student, BeforeValidator(lambda given: {"model": given} if isinstance(given, str) else given)], ...
    ] = Field(min_length=1)

    @property
    def rows(self) -> dict[str, str]:
        """The folder of each model's runs, below the reproduction's, and its row's name."""
        folders = run_names([student.name or student.model for student in self.models])
        return {
            folder: student.name or (folder if Path(student.model).is_dir() else student.model)
            for folder, student in zip(folders, self.models, strict=True)
        }

    def training(self, student: Student, out: Path) -> TrainSettings:
        given = self.settings | self.train | student.settings | student.train
        where = f"plan, train {student.model}"
        return make_settings(TrainSettings, {**given, "model": student.model, "out": out}, where)

    def comparison(self, student: Student, out: Path, external: str | None, policy: Path) -> CompareSettings:
        """The model's own edits, with and without training, and the external editor's; more with `editor`."""
        given = self.settings | self.compare | student.settings | student.compare
        editors = given.get("editor", ("none", "self"))
        editors = [editors] if isinstance(editors, str) else list(editors)
        more = {"model": student.model, "out": out, "policy": policy, "editor": [*editors, *filter(None, [external])]}
        # All models are to learn from the same edits, so none may be missing.
        given = {"max_missing_edits": 0.0, **given, **more}
        return make_settings(CompareSettings, given, f"plan, compare {student.model}")


def read_plan(path: Path, **changes: Any) -> Reproduction:
    """A plan from a file, with `changes` to the settings of all runs.  Errors: UserError."""
    where = f"plan {path}"
    plan = checked(Reproduction, read_yaml(path, where), where, "docs/reproduce.md has its form")
    names = [student.name or student.model for student in plan.models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where}: model {twice[0]} is named twice; leave one out, or give it a `name` of its own")
    return plan.model_copy(update={"settings": plan.settings | {k: v for k, v in changes.items() if v is not None}})


def reproduce(plan: Reproduction, out: Path, perform: Perform) -> None:
    """Performs the runs of a plan below `out`.  Errors: UserError, as the runs give it."""
    external = plan.external
    for student, folder in zip(plan.models, plan.rows, strict=True):
        training = plan.training(student, out / folder / "train")
        perform(train, training)
        comparison = plan.comparison(student, out / folder / "compare", external, training.out)
        if comparison.policy_round is None:
            # Where the untrained editor was selected, the last round shows what training came to.
            with RunDirectory.read(training.out) as trained:
                last = None if selected_round(trained) else len(trained.store.rounds())
            comparison = comparison.model_copy(update={"policy_round": last})
        perform(compare, comparison)
        if external is not None:
            external = _replayed(comparison, external, out)


def check(plan: Reproduction, out: Path, *, keys: bool = True) -> None:
    """Finds what a user got wrong about prompts, prices, keys and `out`; without `keys`, those of APIs may be missing.
    Errors: UserError."""
    for student in plan.models:
        for settings in (plan.training(student, out), plan.comparison(student, out, plan.external, out)):
            Prompts(settings.prompt_file)
            prices = load_prices(settings.prices)
            for model, role in _paid(settings):
                prices.model(model)
                if keys:
                    settings.endpoint(role).address(model)
    others = {path.parent.parent.name for path in out.glob("*/*/config.yaml")} - set(plan.rows)
    if others:
        raise UserError(
            f"{out}: holds runs of another plan ({min(others)} is no model of this one); name another --out"
        )


def _find_models(plan: Reproduction) -> None:
    """Errors: UserError that names every model that is not at hand, and says of the first what was tried."""
    missing: dict[str, UserError] = {}
    for student in plan.models:
        try:
            local_path(student.model)
        except UserError as error:
            missing[student.model] = error
    if missing:
        first, *others = missing
        raise UserError(f"{missing[first]}" + (f"; nor are these at hand: {', '.join(others)}" if others else ""))


def rehearsal(plan: Reproduction) -> dict[str, Plan]:
    """The plan of each run, by `FOLDER/train` and `FOLDER/compare`.  Errors: UserError, as the runs would give."""
    _find_models(plan)
    plans: dict[str, Plan] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)

        def count(method: Callable[..., Any], settings: Settings) -> None:
            plans[str(settings.out.relative_to(out))] = rehearse(method, settings, settings.out)

        reproduce(plan, out, count)
    return plans


def total(plans: Collection[Plan]) -> Plan:
    """What runs take together; they need the memory of the largest."""
    added: dict[str, Any] = {}
    for field in fields(Plan):
        values = [getattr(plan, field.name) for plan in plans]
        most = field.name in ("memory_bytes", "documents_for_three_points")
        added[field.name] = None if None in values else max(values) if most else sum(values)
    return Plan(**added)


def _paid(settings: Settings) -> list[tuple[str, Role]]:
    """The API models of a run, and what they do."""
    specs = [EditorSpec.parse(text) for text in getattr(settings, "editor", ())]
    judge = judge_model(settings.grader)
    judges: list[tuple[str, Role]] = [(judge, "judge")] if judge is not None and engine_judge(judge) is None else []
    return [(spec.argument, "editor") for spec in specs if spec.kind == "api"] + judges


def _replayed(comparison: CompareSettings, external: str, out: Path) -> str:
    """The external editor's edits as a file's, or itself where one of them is not there or empty."""
    spec = EditorSpec.parse(external)
    with RunDirectory.read(comparison.out) as run:
        documents = run.store.documents()
        # Not with the first model's answers (`--teacher open-book`): each answers for itself.
        edits = run.store.edits(writer=spec.name + AS_WRITTEN) or run.store.edits(writer=spec.name)
    texts = grouped((edit.document_id, edit.text) for edit in edits if edit.text)
    if spec.kind == "replay" or any(len(texts.get(one.id, ())) < comparison.edits for one in documents):
        return external
    file = out / (re.sub(r"[^A-Za-z0-9.-]+", "-", spec.name) + ".jsonl")
    rows = ({"id": id, "text": text} for id, found in texts.items() for text in found)
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))
    return f"replay:{file}"
