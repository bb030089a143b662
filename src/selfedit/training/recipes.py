"""A recipe: everything that decides a fine-tune, from the shape of its LoRA to the way edits are cut.

It becomes the engine's settings (`lora`, `settings`).
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from selfedit.errors import UserError
from selfedit.presets import read_preset
from selfedit.yaml_file import read_yaml

if TYPE_CHECKING:
    from selfedit.engine.jobs import FitSettings, LoraSpec

Cutting = Literal["lines", "packed", "whole", "seal", "seal-whole"]


class Recipe(BaseModel):
    """One fine-tune's settings.  What is left out is as in `tiny`, chosen by benchmarks/results/recipe-sweep.md;
    docs/recipes.md says how `default` was chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = "default"
    rank: int = Field(16, ge=1, description="LoRA rank")
    alpha: float = Field(32.0, gt=0, description="LoRA alpha; updates are scaled by alpha / rank")
    targets: Literal["all-linear", "mlp"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear", description="layers with a LoRA: all linear ones, those of the MLP blocks, or names"
    )
    layers: tuple[int, int] | None = Field(None, description="first and last decoder layer with a LoRA, from 0")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the LoRA's input")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank)")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's peak learning rate")
    epochs: int = Field(8, ge=1, description="passes over the sequences")
    batch_size: int = Field(1, ge=1, description="sequences per optimiser step (batch size times accumulation)")
    steps: int | None = Field(
        None,
        ge=1,
        description="optimiser steps per document (or part of a long one), over which all epochs are dealt out",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="how the learning rate falls to zero, if it does"
    )
    warmup_steps: int = Field(0, ge=0, description="steps in which the learning rate rises to its peak")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float | None = Field(1.0, gt=0, description="norm to which each adapter's gradient is clipped")
    cutting: Cutting = Field(
        "lines",
        description="each line of an edit is a sequence, or lines packed together, or the whole edit; seal and"
        " seal-whole: lines and whole, as the published code cuts edits that are not cleaned",
    )
    most_texts: int | None = Field(
        None, ge=1, description="with cutting seal: texts of an edit that are learned (later published code: 30)"
    )
    each_edit: bool = Field(
        False, description="with several edits of a document: each is cut by itself, and the document learned with each"
    )
    pack_tokens: int = Field(128, ge=1, description="with cutting packed: the tokens of lines that are packed together")
    objectives: tuple[Literal["text", "answers", "distill", "topics"], ...] = Field(
        ("text",),
        min_length=1,
        description="what is learned of an edit: its texts; its question-answer pairs in the exam's form; all of it as"
        " the model itself, with the document in its prompt, expects it; the document's title as the topic of its"
        " sentences and of the edit's lines, for --recite",
    )
    retain: int = Field(
        0, ge=0, description="texts that the model wrote itself to general prompts, held to by divergence"
    )
    retain_weight: float = Field(1.0, gt=0, description="weight of these texts in the loss")
    form: Literal["auto", "text", "chat"] = Field(
        "auto", description="learn plain texts headed by the title, or a chat model's replies to it; auto: by the model"
    )
    document_copies: int = Field(
        1, ge=0, description="times per epoch that the document itself is learned beside its edit; 0: not"
    )
    max_sequence_tokens: int = Field(2048, ge=16, description="longer texts are cut into overlapping parts")
    pad_to: int | None = Field(
        None,
        ge=16,
        description="fill up shorter texts with padding that counts in the loss, as published; not with distill",
    )

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if self.cutting in ("seal", "seal-whole") and self.objectives != ("text",):
            raise ValueError("goes with objectives text alone")
        return self

    def lora(self) -> LoraSpec:
        from selfedit.engine.jobs import LoraSpec

        return LoraSpec(**self.model_dump(include={field.name for field in fields(LoraSpec)}))

    def settings(self, documents: int = 1) -> FitSettings:
        """The engine's settings for a fit on so many documents."""
        from selfedit.engine.jobs import FitSettings

        found = self.model_dump(include={field.name for field in fields(FitSettings)})
        return FitSettings(**found | {"steps": self.steps and self.steps * documents})

    def with_settings(self, changes: dict[str, Any]) -> Recipe:
        """A copy with some settings changed.  Errors: UserError for an unknown setting or an impossible value."""
        return _validated({**self.model_dump(), **changes}, "recipe")


# Zweiger et al. 2025 (arXiv 2506.10943).
PUBLISHED = {name: Recipe(name=name, **settings) for name, settings in read_preset("seal")["recipes"].items()}
OUTER = Recipe(name="outer", rank=64, alpha=128, learning_rate=3e-4, epochs=2, batch_size=10, document_copies=0)
DEFAULT = Recipe(targets="mlp", steps=8, cutting="packed")
# A model of some 0.1 billion parameters learns next to nothing in eight steps: as many as there are lines, eight times.
TINY = Recipe(name="tiny")
# A document by heart, and its title as the topic of what is asked about it.
RECITE = Recipe(name="recite", targets="mlp", steps=8, objectives=("topics",), epochs=2, document_copies=4)
RECIPES = {recipe.name: recipe for recipe in (DEFAULT, TINY, RECITE, *PUBLISHED.values(), OUTER)}


def load_recipe(name: str) -> Recipe:
    """A built-in recipe by name, or one from a YAML file of settings, which has the others as `default` has them.
    Errors: UserError for anything else."""
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"--recipe {name}: not known; use {', '.join(RECIPES)}, or a .yaml file of settings")
    settings = read_yaml(path, f"--recipe {name}")
    if not isinstance(settings, dict):
        raise UserError(f"--recipe {name}: a mapping of settings is expected")
    return _validated({**DEFAULT.model_dump(), "name": path.stem, **settings}, f"--recipe {name}")


def _validated(settings: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise UserError(
                f"{where}: cutting = {settings['cutting']!r}: {first['msg'].removeprefix('Value error, ')}"
            ) from None
        setting = ".".join(map(str, first["loc"][:1]))
        known = f"; settings are {', '.join(Recipe.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise UserError(f"{where}: {setting} = {first['input']!r}: {first['msg']}{known}") from None
