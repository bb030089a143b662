"""Adapters trained on top of each other, as one: the sum of low-rank updates is a low-rank update.

    s₁ B₁ A₁ + s₂ B₂ A₂ = [s₁ B₁, s₂ B₂] [A₁; A₂]

So what `learn` adds to an earlier run is again one adapter, of the sum of the ranks, that every tool loads.  And the
training of adapters that are kept, stacked or not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from selfedit.errors import UserError
from selfedit.methods.adapters import adapter_errors, find_adapters
from selfedit.methods.inner_loop import inner_loop
from selfedit.methods.learnings import Beside, Learning
from selfedit.methods.policies import DELTA_FILES, read_delta
from selfedit.methods.run import Run
from selfedit.methods.settings import AUTO, LearnSettings
from selfedit.runs.records import FitRecord

_CONFIG, _WEIGHTS = DELTA_FILES


def model_of_earlier(settings: LearnSettings) -> LearnSettings:
    """With `--add`, the settings with the earlier run's model, where no other was named; where that run recites, this
    one does."""
    if settings.add is None:
        return settings
    found = find_adapters(settings.add)
    if "model" in settings.model_fields_set and settings.model != found.model:
        raise UserError(f"--add {settings.add}: an adapter of {found.model}, not of {settings.model}")
    instruct = found.instruct if settings.instruct is None else settings.instruct
    given = settings.model_dump(include=settings.model_fields_set) | {"model": found.model, "instruct": instruct}
    if found.recites and settings.adapters == AUTO:
        given["adapters"] = "recite"
    return LearnSettings(**given)


def publish(run: Run, folder: Path) -> str:
    """Makes an adapter known to the workers as a policy's delta; its name, which is its content's."""
    files = read_delta(folder)
    name = f"adapter-{hashlib.sha256(files[_WEIGHTS]).hexdigest()[:16]}"
    run.workers.publish(name, files)
    return name


def stack(earlier: Sequence[Path], folder: Path) -> None:
    """Adds the earlier adapters, on top of which the one in `folder` was trained, to it.  Errors: UserError for one
    that cannot be read."""
    if not earlier or not (folder / _WEIGHTS).stat().st_size:  # a plan's adapters are empty
        return
    import torch

    from selfedit.engine import LoraSpec, load_adapter
    from selfedit.engine.peft_format import files, model_name

    loaded = []
    for one in (*earlier, folder):
        with adapter_errors(one):
            loaded.append(load_adapter(one))
    targets = {spec.targets for spec, _ in loaded}
    shapes = {name: (a.shape[1], b.shape[0]) for _, state in loaded for name, (a, b) in state.items()}
    stacked = {}
    for name, (wide, high) in shapes.items():
        halves = []
        for spec, state in loaded:
            # A layer that one of them leaves alone has nothing of it.
            a, b = state.get(name, (torch.zeros(spec.rank, wide), torch.zeros(high, spec.rank)))
            halves.append((a, b * spec.scaling))
        stacked[name] = torch.cat([a for a, _ in halves]), torch.cat([b for _, b in halves], dim=1)
    rank = sum(spec.rank for spec, _ in loaded)
    lora = LoraSpec(rank, float(rank), targets.pop() if len(targets) == 1 else tuple(shapes))
    base = str(json.loads((folder / _CONFIG).read_bytes())["base_model_name_or_path"])
    for name, content in files(lora, stacked, base_model=base, model=model_name(folder)).items():
        (folder / name).write_bytes(content)


def adapter_rank(folder: Path) -> int:
    """The rank of an adapter in PEFT's format; 0 for a plan's."""
    content = (folder / _CONFIG).read_bytes()
    return int(json.loads(content)["r"]) if content else 0


def fit_kept(run: Run, learnings: Sequence[Learning], *, label: str, beside: Beside | None = None) -> list[FitRecord]:
    """Trains adapters that are kept; `beside` as for `inner_loop`.  Errors: UserError for a fit that failed."""
    inner_loop(run, learnings, label=label, beside=beside)
    ids = {learning.id for learning in learnings}
    fits = [fit for fit in run.store.fits(condition=learnings[0].condition) if fit.id in ids]
    for fit in fits:
        if fit.error is not None:
            what = f"document {fit.document_id}: the fit" if fit.document_id else "the fit"
            raise UserError(
                f"{what} failed: {fit.error}; try a lower learning rate (--set learning_rate=...) and another --out"
            )
    return fits
