"""A model with its adapters merged in, as a folder that `from_pretrained` loads; of a run with an adapter per document,
the adapters.

Which adapters a folder or a run stands for is `adapters`' part.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selfedit.errors import UserError
from selfedit.methods.adapters import DOCUMENTS_FILE, Adapters, adapter_errors, find_adapters, one_model
from selfedit.methods.gguf_export import ADAPTER, MODEL, GgufType, convert, find_converter, modelfile
from selfedit.methods.model_card import CARD
from selfedit.models import Model, load_model, local_path, stored_dtype, torch_dtype
from selfedit.runs.files import directory_atomically

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """`merged` counts the adapters that were merged into `model`, `copied` those that lie in the folder apart."""

    folder: Path
    model: str
    merged: int
    copied: int = 0


def export(
    source: Path,
    out: Path,
    *,
    model: str | None = None,
    dtype: str = "auto",
    gguf: GgufType | None = None,
    adapter_only: bool = False,
    trust_remote_code: bool = False,
) -> Exported:
    """Merges an adapter, or those of a run of `learn`, `train` (the selected policy) or `continual`, and writes the
    model.

    Served elsewhere, the model is prompted as in training and as `ask` does, by the chat template that is written with
    it, and it answers greedily unless a request says otherwise.  It is merged in float32 and written in `dtype`; `auto`
    is the dtype that the model's own files have.  With `gguf` there is a GGUF file of that type beside it, with a
    Modelfile for Ollama; `adapter_only` then leaves model and adapter apart, a GGUF file each, and writes no others.

    Adapters that have learned a document each make no one model.  They are copied, each to a folder in PEFT's format,
    with a tokenizer, a card for the hub and the list of documents (their texts too) by which `ask` and `serve` find the
    one for a question, in this folder as in the run's, and with the permissions that they have there.

    Errors: UserError where `source` is none of these, `out` is taken, an adapter does not fit the model, llama.cpp's
    converter is not there, or is to write one model of an adapter per document; and for a `model` or `dtype` of
    adapters that are copied.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: not empty; name a new folder")
    if adapter_only and gguf is None:
        raise UserError("--adapter-only: an adapter needs no export but to GGUF; add --gguf")
    for converter in (MODEL, ADAPTER) if adapter_only else (MODEL,) if gguf else ():
        find_converter(converter)
    if gguf is None and (several := find_adapters(source)).documents:
        for flag, given in (("--model", model is not None), ("--dtype", dtype != "auto")):
            if given:
                raise UserError(f"{source}: an adapter per document, which are copied as they are; leave out {flag}")
        return _copy(several, out)
    found = one_model(source)
    if adapter_only and len(found.folders) != 1:
        raise UserError(f"{source}: a run of several steps, which can only be merged; leave out --adapter-only")
    name = model or found.model
    local_path(name)
    written = torch_dtype(dtype) or stored_dtype(name, trust_remote_code=trust_remote_code)
    loaded = load_model(
        name, device="cpu", dtype="float32", instruct=found.instruct, trust_remote_code=trust_remote_code
    )
    if loaded.tokenizer.doubt:
        logger.warning(loaded.tokenizer.doubt)
    with directory_atomically(out) as scratch:
        if adapter_only and gguf is not None:
            with tempfile.TemporaryDirectory(dir=scratch) as base:
                _write(loaded, Path(base), written)
                convert(Path(base), scratch / "base.gguf", gguf)
                convert(found.folders[0], scratch / "adapter.gguf", gguf, Path(base))
            content = modelfile("base.gguf", loaded.tokenizer, "adapter.gguf")
            (scratch / "Modelfile").write_text(content, encoding="utf-8")
            return Exported(out, loaded.name, 0)
        from selfedit.engine import merge_adapter

        for folder in found.folders:
            with adapter_errors(folder, "; name its model with --model"):
                merge_adapter(loaded.hf, folder)
        _write(loaded, scratch, written)
        if gguf is not None:
            convert(scratch, scratch / "model.gguf", gguf)
            (scratch / "Modelfile").write_text(modelfile("model.gguf", loaded.tokenizer), encoding="utf-8")
    return Exported(out, loaded.name, len(found.folders))


def _copy(adapters: Adapters, out: Path) -> Exported:
    beside = adapters.folders[0].parent.parent
    with directory_atomically(out) as scratch:
        for folder in (*adapters.folders, beside / "tokenizer"):
            shutil.copytree(folder, scratch / folder.relative_to(beside))
        # With their permissions, as the adapters: the list has the documents' texts.
        for name in (CARD, DOCUMENTS_FILE):
            shutil.copy(beside / name, scratch / name)
    return Exported(out, adapters.model, 0, len(adapters.folders))


def _write(model: Model, folder: Path, dtype: torch.dtype) -> None:
    from transformers import GenerationConfig

    model.hf.to(dtype)  # type: ignore[arg-type]
    tokenizer = model.tokenizer
    if not tokenizer.instruct:
        tokenizer.hf.chat_template = None
    # The model's own may sample, or punish repetition, and may not know the token that ends a turn.
    model.hf.generation_config = GenerationConfig(
        bos_token_id=tokenizer.hf.bos_token_id,
        pad_token_id=tokenizer.hf.pad_token_id,
        eos_token_id=list(tokenizer.stop_ids) or None,
    )
    model.hf.save_pretrained(folder)
    tokenizer.hf.save_pretrained(folder)
