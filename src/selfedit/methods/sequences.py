"""Sequences of documents that are learned one after another, and what keeps the earlier documents known meanwhile."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.errors import UserError
from selfedit.grouping import grouped
from selfedit.methods.run import Run
from selfedit.methods.settings import ContinualSettings
from selfedit.methods.updates import still_true, superseded
from selfedit.runs.records import Answer, FitRecord
from selfedit.training.recipes import Recipe

_KL_TEXTS = 4  # that `kl` holds to, where the recipe names no number


@dataclass
class Lane:
    """A sequence of documents on its way into one model, with one remedy against forgetting (`retain`).

    `policy` are the deltas so far, `learned` the documents so far with their edits (None: the passage alone).  Fits
    stand under `condition`, exams after a step under `after`, both with the sequence's number as replicate.
    """

    retain: str
    number: int
    documents: tuple[Document, ...]
    editor: str
    main: bool
    held: bool = False
    policy: tuple[str, ...] = ()
    learned: list[tuple[Document, list[Edit] | None]] = field(default_factory=list)

    @property
    def condition(self) -> str:
        return with_remedy(self.editor, self.retain)

    @property
    def after(self) -> str:
        return with_remedy("after", self.retain)

    @property
    def writer(self) -> str:
        """The name of its edits' writer, which is the model as far as it has come here."""
        return f"{self.condition} ({self.number + 1})" if self.number else self.condition

    def folder(self, run: Run, step: int) -> Path:
        """Where its delta lies; that of the run's first lane is what the run stands for."""
        place = run.directory.checkpoint(step)
        return place if self.main else place.with_name(f"{self.retain}-{self.number + 1}-{place.name}")

    def asked(self) -> list[Document]:
        """What it is examined on: all that it has learned, but for what a later document answers otherwise."""
        return still_true([document for document, _ in self.learned])

    def again(self, run: Run, step: int) -> list[tuple[Document, list[Edit] | None]]:
        """The earlier documents that this step learns again, drawn."""
        settings = run.settings
        if self.retain != "edits" or not isinstance(settings, ContinualSettings):
            return []
        draw = random.Random(run.seed("again", self.number, step))
        # What is no longer true is not to be taught again.
        gone = superseded([*(document for document, _ in self.learned), self.documents[step - 1]])
        earlier = [one for one in self.learned if not any(question.id in gone for question in one[0].questions)]
        return draw.sample(earlier, min(settings.rehearsed, len(earlier)))


def record_exam(run: Run, lane: Lane, step: int, given: Iterable[tuple[Document | None, Answer]]) -> None:
    """Records answers that adapters gave after a step as the lane's exam, document by document."""
    by_document = grouped((about.id if about else None, answer) for about, answer in given)
    done = run.store.fit_ids()
    records = [FitRecord(lane.after, lane.number, step, id, answers=tuple(some)) for id, some in by_document.items()]
    run.store.record_fits([record for record in records if record.id not in done])


def with_remedy(name: str, retain: str) -> str:
    return name if retain == "none" else f"{name} + {retain}"


def lanes(run: Run, settings: ContinualSettings, documents: Sequence[Document], editor: str) -> list[Lane]:
    """Each sequence with each remedy.  One sequence has the documents in their order; several are drawn.

    Errors: UserError for longer sequences than there are documents.
    """
    length = settings.length or len(documents)
    if length > len(documents):
        raise UserError(f"--length {length}: there are {len(documents)} documents; give more, or a shorter length")
    drawn = [tuple(documents)]
    if settings.sequences > 1 or settings.length is not None:
        drawn = [
            tuple(random.Random(run.seed("sequence", number)).sample(documents, length))
            for number in range(settings.sequences)
        ]
    remedies = tuple(dict.fromkeys(settings.retain))
    several = len(drawn) * len([retain for retain in remedies if retain != "per-document"]) > 1
    return [
        Lane(
            retain,
            number,
            some,
            editor,
            main=retain == remedies[0] and number == 0,
            held=several and can_hold(remedy_recipe(run.recipe, retain)),
        )
        for retain in remedies
        for number, some in enumerate(drawn)
    ]


def can_hold(recipe: Recipe) -> bool:
    """Whether training on top of held deltas is training on top of merged ones: neither decay nor dropout would be, and
    what teaches softly is the model without them."""
    return not (recipe.weight_decay or recipe.dropout or recipe.retain or "distill" in recipe.objectives)


def remedy_recipe(recipe: Recipe, retain: str) -> Recipe:
    """The recipe of a step: with `kl`, one that holds to the model's own texts."""
    return recipe.with_settings({"retain": _KL_TEXTS}) if retain == "kl" and not recipe.retain else recipe
