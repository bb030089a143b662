"""Adapters on disk, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

Nothing is unpickled, and shapes are checked before a number is used: an adapter from elsewhere is untrusted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from selfedit.engine.jobs import LoraSpec

if TYPE_CHECKING:  # which model an adapter belongs to is read without torch
    from torch import Tensor
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HALVES = ("lora_A", "lora_B")
_DTYPES = ("float64", "float32", "bfloat16", "float16")
# In the metadata of the weights: the user's name for the model, where PEFT needs another to load it.
_MODEL = "selfedit_model"
# Variants of LoRA that compute something else, or on other base weights.
_UNSUPPORTED = (
    "use_dora",
    "alora_invocation_tokens",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "init_lora_weights",
)


def files(
    spec: LoraSpec, state: dict[str, tuple[Tensor, Tensor]], *, base_model: str, model: str | None = None
) -> dict[str, bytes]:
    """Layer name -> (A [R, D_in], B [D_out, R]) as the files of a PEFT adapter, by name.

    `base_model` is what PEFT loads; `model` is the name that `model_name` gives back, if that is another.
    """
    from safetensors.torch import save

    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "use_rslora": spec.rslora,
        # Whole names, not ends: an adapter of some layers only must not match the others.
        "target_modules": list(state) if spec.layers is not None else sorted({_end(name, spec) for name in state}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    tensors = {}
    for name, (a, b) in state.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = a.detach().cpu().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = b.detach().cpu().contiguous()
    metadata = {"format": "pt"} | ({} if model is None else {_MODEL: model})
    return {CONFIG: (json.dumps(config, indent=2) + "\n").encode(), WEIGHTS: _ordered(save(tensors, metadata=metadata))}


def _ordered(weights: bytes) -> bytes:
    """The same file with its metadata in order: safetensors writes them in another one each time."""
    end = 8 + int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + weights[end:]


def load_adapter(
    adapter: str | Path | Mapping[str, bytes], model: PreTrainedModel | None = None
) -> tuple[LoraSpec, dict[str, tuple[Tensor, Tensor]]]:
    """Reads a LoRA adapter that a bank or PEFT wrote, from a folder or from its files by name; with a `model`, checks
    that it is a whole adapter of that model.

    Errors: FileNotFoundError (of files by name: KeyError) where a file is missing; SafetensorError for a damaged one;
    ValueError, in one line, for an adapter that is not a plain LoRA, whose numbers cannot be used, or that does not fit
    the model."""
    import torch
    from safetensors.torch import load as load_tensors

    folder = _folder(adapter)
    spec, weights = _fields(folder, _read_config(adapter)), _read(adapter, WEIGHTS)
    try:
        tensors = load_tensors(weights)
    except KeyError as error:  # a type of the format that torch has no name for
        raise ValueError(f"{folder}: has numbers of type {error.args[0]}, not {', '.join(_DTYPES)}") from None
    # safetensors gives tensors in another order each time; whatever is made of them is to be the same each time.
    state = _layers(folder, dict(sorted(tensors.items())), spec["rank"])
    if spec["targets"] is None:
        spec["targets"] = tuple(state)
    if stray := [name for name in state if not targeted(name, spec["targets"])]:
        raise ValueError(f"{folder}: unexpected tensors for {_short(stray[0])}, which target_modules does not name")
    lora = LoraSpec(**spec)
    if model is not None:
        _check_fit(folder, state, lora.targets, model)
    for name, (a, b) in state.items():
        largest = lora.rank * abs(lora.scaling) * float(a.abs().max()) * float(b.abs().max())
        if not largest < torch.finfo(torch.float32).max:  # also where it is not a number
            raise ValueError(f"{folder}: the numbers of {_short(name)} are not finite, or too large to be used")
    return lora, state


def model_name(folder: Path) -> str | None:
    """The name of the model that an adapter belongs to, as it was called when the adapter was trained.  Errors: as
    `load_adapter`."""
    config = _read_config(folder)
    _fields(folder, config)
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        name = (file.metadata() or {}).get(_MODEL, config.get("base_model_name_or_path"))
    return name if isinstance(name, str) and name else None


def _folder(adapter: str | Path | Mapping[str, bytes]) -> Path:
    """What errors call it."""
    return Path("an adapter in memory" if isinstance(adapter, Mapping) else adapter)


def _read(adapter: str | Path | Mapping[str, bytes], name: str) -> bytes:
    return adapter[name] if isinstance(adapter, Mapping) else (Path(adapter) / name).read_bytes()


def _read_config(adapter: str | Path | Mapping[str, bytes]) -> dict[str, Any]:
    file = _folder(adapter) / CONFIG
    try:
        config = json.loads(_read(adapter, CONFIG).decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a configuration that can be read ({type(error).__name__})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: not a JSON object; is it a LoRA adapter?")
    return config


def _fields(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Those of a `LoraSpec`; `targets` is None where the configuration does not simply list them."""
    file = folder / CONFIG

    def number(key: str, default: Any = None) -> float:
        value = config.get(key, default)
        try:
            if type(value) in (int, float) and math.isfinite(float(value)):
                return float(value)
        except OverflowError:
            pass
        raise ValueError(f"{file}: {key} must be a finite number, not {_short(value)}")

    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder}: peft_type is {config.get('peft_type')}; only LORA adapters can be loaded")
    initial = config.get("init_lora_weights")
    changed_base = isinstance(initial, str) and initial not in ("gaussian", "eva", "orthogonal")
    for key in _UNSUPPORTED:
        if config.get(key) and (key != "init_lora_weights" or changed_base):
            raise ValueError(f"{folder}: adapters with {key} are not supported")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{folder}: adapters with trained biases are not supported")
    rank, dropout = number("r"), number("lora_dropout", 0.0)
    if rank < 1 or rank != int(rank):
        raise ValueError(f"{file}: r must be a whole number from 1, not {_short(config['r'])}")
    if not 0 <= dropout < 1:
        raise ValueError(f"{file}: lora_dropout must be in [0, 1), not {_short(config['lora_dropout'])}")
    targets = config.get("target_modules")
    listed = isinstance(targets, list) and targets and all(isinstance(target, str) for target in targets)
    narrowed = any(config.get(key) is not None for key in ("layers_to_transform", "layers_pattern", "exclude_modules"))
    return {
        "rank": int(rank),
        "alpha": number("lora_alpha"),
        "dropout": dropout,
        "rslora": config.get("use_rslora") is True,
        "targets": tuple(map(str, targets or ())) if listed and not narrowed else None,
    }


def _layers(folder: Path, tensors: Mapping[str, Tensor], rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer name -> (A [R, D_in], B [D_out, R]), float32."""
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, half = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        if half not in _HALVES or key != f"{_PREFIX}{name}.{half}.weight":
            raise ValueError(f"{folder}: unexpected tensor {_short(key)}")
        halves.setdefault(name, {})[half] = tensor
    if not halves:
        raise ValueError(f"{folder / WEIGHTS}: holds no tensors")
    layers = {}
    for name, found in halves.items():
        for half in _HALVES:
            if half not in found:
                raise ValueError(f"{folder}: {half} of {_short(name)} is missing")
            if (dtype := str(found[half].dtype).removeprefix("torch.")) not in _DTYPES:
                raise ValueError(f"{folder}: {_short(name)} has numbers of type {dtype}, not {', '.join(_DTYPES)}")
        a, b = (found[half] for half in _HALVES)
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != rank or b.shape[1] != rank or 0 in (*a.shape, *b.shape):
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            raise ValueError(f"{folder}: {_short(name)} has shapes {shapes}, which do not go with r = {rank}")
        layers[name] = a.float(), b.float()
    return layers


def _check_fit(
    folder: Path, state: Mapping[str, tuple[Tensor, Tensor]], targets: Sequence[str], model: PreTrainedModel
) -> None:
    model_name = model.config.name_or_path or type(model).__name__
    for name, (a, b) in state.items():
        weight = _weight(model, name)
        if weight is None:
            raise ValueError(
                f"{folder}: {model_name} has no layer {_short(name)}; the adapter belongs to another model"
            )
        if weight.shape != (b.shape[0], a.shape[1]):
            raise ValueError(
                f"{folder}: {_short(name)} has another shape in {model_name}; the adapter belongs to another model"
            )
    missing = [name for name, _ in model.named_modules() if targeted(name, targets) and name not in state]
    if missing:
        raise ValueError(
            f"{folder}: of {len(missing) + len(state)} layers of {model_name}, {len(missing)} are missing (first: "
            f"{missing[0]}); the adapter is not whole, or belongs to another model"
        )


def _weight(model: PreTrainedModel, name: str) -> Tensor | None:
    try:
        module = model.get_submodule(name)
        # Under a bank, the layer's own weights are one level down.
        return getattr(module, "base_layer", module).get_parameter("weight")
    except AttributeError:
        return None


def targeted(name: str, targets: Sequence[str]) -> bool:
    """Whether a layer is among the targets: whole dotted names, or their ends."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _short(value: Any) -> str:
    """What a file says, in a line of ours."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def merge_adapter(model: PreTrainedModel, adapter: str | Path | Mapping[str, bytes], *, scale: float = 1.0) -> None:
    """Adds the update of an adapter (a folder, or files by name) to the model's own weights, in place, computed in
    float32.

    Errors: as `load_adapter`.
    """
    import torch

    spec, state = load_adapter(adapter, model)
    with torch.no_grad():
        for name, (a, b) in state.items():
            weight = _weight(model, name)
            assert weight is not None  # `load_adapter` has looked
            update = (b.to(weight.device) @ a.to(weight.device)) * (spec.scaling * scale)
            weight.copy_((weight.float() + update).to(weight.dtype))


def _end(name: str, spec: LoraSpec) -> str:
    if spec.targets == "all-linear":
        return name.rsplit(".", 1)[-1]
    if spec.targets == "mlp":
        # With the block's name, so that PEFT finds no layer of that name elsewhere.
        return ".".join(part for part in name.split(".")[-2:] if not part.isdigit())
    return max((target for target in spec.targets if targeted(name, [target])), key=len)
