"""A model with its adapters merged in, as a folder that `from_pretrained` loads.

Knows adapters, and the chains of deltas that `train` selects.  Knows nothing of documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from selfedit.errors import UserError
from selfedit.models import load_model, local_path
from selfedit.procedures.ask import adapter_errors, adapter_folder, base_model
from selfedit.procedures.policies import delta_name, read_trained
from selfedit.runs.directory import RunDirectory
from selfedit.runs.files import directory_atomically


@dataclass(frozen=True)
class Exported:
    """`merged` counts the adapters that were merged into `model`."""

    folder: Path
    model: str
    merged: int


def export(
    source: Path, out: Path, *, model: str | None = None, dtype: str = "auto", trust_remote_code: bool = False
) -> Exported:
    """Merges an adapter, the adapter of a run of `learn`, or the selected policy of a run of `train`, and writes the model.

    Errors: UserError where `source` is none of these, `out` is taken, or the adapter does not fit the model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: not empty; name a new folder")
    folders, name = _adapters(source)
    local_path(model or name)
    from selfedit.engine import merge_adapter

    loaded = load_model(model or name, device="cpu", dtype=dtype, trust_remote_code=trust_remote_code)
    for folder in folders:
        with adapter_errors(folder, "; name its model with --model"):
            merge_adapter(loaded.hf, folder)
    with directory_atomically(out) as scratch:
        loaded.hf.save_pretrained(scratch)
        loaded.tokenizer.hf.save_pretrained(scratch)
    return Exported(out, loaded.name, len(folders))


def _adapters(source: Path) -> tuple[list[Path], str]:
    if (source / "config.yaml").is_file() and not (source / "adapter_config.json").is_file():
        with RunDirectory.read(source) as run:
            procedure, name = run.config["procedure"], str(run.config["model"])
        if procedure == "train":
            selected = read_trained(source).selected
            return [source / "checkpoints" / delta_name(round) for round in range(1, selected + 1)], name
        if procedure != "learn":
            raise UserError(
                f"{source}: a run of {procedure} keeps no adapter; name a run of `learn` or `train`, or an adapter"
            )
    folder, name_of_run = adapter_folder(source)
    return [folder], name_of_run or base_model(folder)
