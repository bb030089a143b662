"""Memory of the device that a model lies on: how much is free, and when it has run out.

Figures come from torch for accelerators, from the operating system and the process's control group for CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")

_GROUP = Path("/sys/fs/cgroup")  # of control groups, version 2

# The share of free memory that one process may use: others share a CPU's.
_SHARE = {"cpu": 0.5, "accelerator": 0.9}


def device_kind(device: torch.device) -> Literal["cpu", "accelerator"]:
    """What sizes and limits go by."""
    return "cpu" if device.type == "cpu" else "accelerator"


def move(device: torch.device, *things: object) -> None:
    """Moves the tensors of the host among the attributes of these objects to a device, in one copy for which the host
    does not wait; on MPS it does, which would else read the host's memory after it is freed."""
    if device.type == "cpu":
        return
    found = [
        (x, name, t) for x in things for name, t in vars(x).items() if isinstance(t, Tensor) and t.device.type == "cpu"
    ]
    sizes = [-(-tensor.nbytes // 16) * 16 for _, _, tensor in found]
    packed = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for part, (_, _, tensor) in zip(packed.split(sizes), found, strict=True):
        part[: tensor.nbytes].view(tensor.dtype).copy_(tensor.flatten())
    there = packed.to(device, non_blocking=device.type != "mps")
    for part, (x, name, tensor) in zip(there.split(sizes), found, strict=True):
        setattr(x, name, part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device.  On a CPU, on MPS, which shares its memory, and on another accelerator
    of which torch cannot tell, what the operating system and the process's group allow."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type == device.type != "mps":
        # Older versions of torch do not have the function, or not for this device.
        with suppress(AttributeError, RuntimeError):
            free, _ = torch.accelerator.get_memory_info(device)
            return free + torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    free = _available()
    limit, used = _number(_GROUP / "memory.max"), _number(_GROUP / "memory.current")
    if limit is not None and used is not None:
        # Pages of files that were read long ago are the group's, but given up where memory is wanted.
        cached = _number(_GROUP / "memory.stat", "inactive_file") or 0
        free = min(free, max(0, limit - used + cached))
    return free


def usable_memory(device: torch.device) -> int:
    """Bytes that one process should plan with: nine tenths of what is free on an accelerator, half on a CPU."""
    return int(free_memory(device) * _SHARE[device_kind(device)])


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out (on a CPU and on MPS, torch raises a plain RuntimeError)."""
    lines = "DefaultCPUAllocator: can't allocate", "MPS backend out of memory"
    return isinstance(error, torch.OutOfMemoryError) or any(line in str(error) for line in lines)


def attempted(compute: Callable[[], R], *, last: bool = False) -> R | None:
    """What `compute` gives, or None where memory ran out; its tensors go with the error, when this function returns.
    The `last` attempt raises."""
    try:
        return compute()
    except RuntimeError as error:
        if last or not out_of_memory(error):
            raise
        return None


def release_memory() -> None:
    """Gives cached blocks of accelerators back."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _available() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # Where the system does not say what is free (macOS), half of what there is.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _number(path: Path, key: str = "") -> int | None:
    """The number in a file, or on its line that begins with `key`; None where there is none."""
    with suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, value = line.rpartition(" ")
            if name == key and value.isdigit():
                return int(value)
    return None
