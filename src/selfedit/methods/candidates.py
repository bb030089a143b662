"""The recipes that a sweep tries: those that are named, each with every combination of a grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfedit.errors import UserError
from selfedit.methods.settings import SweepSettings
from selfedit.training.recipes import Recipe, load_recipe
from selfedit.yaml_file import parse_value


@dataclass(frozen=True)
class Candidate:
    """A recipe, its number (from 1), and what tells it from the others."""

    number: int
    settings: dict[str, Any]
    recipe: Recipe


def list_candidates(settings: SweepSettings) -> list[Candidate]:
    """Errors: UserError for fewer than two recipes, or one that is there twice."""
    names = [settings.recipe, *settings.recipes]
    found: list[Candidate] = []
    for name, changes in itertools.product(names, parse_grid(settings.grid)):
        recipe = load_recipe(name).with_settings({**settings.set, **changes})
        for other in found:
            if recipe.model_copy(update={"name": other.recipe.name}) == other.recipe:
                raise UserError(f"two of the recipes to try are one and the same ({name} {changes}); leave one out")
        told = {"recipe": name} if len(names) > 1 else {}
        found.append(Candidate(len(found) + 1, told | changes, recipe))
    if len(found) < 2:
        raise UserError("a sweep tries at least 2 recipes: add --recipes NAME, or --grid NAME=A,B,C")
    return found


def parse_grid(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of `NAME=A,B,C` settings; a value may be a list (`[a,b]`).  Errors: UserError for another
    form."""
    axes = []
    for text in texts:
        name, _, given = text.partition("=")
        values = parse_value(f"[{given}]")
        if not name.strip() or not isinstance(values, list) or not values:
            raise UserError(f"--grid {text}: write NAME=A,B,C, such as learning_rate=1e-3,2e-3")
        axes.append([(name.strip(), parse_value(value) if isinstance(value, str) else value) for value in values])
    return [dict(combination) for combination in itertools.product(*axes)]
