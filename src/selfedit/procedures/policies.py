"""Policies: chains of small deltas on the base model, one a round of Step B, kept as checkpoints in PEFT's format.

Knows where checkpoints lie and which model they belong to.  Knows nothing of how they were trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfedit.errors import UserError
from selfedit.runs.directory import RunDirectory

if TYPE_CHECKING:
    from selfedit.procedures.experiment import Experiment

DELTA_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Policy:
    """What `train` selected: `round` 0 is the untrained model; `chain` names its deltas, in order; `prompt` its editing prompt."""

    round: int
    chain: tuple[str, ...]
    prompt: str


def delta_name(round: int) -> str:
    return f"round-{round:02d}"


def read_delta(folder: Path) -> dict[str, bytes]:
    """The files of one delta.  Errors: UserError where one is missing."""
    try:
        return {name: (folder / name).read_bytes() for name in DELTA_FILES}
    except OSError as error:
        raise UserError(f"{folder}: not a whole checkpoint ({error.strerror}); train that round again") from None


def publish_chain(experiment: Experiment, run_path: Path, rounds: range) -> tuple[str, ...]:
    """Makes the deltas of these rounds known to the workers; returns their names."""
    names = []
    for round in rounds:
        name = delta_name(round)
        experiment.pool.publish(name, read_delta(run_path / "checkpoints" / name))
        names.append(name)
    return tuple(names)


def selected_round(path: Path) -> tuple[dict[str, Any], int]:
    """The settings of a finished run of `train`, and the round that it selected.  Errors: UserError for any other directory."""
    with RunDirectory.read(path) as run:
        if run.config.get("procedure") != "train":
            raise UserError(
                f"{path}: a run of {run.config.get('procedure')}, not of train; name a run of `selfedit train`"
            )
        selected = run.read_summary().selected_round
        if selected is None:
            raise UserError(f"{path}: no round is selected yet; let `selfedit train` finish")
        return run.config, selected


def load_policy(path: Path, experiment: Experiment) -> Policy:
    """The selected policy of a run of `train`, made known to the workers.

    Errors: UserError for a run of another procedure, an unfinished one, or one of another model.
    """
    config, selected = selected_round(path)
    if config["model"] != experiment.settings.model:
        raise UserError(
            f"{path}: its checkpoints belong to model {config['model']}, not {experiment.settings.model};"
            " give the same --model"
        )
    chain = publish_chain(experiment, path, range(1, selected + 1))
    return Policy(selected, chain, str(config["edit_prompt"]))
