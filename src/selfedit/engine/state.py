"""Fits between two steps, as a safetensors file: all that the rest of them depends on, beside the model and the jobs.

That is each adapter's parameters, AdamW's moments, how many steps were taken and their losses, and how steps are cut
into passes. The data order derives from the job's seed, dropout's masks from seed and step; no generator has a state of
its own."""

from __future__ import annotations

import array
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from selfedit.engine.bank import AdapterBank
from selfedit.engine.jobs import FitJob, SoftTargets, UnusableStateError

_FORMAT = "selfedit fits 1"
_TENSORS = ("parameters", "exp_avg", "exp_avg_sq")


def digest(bank: AdapterBank, jobs: Sequence[FitJob]) -> str:
    """Names what fits are made of: the frozen weights (the first and the last adapted layer's stand for all), the
    adapters' shape, sequences, settings and seeds."""
    first, last = bank.layers[0].weight, bank.layers[-1].weight
    model = [str(bank.dtype), bank.device.type, bank.names, [_checksum(first), _checksum(last)]]
    hashed = hashlib.sha256(json.dumps([model, asdict(bank.spec)]).encode())
    for job in jobs:
        hashed.update(json.dumps([asdict(job.settings), job.seed, len(job.sequences)]).encode())
        for held in () if job.below is None else job.below.values():
            hashed.update(b"".join(half.float().cpu().numpy().tobytes() for half in held))
        for sequence in job.sequences:
            hashed.update(array.array("q", (len(sequence.ids), sequence.prompt_length, *sequence.ids)).tobytes())
            if sequence.targets is not None or sequence.weight != 1.0:
                targets = sequence.targets or SoftTargets(b"", b"", 0)
                hashed.update(repr((targets.top, sequence.weight)).encode() + targets.ids + targets.log_probs)
    return hashed.hexdigest()


def pack(jobs: str, settings: dict[str, Any], fits: Sequence[dict[str, Any]], notes: str) -> bytes:
    """`jobs` is their digest; the tensors of each fit become the file's, what else it has its metadata."""
    tensors = {f"{number}.{key}": fit[key].cpu().contiguous() for number, fit in enumerate(fits) for key in _TENSORS}
    rest = [{key: value for key, value in fit.items() if key not in _TENSORS} for fit in fits]
    header = {"format": _FORMAT, "jobs": jobs, "settings": json.dumps(settings), "fits": json.dumps(rest)}
    return save(tensors, {**header, "notes": notes})


def unpack(file: Path, jobs: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `pack` was given.  Errors: UnusableStateError for a file that is damaged, or of other jobs."""
    try:
        with safe_open(file, framework="pt") as content:
            header = content.metadata() or {}
            if header.get("format") != _FORMAT:
                raise UnusableStateError(f"{file}: not the state of fits that this version reads")
            if header.get("jobs") != jobs:
                raise UnusableStateError(f"{file}: the state of other fits: sequences, settings, seed or model differ")
            fits = json.loads(header["fits"])
            for number, fit in enumerate(fits):
                fit |= {key: content.get_tensor(f"{number}.{key}") for key in _TENSORS}
            return json.loads(header["settings"]), fits
    except (OSError, SafetensorError) as error:
        raise UnusableStateError(f"{file}: not a whole safetensors file ({error})") from None


def read_notes(file: Path) -> str:
    """What the caller of `UnderWay.save` added.  Errors: UnusableStateError for a damaged file."""
    try:
        with safe_open(file, framework="numpy") as content:
            return str((content.metadata() or {}).get("notes", ""))
    except (OSError, SafetensorError) as error:
        raise UnusableStateError(f"{file}: not a whole safetensors file ({error})") from None


def _checksum(weight: Tensor) -> int:
    """Exact, and the same in any order of summing."""
    whole = {2: torch.int16, 4: torch.int32}[weight.element_size()]
    return int(weight.detach().view(whole).sum(dtype=torch.int64))
