"""`summary.json`, schema 1: the figures of a finished run, for people and other programs.

Knows the shape of the figures; computes none of them.  Accuracies and rewards are fractions in [0, 1], times are
seconds, money is US dollars.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from selfedit.errors import UserError
from selfedit.runs.files import write_atomically

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    # Further keys are kept: schema 1 may gain some, and what reads it must not lose them.
    model_config = ConfigDict(extra="allow", frozen=True)


class ConditionSummary(_Part):
    """One bar of a comparison.

    `accuracy` is the mean credit of the graded answers, `ci95` its interval over documents; `correct` counts
    verdicts `right` among `graded` ones; `ungraded` answers count neither way.  `cost_usd` is None where a price is
    unknown.
    """

    name: str
    accuracy: Fraction
    ci95: tuple[Fraction, Fraction]
    correct: Count
    graded: Count
    ungraded: Count
    train_tokens: Count
    edit_tokens: Count
    seconds: Amount
    cost_usd: Amount | None

    @model_validator(mode="after")
    def _consistent(self) -> ConditionSummary:
        if self.correct > self.graded:
            raise ValueError(f"{self.correct} correct answers of {self.graded} graded ones")
        if self.ci95[0] > self.ci95[1]:
            raise ValueError("ci95 begins after its end")
        return self


class RoundSummary(_Part):
    """One round of Step B."""

    round: Count
    train_reward: Fraction
    validation_accuracy: Fraction | None  # None without validation documents
    kept_edits: Count
    seconds: Amount


class Summary(_Part):
    """The whole of `summary.json`.

    `rounds` and `selected_round` (0: the untrained policy) are there for Step B only.  `differences` (paired by
    document), `forgetting`, `grader` and `events` are optional.
    """

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    schema_version: Literal[1] = Field(1, alias="schema")
    procedure: str
    model: str
    instruct: bool
    documents: Count
    questions: Count
    recipe: dict[str, Any]
    conditions: tuple[ConditionSummary, ...]
    rounds: tuple[RoundSummary, ...] | None = None
    selected_round: Count | None = None
    differences: tuple[dict[str, Any], ...] | None = None
    forgetting: tuple[dict[str, Any], ...] | None = None
    grader: str | None = None
    events: dict[str, int] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Summary:
        names = [condition.name for condition in self.conditions]
        if len(set(names)) < len(names):
            raise ValueError("two conditions have one name")
        if self.selected_round is not None:
            known = {0} | {round.round for round in self.rounds or ()}
            if self.selected_round not in known:
                raise ValueError(f"selected_round {self.selected_round} is not among the rounds")
        return self

    def to_json(self) -> dict[str, Any]:
        """The summary as plain data; optional keys without a value are left out."""
        data = self.model_dump(mode="json", by_alias=True)
        optional = {name for name, field in Summary.model_fields.items() if field.default is None}
        return {key: value for key, value in data.items() if value is not None or key not in optional}


def parse_summary(data: dict[str, Any] | Summary, where: str) -> Summary:
    """Check plain data.  UserError, naming `where` and the first thing that is wrong."""
    if isinstance(data, Summary):
        return data
    try:
        return Summary.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"{part}." for part in first["loc"])[:-1]
        what = first["msg"].removeprefix("Value error, ")
        message = f"{place}: {what}" if place else what
        raise UserError(f"{where}: not a summary of schema 1: {message}; run the command again") from error


def write_summary(path: str | Path, summary: Summary | dict[str, Any]) -> Summary:
    """Write `summary.json`, whole or not at all; the checked summary."""
    checked = parse_summary(summary, str(path))
    text = json.dumps(checked.to_json(), ensure_ascii=False, indent=2, allow_nan=False)
    write_atomically(path, text + "\n")
    return checked


def read_summary(path: str | Path) -> Summary:
    """Read `summary.json`.  UserError where it is missing, is not JSON or lacks something."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path}: no such file; the run is not finished (give its command again), or this is no run directory"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; run the command again") from error
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); run the command again") from error
    return parse_summary(data, str(path))
