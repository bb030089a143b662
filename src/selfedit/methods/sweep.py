"""Chooses recipe settings on validation documents, which then take no part in the comparison.

Knows grids of recipe settings.  All fits whose adapters have one shape go through the engine together.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from selfedit.documents import Document, sharing_titles, split_by_title
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.evaluation.statistics import DocumentScore, accuracy_interval
from selfedit.methods.experiment import Experiment, Learning
from selfedit.methods.settings import CompareSettings
from selfedit.runs.summary import SweepRow
from selfedit.training.recipes import Recipe, load_recipe
from selfedit.yaml_file import parse_value

_SHARE = 0.25


def sweep(
    experiment: Experiment, documents: Sequence[Document], specs: Sequence[EditorSpec]
) -> tuple[list[Document], Recipe, list[SweepRow]]:
    """(documents left for the comparison, the chosen recipe, a row for each recipe that was tried).

    The chosen one has the best mean accuracy over all editors on the validation documents; ties go to the one tried
    first. Errors: UserError where no recipe has one."""
    settings = experiment.settings
    assert isinstance(settings, CompareSettings)
    grid = parse_grid(settings.sweep)
    test, validation = _split(experiment, documents)
    recipes = [experiment.recipe.with_settings(changes) for changes in grid]
    experiment.store.add_documents(validation, "validation")
    by_id = {document.id: document for document in validation}
    learnings: list[Learning] = []
    conditions: dict[str, Recipe] = {}
    for spec in specs:
        if spec.kind == "none":
            continue
        if spec.kind == "passage":
            sources: list[tuple[Document, tuple[str | None, str] | None]] = [(d, None) for d in validation]
        else:
            experiment.write_edits(validation, spec, count=settings.edits, prompt=settings.edit_prompt)
            sources = [
                (by_id[e.document_id], (e.id, e.text))
                for e in experiment.store.edits(writer=spec.name, round=0)
                if e.document_id in by_id
            ]
        for changes, recipe in zip(grid, recipes, strict=True):
            name = _condition(spec, changes)
            conditions[name] = recipe
            learnings += [
                Learning(name, (document,), (edit,), replicate)
                for document, edit in sources
                for replicate in range(settings.replicates)
            ]
    experiment.fit_and_examine(learnings, recipes=conditions, label="sweep")
    experiment.grade()
    rows = []
    for changes in grid:
        found = {
            spec.name: _accuracy(experiment.scores(_condition(spec, changes))) for spec in specs if spec.kind != "none"
        }
        known = [accuracy for accuracy in found.values() if accuracy is not None]
        # A mean over other editors than the other recipes' could not be compared with theirs.
        mean = sum(known) / len(known) if len(known) == len(found) else None
        rows.append(SweepRow(settings=changes, accuracy=found, mean=mean))
    best = max(range(len(rows)), key=lambda k: (-1.0 if (mean := rows[k].mean) is None else mean, -k))
    if rows[best].mean is None:
        raise UserError(
            "--sweep: under no recipe were answers graded for every editor, so none can be chosen; try lower "
            "learning rates, and"
            " another --out"
        )
    rows[best] = rows[best].model_copy(update={"chosen": True})
    experiment.progress.note(f"sweep: {grid[best]} chosen on {len(validation)} validation documents")
    return test, recipes[best], rows


def check_grid(settings: CompareSettings, specs: Sequence[EditorSpec]) -> None:
    """Errors: UserError for a sweep that cannot be made, before anything else is."""
    if settings.sweep and all(spec.kind == "none" for spec in specs):
        raise UserError("--sweep: no editor given that recipes could be tried on; add one with --editor")
    recipe = load_recipe(settings.recipe).with_settings(settings.set)
    for changes in parse_grid(settings.sweep):
        recipe.with_settings(changes)


def parse_grid(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of `NAME=A,B,C` settings.  Errors: UserError for another form."""
    axes = []
    for text in texts:
        name, equals, values = text.partition("=")
        if not name.strip() or not equals or not values:
            raise UserError(f"--sweep {text}: write NAME=A,B,C, such as learning_rate=1e-3,2e-3")
        axes.append([(name.strip(), parse_value(value)) for value in values.split(",")])
    return [dict(combination) for combination in itertools.product(*axes)]


def _accuracy(scores: Mapping[str, DocumentScore]) -> float | None:
    """Mean accuracy; None for a recipe under which every fit failed (a learning rate far too high)."""
    return accuracy_interval(scores).mean if scores else None


def _condition(spec: EditorSpec, changes: dict[str, Any]) -> str:
    return f"{spec.name} [{', '.join(f'{name}={value}' for name, value in changes.items())}]"


def _split(experiment: Experiment, documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    settings = experiment.settings
    assert isinstance(settings, CompareSettings)
    if not settings.validation:
        parts = split_by_title(documents, {"test": 1 - _SHARE, "validation": _SHARE}, seed=settings.seed)
        return parts["test"], parts["validation"]
    validation = experiment.load(settings.validation, limit=None, require_questions=True)
    shared = sharing_titles(validation, documents)
    if shared:
        raise UserError(f"--validation: title {shared[0].title!r} is among the documents too; give other documents")
    return list(documents), validation
