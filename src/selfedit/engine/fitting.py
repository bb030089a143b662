"""Fits: fine-tunes of many adapters on one frozen model, together.

A step packs the next sequences of several fits into one row, computes loss and gradients in one forward and backward
pass, and then clips and takes an AdamW step (Loshchilov and Hutter 2019, arXiv 1711.05101) for each adapter on its
own.  So training N adapters together gives, adapter by adapter, what training each alone gives.  `schedule` chooses
which fits step together.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from selfedit.engine import paths
from selfedit.engine.attention import Layout
from selfedit.engine.backbone import Backbone
from selfedit.engine.bank import AdapterBank
from selfedit.engine.jobs import FitJob, FitResult, LessMemoryWarning, TokenSequence, check
from selfedit.engine.lora import Routing
from selfedit.engine.loss import left_over, linear_cross_entropy, linear_divergence
from selfedit.engine.memory import out_of_memory, release_memory
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
        self._digest = digest(bank, [r.job for r in running])

    @property
    def done(self) -> list[int]:
        """How many steps each fit has taken."""
        return [r.done for r in self._running]

    def save(self, notes: str = "") -> bytes:
        """A safetensors file that `fit(start=...)` goes on from; `state.read_notes` gives the caller's notes back."""
        return pack(self._digest, self._settings, [r.state(self.bank) for r in self._running], notes)

    def restore(self, start: Path) -> None:
        """Errors: UnusableStateError, before anything is changed."""
        size = self.bank.adapter_size
        settings, states = unpack(start, self._digest, {"parameters": size, "exp_avg": size, "exp_avg_sq": size})
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
    become to the last bit what they would have become without the interruption, on the same machine.

    Errors: ValueError for jobs with nothing to learn or unusable targets, or too many; UnusableStateError for a `start`
    that is damaged or of others.
    """
    jobs = list(jobs)
    if len(jobs) > bank.size:
        raise ValueError(f"{len(jobs)} jobs do not fit a bank of {bank.size} adapters")
    backbone = Backbone(bank.model)
    check(jobs, backbone.vocabulary)
    held = max((job.held for job in jobs), default=0)
    if held and (bank.spec.dropout or held >= bank.spec.rank):
        raise ValueError(f"adapters that stand on others of rank {held} need a bank of more rank, without dropout")
    bank.enable_gradients()
    running = []
    for adapter, job in enumerate(jobs):
        bank.reset(adapter, job.seed, job.below)
        running.append(_Running(job, adapter, bank))
    # How steps are cut into passes decides how sums are rounded.
    settings: dict[str, Any] = {"token_budget": token_budget, "checkpointing": checkpointing}
    under_way = None
    if on_step is not None or start is not None:
        under_way = UnderWay(bank, running, settings)
    if under_way is not None and start is not None:
        under_way.restore(start)
        if on_tokens is not None:
            on_tokens(sum(r.job.tokens - r.tokens_left for r in running))
    warned = False
    with backbone.training(checkpointing=settings["checkpointing"]):
        while active := [r for r in running if r.error is None and not r.finished]:
            token_budget = settings["token_budget"]
            chosen = choose(active, token_budget)
            sums = _gradients(bank, backbone, chosen, token_budget)
            if sums is None:
                for r in chosen:
                    bank.gradient(r.adapter)  # begun, and to be written anew
                smaller = _halve(token_budget, chosen)
                if not warned:
                    line = f"out of memory: going on with {smaller} tokens per step instead of {token_budget}"
                    warnings.warn(line, LessMemoryWarning, stacklevel=2)
                settings["token_budget"], warned = smaller, True
                continue
            tokens = sum(r.batch_tokens for r in chosen)
            gradients = [bank.gradient(r.adapter) for r in chosen]
            for r, gradient_F in zip(chosen, gradients, strict=True):
                if r.fresh_F is not None:
                    gradient_F.mul_(r.fresh_F)
            # The one time in a step that the host waits for the device.
            *losses, norms = torch.stack([*sums, torch.stack(torch._foreach_norm(gradients))]).tolist()
            _update(bank, chosen, list(map(sum, zip(*losses, strict=True))), gradients, norms)
            if on_tokens is not None:
                on_tokens(tokens)
            if (
                on_step is not None
                and under_way is not None
                and any(r.error is None and not r.finished for r in running)
            ):
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


@dataclass
class Labels:
    """The labelled positions of a packed row: where they are, what is to be predicted there (tokens, or a teacher's
    tokens, their log-probabilities and what these leave), with which weight in the loss, and which fit they belong
    to."""

    positions_L: Tensor
    weights_L: Tensor
    owners_L: Tensor
    tokens_L: Tensor | None = None
    ids_LK: Tensor | None = None
    log_probs_LK: Tensor | None = None
    rest_L: Tensor | None = None

    @staticmethod
    def of(
        sequences: Sequence[TokenSequence], lengths: Sequence[int], owners: Sequence[int], weights: Sequence[float]
    ) -> list[Labels]:
        """Those of sequences that take so many places of a row each, apart by how many soft targets a token has (none
        at all are 0).  The tensors lie on the host."""
        kinds: dict[int, list[tuple[TokenSequence, int, int, float]]] = {}
        start = 0
        for sequence, length, owner, weight in zip(sequences, lengths, owners, weights, strict=True):
            kinds.setdefault(sequence.targets.top if sequence.targets else 0, []).append(
                (sequence, start, owner, weight)
            )
            start += length
        return [Labels._of(top, placed) for top, placed in kinds.items()]

    @staticmethod
    def _of(top: int, placed: Sequence[tuple[TokenSequence, int, int, float]]) -> Labels:
        # A sequence that begins at `start`: its position p predicts its token p + 1.
        spans = [(start, max(s.prompt_length, 1), len(s.ids)) for s, start, _, _ in placed]
        counts = torch.tensor([last - first for _, first, last in spans])
        labels = Labels(
            torch.cat([torch.arange(start + first - 1, start + last - 1) for start, first, last in spans]),
            torch.tensor([weight for *_, weight in placed]).repeat_interleave(counts),
            torch.tensor([owner for _, _, owner, _ in placed]).repeat_interleave(counts),
        )
        if not top:
            labels.tokens_L = torch.tensor([token for s, *_ in placed for token in s.ids[max(s.prompt_length, 1) :]])
            return labels
        targets = [s.targets for s, *_ in placed if s.targets is not None]
        ids, log_probs = (
            bytearray(b"".join(bytes_)) for bytes_ in zip(*((t.ids, t.log_probs) for t in targets), strict=True)
        )
        labels.ids_LK = torch.frombuffer(ids, dtype=torch.int32).view(-1, top).long()
        labels.log_probs_LK = torch.frombuffer(log_probs, dtype=torch.float32).view(-1, top)
        labels.rest_L = left_over(labels.log_probs_LK)
        return labels

    def loss(self, hidden_PD: Tensor, backbone: Backbone, sums: Tensor) -> Tensor:
        """The weighted sum of the losses; each owner's part is added to its place in `sums`."""
        hidden_LD, head = hidden_PD.index_select(0, self.positions_L), (backbone.head_VD, backbone.softcap)
        if self.tokens_L is not None:
            total, losses_L = linear_cross_entropy(hidden_LD, head[0], self.tokens_L, self.weights_L, head[1])
        else:
            assert self.ids_LK is not None
            assert self.log_probs_LK is not None
            assert self.rest_L is not None
            targets = self.ids_LK, self.log_probs_LK, self.rest_L
            total, losses_L = linear_divergence(hidden_LD, head[0], *targets, self.weights_L, head[1])
        sums.index_add_(0, self.owners_L, losses_L * self.weights_L)
        return total


def _gradients(bank: AdapterBank, backbone: Backbone, chosen: list[_Running], token_budget: int) -> list[Tensor] | None:
    """Adds the gradients of each fit's next step to the bank's gradient buffer; returns the fits' losses in each of the
    step's passes, or None where memory ran out."""
    try:
        return [_pass(bank, backbone, chosen, one) for one in passes(chosen, token_budget)]
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        # The error holds the pass's tensors; they go with it, when this function returns.
        return None


def _pass(bank: AdapterBank, backbone: Backbone, chosen: list[_Running], one: Pass) -> Tensor:
    # Dropout has its own path, and its masks must not depend on rows added for alignment.
    grouped = bank.grouped and not bank.spec.dropout
    owners = [k for k, _ in one]
    sequences: list[TokenSequence] = [chosen[k].batch[place] for k, place in one]
    rows: list[list[int]] = [list(sequence.ids) for sequence in sequences]
    if grouped:
        _align(rows, owners)
    lengths = [len(row) for row in rows]
    weights = [s.weight / chosen[k].batch_labelled for k, s in zip(owners, sequences, strict=True)]
    seeds = None
    if bank.spec.dropout:
        # One stream a fit, step and sequence, so that it does not matter how a step is cut into passes.
        seeds = [_mix(chosen[k].job.seed, chosen[k].done, place) for k, place in one]
    adapters = [chosen[k].adapter for k in owners]
    routing = Routing.of(adapters, lengths, size=bank.size, grouped=grouped, dropout_seeds=seeds)
    every = Labels.of(sequences, lengths, owners, weights)
    layout = Layout.of(rows, bank.device, along=[routing, *every])
    sums = torch.zeros(len(chosen), device=bank.device)
    with bank.route(routing), torch.enable_grad():
        hidden_PD = backbone.packed(layout).squeeze(0)
        torch.stack([labels.loss(hidden_PD, backbone, sums) for labels in every]).sum().backward()
    return sums


def _align(rows: list[list[int]], owners: list[int], multiple: int = 8) -> None:
    """Grouped products need each adapter's rows to be a multiple of 8: the last sequence of each gets a few tokens
    more, which come after all real ones and have no label, so that they change nothing."""
    for k in dict.fromkeys(owners):
        mine = [row for row, owner in zip(rows, owners, strict=True) if owner == k]
        mine[-1] += [mine[-1][-1]] * (-sum(map(len, mine)) % multiple)


def _mix(*numbers: int) -> int:
    """A seed from several numbers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest(), "big")


def _halve(token_budget: int, chosen: list[_Running]) -> int:
    longest = max(len(sequence.ids) for r in chosen for sequence in r.batch)
    if token_budget <= longest:
        raise torch.OutOfMemoryError(
            f"out of memory with a single sequence of {longest} tokens: use shorter sequences, a smaller model or less"
            " rank"
        )
    release_memory()
    return token_budget // 2
