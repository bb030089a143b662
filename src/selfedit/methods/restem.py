"""Step B: train the model to write better edits, by ReST-EM (Singh et al. 2023; Zweiger et al. 2025, algorithm 1).

    θ ← the model
    for each round:
        E-step: θ writes K edits per document; an edit's reward is the mean score of S adapters trained on it
        M-step: the best edits are kept; θ ← θ fine-tuned to write them
        θ is examined on validation documents, with edits of its own
    the earliest round that is not worse than the best by more than noise is selected

Test documents are never seen here; `compare --policy` touches them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

from selfedit.documents import Document
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.methods.edits import edits_to_learn
from selfedit.methods.examining import OPEN_BOOK, examine_untrained
from selfedit.methods.inner_loop import inner_loop
from selfedit.methods.inputs import of_round, training_documents
from selfedit.methods.outer import train_editor
from selfedit.methods.policies import is_whole, publish_chain
from selfedit.methods.references import check_references
from selfedit.methods.rewards import REWARDS, TRAIN, Round, baseline_of
from selfedit.methods.rounds import VALIDATION, metrics, round_record, select_round, summarise_training
from selfedit.methods.run import Parts, Run
from selfedit.methods.selection import Selection
from selfedit.methods.settings import TrainSettings
from selfedit.methods.summarise import summary_of_finished
from selfedit.methods.tracking import check_tracker, open_tracker
from selfedit.runs.directory import delta_name
from selfedit.runs.summary import Summary
from selfedit.training.recipes import Recipe, load_recipe

SELF = EditorSpec("self")


def train(settings: TrainSettings, **parts: Unpack[Parts]) -> Summary:
    """Trains the editor and writes the run's summary, with the round that validation selected.

    Errors: UserError for what the user can mend.  The same settings on the same directory go on where they stopped.
    """
    outer = load_recipe(settings.outer_recipe).with_settings(settings.outer_set)
    check_tracker(settings.track)
    if settings.select_on == "test" and not settings.validation:
        raise UserError("--select-on test: on which documents?  Name the test documents with --validation")
    if settings.baseline != "none" and settings.select != "above-baseline":
        raise UserError(
            f"--baseline {settings.baseline}: only --select above-baseline compares edits with a baseline, and --select"
            f" {settings.select} does not; choose that, or leave --baseline out"
        )
    if settings.select == "above-baseline" and settings.reward != "fit":
        raise UserError(
            f"--select above-baseline compares rewards with the exam's scores, and --reward {settings.reward} gives"
            " none; choose --select best-of-k or top-fraction"
        )
    with Run("train", settings, **parts) as run:
        if settings.edits == 1 and settings.select == "best-of-k":
            run.warn("nothing to select", "--edits 1 with best-of-k: every edit is kept, whatever its reward")
        run.directory.resolve("outer_recipe", outer.model_dump(mode="json"), "the outer recipe (--outer-recipe)")
        training, validation = training_documents(run, settings)
        if settings.reward == "likelihood":
            check_references(run, training, [OPEN_BOOK])
        with open_tracker(settings.track, settings.out, run.directory.config) as log:
            examine_untrained(run, [*training, *validation])
            validate(Round(run, settings, 0, validation, ()))

            for number in range(1, settings.rounds + 1):
                policy = publish_chain(run, settings.out, range(1, number))
                round = Round(run, settings, number, of_round(settings, training, number), policy)
                if number not in {record.round for record in run.store.rounds()}:
                    one_round(round, validation, outer)
                elif not is_whole(run.directory.checkpoint(number)):
                    train_editor(round, keep(round).kept, outer)
                log(metrics(run, number), step=number)
        if finished := summary_of_finished(run):
            return finished
        return summarise_training(run, training, validation, select_round(run, validation), settings.select_on)


def one_round(round: Round, validation: Sequence[Document], outer: Recipe) -> None:
    """Write, reward, select, train, validate; then the round counts."""
    run, documents, number = round.run, round.documents, round.number
    run.store.count_time_for(number)
    edits = edits_to_learn(run, documents, SELF, condition=TRAIN, round=number, policy=round.policy) or []
    details = REWARDS[round.settings.reward](round, edits)
    selection = keep(round)
    train_editor(round, selection.kept, outer)
    policy = publish_chain(run, run.directory.path, range(1, number + 1))
    validate(replace(round, documents=validation, policy=policy))
    record = round_record(run, documents, number, selection, details)
    run.store.put_round(record, f"checkpoints/{delta_name(number)}")
    run.store.count_time_for(0)


def keep(round: Round) -> Selection:
    """Selects among the round's edits and records which are kept."""
    store, settings = round.run.store, round.settings
    edits = store.edits(round=round.number, writer=TRAIN)
    selection = round.run.choices.edits(
        # An edit of which nothing was left cannot be taught, whatever its document alone earned.
        [edit for edit in edits if edit.text],
        rule=settings.select,
        baseline=baseline_of(round) if settings.select == "above-baseline" else None,
        fraction=settings.top_fraction,
        keep_ties=settings.keep_ties,
        ties=settings.ties,
    )
    store.set_kept({edit.id: edit.id in selection.kept for edit in edits})
    return selection


def validate(round: Round) -> None:
    """Step A with the policy's own edits on the validation documents: one edit per document, S fits."""
    if round.documents:
        how: Any = {"condition": VALIDATION, "round": round.number, "policy": round.policy}
        edits = edits_to_learn(round.run, round.documents, SELF, count=1, **how)
        inner_loop(round.run, round.learnings(VALIDATION, edits), label=f"round {round.number} validation")
