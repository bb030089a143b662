"""A model with its adapters merged in, as a folder that `from_pretrained` loads.

Which adapters a folder or a run stands for is `adapters`' part.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from selfedit.errors import UserError
from selfedit.methods.adapters import adapter_errors, find_adapters
from selfedit.models import load_model, local_path, stored_dtype, torch_dtype
from selfedit.runs.files import directory_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """`merged` counts the adapters that were merged into `model`."""

    folder: Path
    model: str
    merged: int


def export(
    source: Path, out: Path, *, model: str | None = None, dtype: str = "auto", trust_remote_code: bool = False
) -> Exported:
    """Merges an adapter, or those of a run of `learn`, `train` (the selected policy) or `continual`, and writes the
    model.

    Served elsewhere, the model is prompted as in training and as `ask` does, by the chat template that is written with
    it, and it answers greedily unless a request says otherwise.  It is merged in float32 and written in `dtype`; `auto`
    is the dtype that the model's own files have.

    Errors: UserError where `source` is none of these, `out` is taken, or an adapter does not fit the model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: not empty; name a new folder")
    found = find_adapters(source)
    name = model or found.model
    local_path(name)
    from transformers import GenerationConfig

    from selfedit.engine import merge_adapter

    written = torch_dtype(dtype) or stored_dtype(name, trust_remote_code=trust_remote_code)
    loaded = load_model(
        name, device="cpu", dtype="float32", instruct=found.instruct, trust_remote_code=trust_remote_code
    )
    if loaded.tokenizer.doubt:
        logger.warning(loaded.tokenizer.doubt)
    for folder in found.folders:
        with adapter_errors(folder, "; name its model with --model"):
            merge_adapter(loaded.hf, folder)
    loaded.hf.to(written)  # type: ignore[arg-type]
    tokenizer = loaded.tokenizer
    if not tokenizer.instruct:
        tokenizer.hf.chat_template = None
    # The model's own may sample, or punish repetition, and may not know the token that ends a turn.
    loaded.hf.generation_config = GenerationConfig(
        bos_token_id=tokenizer.hf.bos_token_id,
        pad_token_id=tokenizer.hf.pad_token_id,
        eos_token_id=list(tokenizer.stop_ids) or None,
    )
    with directory_atomically(out) as scratch:
        loaded.hf.save_pretrained(scratch)
        tokenizer.hf.save_pretrained(scratch)
    return Exported(out, loaded.name, len(found.folders))
