"""What API tokens and device time cost, from a price file that users edit, and a budget that is not to be passed.

Knows money only: nothing of requests, runs or the store.  The built-in prices are `prices.yaml` beside this file; each
entry carries the date on which it held.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfedit.errors import UserError
from selfedit.yaml_file import read_yaml

BUILT_IN = Path(__file__).with_name("prices.yaml")

# Providers add the day of a snapshot to a model's name and charge the same for it.
_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")


@dataclass(frozen=True)
class ModelPrice:
    """A model's price: US dollars per million `input` and `output` tokens; a batch costs `batch_factor` of that."""

    model: str
    input: float
    output: float
    batch_factor: float
    date: str
    source: str

    def cost(self, input_tokens: int, output_tokens: int, batch: bool = False) -> float:
        """US dollars for so many tokens (reasoning tokens count as output)."""
        live = (input_tokens * self.input + output_tokens * self.output) / 1e6
        return live * self.batch_factor if batch else live


@dataclass(frozen=True)
class DevicePrice:
    """US dollars for one device for one hour."""

    device: str
    usd_per_hour: float
    date: str
    source: str


@dataclass(frozen=True)
class Prices:
    """The prices of one price file (laid over the built-in ones); `path` is the file to name to the user."""

    path: Path
    models: Mapping[str, ModelPrice]
    devices: Mapping[str, DevicePrice]

    def model(self, name: str) -> ModelPrice:
        """The price of a model, or of the model that `name` is a dated snapshot of; UserError if there is none."""
        found = self.models.get(name) or self.models.get(_SNAPSHOT.sub("", name))
        if found is None:
            raise UserError(
                f"no price for model '{name}' in {self.path} (it has {', '.join(self.models)}): add under 'models' "
                f"a line like '{name}: {{input: 1.25, output: 10.0, date: 2025-08-07}}' (US dollars per million tokens)"
            )
        return found

    def device(self, name: str) -> DevicePrice:
        """The price of a device; UserError if there is none."""
        found = self.devices.get(name.lower())
        if found is None:
            raise UserError(
                f"no price for device '{name}' in {self.path} (it has {', '.join(self.devices)}): add under 'devices' "
                f"a line like '{name}: {{usd_per_hour: 0.44, date: 2025-09-01}}'"
            )
        return found

    def price(self, model: str, input_tokens: int, output_tokens: int, batch: bool = False) -> float:
        """US dollars for so many tokens of a model; UserError for a model without a price."""
        return self.model(model).cost(input_tokens, output_tokens, batch)


def load_prices(path: str | Path | None = None) -> Prices:
    """The built-in prices, or those of a price file laid over them; UserError names file, entry and mend."""
    built_in = _built_in()
    if path is None:
        return built_in
    models, devices = _read(Path(path))
    return Prices(Path(path), {**built_in.models, **models}, {**built_in.devices, **devices})


def price(model: str, input_tokens: int, output_tokens: int, batch: bool = False) -> float:
    """US dollars at the built-in prices; UserError for a model without a price."""
    return load_prices().price(model, input_tokens, output_tokens, batch)


def device_cost(seconds: float, usd_per_hour: float, devices: int = 1) -> float:
    """US dollars for `devices` devices, each rented for `seconds`."""
    return seconds / 3600 * usd_per_hour * devices


class BudgetReached(UserError):
    """The next piece of work could pass the budget; what is done is kept."""


class Budget:
    """A limit in US dollars: what has been spent, and what work under way may still come to cost.

    Work under way is held at the most that it can cost, so that the limit is not passed; `release` and `spend` replace
    the hold by the real cost.  Without a limit (None) nothing is ever refused, but spending is still added up.
    """

    def __init__(self, limit: float | None = None) -> None:
        if limit is not None and not limit >= 0:
            raise UserError(f"the budget must be an amount in US dollars, 0 or more, not {limit}")
        self.limit = limit
        self.spent = 0.0
        self._held: dict[str, float] = {}

    @property
    def held(self) -> float:
        """US dollars that work under way may cost at most."""
        return sum(self._held.values())

    def would_exceed(self, usd: float) -> bool:
        """Whether spending `usd` more could pass the limit.  A billionth of a dollar over is rounding, not money."""
        return self.limit is not None and self.spent + self.held + usd > self.limit + 1e-9

    def hold(self, key: str, usd: float) -> None:
        """Sets `usd` aside for a piece of work that is about to start."""
        self._held[key] = usd

    def release(self, key: str) -> None:
        """Ends the hold on a piece of work, if there is one."""
        self._held.pop(key, None)

    def spend(self, usd: float) -> None:
        """Adds what a piece of work has cost."""
        self.spent += usd

    def reached(self, what: str, usd: float) -> BudgetReached:
        """The error to raise when `what` (at most `usd` US dollars) does not fit any more."""
        return BudgetReached(
            f"stopped before passing the budget of {self.limit:.2f} USD: {self.spent:.4f} USD are spent and {what} may "
            f"cost up to {usd:.4f} USD more; what is done is kept: raise --budget and give the same command again"
        )


@functools.cache
def _built_in() -> Prices:
    models, devices = _read(BUILT_IN)
    return Prices(BUILT_IN, models, devices)


def _read(path: Path) -> tuple[dict[str, ModelPrice], dict[str, DevicePrice]]:
    content = read_yaml(path, f"the price file {path}")
    if not isinstance(content, dict) or not set(content) <= {"models", "devices"}:
        raise UserError(f"the price file {path} must have the sections 'models' and 'devices' only, like {BUILT_IN}")
    models = {
        name: ModelPrice(
            name,
            _amount(path, name, entry, "input"),
            _amount(path, name, entry, "output"),
            _amount(path, name, entry, "batch_factor", default=1.0),
            str(entry.get("date", "")),
            str(entry.get("source", "")),
        )
        for name, entry in _section(path, content, "models")
    }
    devices = {
        name.lower(): DevicePrice(
            name.lower(),
            _amount(path, name, entry, "usd_per_hour"),
            str(entry.get("date", "")),
            str(entry.get("source", "")),
        )
        for name, entry in _section(path, content, "devices")
    }
    return models, devices


def _section(path: Path, content: Mapping[str, Any], section: str) -> list[tuple[str, Mapping[str, Any]]]:
    entries = content.get(section) or {}
    if not isinstance(entries, dict):
        raise UserError(f"the price file {path}: '{section}' must map names to prices, like {BUILT_IN}")
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise UserError(f"the price file {path}: '{name}' under '{section}' must be a mapping, like in {BUILT_IN}")
    return [(str(name), entry) for name, entry in entries.items()]


def _amount(path: Path, name: str, entry: Mapping[str, Any], field: str, default: float | None = None) -> float:
    value = entry.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(f"the price file {path}: '{name}' needs '{field}' as a number, 0 or more, not {value!r}")
    return float(value)
