"""What the rounds of Step B came to: a record of each, the selected one, the summary, and whether it was worth it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfedit.documents import Document
from selfedit.errors import UserError
from selfedit.evaluation.statistics import (
    LEAST_DOCUMENTS,
    Difference,
    DocumentScore,
    accuracy_interval,
    paired_difference,
)
from selfedit.methods.rewards import PASSAGE, TRAIN
from selfedit.methods.run import Run
from selfedit.methods.selection import Selection
from selfedit.methods.summarise import accuracy, summarise
from selfedit.runs.costs import Spent
from selfedit.runs.summary import RoundSummary, Summary
from selfedit.text import counted

VALIDATION = "validation"


def round_record(
    run: Run, training: Sequence[Document], round: int, selection: Selection, details: dict[str, Any]
) -> RoundSummary:
    rewarded = accuracy(_rewards(run, training, round)) or {}
    validated = accuracy(run.grading.scores(VALIDATION, round=round)) or {}
    spent = Spent.of(line for line in run.store.costs() if line.round == round)
    return RoundSummary(
        round=round,
        train_reward=rewarded.get("accuracy"),
        train_reward_ci95=rewarded.get("ci95"),
        validation_accuracy=validated.get("accuracy"),
        validation_ci95=validated.get("ci95"),
        kept_edits=len(selection.kept),
        documents_without_signal=len(selection.without_signal),
        kept_without_signal=selection.kept_without_signal,
        seconds=run.store.wall_seconds(round),
        device_seconds=spent.seconds,
        usd=spent.usd,
        **_against_passages(run, round),
        **details,
    )


def _against_passages(run: Run, round: int) -> dict[str, Any]:
    """With --baseline passage: what the passages alone earned, and of how many an edit earned more and was kept."""
    scores = run.grading.scores(PASSAGE, round=round)
    if (alone := accuracy(scores)) is None:
        return {}
    above = {edit.document_id for edit in run.store.edits(round=round, writer=TRAIN) if edit.kept}
    return {"passage_alone": {**alone, "documents": len(scores)}, "above_passage": len(above)}


def _rewards(run: Run, training: Sequence[Document], round: int) -> dict[str, DocumentScore]:
    known: dict[str, list[float]] = {document.id: [] for document in training}
    for edit in run.store.edits(round=round, writer=TRAIN):
        if edit.reward is not None:
            known[edit.document_id].append(edit.reward)
    return {id: DocumentScore(sum(rewards), len(rewards)) for id, rewards in known.items() if rewards}


def metrics(run: Run, round: int) -> dict[str, float]:
    record = next(record for record in run.store.rounds() if record.round == round)
    names = ("train_reward", "validation_accuracy", "kept_edits", "seconds", "documents_without_signal")
    return {name: float(value) for name in names if (value := getattr(record, name)) is not None}


def select_round(run: Run, validation: Sequence[Document]) -> int:
    """The earliest round whose validation score is not below the best one by more than noise (paired by document);
    round 0 is the untrained model.  Without validation documents, the last round; rounds of which no validation fit
    succeeded, or none on a document of the best one's, are passed over."""
    rounds = [0, *(record.round for record in run.store.rounds())]
    if not validation:
        return rounds[-1]
    scores = {round: found for round in rounds if (found := run.grading.scores(VALIDATION, round=round))}
    rounds = list(scores)
    if not rounds:
        raise UserError("no validation fit succeeded in any round; try a lower learning rate and another --out")
    best = max(rounds, key=lambda round: (accuracy_interval(scores[round]).mean, -round))
    for round in rounds:
        if round == best or (
            scores[round].keys() & scores[best].keys()
            and not paired_difference(scores[round], scores[best]).larger_than_noise
        ):
            return round
    return best


def summarise_training(
    run: Run,
    training: Sequence[Document],
    validation: Sequence[Document],
    selected: int,
    selected_on: str = "validation",
) -> Summary:
    return summarise(
        run,
        [*training, *validation],
        ["none"],
        rounds=tuple(run.store.rounds()),
        selected_round=selected,
        selected_on=selected_on,
        untrained_validation=accuracy(run.grading.scores(VALIDATION, round=0)),
        worth_it=worth_it(run, [document.id for document in validation], selected, selected_on),
    )


def worth_it(run: Run, validation: Sequence[str], selected: int, selected_on: str = "validation") -> str:
    """One paragraph: Step A's gain, Step B's further gain with its interval, what each cost, and what that recommends.
    It claims nothing that the intervals do not carry."""
    if not validation:
        return (
            "No documents were set apart for validation, so nothing can be said about whether training the editor"
            " helped: run it again with --validation-share, or compare it on other documents with `selfedit compare"
            " --policy`."
        )
    before = {id: score for id, score in run.grading.scores("none", round=0).items() if id in set(validation)}
    untrained = run.grading.scores("validation", round=0)
    last = max((record.round for record in run.store.rounds()), default=0)
    shown = selected or last
    trained = run.grading.scores("validation", round=shown)
    if not before.keys() & untrained.keys() or not untrained.keys() & trained.keys():
        return (
            "No validation document has graded answers before and after, so nothing can be said about whether "
            "training the editor helped."
        )
    step_a = paired_difference(before, untrained)
    step_b = paired_difference(untrained, trained)
    # Validation in round 0 is Step A; everything in later rounds is Step B.
    lines = run.store.costs()
    cost_a = Spent.of(line for line in lines if line.round == 0 and line.condition == "validation")
    cost_b = Spent.of(line for line in lines if line.round > 0)
    sentences = [
        f"On {counted(len(before), f'{selected_on} document')} the untrained model's accuracy is"
        f" {accuracy_interval(before).mean:.1%} before it learns anything; learning its own edits (Step A) changes that"
        f" by {_points(step_a, len(before))}.",
        f"Training the editor (Step B, round {shown}) changes it by a further {_points(step_b, len(before))}.",
        f"Step A took {_spent(cost_a)}; Step B {_spent(cost_b)}.",
    ]
    if step_b.documents < LEAST_DOCUMENTS:
        sentences.append(
            f"With fewer than {LEAST_DOCUMENTS} {selected_on} documents nothing can be larger than noise: take more."
        )
    others = "new" if selected_on == "test" else "test"
    confirm = f"confirm it on {others} documents with `selfedit compare --policy`"
    if selected == 0:
        sentences.append(
            "No round beats the untrained editor by more than noise, so round 0 is selected: these figures do not"
            f" recommend training the editor. {_instead(step_a)}"
        )
    elif step_b.larger_than_noise:
        sentences.append(
            f"Round {selected} is selected. Its gain is larger than noise, but it was chosen on these documents: "
            f"{confirm}."
        )
    else:
        sentences.append(
            f"Round {selected} is selected because every earlier one is worse than the best by more than noise; against"
            f" the untrained editor its gain is within noise; {confirm}."
        )
    return " ".join(sentences)


def _instead(step_a: Difference) -> str:
    if step_a.larger_than_noise and step_a.mean > 0:
        return "Step A alone is what they support."
    return (
        "Step A's own gain is within noise too: more documents, another recipe or a stronger editor should come first."
    )


def _points(difference: Difference, documents: int) -> str:
    note = "" if difference.larger_than_noise else ", within noise"
    # A document of which an edit could not be written, or all fits failed, is in no pair.
    if difference.documents < documents:
        note += f", on {difference.documents} of them"
    return f"{100 * difference.mean:+.1f} points ({100 * difference.lo:+.1f} to {100 * difference.hi:+.1f}{note})"


def _spent(spent: Spent) -> str:
    money = "" if spent.usd is None or not spent.usd else f" and {spent.usd:.2f} US dollars"
    if spent.seconds >= 3600:
        return f"{spent.seconds / 3600:.1f} device hours{money}"
    return f"{spent.seconds / 60:.1f} device minutes{money}"
