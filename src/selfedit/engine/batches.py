"""Packed rows as batches of sequences of similar length, for kernels that want a rectangle.

Axes: P packed positions, B sequences, H query heads, K key-value heads, G query heads per key-value head, D head width,
T time, M rows of all batches together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

# How much larger padding may make a batch of sequences: few batches are best on an accelerator, little to compute on a
# CPU.
PADDING: dict[Literal["cpu", "accelerator"], float] = {"cpu": 0.1, "accelerator": 0.5}


@dataclass
class Batches:
    """Packed rows of K key-value heads as batches of sequences of similar length, shorter ones padded with their last
    row.

    `shapes` has sequences and length of each batch; M rows of `rows` are numbers p * K + k, batch after batch, and in a
    batch sequence after sequence, head after head; `places` [P * K] says where each packed row has gone, `padding`
    which are copies. A sequence is padded with rows of its own, because a number that is not finite would come through
    a mask.
    """

    heads: int
    shapes: list[tuple[int, int]]
    rows: Tensor
    places: Tensor
    padding: Tensor

    @staticmethod
    def of(lengths: list[int], heads: int, share: float) -> Batches:
        """`share`: how much larger padding may make a batch."""
        starts = torch.tensor([0, *lengths]).cumsum(0)
        shapes, rows, real = [], [], []
        for members in similar(lengths, share):
            length = lengths[members[0]]
            shapes.append((len(members), length))
            last_B11 = torch.tensor([lengths[k] - 1 for k in members])[:, None, None]
            steps_T = torch.arange(length)
            position_B1T = starts[members][:, None, None] + torch.minimum(steps_T, last_B11)
            rows_BKT = position_B1T * heads + torch.arange(heads)[:, None]
            rows.append(rows_BKT.flatten())
            real.append((steps_T <= last_B11).expand(rows_BKT.shape).flatten())
        rows_M, real_M = torch.cat(rows), torch.cat(real)
        places = torch.empty(int(starts[-1]) * heads, dtype=torch.long)
        places[rows_M[real_M]] = real_M.nonzero().squeeze(1)
        return Batches(heads, shapes, rows_M, places, (~real_M).nonzero().squeeze(1))

    def gather(self, x_PW: Tensor) -> Tensor:
        """[P, K * W] -> [M, W]"""
        return x_PW.reshape(len(self.places), -1).index_select(0, self.rows)

    def scatter(self, x_MW: Tensor, width: int) -> Tensor:
        """[M, G * D] -> [P, K * G, D], of D = `width`"""
        return x_MW.index_select(0, self.places).view(len(self.places) // self.heads, -1, width)

    def parts(self, width: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Each batch's part [B * K, T * G, D] of tensors [M, G * D], of D = `width`."""
        counts = [sequences * self.heads * length for sequences, length in self.shapes]
        for (sequences, _), *parts in zip(self.shapes, *(x.split_with_sizes(counts) for x in tensors), strict=True):
            yield tuple(part.view(sequences * self.heads, -1, width) for part in parts)


def similar(lengths: list[int], padding: float) -> list[list[int]]:
    """Numbers of the sequences, longest first, in groups that padding to the longest makes larger by at most this
    share."""
    groups: list[list[int]] = []
    filled = 0
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        filled += lengths[k]
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= (1 + padding) * filled:
            groups[-1].append(k)
        else:
            groups.append([k])
            filled = lengths[k]
    return groups


class Sorted(torch.autograd.Function):
    """Packed rows [P, H, D] in batches [B, T, H, D]."""

    @staticmethod
    def forward(ctx: Any, x_PHD: Tensor, batches: Batches) -> tuple[Tensor, ...]:
        ctx.batches = batches
        x_MHD = x_PHD.index_select(0, batches.rows)
        counts = [sequences * length for sequences, length in batches.shapes]
        return tuple(
            part.unflatten(0, shape) for part, shape in zip(x_MHD.split_with_sizes(counts), batches.shapes, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # What padding gets is zero: no real query sees it.
        return torch.cat([grad.flatten(0, 1) for grad in grads]).index_select(0, ctx.batches.places), None


class Back(torch.autograd.Function):
    """Rows of batches [M, H, D] as packed ones [P, H, D]."""

    @staticmethod
    def forward(ctx: Any, x_MHD: Tensor, batches: Batches) -> Tensor:
        ctx.batches = batches
        return x_MHD.index_select(0, batches.places)

    @staticmethod
    def backward(ctx: Any, grad_PHD: Tensor) -> tuple[Tensor, None]:
        return grad_PHD.index_select(0, ctx.batches.rows).index_fill_(0, ctx.batches.padding, 0.0), None
