"""Attention over packed rows: sequences of different lengths in one row without padding, and prompts with what follows
them.

It enters through transformers' attention interface, so that any Hugging Face decoder that uses the interface runs on
rows [1, P] in which each sequence attends to itself alone.

Axes: P packed positions, B sequences, H query heads, K key-value heads, G query heads per key-value head, D head width,
T time.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from selfedit.engine import paths
from selfedit.engine.batches import PADDING, Back, Batches, Sorted
from selfedit.engine.memory import device_kind, move

_NAME = "selfedit_packed"
# Up to this length, a CPU is faster with whole score matrices than with torch's blockwise kernel.
_SHORT = 512
# Not cuDNN's, which builds a plan for each new shape: on an H200, three quarters of a step went into that.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Older versions of torch take fewer key-value heads without being asked.
_FEWER_HEADS: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


@dataclass
class KeyValues:
    """Keys and values [B, K, width, D] of each layer, and how many positions of each sequence are filled: `lengths` on
    the host, `lengths_B` on the device."""

    lengths: list[int]
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
        for stored, x_KPD in zip(self.layers[layer], (keys_KPD, values_KPD), strict=True):
            stored[rows_P, :, positions_P] = x_KPD.transpose(0, 1)

    def append(self, layer: int, keys_KBD: Tensor, values_KBD: Tensor) -> tuple[Tensor, Tensor]:
        """Stores one more position of each sequence; returns all positions so far."""
        rows_B = torch.arange(len(self.lengths_B), device=self.lengths_B.device)
        keys, values = self.layers[layer]
        keys[rows_B, :, self.lengths_B] = keys_KBD.transpose(0, 1)
        values[rows_B, :, self.lengths_B] = values_KBD.transpose(0, 1)
        return keys, values

    def advance(self) -> None:
        """Each sequence has one position more; a full one writes to its last place again and again."""
        self.lengths = [min(length + 1, self.width - 1) for length in self.lengths]
        self.lengths_B = (self.lengths_B + 1).clamp_(max=self.width - 1)

    def shorten(self, by: list[int]) -> None:
        """Forgets the last so many positions of each sequence."""
        self.lengths = [length - less for length, less in zip(self.lengths, by, strict=True)]
        self.lengths_B = torch.tensor(self.lengths, device=self.lengths_B.device)

    def select(self, rows: list[int]) -> None:
        """Keeps (or repeats) some sequences."""
        rows_B = torch.tensor(rows, device=self.lengths_B.device)
        self.lengths = [self.lengths[row] for row in rows]
        self.lengths_B = self.lengths_B[rows_B]
        self.layers = {layer: (keys[rows_B], values[rows_B]) for layer, (keys, values) in self.layers.items()}


@dataclass
class Layout:
    """What a row [1, P] holds: packed sequences of these lengths, or, with `step`, the next token of each stored
    sequence.

    `ids` and `positions` [P] are each token's id and its position in its own sequence.  `store` keeps keys and values:
    those of packed prompts are put there, at sequence `places` [P], a step's are added.  `starts` [B + 1] are where
    sequences begin and the last one ends.  `masks` and `batched` are made when a layer first needs them.
    """

    lengths: list[int]
    device: torch.device
    ids: Tensor
    positions: Tensor
    store: KeyValues | None = None
    places: Tensor | None = None
    starts: Tensor | None = None
    step: bool = False
    masks: dict[Any, Tensor] = field(default_factory=dict)
    batched: dict[int, Batches] = field(default_factory=dict)

    @staticmethod
    def of(
        sequences: Sequence[Sequence[int]],
        device: torch.device,
        *,
        store: KeyValues | None = None,
        first: int = 0,
        along: Sequence[object] = (),
    ) -> Layout:
        """The layout of these sequences of ids; stored ones are those from `first` on.  The tensors of what goes
        `along` are moved to the device in the same copy."""
        lengths = [len(sequence) for sequence in sequences]
        ids = torch.tensor([token for sequence in sequences for token in sequence])
        layout = Layout(lengths, device, ids, torch.cat([torch.arange(length) for length in lengths]), store)
        if store is not None:
            layout.places = torch.repeat_interleave(torch.arange(first, first + len(lengths)), torch.tensor(lengths))
        if device.type != "cpu":
            layout.starts = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        move(device, layout, *along)
        return layout

    @staticmethod
    def next_tokens(store: KeyValues, tokens: Sequence[int]) -> Layout:
        """The next token of each sequence of a store whose lengths are those before it."""
        device = store.lengths_B.device
        layout = Layout([1] * len(tokens), device, torch.tensor(tokens), store.lengths_B, store, step=True)
        move(device, layout)
        return layout

    def batches(self, heads: int) -> Batches:
        """The sequences in batches, for this many key-value heads; made once."""
        if heads not in self.batched:
            self.batched[heads] = Batches.of(self.lengths, heads, PADDING[device_kind(self.device)])
            move(self.device, self.batched[heads])
        return self.batched[heads]

    def seen(self, length: int, window: int | None) -> Tensor:
        """`_seen`, made once per length and window."""
        if ("seen", length, window) not in self.masks:
            self.masks["seen", length, window] = _seen(length, window, self.device)
        return self.masks["seen", length, window]


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within this context, the model takes rows [1, P]; each call names its `Layout` with the keyword `packed_layout`,
    which transformers hands through to the attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        with sdpa_kernel(_KERNELS):
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
        raise NotImplementedError(
            "its attention has soft-capped scores, sinks or dropout, which packed attention does not compute"
        )
    layout, store = packed_layout, packed_layout.store
    scale = 1 / math.sqrt(query.shape[3]) if scaling is None else scaling
    if layout.step:
        assert store is not None
        keys, values = store.append(int(module.layer_idx), key[0], value[0])  # type: ignore[arg-type]
        return _attend_to_store(query, keys, values, layout, scale, sliding_window), None
    if store is not None:
        assert layout.places is not None
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        store.fill(layer, key[0], value[0], layout.places, layout.positions)
    if layout.device.type != "cpu":
        if _packed_works(query, key, value):
            assert layout.starts is not None
            return _packed(query, key, value, layout.starts, max(layout.lengths), scale, sliding_window), None
        return _attend_in_batches(query, key, value, layout, scale, sliding_window), None
    if max(layout.lengths) <= _SHORT:
        return _ShortAttention.apply(query, key, value, layout, scale, sliding_window), None
    # split, not slices: its backward is one concatenation
    parts = zip(*(x.split(layout.lengths, 2) for x in (query, key, value)), strict=True)
    attended = [_attend(q, k, v, layout, scale, sliding_window) for q, k, v in parts]
    return torch.cat(attended, dim=2).transpose(1, 2), None


def _attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None) -> Tensor:
    """[B, H, T, D]; padding can only be at the end, where no real query sees it."""
    length = query.shape[2]
    windowed = window is not None and length > window
    if _fused_works(query, key, value):
        return _fused(query, key, value, layout.seen(length, window) if windowed else None, scale)
    return _plain(query, key, value, layout.seen(length, window if windowed else None), scale)


def _packed_works(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether torch's attention for sequences of different lengths works with so many heads of such widths, forwards
    and backwards; it is for numbers of 16 bits."""
    shape = query.shape[1], key.shape[1], query.shape[3], value.shape[3]

    def trial() -> tuple[paths.Way, paths.Way]:
        generator, (heads, kv_heads, width, width_v) = torch.Generator().manual_seed(0), shape
        lengths, scale = [9, 4], 1 / math.sqrt(width)
        starts = torch.tensor([0, 9, 13], dtype=torch.int32).to(query.device)
        q, k, v = (
            torch.randn(1, count, 13, wide, generator=generator).to(query.device, query.dtype).requires_grad_()
            for count, wide in ((heads, width), (kv_heads, width), (kv_heads, width_v))
        )
        slope = torch.randn(1, 13, heads, width_v, generator=generator).to(query.device, query.dtype)
        seen = {(n, window): _seen(n, window, query.device) for n in lengths for window in (None, 5)}

        def plain(window: int | None) -> Tensor:
            parts = zip(lengths, *(x.split(lengths, 2) for x in (q, k, v)), strict=True)
            outs = [_plain(q_n, k_n, v_n, seen[n, window], scale) for n, q_n, k_n, v_n in parts]
            return torch.cat(outs, 2).transpose(1, 2)

        def way(attend: Callable[[int | None], Tensor]) -> paths.Way:
            def run() -> list[Tensor]:
                outs = [attend(window) for window in (None, 5)]
                return [*outs, *torch.autograd.grad(outs, (q, k, v), [slope, slope])]

            return run

        return way(lambda window: _packed(q, k, v, starts, 9, scale, window)), way(plain)

    return query.dtype.itemsize == 2 and paths.works("packed attention", query.device, query.dtype, shape, trial)


def _packed(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float, window: int | None
) -> Tensor:
    """[1, P, H, D] by flash attention (Dao 2023, arXiv 2307.08691)."""
    q_PHD, k_PKD, v_PKD = (x[0].transpose(0, 1) for x in (query, key, value))
    seen = (-1 if window is None else window - 1, 0)
    out_PHD = varlen_attn(
        q_PHD, k_PKD, v_PKD, starts, starts, longest, longest, scale=scale, window_size=seen, **_FEWER_HEADS
    )
    assert isinstance(out_PHD, Tensor)
    return out_PHD[None]


def _fused_works(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether torch's attention works with so many heads of such widths, forwards and backwards."""
    shape = query.shape[1], key.shape[1], query.shape[3], value.shape[3]

    def trial() -> tuple[paths.Way, paths.Way]:
        generator, (heads, kv_heads, width, width_v) = torch.Generator().manual_seed(0), shape
        q, k, v, slope = (
            torch.randn(2, count, 9, wide, generator=generator).to(query.device, query.dtype).requires_grad_()
            for count, wide in ((heads, width), (kv_heads, width), (kv_heads, width_v), (heads, width_v))
        )
        causal, windowed = (_seen(9, window, query.device) for window in (None, 5))

        def way(attend: Callable[..., Tensor], first: Tensor | None) -> paths.Way:
            def run() -> list[Tensor]:
                outs = [attend(q, k, v, mask, 1 / math.sqrt(width)) for mask in (first, windowed)]
                return [*outs, *torch.autograd.grad(outs, (q, k, v), [slope, slope])]

            return run

        return way(_fused, None), way(_plain, causal)

    return paths.works("fused attention", query.device, query.dtype, shape, trial)


def _plain(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    """As `_fused`, with whole score matrices."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = (_wide(query) @ _wide(key).transpose(2, 3) * scale).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1).to(value.dtype) @ value


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    if query.device.type != "cpu" and (mask is not None or query.dtype == torch.float32):
        # On CUDA, flash attention alone takes fewer key-value heads, and neither masks nor float32: whole score
        # matrices would be kept.
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    return nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _wide(x: Tensor) -> Tensor:
    """In float32 at the least, for scores: Qwen2.5's reach hundreds, where bfloat16 is too coarse for a softmax."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _seen(length: int, window: int | None, device: torch.device) -> Tensor:
    """[T, T], True where a query (row) may look at a key: not ahead, and not further back than the window."""
    steps = torch.arange(length, device=device)
    distance = steps[:, None] - steps[None]
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _attend_in_batches(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None
) -> Tensor:
    batches = layout.batches(1)
    parts = zip(*(Sorted.apply(x.squeeze(0).transpose(0, 1), batches) for x in (query, key, value)), strict=True)
    outs = []
    for q, k, v in parts:
        attended = _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), layout, scale, window)
        outs.append(attended.transpose(1, 2).flatten(0, 1))
    return Back.apply(torch.cat(outs), batches)[None]


def _attend_to_store(
    query: Tensor, keys: Tensor, values: Tensor, layout: Layout, scale: float, window: int | None
) -> Tensor:
    """One query per sequence, to all its stored positions."""
    assert layout.store is not None
    if window not in layout.masks:
        lengths_B = layout.store.lengths_B
        steps_T = torch.arange(layout.store.width, device=lengths_B.device)
        hidden_BT = steps_T[None] > lengths_B[:, None]
        if window is not None:
            hidden_BT |= steps_T[None] <= lengths_B[:, None] - window
        # No position beyond the longest sequence is filled.
        layout.masks[window] = hidden_BT[:, None, None, : max(layout.store.lengths) + 1]
    hidden = layout.masks[window]
    filled, heads = hidden.shape[3], keys.shape[1]
    q_BKGD = query[0].transpose(0, 1).unflatten(1, (heads, -1)) * scale
    scores = torch.matmul(_wide(q_BKGD), _wide(keys[:, :, :filled]).transpose(2, 3)).masked_fill_(hidden, -torch.inf)
    attended = torch.matmul(scores.softmax(-1).to(values.dtype), values[:, :, :filled])
    return attended.flatten(1, 2)[None]


class _ShortAttention(torch.autograd.Function):
    """Packed attention on a CPU with whole score matrices, sequences of similar length side by side.

    Query heads that share a key-value head lie side by side, so that a sequence's part of them is a matrix [T * G, D].
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None
    ) -> Tensor:
        heads, width, width_v = key.shape[1], key.shape[3], value.shape[3]
        groups = query.shape[1] // heads
        batches = layout.batches(heads)
        q, k, v = (batches.gather(x[0].transpose(0, 1)) for x in (query, key, value))
        out, shares = q.new_empty(len(q), groups * width_v), []
        for (q_b, k_b), (v_b, out_b) in zip(batches.parts(width, q, k), batches.parts(width_v, v, out), strict=True):
            bias = _bias(layout, k_b.shape[1], groups, window, _wide(q[:0]).dtype)
            scores = torch.baddbmm(bias, _wide(q_b), _wide(k_b).transpose(1, 2), alpha=scale)
            share = torch.softmax(scores, -1).to(q.dtype)
            torch.bmm(share, v_b, out=out_b)
            shares.append(share)
        ctx.save_for_backward(q, k, v, *shares)
        ctx.batches, ctx.scale, ctx.widths = batches, scale, (width, width_v)
        return batches.scatter(out, width_v)[None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, *shares = ctx.saved_tensors
        batches, (width, width_v) = ctx.batches, ctx.widths
        g = batches.gather(grad[0])
        g.index_fill_(0, batches.padding, 0.0)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        parts = batches.parts(width, q, k, grad_q, grad_k), batches.parts(width_v, v, g, grad_v)
        for (q_b, k_b, into_q, into_k), (v_b, g_b, into_v), share in zip(*parts, shares, strict=True):
            torch.bmm(share.transpose(1, 2), g_b, out=into_v)
            # Private, but the one operation that does this in one pass over memory; tests/engine/test_private_apis.py.
            slope = torch._softmax_backward_data(torch.bmm(g_b, v_b.transpose(1, 2)), share, -1, share.dtype)
            slope.mul_(ctx.scale)
            torch.bmm(slope, k_b, out=into_q)
            torch.bmm(slope.transpose(1, 2), q_b, out=into_k)
        # In the memory order of the projections that these came from, [P, H, D].
        grads = ((grad_q, width), (grad_k, width), (grad_v, width_v))
        back = [batches.scatter(x, wide).transpose(0, 1)[None] for x, wide in grads]
        return back[0], back[1], back[2], None, None, None


def _bias(layout: Layout, length: int, groups: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """[1, T * G, T]: zero where a query may look, else minus infinity; made once."""
    key = length, groups, window, dtype
    if key not in layout.masks:
        hidden = ~_seen(length, window, layout.device)
        bias = torch.zeros(length, length, dtype=dtype).masked_fill_(hidden, -torch.inf)
        layout.masks[key] = bias.repeat_interleave(groups, 0)[None]
    return layout.masks[key]


# Without a mask function of the same name, transformers makes no mask; with one, it would look for packed sequences,
# and the host would wait for the answer.
AttentionInterface.register(_NAME, _attention)
