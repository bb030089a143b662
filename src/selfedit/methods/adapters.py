"""Where the adapters lie that a folder or a run stands for, and which model they belong to.

A run of `learn` keeps one adapter; runs of `train` and `continual` keep a chain of deltas, merged in order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selfedit.errors import UserError
from selfedit.methods.policies import is_whole, selected_round
from selfedit.models.bundled import NAME as BUNDLED
from selfedit.runs.directory import RunDirectory

LEARNED = "learned"  # the name of the adapter that `learn` makes
RETRIED = "retried"  # of the one that has also learned once more what the first had missed


@dataclass(frozen=True)
class Adapters:
    """`folders` in PEFT's format, to be merged in this order into `model`.

    `instruct` says whether their run prompted the model through its chat template; None: as the model does by itself.
    """

    folders: tuple[Path, ...]
    model: str
    instruct: bool | None = None


def find_adapters(source: Path) -> Adapters:
    """What an adapter's folder, or the run directory of `learn`, `train` or `continual`, stands for.

    Errors: UserError where there is none, where a run is unfinished, and where an adapter of it is gone.
    """
    if not os.path.isfile(source / "config.yaml") or os.path.isfile(source / "adapter_config.json"):
        if not os.path.isdir(source):
            raise UserError(
                f"{source}: no such folder; give an adapter's folder, or the run directory of"
                " `selfedit learn`, `train` or `continual`"
            )
        return Adapters((source,), _model_name(source) or BUNDLED)
    with RunDirectory.read(source) as run:
        instruct: bool | None = run.resolved.get("instruct", run.config.get("instruct"))
        procedure, model = run.config.get("procedure"), str(run.config.get("model") or BUNDLED)
        if procedure == "learn":
            retried = any(fit.condition.endswith(" twice") for fit in run.store.fits() if fit.steps)
            folders = [run.adapter(RETRIED if retried else LEARNED)]
        elif procedure == "train":
            folders = [run.checkpoint(round) for round in range(1, selected_round(run) + 1)]
        elif procedure == "continual":
            run.read_summary()  # an unfinished run is refused
            # A document without edits has no step of its own.
            folders = [run.checkpoint(step) for step in sorted({fit.round for fit in run.store.fits() if fit.steps})]
        else:
            raise UserError(
                f"{source}: a run of {procedure} keeps no adapter; name a run of `learn`, `train` or `continual`,"
                " or an adapter's folder"
            )
    for folder in folders:
        if not is_whole(folder):
            raise UserError(f"{folder}: no adapter there; the same `selfedit {procedure}` command makes it again")
    return Adapters(tuple(folders), model, instruct)


def _model_name(folder: Path) -> str | None:
    from selfedit.engine.peft_format import model_name

    with adapter_errors(folder):
        return model_name(folder)


@contextmanager
def adapter_errors(folder: Path, mend: str = "") -> Iterator[None]:
    """What can be wrong with an adapter, in one line each; `mend` is added where it does not fit."""
    from safetensors import SafetensorError

    try:
        yield
    except FileNotFoundError as error:
        missing = Path(str(error.filename or "adapter_model.safetensors")).name
        raise UserError(f"{folder}: no adapter there ({missing} is missing)") from None
    except OSError as error:
        raise UserError(f"{folder}: the adapter cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise UserError(f"{folder / 'adapter_model.safetensors'}: not a whole safetensors file ({error})") from None
    except ValueError as error:
        raise UserError(f"{error}{mend}") from None
