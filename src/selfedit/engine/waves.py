"""A job list of any length through one bank, wave after wave.

After each wave a callback sees the bank: the next wave overwrites its adapters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from selfedit.engine.bank import AdapterBank
from selfedit.engine.fitting import UnderWay, fit
from selfedit.engine.jobs import FitJob, FitResult, LessMemoryWarning, LoraSpec, NotEnoughMemoryError
from selfedit.engine.memory import attempted, release_memory
from selfedit.engine.passes import Share
from selfedit.engine.planning import Plan
from selfedit.engine.planning import plan as make_plan

# Called after each wave with the bank and, for each job of the wave, its place in the bank and how it went.
OnWave = Callable[[AdapterBank, dict[int, tuple[int, FitResult]]], None]


def fit_all(
    model: PreTrainedModel,
    spec: LoraSpec,
    jobs: Sequence[FitJob],
    *,
    plan: Plan | None = None,
    on_wave: OnWave | None = None,
    on_tokens: Callable[[int], None] | None = None,
    on_step: Callable[[UnderWay], None] | None = None,
    start: Path | None = None,
    share: Share | None = None,
) -> list[FitResult]:
    """Trains one adapter per job, any number of jobs; results in the jobs' order.

    `on_wave(bank, {job number: (place in the bank, result)})` is called after each wave, while its adapters are in the
    bank: the time to decode their answers and to save them.  Without a `plan`, one is made from the free memory; one of
    other jobs is a ValueError.  Where a bank does not fit into memory after all, the rest goes on with half of its
    adapters, with one warning.  `on_step` and `start` are `fit`'s, for jobs that are one wave (ValueError otherwise),
    and `share`, for a single job."""
    jobs = list(jobs)
    if not jobs:
        return []
    chosen = make_plan(model, spec, jobs, calibrate=False) if plan is None else plan
    if sorted(k for wave in chosen.waves for k in wave) != list(range(len(jobs))):
        raise ValueError(f"the plan is of other jobs than these {len(jobs)}")
    if len(chosen.waves) > 1 and (on_step is not None or start is not None):
        raise ValueError(f"a state is saved of one wave only, and these jobs take {len(chosen.waves)}")
    how: dict[str, Any] = {"token_budget": chosen.token_budget, "checkpointing": chosen.checkpointing}
    how |= {"on_tokens": on_tokens, "on_step": on_step, "start": start, "share": share}
    results: dict[int, FitResult] = {}
    waves, size, warned = list(chosen.waves), chosen.bank_size, False
    while waves:
        bank = attempted(partial(AdapterBank, model, spec, size))
        if bank is not None:
            with bank:
                while waves:
                    fitted = attempted(partial(fit, bank, [jobs[k] for k in waves[0]], **how), last=size == 1)
                    if fitted is None:
                        break
                    wave = waves.pop(0)
                    results.update(zip(wave, fitted, strict=True))
                    if on_wave is not None:
                        bank.drop_gradients()
                        on_wave(bank, {k: (place, results[k]) for place, k in enumerate(wave)})
        if waves:
            # Memory ran out.
            if size == 1:
                raise NotEnoughMemoryError("not even one adapter fits: use a lower rank or a smaller model")
            smaller = -(-size // 2)
            if not warned:
                line = f"out of memory: going on with banks of {smaller} adapters instead of {size}"
                warnings.warn(line, LessMemoryWarning, stacklevel=2)
            size, warned, bank = smaller, True, None
            waves = [wave[k : k + size] for wave in waves for k in range(0, len(wave), size)]
            release_memory()
    return [results[k] for k in range(len(jobs))]
