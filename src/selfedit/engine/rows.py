"""Forward passes without a backward pass: sequences of any number, packed into rows that fit into memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch

from selfedit.engine.backbone import Backbone
from selfedit.engine.decoding import PREFILL_TOKENS, parts
from selfedit.engine.jobs import LessMemoryWarning
from selfedit.engine.memory import attempted, device_kind, release_memory

T = TypeVar("T")
R = TypeVar("R")


def in_rows(
    backbone: Backbone,
    items: Sequence[T],
    tokens_of: Callable[[T], int],
    compute: Callable[[list[T]], list[R]],
    *,
    what: str,
    token_budget: int | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> list[R]:
    """What `compute` makes of the items, row by row, in their order; for `backbone.packed` without gradients.

    A row has neighbours of at most `token_budget` tokens together (by default 1,024 on a CPU, 16,384 on an
    accelerator); a longer item goes alone.  Running out of memory halves the budget, with a warning that begins with
    `what`.  `on_tokens` is called with the tokens of each row.
    """
    budget = PREFILL_TOKENS[device_kind(backbone.head_VD.device)] if token_budget is None else token_budget
    lengths, found = [tokens_of(item) for item in items], list[R]()
    with backbone.training(), torch.no_grad():
        while (begin := len(found)) < len(items):
            end = begin + next(parts(lengths[begin:], budget)).stop
            row, tokens = list(items[begin:end]), sum(lengths[begin:end])
            results = attempted(partial(compute, row))
            if results is None:
                if len(row) == 1:
                    raise torch.OutOfMemoryError(
                        f"out of memory with a single sequence of {tokens} tokens: use shorter ones or a smaller model"
                    )
                line = f"out of memory: {what} with {budget // 2} tokens in a row instead of {budget}"
                warnings.warn(line, LessMemoryWarning, stacklevel=3)
                budget //= 2
                release_memory()
                continue
            found += results
            if on_tokens is not None:
                on_tokens(tokens)
    return found
