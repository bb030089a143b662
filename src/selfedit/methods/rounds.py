"""What the rounds of Step B came to: a record of each, the selected one, and the summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfedit.documents import Document
from selfedit.errors import UserError
from selfedit.evaluation.statistics import DocumentScore, accuracy_interval, paired_difference
from selfedit.methods.policies import delta_name
from selfedit.methods.rewards import TRAIN
from selfedit.methods.run import Run
from selfedit.methods.selection import Selection
from selfedit.methods.summarise import accuracy, summarise
from selfedit.methods.worth import worth_it
from selfedit.runs.costs import Spent
from selfedit.runs.records import RoundRecord
from selfedit.runs.summary import Summary, round_summary

VALIDATION = "validation"


def round_record(
    run: Run, training: Sequence[Document], round: int, selection: Selection, details: dict[str, Any]
) -> RoundRecord:
    """What a round came to, from the store."""
    rewards = _rewards(run, training, round)
    mean = accuracy_interval(rewards) if rewards else None
    scores = run.grading.scores(VALIDATION, round=round)
    validated = accuracy_interval(scores) if scores else None
    spent = Spent.of(line for line in run.store.costs() if line.round == round)
    return RoundRecord(
        round=round,
        train_reward=mean.mean if mean else None,
        validation_accuracy=validated.mean if validated else None,
        kept_edits=len(selection.kept),
        checkpoint=f"checkpoints/{delta_name(round)}",
        seconds=run.store.wall_seconds(round),
        details={
            "train_reward_ci95": [mean.lo, mean.hi] if mean else None,
            "validation_ci95": [validated.lo, validated.hi] if validated else None,
            "documents_without_signal": len(selection.without_signal),
            "kept_without_signal": selection.kept_without_signal,
            "device_seconds": spent.seconds,
            "usd": spent.usd,
            **details,
        },
    )


def _rewards(run: Run, training: Sequence[Document], round: int) -> dict[str, DocumentScore]:
    known: dict[str, list[float]] = {document.id: [] for document in training}
    for edit in run.store.edits(round=round, writer=TRAIN):
        if edit.reward is not None:
            known[edit.document_id].append(edit.reward)
    return {id: DocumentScore(sum(rewards), len(rewards)) for id, rewards in known.items() if rewards}


def metrics(run: Run, round: int) -> dict[str, float]:
    """What --track is sent of a round."""
    record = next(record for record in run.store.rounds() if record.round == round)
    values = {
        "train_reward": record.train_reward,
        "validation_accuracy": record.validation_accuracy,
        "kept_edits": record.kept_edits,
        "seconds": record.seconds,
        "documents_without_signal": record.details.get("documents_without_signal"),
    }
    return {name: float(value) for name, value in values.items() if value is not None}


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
        rounds=tuple(round_summary(record) for record in run.store.rounds()),
        selected_round=selected,
        selected_on=selected_on,
        untrained_validation=accuracy(run.grading.scores(VALIDATION, round=0)),
        worth_it=worth_it(run, [document.id for document in validation], selected),
    )
