"""`summary.json`, schema 1: the figures of a finished run, for people and other programs.

Knows the shape of the figures; computes none of them.  Accuracies and rewards are fractions in [0, 1], times are
seconds, money is US dollars.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from selfedit.errors import UserError, checked
from selfedit.json_file import read_json
from selfedit.runs.files import write_atomically
from selfedit.text import listed

_AGAIN = "run the command again"

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]  # as SQLite holds
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    # Further keys are kept: schema 1 may gain some, and what reads it must not lose them.
    model_config = ConfigDict(extra="allow", frozen=True)


class Accuracy(_Part):
    """Mean score of graded answers, with its 95 % interval; `documents` is how many had any."""

    accuracy: Fraction
    ci95: tuple[Fraction, Fraction] | None = None
    documents: Count = 0


class ConditionSummary(_Part):
    """One bar of a comparison.

    `accuracy` is the mean score of the graded answers, `ci95` its interval over documents, `document_mean` the mean
    of the documents' own means (as published for SEAL); they are None where nothing was graded.  `correct` counts
    grades `right` among `graded` ones; `ungraded` answers count neither way.  `seconds` is device time.  `cost_usd` is
    None where a price is unknown.  `of_open_book` is the share of the open-book accuracy that was reached.
    `question_tokens` and `question_seconds` are what a question cost of a model without an adapter: tokens of its
    prompt, and device time, with many questions answered at once."""

    name: str
    accuracy: Fraction | None
    ci95: tuple[Fraction, Fraction] | None = None
    document_mean: Fraction | None = None
    correct: Count = 0
    graded: Count = 0
    ungraded: Count = 0
    train_tokens: Count = 0
    edit_tokens: Count = 0
    seconds: Amount = 0.0
    cost_usd: Amount | None = None
    failed_fits: Count = 0
    of_open_book: Amount | None = None
    of_open_book_ci95: tuple[Amount, Amount] | None = None
    question_tokens: Amount | None = None
    question_seconds: Amount | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_known_is_not_zero(cls, data: Any) -> Any:
        # Earlier summaries gave 0.0 (0 to 1) for a condition of which no answer was graded.
        if isinstance(data, dict) and data.get("graded", None) == 0:
            return data | {"accuracy": None, "ci95": None}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> ConditionSummary:
        if self.correct > self.graded:
            raise ValueError(f"{self.correct} correct answers of {self.graded} graded ones")
        if self.ci95 is not None and self.ci95[0] > self.ci95[1]:
            raise ValueError("ci95 begins after its end")
        return self


class DifferenceSummary(_Part):
    """Accuracy of `b` minus accuracy of `a`, paired by document; `p_value` is a sign-flip test's."""

    a: str
    b: str
    difference: Share
    ci95: tuple[Share, Share] | None = None
    p_value: Fraction | None = None
    larger_than_noise: bool = False
    documents: Count | None = None


class ForgettingSummary(_Part):
    """Of `asked` general questions that the model answered before, the share `lost` after adaptation.  `divergence` is
    how far the condition's adapters have moved: the mean KL(model || adapter) per token of texts that the model wrote
    to general prompts, nats, over `measured` adapters."""

    condition: str
    asked: Count = 0
    kept: Count = 0
    lost: Fraction | None = None
    ci95: tuple[Fraction, Fraction] | None = None
    measured: Count = 0
    divergence: Amount | None = None
    divergence_ci95: tuple[Amount, Amount] | None = None


class NeighbourSummary(_Part):
    """Of `asked` answers of a condition's adapters to questions of other documents, the share `leaked`: wrong, and
    right about the adapter's own document.  Where questions were routed, or an adapter learned several documents: of
    its answers, each held against other documents than the question's.  `before`: of the untrained model's answers to
    the same questions."""

    condition: str
    asked: Count
    leaked: Fraction
    ci95: tuple[Fraction, Fraction] | None = None
    before: Fraction | None = None


class ExamSummary(_Part):
    """An exam that a model wrote: `kept` are those of its questions that the student answered rightly with the document
    in its prompt and wrongly without, so that it begins with 0."""

    by: str
    written: Count
    kept: Count


class UpdateSummary(_Part):
    """Of `asked` answers to questions that an earlier document answers otherwise, the share that gives the `new`
    document's answer, and the share that still gives the `old` one's."""

    condition: str
    asked: Count
    new: Fraction
    old: Fraction


class Spread(_Part):
    """A figure's mean over sequences, and its standard deviation over them (None: there is one)."""

    mean: Share
    deviation: Amount | None = None


class RetentionSummary(_Part):
    """Continual learning with one remedy (`retain`): `accuracy[i][j]` is the accuracy on a sequence's document j after
    its step i, j <= i, as mean over `sequences` (None: none was graded), `deviation` its standard deviation over them.
    A question that a later document answers otherwise does not count at any step.

    With R for the matrix and T steps, as usually defined: `average` is the mean of the last row, `backward` transfer
    the mean over j < T of R[T][j] - R[j][j] (Lopez-Paz and Ranzato 2017, arXiv 1706.08840), `forgetting` the mean over
    j < T of the highest of R[j][j] to R[T-1][j], less R[T][j] (Chaudhry et al. 2018, arXiv 1801.10112).  `learned` is
    the mean of the diagonal, `before` that of the untrained model, `general` the share of the general questions known
    before that are still answered after the last step.  None where nothing was graded, or T = 1."""

    retain: str
    sequences: Count
    accuracy: tuple[tuple[Fraction | None, ...], ...]
    deviation: tuple[tuple[Amount | None, ...], ...] = ()
    average: Spread | None = None
    learned: Spread | None = None
    before: Spread | None = None
    forgetting: Spread | None = None
    backward: Spread | None = None
    general: Spread | None = None
    train_tokens: Count = 0


class RoutingSummary(_Part):
    """How questions went to adapters of a document each: of `asked` questions about the documents, `right` went to
    their own document's, `none` to no adapter; of `general` ones that the model knew, `general_to_adapters` to one.
    Or which documents' titles one adapter `named` as the questions' topics."""

    asked: Count
    right: Count
    none: Count
    general: Count = 0
    general_to_adapters: Count = 0
    named: bool = False

    @property
    def note(self) -> str:
        """For people."""
        right, none = (f"{count / self.asked:.1%}" for count in (self.right, self.none))
        ways = ("One adapter per document", "went to their own document's", "to none", "went to an adapter")
        if self.named:
            ways = ("Recited", "were given their own document's title as their topic", "none", "were given a title")
        way, own, nothing, taken = ways
        said = f"{way}: {right} of {self.asked:,} questions {own}, {none} {nothing}"
        if self.general:
            said += f"; of {self.general:,} general questions that the model knew, {self.general_to_adapters:,} {taken}"
        return f"{said}."


class RoundSummary(_Part):
    """One round of Step B.  What is None is not known: no validation documents, no reward, no price, an earlier
    version.

    `documents_without_signal` are those whose edits all scored alike, `kept_without_signal` the edits of theirs that
    were kept. `passage_alone` is what the documents without edits earned (`--baseline passage`), `above_passage` counts
    those of which an edit that earned more was kept.
    `judge_correlation` is Spearman's rank correlation of a judge's rewards with real ones on `judge_sample` edits.
    `seconds` is the time that passed while the round was worked on, over all attempts; `device_seconds` what the
    devices were busy."""

    round: Count
    train_reward: Fraction | None = None
    train_reward_ci95: tuple[Fraction, Fraction] | None = None
    validation_accuracy: Fraction | None = None
    validation_ci95: tuple[Fraction, Fraction] | None = None
    kept_edits: Count | None = None
    documents_without_signal: Count | None = None
    kept_without_signal: Count | None = None
    passage_alone: Accuracy | None = None
    above_passage: Count | None = None
    judge_correlation: Share | None = None
    judge_correlation_ci95: tuple[Share, Share] | None = None
    judge_sample: Count | None = None
    seconds: Amount | None = None
    device_seconds: Amount | None = None
    usd: Amount | None = None


class StepSummary(_Part):
    """One step of continual learning: how the new document and the earlier ones are answered after it."""

    step: Count
    document: str
    new: Accuracy | None = None
    earlier: Accuracy | None = None


class LookSummary(_Part):
    """An exam on the way: how a fit answered after `step` of its `steps`."""

    step: Count
    steps: Count
    accuracy: Fraction
    ci95: tuple[Fraction, Fraction] | None = None


class SweepRow(_Part):
    """One recipe of a sweep: what it came to on the documents that it was tried on, the validation documents where it
    got so far (`validated`), else the first training documents.

    `settings` are those in which the recipes differ.  `accuracy` is over all editors, None where nothing was graded;
    `lost` is the share of general questions, None where none was known before; `divergence` is as in
    `ForgettingSummary`; `train_tokens` are one fit's, which learns one document.  A recipe under which fits failed is
    out."""

    number: Count
    settings: dict[str, Any]
    documents: Count = 0
    validated: bool = False
    accuracy: Fraction | None = None
    ci95: tuple[Fraction, Fraction] | None = None
    lost: Fraction | None = None
    lost_ci95: tuple[Fraction, Fraction] | None = None
    divergence: Amount | None = None
    train_tokens: Amount = 0.0
    failed_fits: Count = 0
    chosen: bool = False


class Summary(_Part):
    """The whole of `summary.json`, for what writes it and for all that read it.

    Fields with a default are optional: written where a command has them, and null or absent means the default.
    `rounds`, `selected_round` (0: the untrained policy), `selected_on`, `untrained_validation` and `worth_it` are Step
    B's, `steps` (of the first sequence, with the first remedy) and `retention` (by remedy) continual learning's.
    `on_the_way`, `exam` and `missed` (ids of documents of which a question was answered wrongly after learning) are
    `learn`'s, `updates` and `routing` (with an adapter per document) both's.  `sweep` has the recipes of a sweep,
    `most_lost` is its limit and `choice` says what was chosen and why.  `seconds` is how long the run took, over all
    attempts; `total_seconds` what its devices were busy."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    schema_version: Literal[1] = Field(1, alias="schema")
    procedure: str
    model: str
    instruct: bool | None
    documents: Count
    questions: Count
    recipe: dict[str, Any]
    conditions: tuple[ConditionSummary, ...]
    rounds: tuple[RoundSummary, ...] = ()
    selected_round: Count | None = None
    selected_on: Literal["validation", "test"] = "validation"
    untrained_validation: Accuracy | None = None
    worth_it: str = ""
    steps: tuple[StepSummary, ...] = ()
    retention: tuple[RetentionSummary, ...] = ()
    updates: tuple[UpdateSummary, ...] = ()
    on_the_way: tuple[LookSummary, ...] = ()
    exam: ExamSummary | None = None
    missed: tuple[str, ...] = ()
    routing: RoutingSummary | None = None
    sweep: tuple[SweepRow, ...] = ()
    most_lost: Fraction | None = None
    choice: str = ""
    differences: tuple[DifferenceSummary, ...] = ()
    forgetting: tuple[ForgettingSummary, ...] = ()
    neighbours: tuple[NeighbourSummary, ...] = ()
    grader: str = ""
    events: dict[str, Count] = Field(default_factory=dict)
    device: str = ""
    seconds: Amount | None = None
    total_seconds: Amount | None = None

    @property
    def exam_notes(self) -> list[str]:
        """Who wrote the exam, how it was routed, and what was not learned, for people."""
        notes = []
        if self.exam is not None:
            notes.append(
                f"Exam written by {self.exam.by}: of {self.exam.written:,} questions, {self.exam.kept:,} are kept,"
                " which the model answered rightly with the document in its prompt and wrongly without. So 0 before"
                " learning and 100 with the book open are by selection."
            )
        if (routing := self.routing) is not None and routing.asked:
            notes.append(routing.note)
        notes += [
            f"Updates ({one.condition}): of {one.asked:,} answers to questions that an earlier document answers"
            f" otherwise, {one.new:.1%} are the new one's and {one.old:.1%} still the old one's."
            for one in self.updates
        ]
        if self.missed:
            notes.append(
                f"Documents not learned, with a question or more answered wrongly: {len(self.missed):,}"
                f" ({listed(self.missed, 10)})."
            )
        return notes

    @field_validator("*", mode="before")
    @classmethod
    def _absent(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        return field.get_default(call_default_factory=True) if value is None and not field.is_required() else value

    @model_validator(mode="after")
    def _consistent(self) -> Summary:
        names = [condition.name for condition in self.conditions]
        if len(set(names)) < len(names):
            raise ValueError("two conditions have one name")
        if self.selected_round is not None:
            known = {0} | {round.round for round in self.rounds}
            if self.selected_round not in known:
                raise ValueError(f"selected_round {self.selected_round} is not among the rounds")
        return self

    def to_json(self) -> dict[str, Any]:
        """The summary as plain data, with the keys that were given; optional ones without a value are left out."""
        data = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        optional = {name for name, field in Summary.model_fields.items() if field.default is None}
        return {"schema": self.schema_version} | {
            key: value for key, value in data.items() if value is not None or key not in optional
        }


def empty_summary(
    model: str = "", conditions: Sequence[ConditionSummary] = (), instruct: bool | None = None
) -> Summary:
    """What stands for the summary of a run that has none yet."""
    return Summary(
        schema=1,
        procedure="",
        model=model,
        instruct=instruct,
        documents=0,
        questions=0,
        recipe={},
        conditions=tuple(conditions),
    )


def write_summary(path: Path, summary: Summary) -> None:
    write_atomically(path, json.dumps(summary.to_json(), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_summary(path: Path) -> Summary:
    """Read `summary.json`.  UserError where it is missing, is not JSON or lacks something."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; the run is not finished (give its command again), or this is no run directory"
        )
    return checked(Summary, read_json(path, _AGAIN), f"{path}: not a summary of schema 1", _AGAIN)
