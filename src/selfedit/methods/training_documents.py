"""The documents of a run of `train`: those to train on, all in each round or fresh ones, and those for validation."""

from __future__ import annotations

from collections.abc import Sequence

from selfedit.documents import Document
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.methods.inputs import check, load, set_apart
from selfedit.methods.rewards import TRAIN
from selfedit.methods.rounds import VALIDATION
from selfedit.methods.run import Run
from selfedit.methods.settings import TrainSettings


def training_documents(run: Run, settings: TrainSettings) -> tuple[list[Document], list[Document]]:
    """(documents to train on, in the order of their rounds; those for validation), checked and stored.

    Errors: UserError for what the user can mend.
    """
    training = load(run, settings.documents, limit=settings.limit)
    validation: list[Document] = []
    if settings.validation or settings.validation_share:
        training, validation = set_apart(run, training, settings.validation, settings.validation_share)
    else:
        run.warn("no validation", "--validation-share 0: no round can be selected, so the last one is taken")
    if settings.documents_per_round is not None:
        training = _fresh(run, settings, training, settings.documents_per_round)
    check(run, [*training, *validation], [EditorSpec("self")], count=settings.edits, prompt=settings.edit_prompt)
    if settings.reward == "judge" and settings.judge is not None and not run.store.documents():
        run.client(settings.judge, "judge")
    if settings.select_on == "test":
        run.warn(
            "selected on test documents",
            f"--select-on test: the {len(validation)} documents of --validation decide which round is taken, so that"
            " its accuracy on them is too good; new documents would show what it is worth",
        )
    run.store.add_documents(training, TRAIN)
    run.store.add_documents(validation, VALIDATION)
    return training, validation


def of_round(settings: TrainSettings, training: Sequence[Document], round: int) -> Sequence[Document]:
    """The documents that a round, counted from 1, trains on."""
    number = settings.documents_per_round
    return training if number is None else training[(round - 1) * number : round * number]


def _fresh(run: Run, settings: TrainSettings, training: Sequence[Document], number: int) -> list[Document]:
    wanted = settings.rounds * number
    if len(training) < wanted:
        raise UserError(
            f"--documents-per-round {number}: {settings.rounds} rounds need {wanted} training documents, and there are"
            f" {len(training)}; give more (--documents, --limit), or ask for fewer"
        )
    return sorted(training, key=lambda document: run.seed("round of", document.id))[:wanted]
