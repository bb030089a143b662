"""The reward of an edit: the exam score of fits on it; or a judge's opinion of it, for users without the compute for
real fits.

Knows rubric replies.  Whether an opinion is worth anything is measured on a sample of edits that are really fine-tuned.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.evaluation.statistics import spearman
from selfedit.execution.tasks import CompletionTask, DecodeRequest, TaskResult, completion_tasks
from selfedit.methods.experiment import Experiment, Learning
from selfedit.methods.settings import TrainSettings
from selfedit.runs.records import CostRecord

TRAIN = "train"  # the condition under which edits of training documents and their fits are stored
_REPLY_TOKENS = 8
_NUMBER = re.compile(r"\s*(10|[0-9])(?:\.0)?(?:\s*/\s*10)?\s*\.?\s*")


def fit_rewards(
    experiment: Experiment,
    training: Sequence[Document],
    round: int,
    chain: tuple[str, ...],
) -> None:
    """Fits S adapters an edit, examines them, and stores each edit's mean score."""
    settings = experiment.settings
    assert isinstance(settings, TrainSettings)
    by_id = {document.id: document for document in training}
    edits = experiment.store.edits(round=round, writer=TRAIN)
    experiment.fit_and_examine(
        _learnings(edits, by_id, settings.replicates, round, chain), label=f"round {round} rewards"
    )
    experiment.grade()
    experiment.store.set_rewards(edit_rewards(experiment, round))


def _learnings(
    edits: Sequence[Edit],
    by_id: Mapping[str, Document],
    replicates: int,
    round: int,
    chain: tuple[str, ...],
) -> list[Learning]:
    """S fits an edit."""
    return [
        Learning(TRAIN, (by_id[e.document_id],), ((e.id, e.text),), replicate, round, chain)
        for e in edits
        for replicate in range(replicates)
    ]


def edit_rewards(experiment: Experiment, round: int) -> dict[str, float]:
    """Store id of edit -> mean score of the answers of its fits about its own document; failed fits count neither
    way."""
    sums: dict[str, list[float]] = {}
    for answer in experiment.store.scored_answers(experiment.grader.name, condition=TRAIN, round=round):
        if answer.document_id is not None and answer.score is not None and answer.edit_id is not None:
            sums.setdefault(answer.edit_id, []).append(answer.score)
    return {edit: math.fsum(scores) / len(scores) for edit, scores in sums.items()}


def judged_rewards(
    experiment: Experiment, training: Sequence[Document], round: int, chain: tuple[str, ...]
) -> dict[str, Any]:
    """Stores a judge's rating of each edit, in [0, 1], as its reward; really fits a sample and returns their rank
    correlation.

    An unreadable reply leaves the edit without a reward.  The judge is an API model, or the untrained local model.
    """
    settings = experiment.settings
    assert isinstance(settings, TrainSettings)
    by_id = {document.id: document for document in training}
    edits = experiment.store.edits(round=round, writer=TRAIN)
    _rate(experiment, {edit.id: _prompt(experiment, by_id[edit.document_id], edit) for edit in edits}, round)
    rated = {
        edit.id: edit.reward for edit in experiment.store.edits(round=round, writer=TRAIN) if edit.reward is not None
    }
    if len(rated) < len(edits):
        experiment.warn(
            "unreadable ratings", f"round {round}: {len(edits) - len(rated)} of {len(edits)} ratings could not be read"
        )
    sample = sorted(rated, key=lambda id: experiment.seed("judge sample", id))[: settings.judge_sample]
    fitted = [edit for edit in edits if edit.id in sample]
    experiment.fit_and_examine(
        _learnings(fitted, by_id, settings.replicates, round, chain), label=f"round {round} check of the judge"
    )
    experiment.grade()
    real = edit_rewards(experiment, round)
    common = [id for id in sample if id in real]
    correlation = spearman([rated[id] for id in common], [real[id] for id in common]) if len(common) > 2 else None
    return {"judge_correlation": correlation, "judge_sample": len(common)}


def read_rating(reply: str | None) -> float | None:
    """The rating in [0, 1] of a reply that is a number from 0 to 10 and nothing else; None otherwise."""
    found = _NUMBER.fullmatch(reply or "")
    return None if found is None else int(found[1]) / 10


def _prompt(experiment: Experiment, document: Document, edit: Edit) -> str:
    fence = "=" * 8 + hashlib.sha256(edit.text.encode()).hexdigest()[:12]
    return experiment.prompts.reward(title=document.title, text=document.text, edit=edit.text, fence=fence)


def _rate(experiment: Experiment, prompts: Mapping[str, str], round: int) -> None:
    """Asks for the ratings of edits, by store id, that have none, and stores those that can be read."""
    settings = experiment.settings
    assert isinstance(settings, TrainSettings)
    done = {edit.id for edit in experiment.store.edits(round=round, writer=TRAIN) if edit.reward is not None}

    def keep(replies: Mapping[str, str | None]) -> None:
        ratings = {id: read_rating(reply) for id, reply in replies.items()}
        experiment.store.set_rewards({id: rating for id, rating in ratings.items() if rating is not None})

    phase = f"round {round}: rating {len(prompts)} edits"
    if settings.judge is not None:
        asked = {id: prompt for id, prompt in prompts.items() if id not in done}
        if asked:
            experiment.progress.begin(phase, len(asked) * _REPLY_TOKENS)
            replies = experiment.ask_api(
                settings.judge, list(asked.values()), max_tokens=_REPLY_TOKENS, what="edits", round=round
            )
            keep(dict(zip(asked, replies, strict=True)))
        return

    def cut() -> list[CompletionTask]:
        tokenizer = experiment.pool.tokenizer
        requests = {
            id: [DecodeRequest(tuple(tokenizer.prompt_ids(prompt)), _REPLY_TOKENS, tokenizer.stop_ids)]
            for id, prompt in prompts.items()
        }
        return completion_tasks(f"ratings/{round}", (), requests, size=experiment.task_size)

    def commit(task: CompletionTask, result: TaskResult) -> list[CostRecord]:
        decode = experiment.pool.tokenizer.decode
        keep({id: decode(completion.ids) for id, (completion,) in task.completions(result).items()})
        return [experiment.cost_of_time("edits", TRAIN, result.seconds, round)]

    experiment.do(phase, prompts, done, cut, commit)
