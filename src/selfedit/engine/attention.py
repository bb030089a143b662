"""Attention over packed rows: sequences of different lengths in one row without padding, and prompts with what follows them.

Knows how to hook into transformers' attention interface, so that any Hugging Face decoder runs on rows [1, P] in which each
sequence attends to itself alone.  Knows nothing of adapters, losses or tokens.

Axes: P packed positions, B sequences, H query heads, K key-value heads, G query heads a key-value head, D head width, T time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

_NAME = "selfedit_packed"
# Up to this length, a CPU is faster with whole score matrices than with torch's blockwise kernel.
_SHORT = 512


@dataclass
class KeyValues:
    """Keys and values [B, K, width, D] of each layer, and how many positions of each sequence are filled."""

    lengths_B: Tensor
    width: int
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def fill(self, layer: int, keys_KPD: Tensor, values_KPD: Tensor, rows_P: Tensor, positions_P: Tensor) -> None:
        """Stores what a packed row of prompts computed."""
        if layer not in self.layers:
            keys, values = (
                x_KPD.new_zeros(len(self.lengths_B), len(x_KPD), self.width, x_KPD.shape[2])
                for x_KPD in (keys_KPD, values_KPD)
            )
            self.layers[layer] = (keys, values)
        for room, x_KPD in zip(self.layers[layer], (keys_KPD, values_KPD), strict=True):
            room[rows_P, :, positions_P] = x_KPD.transpose(0, 1)

    def append(self, layer: int, keys_KBD: Tensor, values_KBD: Tensor) -> tuple[Tensor, Tensor]:
        """Stores one more position of each sequence; returns all positions so far."""
        rows_B = torch.arange(len(self.lengths_B), device=self.lengths_B.device)
        keys, values = self.layers[layer]
        keys[rows_B, :, self.lengths_B] = keys_KBD.transpose(0, 1)
        values[rows_B, :, self.lengths_B] = values_KBD.transpose(0, 1)
        return keys, values

    def select(self, rows_B: Tensor) -> None:
        """Keeps (or repeats) some sequences."""
        self.lengths_B = self.lengths_B[rows_B]
        self.layers = {layer: (keys[rows_B], values[rows_B]) for layer, (keys, values) in self.layers.items()}


@dataclass
class Layout:
    """What a row [1, P] holds: packed sequences of these lengths, or, with `step`, the next token of each stored sequence.

    `buckets` (accelerators only) group sequences of similar length: for each, packed positions [B, T] with -1 where a shorter
    sequence has ended.  `store` keeps keys and values: those of packed prompts are put there, from sequence `first` on, a
    step's are added.
    """

    lengths: list[int]
    device: torch.device
    buckets: list[Tensor] | None = None
    store: KeyValues | None = None
    first: int = 0
    step: bool = False
    masks: dict[Any, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device, store: KeyValues | None = None, first: int = 0) -> Layout:
        lengths = list(lengths)
        return Layout(lengths, device, None if device.type == "cpu" else _buckets(lengths, device), store, first)

    @staticmethod
    def next_tokens(store: KeyValues) -> Layout:
        """The next token of each sequence of a store whose lengths are those before it."""
        return Layout([1] * len(store.lengths_B), store.lengths_B.device, store=store, step=True)

    def positions(self) -> Tensor:
        """Position of each token in its own sequence, [1, P]."""
        if self.step:
            assert self.store is not None
            return self.store.lengths_B[None]
        return torch.cat([torch.arange(length) for length in self.lengths])[None].to(self.device)

    def rows(self) -> Tensor:
        """The number of each token's sequence in the store, [P]."""
        numbers = torch.arange(self.first, self.first + len(self.lengths))
        return torch.repeat_interleave(numbers, torch.tensor(self.lengths)).to(self.device)


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
    """Within this context, the model takes rows [1, P]; each call names its `Layout` with the keyword `packed_layout`, which
    transformers hands through to the attention."""
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
    """Causal attention of each sequence to itself.  query [1, H, P, D], key and value [1, K, P, D] -> [1, P, H, D]."""
    if packed_layout is None:
        raise RuntimeError(
            f"{type(module).__name__} got no packed layout: its model drops keywords on the way to attention"
        )
    if softcap is not None or s_aux is not None or dropout:
        raise NotImplementedError("packed attention knows no dropout, soft-capped logits or attention sinks")
    layout, store = packed_layout, packed_layout.store
    scale = 1 / math.sqrt(query.shape[3]) if scaling is None else scaling
    if layout.step:
        assert store is not None
        keys, values = store.append(int(module.layer_idx), key[0], value[0])  # type: ignore[arg-type]
        return _attend_to_store(query, keys, values, layout, scale, sliding_window), None
    if store is not None:
        if "rows" not in layout.masks:
            layout.masks["rows"], layout.masks["positions"] = layout.rows(), layout.positions()[0]
        store.fill(int(module.layer_idx), key[0], value[0], layout.masks["rows"], layout.masks["positions"])  # type: ignore[arg-type]
    if layout.buckets is not None:
        return _attend_in_buckets(query, key, value, layout.buckets, scale, sliding_window), None
    if max(layout.lengths) <= _SHORT:
        return _ShortAttention.apply(query, key, value, layout, scale, sliding_window), None
    # split, not slices: its backward is one concatenation
    parts = zip(*(x.split(layout.lengths, 2) for x in (query, key, value)), strict=True)
    return torch.cat([_attend(q, k, v, scale, sliding_window) for q, k, v in parts], dim=2).transpose(1, 2), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """[B, H, T, D]; padding can only be at the end, where no real query sees it."""
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        mask = _seen(length, window, query.device)
    return nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _seen(length: int, window: int | None, device: torch.device) -> Tensor:
    """[T, T], True where a query (row) may look at a key: not ahead, and not further back than the window."""
    steps = torch.arange(length, device=device)
    distance = steps[:, None] - steps[None]
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _attend_in_buckets(
    query: Tensor, key: Tensor, value: Tensor, buckets: list[Tensor], scale: float, window: int | None
) -> Tensor:
    # [P, H, D]; one row of zeros at the end stands for the padding
    rows = [torch.cat([x[0].transpose(0, 1), x.new_zeros(1, x.shape[1], x.shape[3])]) for x in (query, key, value)]
    out_PHD = query.new_zeros(query.shape[2] + 1, query.shape[1], value.shape[3])
    for positions_BT in buckets:
        q, k, v = (x[positions_BT].transpose(1, 2) for x in rows)
        attended = _attend(q, k, v, scale, window).transpose(1, 2)
        index = torch.where(positions_BT < 0, query.shape[2], positions_BT).flatten()
        out_PHD = out_PHD.index_copy(0, index, attended.flatten(0, 1))
    return out_PHD[:-1][None]


def _attend_to_store(
    query: Tensor, keys: Tensor, values: Tensor, layout: Layout, scale: float, window: int | None
) -> Tensor:
    """One query a sequence, to all its stored positions."""
    assert layout.store is not None
    if window not in layout.masks:
        lengths_B = layout.store.lengths_B
        steps_T = torch.arange(layout.store.width, device=lengths_B.device)
        hidden_BT = steps_T[None] > lengths_B[:, None]
        if window is not None:
            hidden_BT |= steps_T[None] <= lengths_B[:, None] - window
        # Nobody has come further than the longest sequence.
        layout.masks[window] = hidden_BT[:, None, None, : int(lengths_B.max()) + 1]
    hidden = layout.masks[window]
    filled, heads = hidden.shape[3], keys.shape[1]
    q_BKGD = query[0].transpose(0, 1).unflatten(1, (heads, -1)) * scale
    scores = torch.matmul(q_BKGD, keys[:, :, :filled].transpose(2, 3)).float().masked_fill_(hidden, -torch.inf)
    attended = torch.matmul(scores.softmax(-1).to(values.dtype), values[:, :, :filled])
    return attended.flatten(1, 2)[None]


class _ShortAttention(torch.autograd.Function):
    """Packed attention on a CPU with one small score matrix a sequence and key-value head.

    Query heads that share a key-value head lie side by side, [K, P, G, D], so that a sequence's part of them is a matrix
    [K, T * G, D] without copying.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None
    ) -> Tensor:
        heads, groups = key.shape[1], query.shape[1] // key.shape[1]
        q_KPGD = query[0].unflatten(0, (heads, groups)).transpose(1, 2).contiguous()
        out_KPGD = q_KPGD.new_empty(*q_KPGD.shape[:3], value.shape[3])
        shares = []
        for q, k, v, out in _sequences(layout, groups, q_KPGD, key[0], value[0], out_KPGD):
            bias = _bias(layout, k.shape[1], groups, window, q.dtype)
            share = torch.softmax(torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale), -1)
            torch.bmm(share, v, out=out)
            shares.append(share)
        ctx.save_for_backward(q_KPGD, key, value, *shares)
        ctx.layout, ctx.scale = layout, scale
        return out_KPGD.permute(1, 0, 2, 3).flatten(1, 2)[None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q_KPGD, key, value, *shares = ctx.saved_tensors
        heads, _, groups, _ = q_KPGD.shape
        g_KPGD = grad[0].unflatten(1, (heads, groups)).transpose(0, 1).contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q_KPGD), *(torch.empty_like(x[0]) for x in (key, value))
        parts = _sequences(ctx.layout, groups, g_KPGD, q_KPGD, key[0], value[0], grad_q, grad_k, grad_v)
        for (g, q, k, v, into_q, into_k, into_v), share in zip(parts, shares, strict=True):
            into_v.copy_(torch.bmm(share.transpose(1, 2), g))
            slope = torch._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), share, -1, share.dtype)
            slope.mul_(ctx.scale)
            torch.bmm(slope, k, out=into_q)
            into_k.copy_(torch.bmm(slope.transpose(1, 2), q))
        # In the memory order of the projections that these came from, [P, H, D].
        grad_q = grad_q.permute(1, 0, 2, 3).flatten(1, 2).transpose(0, 1)
        return grad_q[None], grad_k[None], grad_v[None], None, None, None


def _sequences(layout: Layout, groups: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each sequence's part of each tensor: [K, T, D] of those [K, P, D], [K, T * G, D] of those [K, P, G, D]."""
    rows = [x.flatten(1, 2) if x.dim() == 4 else x for x in tensors]
    counts = [[n * groups for n in layout.lengths] if x.dim() == 4 else layout.lengths for x in tensors]
    return zip(*(x.split(count, 1) for x, count in zip(rows, counts, strict=True)), strict=True)


def _bias(layout: Layout, length: int, groups: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """[1, T * G, T]: zero where a query may look, else minus infinity; made once a length."""
    if (length, window) not in layout.masks:
        hidden = ~_seen(length, window, layout.device)
        bias = torch.zeros(length, length, dtype=dtype).masked_fill_(hidden, -torch.inf)
        layout.masks[length, window] = bias.repeat_interleave(groups, 0)[None]
    return layout.masks[length, window]


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _no_mask)
