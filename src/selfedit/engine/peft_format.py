"""Adapters on disk, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

Knows the format's names and keys.  Knows nothing of banks or training.  Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from selfedit.engine.lora import LoraSpec

_PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save(folder: Path, spec: LoraSpec, state: dict[str, tuple[Tensor, Tensor]], *, base_model: str) -> None:
    """Writes layer name -> (A [R, D_in], B [D_out, R]) as a PEFT adapter."""
    folder.mkdir(parents=True, exist_ok=True)
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
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load(folder: Path) -> tuple[LoraSpec, dict[str, tuple[Tensor, Tensor]]]:
    """Reads a LoRA adapter that `save` or PEFT wrote.

    Errors: FileNotFoundError where a file is missing; ValueError for an adapter that is not a plain LoRA.
    """
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder}: peft_type is {config.get('peft_type')}; only LORA adapters can be loaded")
    for key in (
        "use_dora",
        "alora_invocation_tokens",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "fan_in_fan_out",
    ):
        if config.get(key):
            raise ValueError(f"{folder}: adapters with {key} are not supported")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{folder}: adapters with trained biases are not supported")
    halves: dict[str, dict[str, Tensor]] = {}
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            name, _, which = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
            if which not in ("lora_A", "lora_B"):
                raise ValueError(f"{folder}: unexpected tensor {key}")
            halves.setdefault(name, {})[which] = file.get_tensor(key).float()
    state = {name: (half["lora_A"], half["lora_B"]) for name, half in halves.items()}
    spec = LoraSpec(
        rank=config["r"],
        alpha=config["lora_alpha"],
        targets=tuple(state),
        dropout=config.get("lora_dropout") or 0.0,
        rslora=bool(config.get("use_rslora")),
    )
    return spec, state


@torch.no_grad()
def merge(model: PreTrainedModel, folder: Path, *, scale: float = 1.0) -> None:
    """Adds an adapter's update to the model's own weights, in place, computed in float32.

    Errors: ValueError where the adapter does not fit the model.
    """
    spec, state = load(folder)
    for name, (a, b) in state.items():
        try:
            module = model.get_submodule(name)
            # Under a bank, the layer's own weights are one level down.
            weight: Tensor = getattr(module, "base_layer", module).get_parameter("weight")
        except AttributeError:
            raise ValueError(f"{folder}: the model has no layer {name}; the adapter belongs to another model") from None
        if weight.shape != (b.shape[0], a.shape[1]):
            raise ValueError(
                f"{folder}: {name} has another shape than in this model; the adapter belongs to another model"
            )
        update = (b.to(weight.device) @ a.to(weight.device)) * (spec.scaling * scale)
        weight.copy_((weight.float() + update).to(weight.dtype))


def _end(name: str, spec: LoraSpec) -> str:
    if spec.targets == "all-linear":
        return name.rsplit(".", 1)[-1]
    return max((t for t in spec.targets if name == t or name.endswith(f".{t}")), key=len)
