"""Fits: fine-tunes of many adapters on one frozen model, together.

A step packs the next sequences of several fits into one row, computes loss and gradients in one forward and backward
pass, and then clips and takes an AdamW step (Loshchilov and Hutter 2019, arXiv 1711.05101) for each adapter on its
own.  So training N adapters together gives, adapter by adapter, what training each alone gives.  `schedule` chooses
which fits step together.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from selfedit.engine import paths
from selfedit.engine.backbone import Backbone
from selfedit.engine.bank import AdapterBank
from selfedit.engine.jobs import FitJob, FitResult, LessMemoryWarning, check
from selfedit.engine.memory import attempted, release_memory
from selfedit.engine.passes import Part, Share, run_part, run_pass
from selfedit.engine.schedule import Course, Pass, choose, passes
from selfedit.engine.state import digest, pack, unpack

ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8


class _Running(Course):
    """A fit under way: its course through the data and its optimiser state."""

    def __init__(self, job: FitJob, adapter: int, bank: AdapterBank) -> None:
        super().__init__(job, adapter)
        self.exp_avg_F = torch.zeros(bank.adapter_size, device=bank.device)
        self.exp_avg_sq_F = torch.zeros(bank.adapter_size, device=bank.device)
        self.count = torch.zeros((), device=bank.device)
        self.fresh_F = bank.fresh(job.held) if job.held else None
        self.losses: list[float] = []
        self.error: str | None = None

    @property
    def going(self) -> bool:
        return self.error is None and not self.finished

    def state(self, bank: AdapterBank) -> dict[str, Any]:
        """What `restore` goes on from."""
        return {
            "parameters": bank.parameters_NF[self.adapter],
            "exp_avg": self.exp_avg_F,
            "exp_avg_sq": self.exp_avg_sq_F,
            "done": self.done,
            "losses": self.losses,
            "error": self.error,
        }

    def restore(self, bank: AdapterBank, state: dict[str, Any]) -> None:
        bank.parameters_NF[self.adapter].copy_(state["parameters"])
        bank.publish([self.adapter])
        self.exp_avg_F.copy_(state["exp_avg"])
        self.exp_avg_sq_F.copy_(state["exp_avg_sq"])
        self.losses, self.error = list(state["losses"]), state["error"]
        for _ in range(state["done"]):
            self.advance()
        self.count.fill_(self.done)

    def result(self) -> FitResult:
        steps_per_epoch = max(1, len(self.order) // self.job.settings.epochs)
        first, last = self.losses[:steps_per_epoch], self.losses[-steps_per_epoch:]
        return FitResult(
            steps=self.done,
            tokens=self.job.tokens - self.tokens_left,
            first_loss=sum(first) / len(first) if first else None,
            last_loss=sum(last) / len(last) if last else None,
            error=self.error,
            losses=tuple(self.losses),
        )


class UnderWay:
    """Fits between two steps, as `on_step` sees them: it may decode with the bank's adapters, and save the state."""

    def __init__(self, bank: AdapterBank, running: Sequence[_Running], settings: dict[str, Any]) -> None:
        self.bank = bank
        self._running = running
        self._settings = settings

    @cached_property
    def _digest(self) -> str:
        return digest(self.bank, [r.job for r in self._running])

    @property
    def done(self) -> list[int]:
        """How many steps each fit has taken."""
        return [r.done for r in self._running]

    def save(self, notes: str = "") -> bytes:
        """A safetensors file that `fit(start=...)` goes on from; `state.read_notes` gives the caller's notes back."""
        return pack(self._digest, self._settings, [r.state(self.bank) for r in self._running], notes)

    def restore(self, start: Path) -> None:
        """Errors: UnusableStateError, before anything is changed."""
        settings, states = unpack(start, self._digest)
        self._settings.update(settings)
        for r, state in zip(self._running, states, strict=True):
            r.restore(self.bank, state)


def fit(
    bank: AdapterBank,
    jobs: Sequence[FitJob],
    *,
    token_budget: int = 2048,
    checkpointing: bool = False,
    on_tokens: Callable[[int], None] | None = None,
    on_step: Callable[[UnderWay], None] | None = None,
    start: Path | None = None,
    share: Share | None = None,
) -> list[FitResult]:
    """Trains adapter k of the bank on job k, from fresh weights (on top of what a job holds `below`); at most as many
    jobs as the bank holds.

    `token_budget` bounds the tokens of one forward pass (a single longer sequence goes alone); running out of memory
    halves it, with a warning, and repeats the step, so nothing is lost.  `checkpointing` keeps only the layers' inputs
    and computes the rest again in the backward pass: less memory for a third more work.  `on_tokens` is called with the
    tokens trained after each step.  A fit whose loss or gradient is not finite stops and says so in its result; the
    others go on.

    `on_step` is called after each step but the last with what is under way, which it may save.  `start` is a file with
    what was saved so: these fits go on from there, with the budget and the checkpointing that they began with, and
    become to the last bit what they would have become without the interruption, on the same CPU (on CUDA, attention's
    backward pass may add in an order of chance).

    `share`, for a single job, has the passes of a step computed elsewhere too, where a step takes more than one.

    Errors: ValueError for jobs with nothing to learn or unusable targets, or too many; UnusableStateError for a `start`
    that is damaged or of others.
    """
    jobs = list(jobs)
    if len(jobs) > bank.size:
        raise ValueError(f"{len(jobs)} jobs do not fit a bank of {bank.size} adapters")
    if share is not None and len(jobs) > 1:
        raise ValueError(f"the steps of one job can be shared, not those of {len(jobs)}")
    backbone = Backbone(bank.model)
    check(jobs, backbone.vocabulary)
    backbone.check_length(max((len(sequence.ids) for job in jobs for sequence in job.sequences), default=0))
    held = max((job.held for job in jobs), default=0)
    if held and (bank.spec.dropout or held >= bank.spec.rank):
        raise ValueError(f"adapters that stand on others of rank {held} need a bank of more rank, without dropout")
    if any(job.below is not None and job.below.keys() != set(bank.names) for job in jobs):
        raise ValueError("what an adapter stands on has other layers than the bank")
    bank.enable_gradients()
    running = []
    for adapter, job in enumerate(jobs):
        bank.reset(adapter, job.seed, job.below)
        running.append(_Running(job, adapter, bank))
    # How steps are cut into passes decides how sums are rounded.
    settings: dict[str, Any] = {"token_budget": token_budget, "checkpointing": checkpointing}
    under_way = UnderWay(bank, running, settings)
    if start is not None:
        under_way.restore(start)
        if on_tokens is not None:
            on_tokens(sum(r.job.tokens - r.tokens_left for r in running))
    warned = False
    with backbone.training(checkpointing=settings["checkpointing"]):
        while active := [r for r in running if r.going]:
            token_budget = settings["token_budget"]
            chosen = choose(active, token_budget)
            step = partial(_gradients, bank, backbone, chosen, token_budget, settings["checkpointing"], share)
            found = attempted(step)
            if found is None:
                for r in chosen:
                    bank.gradient(r.adapter)  # begun, and to be written anew
                smaller = _halve(token_budget, chosen)
                if not warned:
                    line = f"out of memory: going on with {smaller} tokens per step instead of {token_budget}"
                    warnings.warn(line, LessMemoryWarning, stacklevel=2)
                settings["token_budget"], warned = smaller, True
                continue
            tokens = sum(r.batch_tokens for r in chosen)
            sums, gradients = found
            for r, gradient_F in zip(chosen, gradients, strict=True):
                if r.fresh_F is not None:
                    gradient_F.mul_(r.fresh_F)
            # The one time in a step that the host waits for the device, with a fused AdamW and without soft targets.
            *losses, norms = torch.stack([*sums, torch.stack(torch._foreach_norm(gradients))]).tolist()
            _update(bank, chosen, list(map(sum, zip(*losses, strict=True))), gradients, norms)
            if on_tokens is not None:
                on_tokens(tokens)
            if on_step is not None and any(r.going for r in running):
                on_step(under_way)
    return [r.result() for r in running]


@torch.no_grad()
def _update(
    bank: AdapterBank,
    stepping: Sequence[_Running],
    losses: Sequence[float],
    gradients: Sequence[Tensor],
    norms: Sequence[float],
) -> None:
    """Clips the fits' gradients, which have these norms, and takes an AdamW step for each, those of one learning rate
    together.  A fit whose loss or norm is not finite stops."""
    groups: dict[tuple[float, float], list[tuple[_Running, Tensor]]] = {}
    large, factors, stepped = [], [], []
    for r, loss, gradient_F, norm in zip(stepping, losses, gradients, norms, strict=True):
        settings = r.job.settings
        if not math.isfinite(loss) or not math.isfinite(norm):
            r.error = f"step {r.done + 1} of {len(r.order)}: loss {loss}, gradient norm {norm}"
            continue
        if settings.max_grad_norm is not None and norm + 1e-6 > settings.max_grad_norm:
            large.append(gradient_F)
            factors.append((norm + 1e-6) / settings.max_grad_norm)
        rate = settings.rate(r.done, len(r.order))
        groups.setdefault((rate, settings.weight_decay), []).append((r, gradient_F))
        stepped.append((r, loss))
    if large:
        torch._foreach_div_(large, factors)
    fused = _fused_works(bank.device)
    for (rate, decay), members in groups.items():
        parameters = [bank.parameters_NF[r.adapter] for r, _ in members]
        moments = [r.exp_avg_F for r, _ in members], [r.exp_avg_sq_F for r, _ in members]
        _adamw(parameters, [g for _, g in members], *moments, [r.count for r, _ in members], rate, decay, fused)
    bank.publish([r.adapter for r, _ in stepped])
    for r, loss in stepped:
        r.losses.append(loss)
        r.advance()


def _adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    counts: list[Tensor],
    rate: float,
    decay: float,
    fused: bool,
) -> None:
    adamw(
        parameters,
        gradients,
        exp_avg,
        exp_avg_sq,
        [],
        counts,
        foreach=False,
        fused=fused,
        lr=rate,
        beta1=ADAM_BETAS[0],
        beta2=ADAM_BETAS[1],
        weight_decay=decay,
        eps=ADAM_EPSILON,
        amsgrad=False,
        maximize=False,
    )


def _fused_works(device: torch.device) -> bool:
    """Whether torch's AdamW in one pass over memory gives what its plain one gives, in two steps of two adapters."""

    def trial() -> tuple[paths.Way, paths.Way]:
        numbers = torch.randn(4, 2, 37, generator=torch.Generator().manual_seed(0)).to(device)
        numbers[3].square_()  # the second moments

        def way(fused: bool) -> paths.Way:
            def run() -> list[Tensor]:
                own, counts = numbers.clone(), torch.zeros(2, device=device)
                parameters, gradients, exp_avg, exp_avg_sq = (list(part) for part in own)
                for _ in range(2):
                    _adamw(parameters, gradients, exp_avg, exp_avg_sq, list(counts), 1e-2, 0.1, fused)
                return [own]

            return run

        return way(True), way(False)

    with torch.no_grad():
        return paths.works("fused AdamW", device, torch.float32, None, trial)


def _gradients(
    bank: AdapterBank,
    backbone: Backbone,
    chosen: list[_Running],
    token_budget: int,
    checkpointing: bool,
    share: Share | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The fits' losses in each pass of their next step, and the gradient of each fit."""
    cut = passes(chosen, token_budget)
    if len(chosen) == 1 and len(cut) > 1:
        return _sum_of_parts(bank, backbone, chosen[0], cut, checkpointing, share)
    sums = [run_pass(bank, backbone, chosen, one) for one in cut]
    return sums, [bank.gradient(r.adapter) for r in chosen]


def _sum_of_parts(
    bank: AdapterBank, backbone: Backbone, r: _Running, cut: list[Pass], checkpointing: bool, share: Share | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Each pass's gradient is computed by itself, and they are added up in one order, so that the sum is the same to
    the last bit, whoever computes them: the longest first, because it is what others would be waited for."""
    parts = sorted((Part.of(r, [place for _, place in one], checkpointing) for one in cut), key=lambda p: -p.tokens)

    def own(part: Part) -> tuple[Tensor, Tensor]:
        return run_part(bank, backbone, r, part)

    losses, total_F = [], None
    for loss, gradient_F in map(own, parts) if share is None else share(bank.parameters_NF[r.adapter], parts, own):
        losses.append(loss)
        total_F = gradient_F.clone() if total_F is None else total_F.add_(gradient_F)
    assert total_F is not None
    return losses, [total_F]


def _halve(token_budget: int, chosen: list[_Running]) -> int:
    longest = max(len(sequence.ids) for r in chosen for sequence in r.batch)
    if token_budget <= longest:
        raise torch.OutOfMemoryError(
            f"out of memory with a single sequence of {longest} tokens: use shorter sequences, a smaller model or less"
            " rank"
        )
    release_memory()
    return token_budget // 2
