"""Soft targets: what a frozen model, with a passage in its prompt, expects at each token of a text.

An adapter that is trained on them learns to expect the same without the passage (context distillation: Snell et al.
2022, arXiv 2209.15189; Hinton et al. 2015, arXiv 1503.02531), or, on texts that the model wrote itself, to stay as it
was.  The teacher is the wrapped model with no adapter active, so a bank need not be detached for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfedit.engine.attention import Layout
from selfedit.engine.backbone import Backbone
from selfedit.engine.jobs import FitJob, SoftTargets, TokenSequence, check_ids
from selfedit.engine.loss import block_rows
from selfedit.engine.rows import in_rows

_Pair = tuple[tuple[int, ...], tuple[int, ...]]


def soft_targets(
    model: PreTrainedModel,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    top: int = 20,
    token_budget: int | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> list[SoftTargets]:
    """For each (prefix, continuation) the model's `top` most probable tokens at each token of the continuation.

    They are the targets of `TokenSequence(prompt + continuation, len(prompt), targets)` with any other prompt; for a
    text without one, whose first token has no label, the pair is (passage + first token, other tokens).

    Pairs are packed, at most `token_budget` tokens in a row (by default 1,024 on a CPU, 16,384 on an accelerator; a
    longer pair goes alone); nothing is kept for a backward pass, and logits are computed a block at a time.  Equal
    pairs are computed once.  Running out of memory halves the budget, with a warning.  `on_tokens` is called with the
    tokens of each row.  Errors: ValueError for an empty prefix or continuation, or for a token or a `top` that the
    vocabulary does not have.
    """
    backbone = Backbone(model)
    if not 1 <= top <= backbone.vocabulary:
        raise ValueError(f"top must be from 1 to {backbone.vocabulary}, the size of the vocabulary, not {top}")
    asked: list[_Pair] = [(tuple(prefix), tuple(continuation)) for prefix, continuation in pairs]
    for number, (prefix, continuation) in enumerate(asked):
        if not prefix or not continuation:
            empty = "continuation" if prefix else "prefix"
            raise ValueError(f"pair {number} has an empty {empty}: there is nothing to take soft targets from")
        check_ids(prefix + continuation, backbone.vocabulary, f"pair {number}")
    each = list(dict.fromkeys(asked))
    results = in_rows(
        backbone,
        each,
        lambda pair: sum(map(len, pair)),
        lambda row: _targets(backbone, row, top),
        what="soft targets go on",
        token_budget=token_budget,
        on_tokens=on_tokens,
    )
    found = dict(zip(each, results, strict=True))
    return [found[pair] for pair in asked]


def teach(
    model: PreTrainedModel, jobs: Sequence[FitJob], *, top: int = 20, on_tokens: Callable[[int], None] | None = None
) -> list[FitJob]:
    """The jobs, with soft targets for each sequence that has a `teacher` and none yet.  Errors as `soft_targets`."""

    def untaught(sequence: TokenSequence) -> bool:
        return bool(sequence.teacher) and sequence.targets is None

    asked = [sequence for job in jobs for sequence in job.sequences if untaught(sequence)]
    # A text without a prompt has no label at its first token; the teacher reads that too.
    pairs = [((*s.teacher, *s.ids[:1][s.prompt_length :]), s.ids[s.first :]) for s in asked]
    targets = iter(soft_targets(model, pairs, top=top, on_tokens=on_tokens) if pairs else ())

    def with_targets(sequence: TokenSequence) -> TokenSequence:
        return replace(sequence, targets=next(targets)) if untaught(sequence) else sequence

    return [replace(job, sequences=tuple(map(with_targets, job.sequences))) for job in jobs]


def _targets(backbone: Backbone, pairs: list[_Pair], top: int) -> list[SoftTargets]:
    device = backbone.head_VD.device
    lengths = [len(prefix) + len(continuation) for prefix, continuation in pairs]
    positions: list[int] = []
    end = 0
    for (_, continuation), length in zip(pairs, lengths, strict=True):
        end += length
        # The token before predicts the next one.
        positions += range(end - len(continuation) - 1, end - 1)
    labels = SimpleNamespace(positions=torch.tensor(positions))
    layout = Layout.of([prefix + continuation for prefix, continuation in pairs], device, along=[labels])
    hidden_LD = backbone.packed(layout)[0].index_select(0, labels.positions)
    rows = hidden_LD.split(block_rows(backbone.vocabulary, device))
    blocks = [_most_probable(backbone, block_LD, top) for block_LD in rows]
    ids_LK, log_probs_LK = (torch.cat(tensors).cpu() for tensors in zip(*blocks, strict=True))
    counts = [len(continuation) for _, continuation in pairs]
    return [
        SoftTargets(ids.numpy().tobytes(), log_probs.numpy().tobytes(), top)
        for ids, log_probs in zip(ids_LK.split(counts), log_probs_LK.split(counts), strict=True)
    ]


def _most_probable(backbone: Backbone, hidden_LD: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Ids, int32, and log-probabilities, float32, of the most probable tokens [L, top]."""
    logits = backbone.logits(hidden_LD)
    values, ids = logits.topk(top)
    return ids.to(torch.int32), values - logits.logsumexp(-1, keepdim=True)
