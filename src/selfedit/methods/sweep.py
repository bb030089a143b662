"""Chooses recipe settings on validation documents, which then take no part in the comparison.

for each recipe of the grid, and each editor: inner loop on the validation documents
the recipe with the best mean accuracy is used
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from selfedit.documents import Document
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.evaluation.statistics import accuracy_interval
from selfedit.methods.edits import write_edits
from selfedit.methods.inner_loop import inner_loop
from selfedit.methods.inputs import set_apart
from selfedit.methods.learnings import Learning, one_each
from selfedit.methods.run import Run
from selfedit.methods.settings import CompareSettings
from selfedit.runs.summary import SweepRow
from selfedit.training.recipes import Recipe, load_recipe
from selfedit.yaml_file import parse_value

_SHARE = 0.25


def sweep(
    run: Run, settings: CompareSettings, documents: Sequence[Document], specs: Sequence[EditorSpec]
) -> tuple[list[Document], Recipe, list[SweepRow]]:
    """(documents left for the comparison, the chosen recipe, a row for each recipe that was tried).

    The chosen one has the best mean accuracy over all editors; ties go to the one tried first.  Fits whose adapters
    have one shape share banks, whatever their recipes.  Errors: UserError where no recipe has a mean.
    """
    grid = parse_grid(settings.sweep)
    recipes = [run.recipe.with_settings(changes) for changes in grid]
    test, validation = set_apart(run, documents, settings.validation, _SHARE, rest="test")
    run.store.add_documents(validation, "validation")
    tried = [spec for spec in specs if spec.learns]
    learnings: list[Learning] = []
    conditions: dict[str, Recipe] = {}
    for spec in tried:
        edits = None
        if spec.kind != "passage":
            edits = write_edits(run, validation, spec, count=settings.edits, prompt=settings.edit_prompt)
        for changes, recipe in zip(grid, recipes, strict=True):
            name = _condition(spec, changes)
            conditions[name] = recipe
            learnings += one_each(name, validation, edits, settings.replicates)
    inner_loop(run, learnings, recipes=conditions, label="sweep")

    rows = []
    for changes in grid:
        found = {spec.name: _accuracy(run, _condition(spec, changes)) for spec in tried}
        known = [accuracy for accuracy in found.values() if accuracy is not None]
        # A mean over other editors than the other recipes' could not be compared with theirs.
        mean = sum(known) / len(known) if len(known) == len(found) else None
        rows.append(SweepRow(settings=changes, accuracy=found, mean=mean))
    best = run.choices.recipe([row.mean for row in rows])
    if rows[best].mean is None:
        raise UserError(
            "--sweep: under no recipe were answers graded for every editor, so none can be chosen; try lower learning"
            " rates, and another --out"
        )
    rows[best] = rows[best].model_copy(update={"chosen": True})
    run.progress.note(f"sweep: {grid[best]} chosen on {len(validation)} validation documents")
    return test, recipes[best], rows


def check_grid(settings: CompareSettings, specs: Sequence[EditorSpec]) -> None:
    """Errors: UserError for a sweep that cannot be made, before anything else is."""
    if settings.sweep and not any(spec.learns for spec in specs):
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


def _accuracy(run: Run, condition: str) -> float | None:
    """Mean accuracy; None for a recipe under which every fit failed (a learning rate far too high)."""
    scores = run.grading.scores(condition)
    return accuracy_interval(scores).mean if scores else None


def _condition(spec: EditorSpec, changes: dict[str, Any]) -> str:
    return f"{spec.name} [{', '.join(f'{name}={value}' for name, value in changes.items())}]"
