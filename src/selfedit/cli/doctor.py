"""`selfedit doctor`: what is here to run on, on one screen, for the user and for bug reports."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from pathlib import Path
from typing import Any

from selfedit.runs.directory import installed

PACKAGES = ("selfedit", "torch", "transformers", "safetensors", "ray", "peft")


def examine() -> dict[str, Any]:
    """Versions, devices with the paths that the engine chooses there, bundled models, free disk, Ray."""
    import torch

    devices = [torch.device("cpu")]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        devices = [*(torch.device(kind.type, k) for k in range(torch.accelerator.device_count())), *devices]
    return {
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
        "devices": [_device(device) for device in devices],
        "models": _models(),
        "disk": _disk(),
        "ray": os.environ.get("RAY_ADDRESS") or "no RAY_ADDRESS: --ray auto finds the cluster of this machine, if any",
    }


def text(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number or 'not installed'}" for name, number in found["versions"].items())
    lines = [f"versions  {versions}"]
    for device in found["devices"]:
        lines.append(f"device    {device['name']}, {device['free']} GB free, {device['dtype']} by default")
        lines += [f"          {path}: {used}" for path, used in device["paths"].items()]
    lines += [f"model     {name}: {state}" for name, state in found["models"].items()]
    lines += [f"disk      {place}: {free} GB free" for place, free in found["disk"].items()]
    return "\n".join([*lines, f"ray       {found['ray']}", "the engine's own test: python -m selfedit.engine.selftest"])


def _device(device: Any) -> dict[str, Any]:
    """Name, free memory, dtype, and which of the engine's fast paths a trial has found to work in this dtype."""
    import torch

    from selfedit.engine import paths
    from selfedit.engine.memory import free_memory
    from selfedit.engine.selftest import use_every_path
    from selfedit.models.loading import best_dtype

    name = f"cpu ({os.cpu_count()} cores)" if device.type == "cpu" else str(device)
    if device.type == "cuda":
        name += f" ({torch.cuda.get_device_name(device)})"
    dtype, used = best_dtype(device), {}
    with warnings.catch_warnings(action="ignore"):
        try:
            use_every_path(device, dtype)
        except RuntimeError as error:
            used["the engine"] = f"does not run: {str(error).partition(chr(10))[0]}"
    for (path, where, _), fault in paths.chosen().items():
        if where == device:
            used[path] = "used" if fault is None else f"not used: {fault}"
    return {
        "name": name,
        "free": round(free_memory(device) / 1e9, 1),
        "dtype": str(dtype).removeprefix("torch."),
        "paths": used,
    }


def _models() -> dict[str, str]:
    from selfedit.models.bundled import MODELS, converted_folder

    def state(name: str) -> str:
        if (converted_folder(name) / "config.json").exists():
            return "ready"
        missing = [package for package in MODELS[name].packages if installed(package) is None]
        return "not installed (make models)" if missing else "installed, converted when it is first used"

    return {name: state(name) for name in MODELS}


def _disk() -> dict[str, float]:
    from selfedit.models.bundled import cache_folder

    cache = cache_folder()
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    places = {".": Path.cwd(), f"models ({cache})": there}
    return {name: round(shutil.disk_usage(place).free / 1e9, 1) for name, place in places.items()}
