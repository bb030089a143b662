"""The plain way to train one adapter, against which the engine is held: PEFT, and the self-test's plain training."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

import peft
import torch
from torch import Tensor

from selfedit.engine import FitJob, LoraSpec, SoftTargets, TokenSequence
from selfedit.engine.selftest import first_weights, next_token_losses, train_plainly


def lora_config(model: Any, spec: LoraSpec) -> peft.LoraConfig:
    targets = spec.targets if spec.targets == "all-linear" else list(spec.targets)
    layers = None if spec.layers is None else list(range(spec.layers[0], spec.layers[1] + 1))
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=targets,
        layers_to_transform=layers,
        use_rslora=spec.rslora,
    )


def wrapped_in_peft(model: Any, spec: LoraSpec, state: dict[str, tuple[Tensor, Tensor]]) -> Any:
    """A PEFT model on a copy of `model`, with these weights."""
    wrapped = peft.get_peft_model(copy.deepcopy(model), lora_config(model, spec)).eval()
    with torch.no_grad():
        for name, (a, b) in state.items():
            layer = wrapped.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b)
    return wrapped


def sequence_losses(wrapped: Any, sequence: TokenSequence) -> Tensor:
    """The losses of a sequence's labelled tokens by plain autograd."""
    if sequence.targets is None:
        return next_token_losses(wrapped, sequence)
    logits = wrapped(input_ids=torch.tensor([sequence.ids], device=wrapped.device), use_cache=False).logits[0].float()
    return divergence(logits[sequence.first - 1 : -1], *unpacked(sequence.targets))


def train_alone(model: Any, spec: LoraSpec, job: FitJob) -> Any:
    """A PEFT model on a copy of `model`, trained on a job."""
    wrapped = wrapped_in_peft(model, spec, first_weights(model, spec, job.seed))
    train_plainly(wrapped, [p for p in wrapped.parameters() if p.requires_grad], job, sequence_losses)
    return wrapped


_alone: dict[Any, list[Any]] = {}


def trained_alone(kind: str, dtype: str, model: Any, spec: LoraSpec, jobs: Sequence[FitJob]) -> list[Any]:
    """PEFT models trained on the jobs, each alone; made once for both paths of a bank."""
    key = kind, dtype, spec, tuple(jobs)
    if key not in _alone:
        _alone[key] = [train_alone(model, spec, job) for job in jobs]
    return _alone[key]


def unpacked(targets: SoftTargets) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities [L, K]."""
    ids = torch.frombuffer(bytearray(targets.ids), dtype=torch.int32).long()
    log_probs = torch.frombuffer(bytearray(targets.log_probs), dtype=torch.float32)
    return ids.view(-1, targets.top), log_probs.view(-1, targets.top)


def divergence(logits: Tensor, ids: Tensor, log_probs: Tensor) -> Tensor:
    """KL(teacher || model) [L] by plain autograd over full logits [L, V]; tokens not in `ids` are one class."""
    ids, log_probs = ids.to(logits.device), log_probs.to(logits.device, logits.dtype)
    log_q = logits.log_softmax(-1)
    total = (log_probs.exp() * (log_probs - log_q.gather(1, ids))).sum(-1)
    rest = (1 - log_probs.double().exp().sum(-1)).clamp(min=0).to(logits.dtype)
    if ids.shape[1] == logits.shape[1]:
        return total
    named = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids, True)
    log_rest = log_q.masked_fill(named, -torch.inf).logsumexp(-1)
    return total + torch.where(rest > 0, rest * (rest.clamp(min=1e-40).log() - log_rest), 0.0)


def random_targets(generator: random.Random, length: int, top: int, vocabulary: int = 160) -> SoftTargets:
    """A teacher that gives its `top` tokens some nine tenths of the probability."""
    ids = [generator.sample(range(vocabulary), top) for _ in range(length)]
    shares = [[generator.random() ** 3 + 1e-6 for _ in range(top)] for _ in range(length)]
    left = [0.0 if top == vocabulary else generator.choice([0.0, 0.1]) for _ in range(length)]
    return SoftTargets.of(
        ids,
        [[math.log((1 - rest) * share / sum(row)) for share in row] for row, rest in zip(shares, left, strict=True)],
    )


def taught(job: FitJob, *, every: int = 2, vocabulary: int = 160) -> FitJob:
    """The job with soft targets, of 1 to 20 tokens, for every second of its sequences, and weights of their own."""
    generator = random.Random(job.seed)
    sequences = [
        dataclasses.replace(
            sequence,
            targets=random_targets(generator, sequence.labelled, generator.choice([1, 5, 20]), vocabulary),
            weight=generator.choice([0.5, 1.0, 2.0]),
        )
        if k % every == 0
        else sequence
        for k, sequence in enumerate(job.sequences)
    ]
    return dataclasses.replace(job, sequences=tuple(sequences))


def peft_state(wrapped: Any, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    layers = {name: wrapped.base_model.model.get_submodule(name) for name in names}
    return {
        name: (layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data)
        for name, layer in layers.items()
    }
