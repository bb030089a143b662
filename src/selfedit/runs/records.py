"""What a run's store holds, as plain data, and how its rows are named.

Every name derives from what the thing is, so that a resumed run finds what it has already done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selfedit.editors.base import id_part
from selfedit.evaluation.grade import GradeValue

RECITED = " recited"


def recited_condition(condition: str) -> str:
    """The condition of the answers that this one's adapters give by recitation."""
    return condition + RECITED


def retried_condition(condition: str) -> str:
    """The condition of the adapter that has learned once more, on top of this one's, what that had missed."""
    return f"{condition} twice"


@dataclass(frozen=True)
class Answer:
    """A student's answer to one question; `tokens` counts what was generated.  `topic` is what an adapter named as the
    question's topic, before it recited what it learned under that title (None: it was not asked)."""

    question_id: str
    text: str
    tokens: int
    topic: str | None = None


@dataclass(frozen=True)
class FitRecord:
    """One fit (or one exam without a fit) and its answers.

    `document_id` is None where the adapter learned several documents, or an exam's questions belong to several or to
    none; `edit_id` is None where no edit was used, or several together.  `sequences` are the training texts,
    `train_tokens` the real tokens trained on over all epochs, the losses are nats per token, `seconds` is this fit's
    share of its task's time.  `error` says why a fit failed.  `divergence` is the mean KL(policy || adapter) per token,
    nats, on texts that the policy wrote to general prompts; `answer_loss` is the mean loss per token of what the model
    answers to its documents' questions with the document in its prompt, where that is right, each question counting
    once.  None where they were not measured.

    Of `neighbours` answers to questions of other documents, `leaked` say what this one's answers are (`leaked_before`:
    those of the untrained model to the same questions; None where it was not asked).
    """

    condition: str
    replicate: int = 0
    round: int = 0
    document_id: str | None = None
    edit_id: str | None = None
    status: Literal["done", "failed"] = "done"
    error: str | None = None
    sequences: tuple[str, ...] = ()
    train_tokens: int = 0
    steps: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    seconds: float = 0.0
    divergence: float | None = None
    answer_loss: float | None = None
    neighbours: int = 0
    leaked: int = 0
    leaked_before: int | None = None
    answers: tuple[Answer, ...] = ()

    @property
    def recital(self) -> bool:
        """Whether it is another fit's exam by recitation; in place of training texts it has what was recited."""
        return self.condition.endswith(RECITED)

    @property
    def id(self) -> str:
        """The fit's name.

        - `EDIT_ID|REPLICATE`: trained on an edit, under the condition named like the edit's writer, in its round;
        - `EDIT_ID|ROUND|CONDITION|REPLICATE`: trained on an edit under another condition or in another round;
        - `ROUND|DOCUMENT|CONDITION|REPLICATE`: no one edit (passage alone, all edits, no adaptation); DOCUMENT is empty
          where `document_id` is None (`0||none|0`: the untrained model's exam of general questions).
        """
        condition = id_part(self.condition)
        if self.edit_id is None:
            return f"{self.round}|{id_part(self.document_id or '')}|{condition}|{self.replicate}"
        edit_round, _, writer, _ = self.edit_id.split("|")
        if (edit_round, writer) == (str(self.round), condition):
            return f"{self.edit_id}|{self.replicate}"
        return f"{self.edit_id}|{self.round}|{condition}|{self.replicate}"


@dataclass(frozen=True)
class OwnText:
    """What a policy wrote to a general prompt without any adapter; `ids` are the text's tokens as they were written."""

    policy: str
    prompt_id: str
    prompt: str
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer with its place in the experiment and one grader's grade.

    `document_id` is the question's document, None for a general question (asked to measure forgetting); `value` is
    empty where there is no grade yet.  `topic` is as in `Answer`.
    """

    round: int
    condition: str
    fit_id: str
    edit_id: str | None
    replicate: int
    document_id: str | None
    question_id: str
    answer: str
    value: GradeValue | Literal[""]
    score: float | None
    note: str = ""
    topic: str | None = None


@dataclass(frozen=True)
class CostRecord:
    """One line of the ledger.

    `what` is edits, fits, answers (of the model without an adapter), texts (of its own), grading or outer; `seconds` is
    device time; `usd` is None where no price is known.
    """

    what: str
    condition: str
    round: int = 0
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    usd: float | None = None


@dataclass(frozen=True)
class Event:
    """Something the report should mention: a cut edit, a failed fit, a warning.  `subject` is what it is about."""

    kind: str
    subject: str
    message: str
