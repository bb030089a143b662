"""Packed attention on a CPU: sorting sequences into padded batches and back; values and gradients are each sequence's
own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from selfedit.engine.attention import KeyValues, Layout, _attend, _attend_to_store, _attention, _ShortAttention

CPU = torch.device("cpu")


def layout_of(lengths: list[int]) -> Layout:
    return Layout.of([range(length) for length in lengths], CPU)


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(deadline=None)
@given(lengths, st.integers(1, 3))
def test_rows_that_were_sorted_into_batches_come_back(lengths: list[int], heads: int) -> None:
    batches = layout_of(lengths).batches(heads)
    rows = sum(lengths)
    x = torch.arange(rows * heads * 2.0).view(rows, heads * 2)
    gathered = batches.gather(x)
    assert torch.equal(batches.scatter(gathered, 2).flatten(1), x)
    assert sum(count for count, _ in batches.shapes) == len(lengths)
    assert len(gathered) - len(batches.padding) == rows * heads
    assert len(gathered) <= 1.1 * rows * heads


def test_layers_of_one_model_may_share_keys_among_more_or_fewer_queries() -> None:
    layout = layout_of([5])
    for heads in (1, 2):
        q, k, v = (torch.randn(1, count, 5, 8) for count in (2, heads, heads))
        out = _ShortAttention.apply(q, k, v, layout, 0.3, None)
        torch.testing.assert_close(out, _attend(q, k, v, layout, 0.3, None).transpose(1, 2))


@settings(deadline=None)
@given(lengths, st.sampled_from([None, 4]))
def test_values_and_gradients_are_those_of_each_sequence_alone(lengths: list[int], window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, slope = (
        torch.randn(1, sum(lengths), heads, width, dtype=torch.float64, generator=generator)
        for heads, width in ((4, 8), (2, 8), (2, 6), (4, 6))
    )
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in (q, k, v))
    packed = _ShortAttention.apply(q, k, v, layout_of(lengths), 0.3, window)
    parts = zip(*(x.split(lengths, 2) for x in (q, k, v)), strict=True)
    alone = torch.cat([_attend(*part, layout_of(lengths), 0.3, window) for part in parts], 2).transpose(1, 2)
    torch.testing.assert_close(packed, alone)
    for own, expected in zip(*(torch.autograd.grad(out, (q, k, v), slope) for out in (packed, alone)), strict=True):
        torch.testing.assert_close(own, expected)


def test_padding_repeats_the_sequences_own_rows() -> None:
    """Else a number that is not finite would reach another sequence: a weight of zero times it is not zero."""
    lengths = [40, 39]
    q, k, v = (torch.randn(1, heads, sum(lengths), 8) for heads in (2, 1, 1))
    q[:, :, 40:] = torch.nan
    k[:, :, 40:] = torch.nan
    v[:, :, 40:] = torch.nan
    for order in (lengths, lengths[::-1]):
        parts = [x.split(lengths, 2) for x in (q, k, v)]
        row = [torch.cat(part if order == lengths else part[::-1], 2) for part in parts]
        layout = layout_of(order)
        assert layout.batches(1).shapes == [(2, 40)]
        out = _ShortAttention.apply(*row, layout, 0.3, None)[0]
        finite = out.isfinite().all(-1).all(-1)
        assert finite.sum() == 40
        assert finite[: order[0]].all() == (order == lengths)


@pytest.mark.parametrize("window", [None, 3])
def test_long_sequences_go_another_way_with_the_same_values(window: int | None) -> None:
    q, k, v = (torch.randn(1, heads, 630, 8) for heads in (2, 1, 1))
    layout = layout_of([600, 30])
    out, _ = _attention(nn.Identity(), q, k, v, None, scaling=0.3, sliding_window=window, packed_layout=layout)
    assert not layout.batched
    torch.testing.assert_close(out, _ShortAttention.apply(q, k, v, layout, 0.3, window))


def test_large_scores_do_not_coarsen_bfloat16() -> None:
    """Qwen2.5's keys have large biases, which add hundreds to all scores alike: a softmax takes only their
    differences."""
    length, generator = 24, torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, 64, generator=generator) for heads in (4, 2, 2))
    q[..., 0] = k[..., 0] = 40
    q, k, v = (x.bfloat16() for x in (q, k, v))
    expected = _attend(q.float(), k.float(), v.float(), layout_of([length]), 0.125, None).transpose(1, 2)
    packed = _ShortAttention.apply(q, k, v, layout_of([length]), 0.125, None)
    assert (packed - expected).norm() < 0.01 * expected.norm()
    # One more token, to the same keys.
    store = KeyValues([length - 1], torch.tensor([length - 1]), length, {0: (k, v)})
    step = _attend_to_store(q[:, :, -1:], k, v, Layout.next_tokens(store, [5]), 0.125, None)
    assert (step - expected[:, -1:]).norm() < 0.01 * expected[:, -1:].norm()
