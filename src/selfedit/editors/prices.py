"""What API tokens cost, from a price file that users edit, and a budget that is not to be passed.

The built-in prices are `prices.yaml` beside this file; each entry carries the date on which it held.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from selfedit.errors import UserError, checked
from selfedit.yaml_file import read_yaml

BUILT_IN = Path(__file__).with_name("prices.yaml")

# Providers add the day of a snapshot to a model's name and charge the same for it.
_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")

Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Words = Annotated[str, BeforeValidator(str)]  # YAML reads a date as a date


class ModelPrice(BaseModel):
    """A model's price: US dollars per million `input` and `output` tokens; a batch costs `batch_factor` of that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Amount
    output: Amount
    batch_factor: Amount = 1.0
    date: Words = ""
    source: Words = ""

    def cost(self, input_tokens: int, output_tokens: int, batch: bool = False) -> float:
        """US dollars for so many tokens (reasoning tokens count as output)."""
        live = (input_tokens * self.input + output_tokens * self.output) / 1e6
        return live * self.batch_factor if batch else live


class PriceFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: dict[Words, ModelPrice] = {}


@dataclass(frozen=True)
class Prices:
    """The prices of one price file, laid over the built-in ones; `path` is the file to name to the user."""

    path: Path
    models: Mapping[str, ModelPrice]

    def model(self, name: str) -> ModelPrice:
        """The price of a model, or of the model that `name` is a dated snapshot of; UserError if there is none."""
        found = self.models.get(name) or self.models.get(_SNAPSHOT.sub("", name))
        if found is None:
            raise UserError(
                f"no price for model '{name}' in {self.path} (it has {', '.join(self.models)}): add under 'models' "
                f"a line like '{name}: {{input: 1.25, output: 10.0, date: 2025-08-07}}' (US dollars per million tokens)"
            )
        return found


def load_prices(path: str | Path | None = None) -> Prices:
    """The built-in prices, or those of a price file laid over them; UserError names file, entry and remedy."""
    models = _built_in()
    return Prices(BUILT_IN, models) if path is None else Prices(Path(path), {**models, **_read(Path(path))})


@cache
def _built_in() -> dict[str, ModelPrice]:
    return _read(BUILT_IN)


def _read(path: Path) -> dict[str, ModelPrice]:
    where = f"the price file {path}"
    return checked(PriceFile, read_yaml(path, where), where, f"its form is that of {BUILT_IN}").models


class BudgetReached(UserError):
    """The next piece of work could pass the budget; what is done is kept."""


class Budget:
    """A limit in US dollars: what has been spent, and what work under way may still cost.

    Work under way is held at the most that it can cost, so that the limit is not passed; `release` and `spend` replace
    the hold by the real cost.  Without a limit (None) nothing is ever refused, but spending is still added up.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self.spent = 0.0
        self._held: dict[str, float] = {}

    @property
    def held(self) -> float:
        return sum(self._held.values())

    def would_exceed(self, usd: float) -> bool:
        """Whether spending `usd` more could pass the limit.  A billionth of a dollar over is rounding, not money."""
        return self.limit is not None and self.spent + self.held + usd > self.limit + 1e-9

    def hold(self, key: str, usd: float) -> None:
        self._held[key] = usd

    def release(self, key: str) -> None:
        self._held.pop(key, None)

    def spend(self, usd: float) -> None:
        self.spent += usd

    def reached(self, what: str, usd: float) -> BudgetReached:
        """The error to raise when `what` (at most `usd` US dollars) does not fit any more."""
        return BudgetReached(
            f"stopped before passing the budget of {self.limit:.2f} USD: {self.spent:.4f} USD are spent and {what} may "
            f"cost up to {usd:.4f} USD more; what is done is kept: raise --budget and give the same command again"
        )


def estimate_tokens(text: str) -> int:
    """Roughly how many tokens an English text has, for plans: a token for every four characters, rounded up."""
    return -(-len(text) // 4)
