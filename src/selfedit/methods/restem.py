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
from typing import Unpack

from selfedit.documents import Document
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.methods.edits import edits_to_learn
from selfedit.methods.examining import OPEN_BOOK, examine_untrained
from selfedit.methods.inner_loop import inner_loop
from selfedit.methods.inputs import of_round, training_documents
from selfedit.methods.learnings import one_each
from selfedit.methods.outer import train_editor
from selfedit.methods.policies import is_whole, publish_chain
from selfedit.methods.references import check_references
from selfedit.methods.rewards import REWARDS, TRAIN, baseline_of
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
            validate(run, settings, validation, 0, ())

            for round in range(1, settings.rounds + 1):
                policy = publish_chain(run, settings.out, range(1, round))
                documents = of_round(settings, training, round)
                if round not in {record.round for record in run.store.rounds()}:
                    one_round(run, settings, documents, validation, round, policy, outer)
                elif not is_whole(run.directory.checkpoint(round)):
                    kept = keep(run, settings, documents, round, policy).kept
                    train_editor(run, settings, documents, kept, round, policy, outer)
                log(metrics(run, round), step=round)
        if finished := summary_of_finished(run):
            return finished
        return summarise_training(run, training, validation, select_round(run, validation), settings.select_on)


def one_round(
    run: Run,
    settings: TrainSettings,
    training: Sequence[Document],
    validation: Sequence[Document],
    round: int,
    policy: tuple[str, ...],
    outer: Recipe,
) -> None:
    """Write, reward, select, train, validate; then the round counts."""
    run.store.count_time_for(round)
    edits = edits_to_learn(run, training, SELF, condition=TRAIN, round=round, policy=policy) or []
    details = REWARDS[settings.reward](run, settings, training, edits, policy)
    selection = keep(run, settings, training, round, policy)
    train_editor(run, settings, training, selection.kept, round, policy, outer)
    validate(run, settings, validation, round, publish_chain(run, settings.out, range(1, round + 1)))
    run.store.put_round(round_record(run, training, round, selection, details), f"checkpoints/{delta_name(round)}")
    run.store.count_time_for(0)


def keep(
    run: Run, settings: TrainSettings, training: Sequence[Document], round: int, policy: tuple[str, ...]
) -> Selection:
    """Selects among the round's edits and records which are kept."""
    edits = run.store.edits(round=round, writer=TRAIN)
    selection = run.choices.edits(
        # An edit of which nothing was left cannot be taught, whatever its document alone earned.
        [edit for edit in edits if edit.text],
        rule=settings.select,
        baseline=baseline_of(run, settings, training, round, policy) if settings.select == "above-baseline" else None,
        fraction=settings.top_fraction,
        keep_ties=settings.keep_ties,
        ties=settings.ties,
    )
    run.store.set_kept({edit.id: edit.id in selection.kept for edit in edits})
    return selection


def validate(
    run: Run, settings: TrainSettings, validation: Sequence[Document], round: int, policy: tuple[str, ...]
) -> None:
    """Step A with the policy's own edits on the validation documents: one edit per document, S fits."""
    if validation:
        edits = edits_to_learn(run, validation, SELF, count=1, condition=VALIDATION, round=round, policy=policy)
        learnings = one_each(VALIDATION, validation, edits, settings.replicates, round=round, policy=policy)
        inner_loop(run, learnings, label=f"round {round} validation")
