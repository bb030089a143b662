"""Which recipe teaches most and harms least, by successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943).

edits ← every editor's, of every document: all recipes learn from the same ones
while more than three recipes are left:
    inner loop: each of them on the next training documents, twice as many as the time before
    the better half goes on
inner loop: those left, on the validation documents
choose: most learned among those that lose few general questions; within noise, the cheapest (`frontier.py`)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Unpack

import yaml

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.editors.spec import EditorSpec, parse_editors
from selfedit.errors import UserError
from selfedit.evaluation.statistics import LEAST_DOCUMENTS
from selfedit.methods.edits import edits_to_learn
from selfedit.methods.examining import examine_references, examine_untrained
from selfedit.methods.frontier import Trial, choose, list_candidates, reason
from selfedit.methods.inputs import check, load, set_apart
from selfedit.methods.run import Parts, Run
from selfedit.methods.settings import SweepSettings
from selfedit.methods.summarise import summarise, summary_of_finished
from selfedit.methods.trials import condition, row, try_out
from selfedit.runs.files import write_atomically
from selfedit.runs.summary import Summary

FINALISTS = 3  # recipes that are tried on the validation documents, at most


def sweep(settings: SweepSettings, **parts: Unpack[Parts]) -> Summary:
    """Tries recipes, writes the chosen one to the run's `recipe.yaml`, and returns the run's summary.

    Errors: UserError for what the user can mend.  The same settings on the same directory go on where they stopped.
    """
    specs, left = parse_editors(list(settings.editor)), list_candidates(settings)
    writers = [spec for spec in specs if spec.learns]
    if not writers:
        told = " ".join(f"--editor {spec.name}" for spec in specs)
        raise UserError(f"{told}: there is nothing to learn from; use passage, self, or another writer")
    with Run("sweep", settings, **parts) as run:
        training, validation = _documents(run, settings, specs, len(left))
        edits = {spec.name: _edits(run, settings, [*training, *validation], spec) for spec in writers}
        examine_untrained(run, validation)
        lines = examine_references(run, validation, specs)

        tried: dict[int, Trial] = {}
        for rung, documents in enumerate(rungs(run, training, len(left)), 1):
            trials = try_out(run, settings, left, documents, edits, rung)
            tried |= {trial.number: trial for trial in trials}
            left = [trial.candidate for trial in run.choices.recipes(trials, settings.most_lost)]
        trials = try_out(run, settings, left, validation, edits)
        tried |= {trial.number: trial for trial in trials}
        if finished := summary_of_finished(run):
            return finished

        chosen = choose(trials, settings.most_lost)
        run.recipe = chosen.candidate.recipe
        recipe = run.recipe.model_dump(mode="json", exclude={"name"})
        write_atomically(
            run.directory.path / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        )
        names = ["none", *(condition(editor, trial.number) for trial in trials for editor in edits), *lines]
        rows = [row(trial, trial in trials, trial is chosen) for _, trial in sorted(tried.items())]
        told = reason(trials, chosen, settings.most_lost, run.grading.scores("none"))
        return summarise(run, validation, names, sweep=rows, most_lost=settings.most_lost, choice=told)


def rungs(run: Run, training: Sequence[Document], recipes: int) -> list[list[Document]]:
    """The training documents in parts, each twice as large as the one before: one for each halving of so many
    recipes."""
    mixed = sorted(training, key=lambda document: run.seed("rung", document.id))
    halvings = 0
    while recipes > FINALISTS:
        halvings, recipes = halvings + 1, -(-recipes // 2)
    ends = [round(len(mixed) * (2**k - 1) / (2**halvings - 1)) for k in range(1, halvings + 1)]
    return [part for begin, end in itertools.pairwise([0, *ends]) if (part := mixed[begin:end])]


def _documents(
    run: Run, settings: SweepSettings, specs: Sequence[EditorSpec], recipes: int
) -> tuple[list[Document], list[Document]]:
    """(training, validation).  With so few recipes that none is dropped on the way, all documents are for
    validation."""
    documents = load(run, settings.documents, limit=settings.limit)
    training, validation = set_apart(run, documents, settings.validation, settings.validation_share)
    if recipes <= FINALISTS:
        training, validation = [], [*training, *validation]
    if len(validation) < LEAST_DOCUMENTS:
        raise UserError(
            f"a sweep chooses on at least {LEAST_DOCUMENTS} validation documents (on fewer no difference is larger than"
            f" noise), and there are {len(validation)}; give more, with --validation or --documents"
        )
    check(run, [*training, *validation], specs, count=settings.edits, prompt=settings.edit_prompt)
    run.store.add_documents(training, "train")
    run.store.add_documents(validation, "validation")
    return training, validation


def _edits(run: Run, settings: SweepSettings, documents: Sequence[Document], spec: EditorSpec) -> Sequence[Edit] | None:
    if spec.kind != "passage" and settings.regime == "document" and any(fit.steps for fit in run.store.fits()):
        # All recipes learn the same edits: those that were left out are not written once some have.
        return run.store.edits(writer=spec.name)
    return edits_to_learn(run, documents, spec)
