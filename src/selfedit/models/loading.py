"""Loads a causal language model with its tokenizer, by hub name, by folder, or by the bundled model's name.

Models come frozen and in evaluation mode, in bfloat16 where the device is fast at it and in float32 elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from selfedit.errors import UserError, reason
from selfedit.models.bundled import DEFAULT
from selfedit.models.finding import local_path
from selfedit.models.kind import is_chat_model
from selfedit.models.tokenizer import Tokenizer
from selfedit.text import listed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Model:
    """A causal language model that is ready for use, with its tokenizer.  `name` is what the user called it."""

    name: str
    hf: PreTrainedModel
    tokenizer: Tokenizer

    @property
    def context_length(self) -> int:
        """How many tokens the model can read at once."""
        return int(getattr(self.hf.config.get_text_config(), "max_position_embeddings", 0) or 2048)


def load_tokenizer(name: str, *, instruct: bool | None = None, trust_remote_code: bool = False) -> Tokenizer:
    """Loads a tokenizer alone (the driver of a cluster needs no weights).  Errors: UserError for an unknown model."""
    from transformers import AutoTokenizer

    hf = _from_pretrained(AutoTokenizer, name, trust_remote_code=trust_remote_code)
    if instruct and hf.chat_template is None:
        raise UserError(f"model {name} has no chat template: leave out --instruct, or name a chat model")
    stop_ids = _stop_ids(name, hf)
    if instruct is not None:
        return Tokenizer(hf, instruct, stop_ids)
    chat, doubt = is_chat_model(name, hf, stop_ids)
    return Tokenizer(hf, chat, stop_ids, doubt)


def load_model(
    name: str = DEFAULT,
    *,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    instruct: bool | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Loads a model for inference and for adapters: frozen, in evaluation mode.

    `dtype` is `auto` (float32 on a CPU without fast bfloat16, bfloat16 elsewhere), `float32` or `bfloat16`; `device` is
    the first accelerator, else the CPU.  Errors: UserError for an unknown model, device or dtype.
    """
    local_path(name)  # before what takes seconds to import
    from transformers import AutoModelForCausalLM

    target = usable_device(device)
    chosen = torch_dtype(dtype) or best_dtype(target)
    tokenizer = load_tokenizer(name, instruct=instruct, trust_remote_code=trust_remote_code)
    hf, report = _from_pretrained(
        AutoModelForCausalLM, name, trust_remote_code=trust_remote_code, dtype=chosen, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):  # transformers makes them up at random
        raise UserError(f"model {name}: its files lack weights of a causal language model ({listed(missing, 3)})")
    hf.requires_grad_(False)
    # Adapters record the name that the user gave, not a folder of this machine's cache.
    hf.config.name_or_path = name
    return Model(name, hf.to(target).eval(), tokenizer)


def load_outline(name: str, *, instruct: bool | None = None, trust_remote_code: bool = False) -> Model:
    """A model without its weights: its layers on torch's meta device, and its tokenizer.  Errors: UserError for an
    unknown model."""
    tokenizer = load_tokenizer(name, instruct=instruct, trust_remote_code=trust_remote_code)
    return Model(name, _skeleton(name, trust_remote_code), tokenizer)


def parameter_count(name: str, *, trust_remote_code: bool = False) -> int:
    """How many parameters a model has, without loading it: from the headers of its files, else from its configuration.

    Errors: UserError for an unknown model.
    """
    folder = Path(local_path(name))
    files = sorted(folder.glob("model*.safetensors")) if folder.is_dir() else []
    try:
        return sum(_numbers(file) for file in files) or _skeleton(name, trust_remote_code).num_parameters()
    except SafetensorError as error:
        raise UserError(f"model {name}: {folder} holds a damaged file ({error})") from None


def _numbers(file: Path) -> int:
    with safe_open(file, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118


def _skeleton(name: str, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _from_pretrained(AutoConfig, name, trust_remote_code=trust_remote_code)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # as in `_from_pretrained`
        raise UserError(f"model {name}: no causal language model ({reason(error)})") from error


def torch_dtype(name: str) -> torch.dtype | None:
    """The dtype that `--dtype` names; None for `auto`.  Errors: UserError for another name."""
    import torch

    known = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known:
        raise UserError(f"--dtype {name}: not known; use auto, float32 or bfloat16")
    return known[name]


def stored_dtype(name: str, *, trust_remote_code: bool = False) -> torch.dtype:
    """The dtype that a model's files have, as its configuration says."""
    import torch
    from transformers import AutoConfig

    config = _from_pretrained(AutoConfig, name, trust_remote_code=trust_remote_code)
    found: torch.dtype | None = config.get_text_config().dtype
    return found or torch.float32


def best_dtype(device: torch.device) -> torch.dtype:
    import torch

    # bfloat16 products on a CPU without instructions for them run at a quarter of float32's rate.
    if device.type == "cpu" and not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return torch.float32
    return torch.bfloat16


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device of this name; the first accelerator, else the CPU, for None and `auto`.  Errors: UserError."""
    import torch

    if device is None or device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: not usable here ({reason(error)})") from None
    return target


def _from_pretrained(auto: Any, name: str, **arguments: Any) -> Any:
    path = local_path(name)
    try:
        return auto.from_pretrained(path, **arguments)
    except Exception as error:  # damaged files, a package that they need, the hub: each is told in its own way
        raise UserError(f"model {name}: cannot be loaded as a causal language model ({reason(error)})") from error


def _stop_ids(name: str, hf: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's end token first, then what the generation config adds."""
    from transformers import GenerationConfig

    ids = [] if hf.eos_token_id is None else [hf.eos_token_id]
    try:
        more = GenerationConfig.from_pretrained(local_path(name)).eos_token_id
    except OSError:  # a model need not have one
        more = None
    for token in more if isinstance(more, list) else [more]:
        if token is not None and token not in ids:
            ids.append(token)
    return tuple(ids)
