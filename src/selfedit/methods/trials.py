"""A recipe tried on documents: the fits, what they came to, and its row in the summary."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.errors import UserError
from selfedit.evaluation.statistics import accuracy_interval, pooled
from selfedit.methods.frontier import Candidate, Trial
from selfedit.methods.inner_loop import inner_loop
from selfedit.methods.learnings import REGIMES
from selfedit.methods.run import Run
from selfedit.methods.settings import SweepSettings
from selfedit.methods.summarise import accuracy, general_scores
from selfedit.runs.summary import SweepRow

Written = Mapping[str, Sequence[Edit] | None]  # edits by editor; None: the passage alone


def try_out(
    run: Run,
    settings: SweepSettings,
    candidates: Sequence[Candidate],
    documents: Sequence[Document],
    edits: Written,
    rung: int = 0,
) -> list[Trial]:
    """The inner loop under each recipe, and what each came to, with the rungs before; fits whose adapters have one
    shape share banks.  Names the recipes that are out.  Errors: UserError where all are."""
    ids = {document.id for document in documents}
    learnings, recipes = [], {}
    for candidate, (editor, written) in itertools.product(candidates, edits.items()):
        name = condition(editor, candidate.number, rung)
        recipes[name] = candidate.recipe
        own = None if written is None else [edit for edit in written if edit.document_id in ids]
        learnings += REGIMES[settings.regime](name, documents, own, settings.replicates)
    inner_loop(run, learnings, recipes=recipes, label=f"rung {rung}" if rung else "validation")

    trials = [_trial(run, candidate, edits, range(1, rung + 1) if rung else [0]) for candidate in candidates]
    for one in trials:
        if one.out:
            told = ", ".join(f"{name}={value}" for name, value in one.candidate.settings.items())
            run.warn("recipe is out", f"recipe {one.number} ({told}) is out: {one.failed} fits failed")
    if all(one.out for one in trials):
        raise UserError("no recipe is left: under each some fits failed; try lower learning rates and another --out")
    return trials


def condition(editor: str, number: int, rung: int = 0) -> str:
    """A recipe's number in brackets; rung 0 are the validation documents."""
    return f"{editor} [{number}]" + (f" rung {rung}" if rung else "")


def _trial(run: Run, candidate: Candidate, edits: Written, rungs: Sequence[int]) -> Trial:
    """What a recipe came to on the documents of these rungs, over all editors."""
    names = [condition(editor, candidate.number, rung) for editor in edits for rung in rungs]
    fits = [fit for name in names for fit in run.store.fits(condition=name)]
    scores = pooled(item for name in names for item in run.grading.scores(name).items())
    tokens = sum(fit.train_tokens for fit in fits) / max(1, len(fits))
    failed = sum(fit.status == "failed" for fit in fits)
    moved = [fit.divergence for fit in fits if fit.divergence is not None]
    mean = sum(moved) / len(moved) if moved else None
    return Trial(candidate, scores, general_scores(run, names), tokens, failed, mean)


def row(one: Trial, validated: bool, chosen: bool) -> SweepRow:
    lost = accuracy_interval(one.general) if one.general else None
    return SweepRow(
        number=one.number,
        settings=one.candidate.settings,
        documents=len(one.scores),
        validated=validated,
        **(accuracy(one.scores) or {"accuracy": None}),
        lost=one.lost,
        lost_ci95=(1 - lost.hi, 1 - lost.lo) if lost else None,
        divergence=one.moved,
        train_tokens=one.tokens,
        failed_fits=one.failed,
        chosen=chosen,
    )
