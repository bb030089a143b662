"""The reward of an edit: the mean score of fits on it, or how likely they make the model's open-book answers; or a
judge's opinion of it, where fits are too dear.

Whether an opinion is worth anything is measured on a sample of edits that are really fine-tuned.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.editors.replies import ApiRequest, ApiResult
from selfedit.engine.jobs import Completion, DecodeRequest
from selfedit.errors import reason
from selfedit.evaluation.statistics import spearman, spearman_interval
from selfedit.grouping import grouped
from selfedit.methods.examining import examine_untrained
from selfedit.methods.inner_loop import inner_loop
from selfedit.methods.learnings import Learning, one_each
from selfedit.methods.resuming import completer
from selfedit.methods.run import Run
from selfedit.methods.settings import TrainSettings
from selfedit.text import one_line

TRAIN = "train"  # the condition under which edits of training documents and their fits are stored
UNREAD = "unreadable ratings"  # the kind of an event; its subject is the round
PASSAGE, _BASELINE = "passage", "baseline"  # those of what `--select above-baseline` compares with
_REPLY_TOKENS = 8
_NUMBER = re.compile(r"\s*(10|[0-9])(?:\.0)?(?:\s*/\s*10)?\s*\.?\s*")


@dataclass(frozen=True)
class Round:
    """A round of Step B: its number, the documents that it is about, and the policy that writes and learns in it."""

    run: Run
    settings: TrainSettings
    number: int
    documents: Sequence[Document]
    policy: tuple[str, ...]

    def learnings(self, condition: str, edits: Sequence[Edit] | None, **more: Any) -> list[Learning]:
        """S fits on each of these edits; on the passages alone where there are none."""
        how: Any = {"round": self.number, "policy": self.policy, **more}
        return one_each(condition, self.documents, edits, self.settings.replicates, **how)


def fit_rewards(round: Round, edits: Sequence[Edit]) -> dict[str, Any]:
    """Fits S adapters per edit and stores each edit's mean score."""
    round.run.store.set_rewards(_mean_scores(round, edits, "rewards"))
    return {}


def likelihood_rewards(round: Round, edits: Sequence[Edit]) -> dict[str, Any]:
    """Fits S adapters per edit, and stores how probable they make, closed book, a token of what the model answers with
    the document in its prompt: the geometric mean over tokens, questions and fits, in [0, 1].

    Questions that the model does not answer rightly with the document before it are left out: it would have to learn
    more than the document says.  Edits of a document without any other get no reward, and the document is named."""
    run, learnings = round.run, round.learnings(TRAIN, edits, examine=False, likelihood=True)
    inner_loop(run, learnings, label=f"round {round.number} rewards")
    fits = run.store.fits(round=round.number, condition=TRAIN)
    losses = grouped((str(fit.edit_id), fit.answer_loss) for fit in fits if fit.answer_loss is not None)
    run.store.set_rewards({id: math.exp(-math.fsum(some) / len(some)) for id, some in losses.items()})
    rewarded = {edit.document_id for edit in edits if edit.id in losses}
    for id in dict.fromkeys(edit.document_id for edit in edits if edit.document_id not in rewarded):
        run.store.add_event("no reward", id, "the model answers no question about it rightly with it in its prompt")
    return {}


def judged_rewards(round: Round, edits: Sequence[Edit]) -> dict[str, Any]:
    """Stores a judge's rating of each edit, in [0, 1]; really fits a sample and returns their rank correlation.

    An unreadable reply leaves the edit without a reward.  The judge is an API model, or the untrained local model.
    """
    run, number = round.run, round.number
    by_id = {document.id: document for document in round.documents}
    prompts = {edit.id: _prompt(run, by_id[edit.document_id], edit) for edit in edits}
    reasons: Counter[str] = Counter()  # why there is no rating

    def keep(id: str, reply: str, failure: str | None = None) -> None:
        if failure is None and (rating := read_rating(reply)) is not None:
            run.store.set_rewards({id: rating})
        else:
            reasons[failure or f"no number from 0 to 10: {reason(reply.strip() or '(empty)')}"] += 1

    rate = _rate_by_api if round.settings.judge is not None else _rate_by_model
    rate(round, prompts, {edit.id for edit in edits if edit.reward is not None}, keep)
    rated = {edit.id: edit.reward for edit in run.store.edits(round=number, writer=TRAIN) if edit.reward is not None}
    if len(rated) < len(edits):
        commonest = "".join(f" (most often: {told})" for told, _ in reasons.most_common(1))
        message = one_line(f"{len(edits) - len(rated)} of {len(edits)} ratings could not be read{commonest}")
        run.store.set_event(UNREAD, f"round {number}", message)
        run.progress.note(f"round {number}: {message}")
    else:
        run.store.drop_event(UNREAD, f"round {number}")
    sample = sorted(rated, key=lambda id: run.seed("judge sample", id))[: round.settings.judge_sample]
    real = _mean_scores(round, [edit for edit in edits if edit.id in sample], "check of the judge")
    common = [id for id in sample if id in real]
    correlation = spearman([rated[id] for id in common], [real[id] for id in common]) if len(common) > 2 else None
    interval = None if correlation is None else spearman_interval(correlation, len(common))
    return {"judge_correlation": correlation, "judge_correlation_ci95": interval, "judge_sample": len(common)}


# By `--reward`: each stores the rewards of a round's edits, and returns what the round's record is to say of them.
REWARDS: dict[str, Callable[[Round, Sequence[Edit]], dict[str, Any]]] = {
    "fit": fit_rewards,
    "likelihood": likelihood_rewards,
    "judge": judged_rewards,
}


def _mean_scores(round: Round, edits: Sequence[Edit], what: str) -> dict[str, float]:
    """By edit, the mean score of the answers of its fits about its own document; failed fits count neither way."""
    learnings = round.learnings(TRAIN, edits)
    scores = inner_loop(round.run, learnings, label=f"round {round.number} {what}")
    found = grouped((str(learning.edit_id), score) for learning in learnings for score in scores[learning.id])
    return {id: math.fsum(some) / len(some) for id, some in found.items()}


def baseline_of(round: Round) -> dict[str, float]:
    """Each document's score by the round's student before it learns the document, or after S fits on the passage alone:
    in each round anew, since the student is another one."""
    run = round.run
    if round.settings.baseline == "passage":
        condition, number = PASSAGE, round.number
        inner_loop(run, round.learnings(condition, None), label=f"round {number} passages alone")
    else:
        condition, number = ("none", 0) if round.number == 1 else (_BASELINE, round.number)
        how: Any = {"condition": condition, "round": number, "policy": round.policy}
        examine_untrained(run, round.documents, general=False, **how)
        run.grading.grade()
    scores = run.grading.scores(condition, round=number)
    return {document: score.score / score.graded for document, score in scores.items() if score.graded}


def read_rating(reply: str) -> float | None:
    """The rating in [0, 1] of a reply that is a number from 0 to 10 and nothing else; None otherwise."""
    found = _NUMBER.fullmatch(reply)
    return None if found is None else int(found[1]) / 10


def _prompt(run: Run, document: Document, edit: Edit) -> str:
    fence = "=" * 8 + hashlib.sha256(edit.text.encode()).hexdigest()[:12]
    return run.prompts.reward(title=document.title, text=document.text, edit=edit.text, fence=fence)


def _rate_by_model(round: Round, prompts: Mapping[str, str], done: set[str], keep: Callable[..., None]) -> None:
    run, number, tokenizer = round.run, round.number, round.run.workers.tokenizer
    requests = {
        id: [DecodeRequest(tuple(tokenizer.prompt_ids(prompt)), _REPLY_TOKENS, tokenizer.stop_ids)]
        for id, prompt in prompts.items()
    }

    def keep_completion(id: str, completions: Sequence[Completion], seconds: float) -> None:
        keep(id, tokenizer.decode(completions[0].ids))

    complete = completer(
        run,
        f"ratings/{number}",
        lambda seconds: run.ledger.time("edits", TRAIN, seconds, number),
        phase=f"round {number}: rating {len(prompts)} edits",
        size=lambda: run.workers.task_size,
    )
    complete(requests, done, keep_completion)


def _rate_by_api(round: Round, prompts: Mapping[str, str], done: set[str], keep: Callable[..., None]) -> None:
    asked = {id: prompt for id, prompt in prompts.items() if id not in done}
    if not asked:
        return
    run, ids, model = round.run, list(asked), str(round.settings.judge)

    def keep_reply(number: int, result: ApiResult) -> None:
        run.progress.advance(1)
        run.ledger.book("edits", model, model, result, round.number)
        keep(ids[number], result.text, result.failure("--judge-reasoning-effort"))

    run.progress.begin(f"round {round.number}: rating {len(prompts)} edits", len(asked))
    run.client(model, "judge").complete(
        [ApiRequest(prompt, max_tokens=_REPLY_TOKENS, temperature=0.0) for prompt in asked.values()],
        keep_reply,
        # An edit that is rated again must not get a reply again that could not be read.
        accept=lambda result: result.error is None and read_rating(result.text) is not None,
    )
