"""A model with its adapters merged in, as a folder that `from_pretrained` loads.

Which adapters a folder or a run stands for is `adapters`' part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from selfedit.errors import UserError
from selfedit.models import load_model, local_path
from selfedit.procedures.adapters import adapter_errors, find_adapters
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
    """Merges an adapter, or those of a run of `learn`, `train` (the selected policy) or `continual`, and writes the model.

    Errors: UserError where `source` is none of these, `out` is taken, or an adapter does not fit the model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: not empty; name a new folder")
    found = find_adapters(source)
    name = model or found.model
    local_path(name)
    from selfedit.engine import merge_adapter

    loaded = load_model(name, device="cpu", dtype=dtype, trust_remote_code=trust_remote_code)
    for folder in found.folders:
        with adapter_errors(folder, "; name its model with --model"):
            merge_adapter(loaded.hf, folder)
    with directory_atomically(out) as scratch:
        loaded.hf.save_pretrained(scratch)
        loaded.tokenizer.hf.save_pretrained(scratch)
    return Exported(out, loaded.name, len(found.folders))
