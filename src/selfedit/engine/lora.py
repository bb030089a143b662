"""LoRA on one linear layer, for many adapters at once.

Knows the arithmetic of a frozen linear layer with N stacked low-rank updates (Hu et al. 2021, arXiv 2106.09685) over a
batch whose rows belong to different adapters.  Knows nothing of models, optimisers or token ids.

Axes in names: N adapters, P packed rows (tokens), D_in and D_out widths, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LoraSpec:
    """The shape of the adapters of one bank.

    `targets` is `all-linear` (every linear layer but the output head) or names of layers: a whole dotted name, or its end
    (`q_proj`).  `layers` keeps only decoder layers first..last, both included, counted from 0.  `dropout` acts on the input of
    A, from a random stream of the adapter's own.  Updates are scaled by alpha / rank, or alpha / sqrt(rank) with `rslora`
    (Kalajdzievski 2023, arXiv 2312.03732).
    """

    rank: int = 16
    alpha: float = 32.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    layers: tuple[int, int] | None = None
    dropout: float = 0.0
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoraSpec: rank must be at least 1, not {self.rank}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"LoraSpec: dropout must be in [0, 1), not {self.dropout}")
        if not self.targets:
            raise ValueError("LoraSpec: targets is empty; name at least one linear layer, or 'all-linear'")

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass
class Routing:
    """Which rows of a batch belong to which adapter: rows `start[k]:end[k]` to `adapter[k]`, in order, without gaps.

    `path` says how the low-rank products are computed: `loop` (one product a segment; best on CPUs), `bmm` (segments of
    equal length and consecutive adapters), `grouped` (one grouped product over all adapters of the bank; best on GPUs).
    `dropout_seeds` holds one seed a segment where dropout is active, else None.
    """

    segments: list[tuple[int, int, int]]
    path: Literal["loop", "bmm", "grouped"]
    offsets_N: Tensor | None = None
    dropout_seeds: list[int] | None = None

    @property
    def rows(self) -> int:
        return self.segments[-1][2] if self.segments else 0

    @staticmethod
    def of(
        adapters: Sequence[int],
        lengths: Sequence[int],
        *,
        size: int,
        device: torch.device,
        grouped: bool,
        dropout_seeds: list[int] | None = None,
    ) -> Routing:
        """Routes `lengths[k]` consecutive rows to `adapters[k]`; neighbours of one adapter become one segment, unless each
        has a dropout seed of its own."""
        segments: list[tuple[int, int, int]] = []
        start = 0
        for adapter, length in zip(adapters, lengths, strict=True):
            end = start + length
            if segments and segments[-1][0] == adapter and dropout_seeds is None:
                segments[-1] = (adapter, segments[-1][1], end)
            else:
                segments.append((adapter, start, end))
            start = end
        ids = [adapter for adapter, _, _ in segments]
        if dropout_seeds is not None:
            return Routing(segments, "loop", dropout_seeds=dropout_seeds)
        if grouped and ids == sorted(set(ids)):
            counts = torch.zeros(size, dtype=torch.int32)
            for adapter, first, last in segments:
                counts[adapter] = last - first
            return Routing(segments, "grouped", offsets_N=counts.cumsum(0, dtype=torch.int32).to(device))
        equal = len({last - first for _, first, last in segments}) == 1
        consecutive = ids == list(range(ids[0], ids[0] + len(ids))) if ids else False
        return Routing(segments, "bmm" if equal and consecutive and len(ids) > 1 else "loop")


@dataclass
class Shared:
    """What the layers of a bank have in common: `routing` is None while no adapter is active.  `anchor` is a leaf that requires
    a gradient, so that a backward pass reaches layers whose input does not need one."""

    spec: LoraSpec
    anchor: Tensor
    routing: Routing | None = None


class LoraLinear(nn.Module):
    """A frozen linear layer with the updates of a bank's adapters: `y = x W^T + b + scaling * x A_i^T B_i^T`, i the row's adapter.

    Without a routing it is the frozen layer, bit for bit.  A and B are views into the bank's flat buffers; gradients are
    written straight into the bank's gradient buffer during the backward pass, not returned through autograd.
    """

    def __init__(self, base_layer: nn.Linear, shared: Shared, index: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.shared = shared
        self.index = index
        self.a_NRI: Tensor
        self.b_NOR: Tensor
        self.grad_a_NRI: Tensor | None = None
        self.grad_b_NOR: Tensor | None = None

    @property
    def in_features(self) -> int:
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        return self.base_layer.out_features

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        routing = self.shared.routing
        if routing is None:
            return self.base_layer(x)
        if torch.is_grad_enabled():
            return _Adapted.apply(x, self.shared.anchor, self, routing)
        y, _ = _forward(x.reshape(-1, x.shape[-1]), self, routing)
        return y.view(*x.shape[:-1], -1)


def _dropout_mask(layer: LoraLinear, seed: int, x: Tensor) -> Tensor:
    """The scaled keep mask of one segment; made again in the backward pass from the same seed instead of being stored."""
    rate = layer.shared.spec.dropout
    generator = torch.Generator(device=x.device).manual_seed((seed * 1_000_003 + layer.index) % 2**63)
    keep = torch.rand(x.shape, generator=generator, device=x.device) >= rate
    return keep.to(x.dtype) / (1.0 - rate)


def _forward(x_PI: Tensor, layer: LoraLinear, routing: Routing) -> tuple[Tensor, Tensor]:
    if x_PI.shape[0] != routing.rows:
        raise RuntimeError(f"the batch has {x_PI.shape[0]} rows, but {routing.rows} were routed to adapters")
    base, a_NRI, b_NOR = layer.base_layer, layer.a_NRI, layer.b_NOR
    scaling = layer.shared.spec.scaling
    y_PO = nn.functional.linear(x_PI, base.weight, base.bias)
    if routing.path == "grouped":
        h_PR = torch._grouped_mm(x_PI, a_NRI.transpose(1, 2), offs=routing.offsets_N)
        y_PO.add_(torch._grouped_mm(h_PR, b_NOR.transpose(1, 2), offs=routing.offsets_N), alpha=scaling)
        return y_PO, h_PR
    if routing.path == "bmm":
        first, count = routing.segments[0][0], len(routing.segments)
        h_nlR = torch.bmm(x_PI.view(count, -1, x_PI.shape[1]), a_NRI[first : first + count].transpose(1, 2))
        y_PO.view(count, -1, y_PO.shape[1]).baddbmm_(h_nlR, b_NOR[first : first + count].transpose(1, 2), alpha=scaling)
        return y_PO, h_nlR.view(x_PI.shape[0], -1)
    h_PR = x_PI.new_empty(x_PI.shape[0], a_NRI.shape[1])
    for k, (adapter, start, end) in enumerate(routing.segments):
        x = x_PI[start:end]
        if routing.dropout_seeds is not None:
            x = x * _dropout_mask(layer, routing.dropout_seeds[k], x)
        h = torch.mm(x, a_NRI[adapter].t(), out=h_PR[start:end])
        y_PO[start:end].addmm_(h, b_NOR[adapter].t(), alpha=scaling)
    return y_PO, h_PR


def _accumulate(grad: Tensor, left: Tensor, right: Tensor, scaling: float = 1.0) -> None:
    """grad += scaling * left @ right, where grad is float32 and the factors may be in a narrower type."""
    if left.dtype == grad.dtype:
        grad.addmm_(left, right, alpha=scaling)
    else:
        grad.add_(torch.mm(left, right), alpha=scaling)


class _Adapted(torch.autograd.Function):
    """Forward and backward of `LoraLinear` with a routing; below the first adapted layer no gradient is computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: LoraLinear, routing: Routing) -> Tensor:
        x_PI = x.reshape(-1, x.shape[-1])
        y_PO, h_PR = _forward(x_PI, layer, routing)
        ctx.save_for_backward(x_PI, h_PR)
        ctx.layer, ctx.routing, ctx.shape = layer, routing, x.shape
        return y_PO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, None, None, None]:
        x_PI, h_PR = ctx.saved_tensors
        layer, routing = ctx.layer, ctx.routing
        a_NRI, b_NOR = layer.a_NRI, layer.b_NOR
        scaling = layer.shared.spec.scaling
        g_PO = grad_y.reshape(-1, grad_y.shape[-1])
        grad_x = g_PO @ layer.base_layer.weight if ctx.needs_input_grad[0] else None
        if routing.path == "grouped":
            offsets = routing.offsets_N
            dh_PR = torch._grouped_mm(g_PO, b_NOR, offs=offsets).mul_(scaling)
            layer.grad_b_NOR.add_(torch._grouped_mm(g_PO.t(), h_PR, offs=offsets), alpha=scaling)
            layer.grad_a_NRI.add_(torch._grouped_mm(dh_PR.t(), x_PI, offs=offsets))
            if grad_x is not None:
                grad_x.add_(torch._grouped_mm(dh_PR, a_NRI, offs=offsets))
        else:
            for k, (adapter, start, end) in enumerate(routing.segments):
                g, x, h = g_PO[start:end], x_PI[start:end], h_PR[start:end]
                dh = torch.mm(g, b_NOR[adapter]).mul_(scaling)
                _accumulate(layer.grad_b_NOR[adapter], g.t(), h, scaling)
                if routing.dropout_seeds is not None:
                    mask = _dropout_mask(layer, routing.dropout_seeds[k], x)
                    _accumulate(layer.grad_a_NRI[adapter], dh.t(), x * mask)
                    if grad_x is not None:
                        grad_x[start:end].add_(torch.mm(dh, a_NRI[adapter]).mul_(mask))
                    continue
                _accumulate(layer.grad_a_NRI[adapter], dh.t(), x)
                if grad_x is not None:
                    grad_x[start:end].addmm_(dh, a_NRI[adapter])
        return (None if grad_x is None else grad_x.view(ctx.shape)), None, None, None
