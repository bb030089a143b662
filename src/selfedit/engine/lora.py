"""LoRA on one linear layer, for many adapters at once.

A frozen linear layer with N stacked low-rank updates (Hu et al. 2021, arXiv 2106.09685), over a batch whose rows belong
to different adapters.  The backward pass is written by hand: it writes the gradients of A and B straight into the
bank's buffer, and computes none for the frozen weights.

Axes in names: N adapters, n those of this batch, P packed rows (tokens), l rows of each of several adapters, I and O
widths of a layer's input and output, R rank, G ranks of all members of a group (members times R).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from selfedit.engine import paths
from selfedit.engine.jobs import LoraSpec
from selfedit.engine.memory import move


@dataclass(frozen=True)
class Run:
    """The next `count * length` rows belong to adapters `first`, `first + 1`, ..., `length` rows each."""

    first: int
    count: int
    length: int

    @property
    def adapters(self) -> slice:
        return slice(self.first, self.first + self.count)


@dataclass
class Routing:
    """Which rows of a batch belong to which adapter: segment after segment, the next `lengths[k]` to `adapters[k]`.

    Low-rank products are computed run by run (consecutive adapters with equally many rows share one batched product)
    or, with `offsets`, by grouped products over the bank's adapters, or over those named by `chosen` only.
    `dropout_seeds` holds one seed per segment where dropout is active, else None.
    """

    adapters: list[int]
    lengths: list[int]
    runs: list[Run]
    offsets: Tensor | None = None
    chosen: Tensor | None = None
    dropout_seeds: list[int] | None = None

    @cached_property
    def rows(self) -> int:
        return sum(self.lengths)

    @cached_property
    def _run_rows(self) -> list[int]:
        return [run.count * run.length for run in self.runs]

    def by_run(self, x_PW: Tensor) -> tuple[Tensor, ...]:
        """The rows of each run; one call, because a slice per run costs more than a small product."""
        return x_PW.split_with_sizes(self._run_rows)

    def by_segment(self, x_PW: Tensor) -> tuple[Tensor, ...]:
        """The rows of each segment."""
        return x_PW.split_with_sizes(self.lengths)

    @staticmethod
    def of(
        adapters: Sequence[int],
        lengths: Sequence[int],
        *,
        size: int,
        grouped: bool,
        dropout_seeds: list[int] | None = None,
    ) -> Routing:
        """Routes `lengths[k]` consecutive rows to `adapters[k]` of a bank of `size`; neighbours of one adapter become
        one segment, unless each has a dropout seed of its own.  Its tensors lie on the host."""
        owners, rows = list[int](), list[int]()
        for adapter, length in zip(adapters, lengths, strict=True):
            if owners and owners[-1] == adapter and dropout_seeds is None:
                rows[-1] += length
            else:
                owners.append(adapter)
                rows.append(length)
        if grouped and dropout_seeds is None and owners == sorted(set(owners)):
            ends = torch.tensor(rows).cumsum(0, dtype=torch.int32)
            return Routing(owners, rows, [], ends, None if len(owners) == size else torch.tensor(owners))
        return Routing(owners, rows, _runs(owners, rows, dropout_seeds is None), dropout_seeds=dropout_seeds)


def _runs(adapters: list[int], lengths: list[int], join: bool) -> list[Run]:
    runs: list[Run] = []
    for adapter, length in zip(adapters, lengths, strict=True):
        last = runs[-1] if runs else None
        if join and last is not None and last.length == length and last.first + last.count == adapter:
            runs[-1] = Run(last.first, last.count + 1, length)
        else:
            runs.append(Run(adapter, 1, length))
    return runs


@dataclass
class Shared:
    """What the layers of a bank have in common: `routing` is None while no adapter is active.  `anchor` is a leaf that
    requires a gradient, so that a backward pass reaches layers whose input does not need one."""

    spec: LoraSpec
    anchor: Tensor
    routing: Routing | None = None
    # Outputs of a group that its other layers have yet to fetch: group -> (input, place -> output).
    waiting: dict[int, tuple[Tensor, dict[int, Tensor]]] = field(default_factory=dict)


class LoraGroup:
    """Layers that read the same input (query, key and value; gate and up) and are computed together.

    `a_NGI` stacks their A matrices along the rank, member after member (G = members times R); `b_NOR` has one tensor
    per member. All are views into the bank's flat buffers.  Gradients are written straight into the bank's gradient
    buffer during the backward pass, not returned through autograd; `written` remembers for which adapters this step has
    done so: the first product of a step overwrites, so that nothing needs to be zeroed.
    """

    def __init__(self, linears: Sequence[nn.Linear], shared: Shared, index: int) -> None:
        self.linears = list(linears)
        self.in_features = linears[0].in_features
        self.shared = shared
        self.index = index
        self.a_NGI: Tensor
        self.b_NOR: list[Tensor]
        self.grad_a_NGI: Tensor | None = None
        self.grad_b_NOR: list[Tensor] = []
        self.written: set[int] = set()

    def set_parameters(self, a_NGI: Tensor, b_NOR: list[Tensor]) -> None:
        self.a_NGI, self.b_NOR = a_NGI, b_NOR
        # Views that the loop over adapters needs again and again.
        self.a_GI, self.a_IG = list(a_NGI.unbind(0)), list(a_NGI.transpose(1, 2).unbind(0))
        self.b_OR = [list(b.unbind(0)) for b in b_NOR]
        self.b_RO = [list(b.transpose(1, 2).unbind(0)) for b in b_NOR]

    def set_gradients(self, a_NGI: Tensor | None, b_NOR: list[Tensor]) -> None:
        self.grad_a_NGI, self.grad_b_NOR = a_NGI, b_NOR
        self.grad_a_GI = [] if a_NGI is None else list(a_NGI.unbind(0))
        self.grad_b_OR = [list(b.unbind(0)) for b in b_NOR]
        self.written.clear()

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs of all members."""
        routing = self.shared.routing
        assert routing is not None
        if torch.is_grad_enabled():
            return _Adapted.apply(x, self.shared.anchor, self, routing)
        ys, _ = _forward(x.reshape(-1, x.shape[-1]), self, routing)
        return tuple(y.view(*x.shape[:-1], -1) for y in ys)


class LoraLinear(nn.Module):
    """A frozen linear layer with the updates of a bank's adapters: `y = x W^T + b + scaling * x A_i^T B_i^T`, i the
    row's adapter.

    Without a routing it is the frozen layer, bit for bit.
    """

    def __init__(self, base_layer: nn.Linear, group: LoraGroup, place: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.group = group
        self.place = place

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        group = self.group
        if group.shared.routing is None:
            return self.base_layer(x)
        if len(group.linears) == 1:
            return group(x)[0]
        waiting = group.shared.waiting
        source, outputs = waiting.pop(group.index, (None, {}))
        if source is not x or self.place not in outputs:
            outputs = dict(enumerate(group(x)))
        y = outputs.pop(self.place)
        if outputs:
            waiting[group.index] = (x, outputs)
        return y


def grouped_works(groups: Sequence[LoraGroup]) -> bool:
    """Whether grouped products give what single ones give in layers of these shapes, forwards and backwards, on 8 rows
    for two of three adapters."""
    each = {(group.in_features, *(linear.out_features for linear in group.linears)): group for group in groups}

    def trial(group: LoraGroup) -> tuple[paths.Way, paths.Way]:
        weight, rank = group.linears[0].weight, group.shared.spec.rank
        generator = torch.Generator().manual_seed(0)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(weight.device, weight.dtype)

        own = LoraGroup(group.linears, group.shared, 0)
        shapes = [(3, rank * len(own.linears), own.in_features), *((3, m.out_features, rank) for m in own.linears)]
        a_NGI, *b_NOR = (numbers(*shape).mul_(0.1) for shape in shapes)
        own.set_parameters(a_NGI, b_NOR)
        x_PI, gs = numbers(16, own.in_features), [numbers(16, m.out_features) for m in own.linears]

        def way(grouped: bool) -> paths.Way:
            routing = Routing.of([0, 2], [8, 8], size=3, grouped=grouped)
            move(weight.device, routing)

            def run() -> list[Tensor]:
                grad_a, *grad_b = (torch.zeros(shape, device=weight.device) for shape in shapes)
                own.set_gradients(grad_a, grad_b)
                with torch.no_grad():
                    ys, h_PG = _forward(x_PI, own, routing)
                    grad_x = _backward(gs, x_PI, h_PG, own, routing, needs_x=True)
                assert grad_x is not None
                # The gradients come from products in the layers' own dtype.
                return [*ys, grad_x, *(grad.to(weight.dtype) for grad in (grad_a, *grad_b))]

            return run

        return way(True), way(False)

    return all(
        paths.works(
            "grouped products",
            group.linears[0].weight.device,
            group.linears[0].weight.dtype,
            (group.shared.spec.rank, *shape),
            partial(trial, group),
        )
        for shape, group in each.items()
    )


def dropout_mask(group: LoraGroup, seed: int, x: Tensor) -> Tensor:
    """The scaled keep mask of one segment."""
    rate = group.shared.spec.dropout
    generator = torch.Generator(device=x.device).manual_seed((seed * 1_000_003 + group.index) % 2**63)
    keep = torch.rand(x.shape, generator=generator, device=x.device) >= rate
    return keep.to(x.dtype) / (1.0 - rate)


def _forward(x_PI: Tensor, group: LoraGroup, routing: Routing) -> tuple[list[Tensor], Tensor]:
    """Outputs [P, O] of each member, and scaling * x A^T [P, G]."""
    if x_PI.shape[0] != routing.rows:
        raise RuntimeError(f"the batch has {x_PI.shape[0]} rows, but {routing.rows} were routed to adapters")
    rank, scaling = group.shared.spec.rank, group.shared.spec.scaling
    ys = [nn.functional.linear(x_PI, linear.weight, linear.bias) for linear in group.linears]
    if routing.offsets is not None:
        a_nGI, b_nOR = _taken(group, routing)
        h_PG = nn.functional.grouped_mm(x_PI, a_nGI.transpose(1, 2), offs=routing.offsets).mul_(scaling)
        for y_PO, h_PR, b in zip(ys, h_PG.split(rank, 1), b_nOR, strict=True):
            y_PO.add_(nn.functional.grouped_mm(h_PR, b.transpose(1, 2), offs=routing.offsets))
        return ys, h_PG
    if routing.dropout_seeds is not None:
        x_PI = x_PI * _masks(group, routing, x_PI)
    h_PG = x_PI.new_empty(x_PI.shape[0], group.a_NGI.shape[1])
    for run, x, h in zip(routing.runs, routing.by_run(x_PI), routing.by_run(h_PG), strict=True):
        if run.count > 1:
            x_nlI, h_nlG = (rows.unflatten(0, (run.count, run.length)) for rows in (x, h))
            torch.bmm(x_nlI, group.a_NGI[run.adapters].transpose(1, 2), out=h_nlG)
        else:
            torch.mm(x, group.a_IG[run.first], out=h)
    h_PG.mul_(scaling)
    for place, (y_PO, h_PR) in enumerate(zip(ys, h_PG.split(rank, 1), strict=True)):
        for run, y, h in zip(routing.runs, routing.by_run(y_PO), routing.by_run(h_PR), strict=True):
            if run.count > 1:
                y_nlO, h_nlR = (rows.unflatten(0, (run.count, run.length)) for rows in (y, h))
                y_nlO.baddbmm_(h_nlR, group.b_NOR[place][run.adapters].transpose(1, 2))
            else:
                y.addmm_(h, group.b_RO[place][run.first])
    return ys, h_PG


def _masks(group: LoraGroup, routing: Routing, x_PI: Tensor) -> Tensor:
    """The scaled keep masks of all segments [P, I]; made again in the backward pass instead of being stored."""
    assert routing.dropout_seeds is not None
    parts = zip(routing.dropout_seeds, routing.by_segment(x_PI), strict=True)
    return torch.cat([dropout_mask(group, seed, x) for seed, x in parts])


def _taken(group: LoraGroup, routing: Routing) -> tuple[Tensor, list[Tensor]]:
    """The parameters of the adapters that have rows, for grouped products."""
    if routing.chosen is None:
        return group.a_NGI, group.b_NOR
    return group.a_NGI[routing.chosen], [b_NOR[routing.chosen] for b_NOR in group.b_NOR]


def _backward(
    gs: list[Tensor], x_PI: Tensor, h_PG: Tensor, group: LoraGroup, routing: Routing, needs_x: bool
) -> Tensor | None:
    """Writes the gradients of A and B; returns that of x [P, I] where it is needed."""
    rank, scaling = group.shared.spec.rank, group.shared.spec.scaling
    grad_x = None
    if needs_x:
        grad_x = torch.mm(gs[0], group.linears[0].weight)
        for g_PO, linear in zip(gs[1:], group.linears[1:], strict=True):
            grad_x.addmm_(g_PO, linear.weight)
    # An adapter's first segment of a step overwrites its gradients, the others add.
    fresh = []
    for adapter in routing.adapters:
        fresh.append(adapter not in group.written)
        group.written.add(adapter)
    if routing.offsets is not None:
        a_nGI, b_nOR = _taken(group, routing)
        for g_PO, h_PR, grad_b in zip(gs, h_PG.split(rank, 1), group.grad_b_NOR, strict=True):
            _store(grad_b, nn.functional.grouped_mm(g_PO.t(), h_PR, offs=routing.offsets), routing, fresh)
        each = [nn.functional.grouped_mm(g_PO, b, offs=routing.offsets) for g_PO, b in zip(gs, b_nOR, strict=True)]
        dh_PG = (torch.cat(each, 1) if len(each) > 1 else each[0]).mul_(scaling)
        _store(group.grad_a_NGI, nn.functional.grouped_mm(dh_PG.t(), x_PI, offs=routing.offsets), routing, fresh)
        if grad_x is not None:
            grad_x.add_(nn.functional.grouped_mm(dh_PG, a_nGI, offs=routing.offsets))
        return grad_x
    mask_PI = None
    if routing.dropout_seeds is not None:
        mask_PI = _masks(group, routing, x_PI)
        x_PI = x_PI * mask_PI
    dh_PG = torch.empty_like(h_PG)
    for place, (g_PO, h_PR, dh_PR) in enumerate(zip(gs, h_PG.split(rank, 1), dh_PG.split(rank, 1), strict=True)):
        rows = (routing.by_segment(x) for x in (g_PO, h_PR, dh_PR))
        for adapter, first, g, h, dh in zip(routing.adapters, fresh, *rows, strict=True):
            torch.mm(g, group.b_OR[place][adapter], out=dh)
            _accumulate(group.grad_b_OR[place][adapter], g.t(), h, first)
    dh_PG.mul_(scaling)
    dhs = routing.by_segment(dh_PG)
    for adapter, first, dh, x in zip(routing.adapters, fresh, dhs, routing.by_segment(x_PI), strict=True):
        _accumulate(group.grad_a_GI[adapter], dh.t(), x, first)
    if grad_x is None:
        return None
    masks = [None] * len(dhs) if mask_PI is None else routing.by_segment(mask_PI)
    for adapter, dh, mask, into in zip(routing.adapters, dhs, masks, routing.by_segment(grad_x), strict=True):
        if mask is None:
            into.addmm_(dh, group.a_GI[adapter])
        else:
            into.add_(torch.mm(dh, group.a_GI[adapter]).mul_(mask))
    return grad_x


def _accumulate(grad: Tensor, left: Tensor, right: Tensor, fresh: bool) -> None:
    """grad = left @ right, or += where it is not fresh; grad is float32, the factors may be in a narrower type."""
    if left.dtype != grad.dtype:
        product = torch.mm(left, right)
        if fresh:
            grad.copy_(product)
        else:
            grad.add_(product)
    elif fresh:
        torch.mm(left, right, out=grad)
    else:
        grad.addmm_(left, right)


def _store(grad_N: Tensor | None, values_n: Tensor, routing: Routing, fresh: list[bool]) -> None:
    """Writes or adds the gradients of the adapters that have rows."""
    assert grad_N is not None
    if routing.chosen is None:
        if all(fresh):
            grad_N.copy_(values_n)
            return
        chosen = torch.arange(len(grad_N), device=grad_N.device)
    else:
        chosen = routing.chosen
    if all(fresh):
        grad_N.index_copy_(0, chosen, values_n.to(grad_N.dtype))
        return
    for k, adapter in enumerate(routing.adapters):
        if fresh[k]:
            grad_N[adapter].zero_()
    grad_N.index_add_(0, chosen, values_n.to(grad_N.dtype))


class _Adapted(torch.autograd.Function):
    """Forward and backward of a `LoraGroup` with a routing; below the first adapted layer no gradient is computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, group: LoraGroup, routing: Routing) -> tuple[Tensor, ...]:
        x_PI = x.reshape(-1, x.shape[-1])
        ys, h_PG = _forward(x_PI, group, routing)
        ctx.save_for_backward(x_PI, h_PG)
        ctx.group, ctx.routing, ctx.shape = group, routing, x.shape
        return tuple(y_PO.view(*x.shape[:-1], -1) for y_PO in ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        x_PI, h_PG = ctx.saved_tensors
        gs = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        grad_x = _backward(gs, x_PI, h_PG, ctx.group, ctx.routing, ctx.needs_input_grad[0])
        return (None if grad_x is None else grad_x.view(ctx.shape)), None, None, None
