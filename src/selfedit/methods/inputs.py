"""What a run begins with: its documents, those set apart for validation, and a look at what a user can get wrong."""

from __future__ import annotations

from collections.abc import Sequence

from selfedit.documents import (
    Document,
    LeftOut,
    document_parts,
    load_documents,
    sharing_titles,
    split_by_title,
    without_repeats,
)
from selfedit.editors.spec import EditorSpec
from selfedit.editors.table import EDITORS
from selfedit.errors import UserError
from selfedit.evaluation.graders import engine_judge
from selfedit.methods.edits import make_editor
from selfedit.methods.references import check_references
from selfedit.methods.run import Run
from selfedit.methods.settings import TrainSettings
from selfedit.methods.updates import superseded
from selfedit.training.tokens import longer_than


def load(
    run: Run, sources: Sequence[str], *, limit: int | None = None, require_questions: bool = True
) -> list[Document]:
    """The documents; what was left out of a folder is reported."""
    left_out = LeftOut()
    documents = load_documents(
        list(sources),
        limit=limit,
        seed=run.settings.seed,
        require_questions=require_questions,
        strict=run.settings.strict,
        follow_links=run.settings.follow_links,
        left_out=left_out,
    )
    for line in left_out.lines():
        run.warn("left out while loading", line)
    return documents


def load_parts(run: Run, sources: Sequence[str], *, limit: int | None, part_tokens: int) -> list[Document]:
    """Documents that may have no questions, the long ones in parts.  Those that repeat another are reported and left
    out.  A token is taken for 4 bytes of UTF-8, so that parts are the same whatever the model."""
    documents = once_each(run, load(run, sources, limit=limit, require_questions=False))
    parts = [document_parts(d, 4 * part_tokens, length=lambda text: len(text.encode())) for d in documents]
    cut = [some for some in parts if len(some) > 1]
    if cut:
        total = sum(map(len, cut))
        run.warn(
            "documents in parts", f"{len(cut):,} of {len(documents):,} documents are long: cut into {total:,} parts"
        )
    return [part for some in parts for part in some]


def once_each(run: Run, documents: Sequence[Document]) -> list[Document]:
    """The documents without those that repeat another, which are reported."""
    kept, repeats = without_repeats(documents)
    for line in repeats:
        run.warn("the same text twice", line)
    return kept


def set_apart(
    run: Run, documents: Sequence[Document], validation: Sequence[str], share: float
) -> tuple[list[Document], list[Document]]:
    """(training documents, validation documents): those that are named, or a share of the documents, split by title."""
    if not validation:
        parts = split_by_title(documents, {"training": 1 - share, "validation": share}, seed=run.settings.seed)
        return parts["training"], parts["validation"]
    apart = load(run, validation)
    shared = sharing_titles(apart, documents)
    if shared:
        raise UserError(
            f"--validation: title {shared[0].title!r} is among the training documents too; give other documents"
        )
    return list(documents), apart


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
    if (number := settings.documents_per_round) is not None:
        if len(training) < (wanted := settings.rounds * number):
            raise UserError(
                f"--documents-per-round {number}: {settings.rounds} rounds need {wanted} training documents, and there"
                f" are {len(training)}; give more (--documents, --limit), or ask for fewer"
            )
        training = sorted(training, key=lambda document: run.seed("round of", document.id))[:wanted]
    check(run, [*training, *validation], [EditorSpec("self")], count=settings.edits, prompt=settings.edit_prompt)
    if settings.reward == "judge" and settings.judge is not None and not run.store.documents():
        run.client(settings.judge, "judge")
    if settings.select_on == "test":
        run.warn(
            "selected on test documents",
            f"--select-on test: the {len(validation)} documents of --validation decide which round is taken, so that"
            " its accuracy on them is too good; new documents would show what it is worth",
        )
    run.store.add_documents(training, "train")
    run.store.add_documents(validation, "validation")
    return training, validation


def of_round(settings: TrainSettings, training: Sequence[Document], round: int) -> Sequence[Document]:
    """The documents that a round, counted from 1, trains on."""
    number = settings.documents_per_round
    return training if number is None else training[(round - 1) * number : round * number]


def check(run: Run, documents: Sequence[Document], specs: Sequence[EditorSpec], *, count: int, prompt: str) -> None:
    """Finds what a user got wrong about model, editors or judge before a run does any work.  Errors: UserError."""
    if run.store.documents():
        return
    judge = engine_judge(run.judge)
    if run.settings.preset is not None and run.settings.prompt_file is None:
        run.warn(
            "prompts of our own",
            f"--preset {run.settings.preset} without --prompt-file: the prompts are this package's; `selfedit"
            " import-seal` writes the published ones from a clone of the released code",
        )
    run.workers.check([*(spec.argument for spec in specs if spec.kind == "model"), *([judge] if judge else [])])
    if run.judge is not None and judge is None:
        run.client(run.judge, "judge")
    for spec in specs:
        if spec.kind in EDITORS:
            make_editor(run, spec, prompt).check(documents, count)
    _ = run.workers.pool
    check_references(run, documents, specs)


def warn_of_cuts(run: Run, documents: Sequence[Document]) -> None:
    """Names the documents that are longer than what is learned at once."""
    limit = min(run.recipe.max_sequence_tokens, run.workers.context_length)
    told = f"longer than the {limit:,} tokens that are learned at once: cut into overlapping parts"
    for document in documents:
        if longer_than(run.workers.tokenizer, document.text, limit):
            run.warn("document cut into parts", f"{document.id}: {told}")


def warn_of_contradictions(run: Run, documents: Sequence[Document]) -> None:
    """Says how many questions a later document answers otherwise."""
    if changed := superseded(documents):
        old, new = next(iter(changed.items()))
        run.warn(
            "documents that contradict each other",
            f"questions that a later document answers otherwise: {len(changed)} (first: {old}, by {new.id})",
        )
