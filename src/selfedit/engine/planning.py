"""What a list of fits will take: bank size, tokens per step, memory, FLOPs and time, before any of it starts.

Costs are measured, not derived from a configuration: a few tokens run through the model, and its matrix products and
the bytes that they keep for the backward pass are counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from selfedit.engine.attention import Layout
from selfedit.engine.backbone import Backbone
from selfedit.engine.bank import AdapterBank
from selfedit.engine.fitting import fit
from selfedit.engine.jobs import FitJob, FitSettings, LoraSpec, NotEnoughMemoryError, TokenSequence, check
from selfedit.engine.lora import LoraLinear, Routing
from selfedit.engine.loss import block_rows
from selfedit.engine.memory import device_kind, free_memory, usable_memory
from selfedit.engine.schedule import simulate

# Tokens of a forward pass beyond which more bring no speed (docs/performance.md).
TARGET_TOKENS = {"cpu": 1024, "accelerator": 16384}
# A soft target: id, log-probability and probability, once more in double, and four numbers while its block is computed.
_TARGET_BYTES = 48


@dataclass(frozen=True)
class Plan:
    """How a job list runs through one bank.

    `waves` are lists of job numbers, each at most `bank_size` long; `token_budget` bounds the tokens of a forward pass,
    with `checkpointing` if it has to.  `memory` is the expected peak beyond the model itself, of `free` bytes.
    `tokens`, `steps` (optimiser steps of all fits) and `passes` (forward passes) are exact.  `useful_flops` is the
    floor: products that any implementation has to compute; `flops` adds what this one computes twice.  `seconds` is an
    estimate from a short trial, None without one.
    """

    bank_size: int
    token_budget: int
    checkpointing: bool
    waves: tuple[tuple[int, ...], ...]
    memory: int
    free: int
    tokens: int
    steps: int
    passes: int
    useful_flops: float
    flops: float
    seconds: float | None = None


@dataclass(frozen=True)
class Costs:
    """What a model costs under a spec: FLOPs per token forward and backward, activation bytes per token, bytes per
    adapter, and the loss's bytes per token for up to `logit_rows` tokens at once."""

    forward: float
    backward: float
    head: float
    attention: float
    activation_bytes: float
    checkpointed_bytes: float
    adapter_bytes: int
    logit_bytes: int
    logit_rows: int

    def loss_bytes(self, tokens: int, top: int = 0) -> int:
        """What the loss over `tokens` tokens takes, with at most `top` soft targets each."""
        return self.logit_bytes * min(tokens, self.logit_rows) + _TARGET_BYTES * top * tokens

    def flops(self, sequence: TokenSequence) -> float:
        """Floating-point operations to train on a sequence once; causal attention counts half of its square."""
        length = len(sequence.ids)
        attention = 3 * self.attention * length**2
        return (self.forward + self.backward) * length + self.head * sequence.labelled + attention

    def repeated_flops(self, sequence: TokenSequence) -> float:
        return self.forward * len(sequence.ids) + self.attention * len(sequence.ids) ** 2


def plan(
    model: PreTrainedModel,
    spec: LoraSpec,
    jobs: Sequence[FitJob],
    *,
    memory: int | None = None,
    bank_size: int | None = None,
    token_budget: int | None = None,
    calibrate: bool = True,
) -> Plan:
    """Plans `jobs` on the device that the model lies on.

    `memory` is how many bytes may be used (by default nine tenths of what is free on an accelerator, half on a CPU);
    `bank_size` and `token_budget` are found from it unless given (a sequence longer than a given budget goes alone, as
    in `fit`).  Apart from `free`, a plan depends on the model, the kind of device and the arguments alone: with
    `memory` given, it is the same every time.  `calibrate` tries a few hundred tokens to estimate the time.

    Errors: ValueError for a job with nothing to learn or unusable targets; NotEnoughMemoryError.
    """
    jobs = list(jobs)
    check(jobs, Backbone(model).vocabulary)
    if not jobs:
        raise ValueError("there are no jobs to plan")
    costs = measure_costs(model, spec)
    kind = device_kind(model.device)
    free = free_memory(model.device)
    usable = usable_memory(model.device) if memory is None else memory

    longest = max(len(sequence.ids) for job in jobs for sequence in job.sequences)
    tokens, steps = sum(job.tokens for job in jobs), sum(job.steps for job in jobs)
    target = token_budget or TARGET_TOKENS[kind]
    top = max(s.targets.top if s.targets else 0 for job in jobs for s in job.sequences)
    loss_bytes = costs.loss_bytes(max(target, longest), top)
    if bank_size is None:
        # Enough fits to fill a step four times over, so that steps stay full until the wave's end.
        wanted = max(1, -(-4 * target * steps // tokens))
        affordable = int((usable - loss_bytes) / 2 // costs.adapter_bytes)
        bank_size = max(1, min(wanted, affordable, len(jobs)))
    # Waves of equal size, so that the last is not a small rest.
    bank_size = -(-len(jobs) // -(-len(jobs) // bank_size))
    left = usable - loss_bytes - bank_size * costs.adapter_bytes
    least = max(longest, target // 8 if token_budget is None else target)
    checkpointing = left < least * costs.activation_bytes
    token_bytes = costs.checkpointed_bytes if checkpointing else costs.activation_bytes
    budget = min(target, int(left // token_bytes)) if token_budget is None else token_budget
    if left < longest * token_bytes:
        need = loss_bytes + bank_size * costs.adapter_bytes + longest * token_bytes
        raise NotEnoughMemoryError(
            f"{bank_size} adapter(s) and a sequence of {longest} tokens need {need / 2**30:.1f} GiB beyond the model,"
            f" and {usable / 2**30:.1f} GiB may be used: use shorter sequences, a lower rank or a smaller model"
        )
    waves = split_waves(jobs, bank_size)
    passes = [tokens for wave in waves for step in simulate([jobs[k] for k in wave], budget) for tokens in step]
    uses = [(job.sequences[k], count) for job in jobs for k, count in job.uses().items()]
    useful = sum(count * costs.flops(sequence) for sequence, count in uses)
    again = sum(count * costs.repeated_flops(sequence) for sequence, count in uses)
    seconds = None
    if calibrate:
        seconds = _estimate(model, spec, jobs, budget, checkpointing, len(passes))
    return Plan(
        bank_size=bank_size,
        token_budget=budget,
        checkpointing=checkpointing,
        waves=waves,
        memory=int(loss_bytes + bank_size * costs.adapter_bytes + max(passes) * token_bytes),
        free=free,
        tokens=tokens,
        steps=steps,
        passes=len(passes),
        useful_flops=useful,
        flops=useful + again * checkpointing,
        seconds=seconds,
    )


def split_waves(jobs: Sequence[FitJob], bank_size: int) -> tuple[tuple[int, ...], ...]:
    """Job numbers, the largest jobs first, so that the fits of a wave end at about the same time."""
    order = sorted(range(len(jobs)), key=lambda k: (-jobs[k].tokens, k))
    return tuple(tuple(order[k : k + bank_size]) for k in range(0, len(order), bank_size))


@torch.no_grad()
def measure_costs(model: PreTrainedModel, spec: LoraSpec) -> Costs:
    """Runs two short sequences through the model and counts its products and what it keeps for the backward pass."""
    backbone = Backbone(model)
    config = model.config.get_text_config()
    vocabulary, width = backbone.head_VD.shape
    with AdapterBank(model, spec, 1) as bank:
        short, products = _traced_pass(backbone, bank, 16)
        long, _ = _traced_pass(backbone, bank, 48)
        adapted = sum((layer.in_features + layer.out_features) * spec.rank for layer in bank.layers)
        adapter_numbers = bank.adapter_size
        number_bytes = bank.dtype.itemsize
    # A float32 number has a copy in the model's dtype, where that is narrower.
    copy_bytes = number_bytes if number_bytes < 4 else 0
    forward = sum(2.0 * linear.weight.numel() for linear, _ in products) + 2.0 * adapted
    backward = sum(2.0 * linear.weight.numel() for linear, needed in products if needed)
    # dA and dB always; dh likewise; dx only where the input needs a gradient.
    backward += sum(
        2.0 * spec.rank * (m.in_features * (1 + needed) + 2 * m.out_features)
        for m, needed in products
        if isinstance(m, LoraLinear)
    )
    heads = config.num_attention_heads * (getattr(config, "head_dim", None) or width // config.num_attention_heads)
    token_bytes = (long - short) / 32
    layers = max(1, sum(isinstance(m, GradientCheckpointingLayer) for m in backbone.decoder.modules()))
    # Beside what is kept: a few tensors of the widest layer, in and out of the product under way.
    widest = max(max(m.in_features, m.out_features) for m, _ in products)
    passing = 6 * widest * number_bytes
    return Costs(
        forward=forward,
        backward=backward,
        head=4.0 * vocabulary * width,
        attention=2.0 * heads * config.num_hidden_layers,
        activation_bytes=token_bytes + passing,
        checkpointed_bytes=layers * width * number_bytes + token_bytes / layers + passing,
        # Parameters, gradient and two moments.
        adapter_bytes=adapter_numbers * (4 * 4 + copy_bytes),
        # Logits and their gradient.
        logit_bytes=vocabulary * 2 * (4 + copy_bytes),
        logit_rows=block_rows(vocabulary, backbone.head_VD.device),
    )


def _traced_pass(backbone: Backbone, bank: AdapterBank, length: int) -> tuple[int, list[tuple[Any, bool]]]:
    """Bytes kept for the backward pass of one sequence, and (linear layer, whether its input needs a gradient) as they
    ran."""
    own = {t.untyped_storage().data_ptr() for t in [*backbone.model.parameters(), *backbone.model.buffers()]}
    own.add(bank._compute_NF.untyped_storage().data_ptr())
    kept: dict[int, torch.UntypedStorage] = {}
    products: list[tuple[Any, bool]] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        products.append((module, inputs[0].requires_grad))

    # A wrapped layer is never called here: its bank computes with its weights.
    linears = [m for m in backbone.decoder.modules() if isinstance(m, nn.Linear | LoraLinear)]
    hooks = [m.register_forward_pre_hook(note) for m in linears]
    layout = Layout.of([[k % backbone.vocabulary for k in range(length)]], bank.device)
    routing = Routing.of([0], [length], size=1, grouped=False)
    try:
        with (
            backbone.training(),
            bank.route(routing),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            hidden = backbone.packed(layout)
    finally:
        for hook in hooks:
            hook.remove()
    del hidden
    return sum(storage.nbytes() for storage in kept.values()), products


def _estimate(
    model: PreTrainedModel, spec: LoraSpec, jobs: Sequence[FitJob], budget: int, checkpointing: bool, passes: int
) -> float:
    """Seconds that the jobs take in so many forward passes, from what each pass, each token and each optimiser step of
    a fit takes.  Times three kinds of steps: one short sequence, many sequences of one fit, many fits with one each."""
    # Repeated, because the first steps on a device prepare it.
    most, repeats = (256, 4) if model.device.type == "cpu" else (4096, 6)
    tokens = min(budget, most)
    sequences = list(_some_sequences(jobs, tokens))
    settings = FitSettings(epochs=repeats, learning_rate=0.0, shuffle=False)
    shortest = min(sequences, key=lambda s: len(s.ids))
    together = FitJob(tuple(sequences), replace(settings, batch_size=len(sequences)), 0)
    with AdapterBank(model, spec, len(sequences)) as bank:
        one = _seconds(bank, [FitJob((shortest,), settings, 0)], tokens, checkpointing)
        many = _seconds(bank, [together], together.tokens, checkpointing)
        apart = _seconds(bank, [FitJob((s,), settings, 0) for s in sequences], together.tokens, checkpointing)
    all_tokens, size, least = sum(job.tokens for job in jobs), sum(len(s.ids) for s in sequences), len(shortest.ids)
    if len(sequences) == 1:
        return all_tokens * one / least
    a_step = max(0.0, (apart - many) / (len(sequences) - 1))
    a_token = max(0.0, (many - one) / max(1, size - least))
    a_pass = max(0.0, one - a_step - least * a_token)
    return passes * a_pass + all_tokens * a_token + sum(job.steps for job in jobs) * a_step


def _some_sequences(jobs: Sequence[FitJob], tokens: int) -> Iterator[TokenSequence]:
    """Sequences from all over the job list, until there are `tokens` of them; one at least."""
    every = [sequence for job in jobs for sequence in job.sequences]
    stride = max(1, len(every) * max(len(s.ids) for s in every) // max(1, 4 * tokens))
    used = 0
    for sequence in every[::stride]:
        if used and used + len(sequence.ids) > tokens:
            return
        used += len(sequence.ids)
        yield sequence


def _seconds(bank: AdapterBank, jobs: list[FitJob], token_budget: int, checkpointing: bool) -> float:
    """The median step's seconds, the first step apart: the shortest is more than a machine that others use will
    give."""
    times: list[float] = []

    def note(_: int) -> None:
        if bank.device.type != "cpu":
            torch.accelerator.synchronize(bank.device)
        times.append(time.perf_counter())

    fit(bank, jobs, token_budget=token_budget, checkpointing=checkpointing, on_tokens=note)
    return statistics.median(b - a for a, b in pairwise(times))
