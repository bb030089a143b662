"""Sequences of different lengths in one row, without padding.

Knows how to run a Hugging Face decoder over packed sequences, each attending to itself alone, through transformers'
attention interface.  Knows nothing of adapters or losses.

Axes: P packed positions, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

_NAME = "selfedit_packed"


@dataclass
class Layout:
    """Lengths of the packed sequences, in order.  `buckets` (accelerators only) group sequences of similar length: for each,
    packed positions [B, T] with -1 where a shorter sequence has ended."""

    lengths: list[int]
    buckets: list[Tensor] | None = None

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> Layout:
        lengths = list(lengths)
        return Layout(lengths, None if device.type == "cpu" else _buckets(lengths, device))

    def positions(self, device: torch.device) -> Tensor:
        """Position of each token in its own sequence, [1, P]."""
        return torch.cat([torch.arange(length) for length in self.lengths])[None].to(device)


def _buckets(lengths: list[int], device: torch.device) -> list[Tensor]:
    groups: dict[int, list[int]] = {}
    for k, length in enumerate(lengths):
        groups.setdefault(max(4, (length - 1).bit_length()), []).append(k)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    buckets = []
    for members in groups.values():
        longest = max(lengths[k] for k in members)
        steps_T = torch.arange(longest)
        count_B = torch.tensor([lengths[k] for k in members])
        positions_BT = starts[members][:, None] + steps_T[None]
        buckets.append(torch.where(steps_T[None] < count_B[:, None], positions_BT, -1).to(device))
    return buckets


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within this context, the model takes one row [1, P] of packed sequences; each call names its `Layout` with the
    keyword `packed_layout`, which transformers hands through to the attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    packed_layout: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each packed sequence to itself.  query [1, H, P, D] -> [1, P, H, D]."""
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("packed attention knows neither soft-capped logits nor attention sinks")
    if packed_layout is None:
        raise RuntimeError(
            f"{type(module).__name__} got no packed layout: its model drops keywords on the way to attention"
        )
    layout = packed_layout
    gqa = query.shape[1] != key.shape[1]
    if layout.buckets is None:
        # split, not slices: its backward is one concatenation
        parts = zip(
            query.split(layout.lengths, 2), key.split(layout.lengths, 2), value.split(layout.lengths, 2), strict=True
        )
        out = torch.cat([_attend(q, k, v, scaling, dropout, sliding_window, gqa) for q, k, v in parts], dim=2)
        return out.transpose(1, 2), None
    # [P, H, D]; one row of zeros at the end stands for the padding
    rows = [torch.cat([x[0].transpose(0, 1), x.new_zeros(1, x.shape[1], x.shape[3])]) for x in (query, key, value)]
    out_PHD = query.new_zeros(query.shape[2] + 1, query.shape[1], value.shape[3])
    for positions_BT in layout.buckets:
        q, k, v = (x[positions_BT].transpose(1, 2) for x in rows)
        attended = _attend(q, k, v, scaling, dropout, sliding_window, gqa).transpose(1, 2)
        index = torch.where(positions_BT < 0, query.shape[2], positions_BT).flatten()
        out_PHD = out_PHD.index_copy(0, index, attended.flatten(0, 1))
    return out_PHD[:-1][None], None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float, window: int | None, gqa: bool
) -> Tensor:
    """[B, H, T, D]; padding can only be at the end, where no real query sees it."""
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        steps = torch.arange(length, device=query.device)
        distance = steps[:, None] - steps[None]
        mask = (distance >= 0) & (distance < window)
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=gqa
    )


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _no_mask)
