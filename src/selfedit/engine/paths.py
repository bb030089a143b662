"""Fast paths, each tried on a few rows before it is used: what a device lacks is found so, not by its name.

A path that fails, that gives other numbers than the plain one, or for which the host has to wait for the device, is not
used, and one line says so.  Trials are made once per process for a device, a dtype and a shape.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from selfedit.engine.memory import out_of_memory

Way = Callable[[], Sequence[Tensor]]
# Why a path is not used; None: it is.
_found: dict[tuple[str, torch.device, torch.dtype, Hashable], str | None] = {}


def works(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    shape: Hashable,
    trial: Callable[[], tuple[Way, Way]],
) -> bool:
    """Whether a fast path works.  The first call makes a `trial`: the fast way and the plain one, on the same numbers,
    which lie on the device already."""
    key = (name, device, dtype, shape)
    if key not in _found:
        fault = None
        try:
            with torch.enable_grad():
                fast, plain = trial()
                expected = plain()
                with _without_waiting(device):
                    found = fast()
                if not all(close(own, other) for own, other in zip(found, expected, strict=True)):
                    fault = "it gives other numbers than plain products"
        except (RuntimeError, TypeError) as error:  # a TypeError where the device lacks the dtype
            if out_of_memory(error):
                raise
            fault = str(error).partition("\n")[0]
        _found[key] = fault
        if fault is not None:
            line = f"{device}, {str(dtype).removeprefix('torch.')}: going on without {name}: {fault}"
            warnings.warn(line, stacklevel=2)
    return _found[key] is None


def chosen() -> dict[tuple[str, torch.device, torch.dtype], str | None]:
    """The paths that were tried in this process, and why one is not used everywhere; None: it is."""
    faults: dict[tuple[str, torch.device, torch.dtype], str | None] = {}
    for (name, device, dtype, _), fault in _found.items():
        faults[name, device, dtype] = faults.get((name, device, dtype)) or fault
    return faults


def close(own: Tensor, other: Tensor) -> bool:
    """Whether two results differ by rounding alone."""
    tolerance = 2e-2 if own.dtype in (torch.bfloat16, torch.float16) else 1e-5
    return own.dtype == other.dtype and bool((own - other).float().norm() <= tolerance * other.float().norm())


@contextmanager
def _without_waiting(device: torch.device) -> Iterator[None]:
    """Within this context, an operation for which the host would wait for a CUDA device is an error."""
    if device.type != "cuda" or not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
