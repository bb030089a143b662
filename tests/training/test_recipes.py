"""Recipes: the published ones, files, changes, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfedit.errors import UserError
from selfedit.training.recipes import RECIPES, Recipe, load_recipe


def test_the_published_settings() -> None:
    """The table of Zweiger et al. 2025: inner fine-tune, one adapter for many documents, outer fine-tune."""
    inner = load_recipe("seal")
    assert (inner.rank, inner.alpha, inner.dropout, inner.targets) == (32, 64, 0, ("q_proj", "v_proj"))
    assert (inner.learning_rate, inner.epochs, inner.batch_size, inner.cutting) == (1e-3, 10, 1, "seal")
    assert inner.document_copies == 1
    joint = load_recipe("seal-joint")
    assert (joint.epochs, joint.batch_size, joint.cutting, joint.learning_rate) == (3, 8, "seal-whole", 1e-3)
    assert joint.each_edit
    assert (joint.rank, joint.alpha, joint.targets) == (inner.rank, inner.alpha, inner.targets)
    published, ours = load_recipe("seal-outer"), load_recipe("outer")
    assert (published.rank, published.alpha, published.targets) == (64, 128, "all-linear")
    assert (published.learning_rate, published.epochs, published.batch_size) == (3e-4, 2, 10)
    assert published.max_grad_norm is None
    assert ours == published.model_copy(update={"name": "outer", "max_grad_norm": 1.0})


@pytest.mark.parametrize("name", list(RECIPES))
def test_built_in_recipes_follow_the_published_optimiser(name: str) -> None:
    settings = load_recipe(name).settings()
    assert (settings.schedule, settings.warmup_steps, settings.weight_decay) == ("linear", 0, 0.0)
    assert settings.max_grad_norm == (None if name == "seal-outer" else 1.0)
    lora = load_recipe(name).lora()
    assert (lora.rank, lora.alpha) == (load_recipe(name).rank, load_recipe(name).alpha)


def test_a_recipe_from_a_file_is_named_after_it_and_is_otherwise_the_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("rank: 8\nlearning_rate: 2.0e-3\ntargets: [q_proj]\nlayers: [0, 3]\n")
    recipe = load_recipe(str(file))
    changed = {"rank": 8, "learning_rate": 2e-3, "targets": ("q_proj",), "layers": (0, 3)}
    assert recipe == load_recipe("default").with_settings({"name": "mine", **changed})
    assert recipe.steps == 8


def test_changes_are_checked_and_leave_the_rest() -> None:
    changed = load_recipe("seal").with_settings({"rank": 8, "epochs": 2})
    assert changed == load_recipe("seal").model_copy(update={"rank": 8, "epochs": 2})
    for change, says in (
        ({"rank": 0}, "rank = 0: Input should be greater than or equal to 1"),
        ({"rnk": 8}, "rnk = 8: Extra inputs are not permitted; settings are name, rank"),
        ({"targets": "some"}, "targets = 'some'"),
        ({"targets": []}, r"targets = \[\]"),
        ({"alpha": float("inf")}, "alpha = inf: Input should be a finite number"),
        ({"learning_rate": "1e999"}, "learning_rate = '1e999': Input should be a finite number"),
        ({"learning_rate": "fast"}, "learning_rate = 'fast'"),
    ):
        with pytest.raises(UserError, match=says) as raised:
            load_recipe("default").with_settings(change)
        assert "\n" not in str(raised.value)


def test_a_recipe_goes_through_plain_data_and_back() -> None:
    for recipe in RECIPES.values():
        assert Recipe(**recipe.model_dump(mode="json")) == recipe
