"""Next-token losses without the logits of the whole batch in memory: cross-entropy, and divergence from a teacher.

The head is frozen and the weight of every token in the loss is known beforehand, so the gradient with respect to the
hidden states is computed together with the loss, a block of rows at a time (the idea of the fused linear cross-entropy
in Liger Kernel, Hsu et al. 2024, arXiv 2410.10989).  A teacher's probabilities (Hinton et al. 2015, arXiv 1503.02531)
are known for K tokens of each position; all others are one class.

Axes: L labelled tokens, D width, V vocabulary, K tokens with known probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from selfedit.engine.memory import device_kind

# Logits of one block: as many as make a matrix product fast.
_BLOCK_NUMBERS = {"cpu": 1024 * 49_152, "accelerator": 2048 * 151_936}
# Below this, a float32 probability has lost its last digits.
_TINY = 1e-30

# Given rows of the batch and their logits, turns the logits into the gradient with respect to them, in place, and
# returns the rows' losses.
_Turn = Callable[[slice, Tensor], Tensor]


def head_logits(hidden: Tensor, head_VD: Tensor, softcap: float | None) -> Tensor:
    """Logits [..., V] of hidden states [..., D], float32."""
    logits = (hidden @ head_VD.t()).float()
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def linear_cross_entropy(
    hidden_LD: Tensor, head_VD: Tensor, targets_L: Tensor, weights_L: Tensor, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the tokens' losses (nats; differentiable in `hidden_LD`) and each token's own loss [L],
    float32.

    `softcap` c replaces the logits z by c * tanh(z / c), as Gemma 2 does.
    """

    def turn(block: slice, logits: Tensor) -> Tensor:
        index = targets_L[block, None]
        target = logits.gather(1, index)
        # One pass over the logits; log_softmax and its exponential would be two.
        slope = torch.softmax(logits, -1, out=logits)
        losses = _losses(slope, target, index, hidden_LD[block], head_VD, softcap)
        slope.scatter_add_(1, index, slope.new_full(index.shape, -1.0))
        return losses

    return _LinearLoss.apply(hidden_LD, head_VD, weights_L, softcap, turn)


def linear_divergence(
    hidden_LD: Tensor,
    head_VD: Tensor,
    ids_LK: Tensor,
    log_probs_LK: Tensor,
    rest_L: Tensor,
    weights_L: Tensor,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """As `linear_cross_entropy`, with the Kullback-Leibler divergence KL(teacher || model) of each token.

    The teacher gives each token of `ids_LK` (different ones in a row) its log-probability, and what is left of one,
    `rest_L`, to all others together, which the model is compared with as one class too.
    """
    probs_LK = log_probs_LK.exp()
    if ids_LK.shape[1] == head_VD.shape[0]:
        # Where no token is left, what is left is rounding.
        rest_L = torch.zeros_like(rest_L)

    def turn(block: slice, logits: Tensor) -> Tensor:
        ids, log_p, p, rest_p = ids_LK[block], log_probs_LK[block], probs_LK[block], rest_L[block]
        z = logits.gather(1, ids)
        slope = torch.softmax(logits, -1, out=logits)
        q = slope.gather(1, ids)
        # The rest is summed, not taken from one: a small one would be rounding.
        rest_q = slope.scatter_(1, ids, 0.0).sum(-1)
        best_q, best = q.max(-1, keepdim=True)
        log_q = z - z.gather(1, best) + best_q.log()
        ratio = torch.where(rest_p > 0, rest_p / rest_q, 0.0)
        losses = (p * (log_p - log_q)).sum(-1) + torch.special.xlogy(rest_p, ratio)
        slope.mul_(1 - ratio[:, None])
        slope.scatter_(1, ids, q - p)
        # Where float32 does not hold the probabilities, logits are computed once more, a few rows at a time.
        small = ((best_q[:, 0] < _TINY) | ((rest_q < _TINY) & (rest_p > 0))).nonzero().squeeze(1)
        for rows in small.split(16):
            exact = head_logits(hidden_LD[block][rows], head_VD, softcap)
            losses[rows], slope[rows] = _divergence(exact, ids[rows], log_p[rows], rest_p[rows])
        return losses

    return _LinearLoss.apply(hidden_LD, head_VD, weights_L, softcap, turn)


def left_over(log_probs_LK: Tensor) -> Tensor:
    """What these leave of one [L], float32, computed in double precision."""
    return (1 - log_probs_LK.double().exp().sum(-1)).clamp_(min=0).float()


def block_rows(vocabulary: int, device: torch.device) -> int:
    """How many rows of logits are computed at a time."""
    return max(16, _BLOCK_NUMBERS[device_kind(device)] // vocabulary)


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_LD: Tensor, head_VD: Tensor, weights_L: Tensor, softcap: float | None, turn: _Turn
    ) -> tuple[Tensor, Tensor]:
        rows = block_rows(head_VD.shape[0], hidden_LD.device)
        losses_L = torch.empty(hidden_LD.shape[0], device=hidden_LD.device)
        grad_LD = torch.empty_like(hidden_LD) if ctx.needs_input_grad[0] else None
        # One buffer for all blocks: fresh memory costs a CPU more than the arithmetic on it.
        buffer = head_VD.new_empty(min(rows, hidden_LD.shape[0]), head_VD.shape[0])
        for start in range(0, hidden_LD.shape[0], rows):
            block = slice(start, start + rows)
            part = hidden_LD[block]
            logits = torch.mm(part, head_VD.t(), out=buffer[: len(part)]).float()
            capped = None
            if softcap is not None:
                capped = torch.tanh(logits / softcap)
                logits = capped * softcap
            losses_L[block] = turn(block, logits)
            if grad_LD is None:
                continue
            if capped is not None:
                logits.mul_(1 - capped.square_())
            torch.mm(logits.to(head_VD.dtype), head_VD, out=grad_LD[block])
        if grad_LD is not None:
            # In the hidden states' own precision, but after the sum over the vocabulary.
            grad_LD.mul_(weights_L[:, None])
            ctx.save_for_backward(grad_LD)
        ctx.mark_non_differentiable(losses_L)
        return (losses_L * weights_L).sum(), losses_L

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad_LD,) = ctx.saved_tensors
        return grad_LD * grad_total.to(grad_LD.dtype), None, None, None, None


def _losses(
    shares_LV: Tensor, target_L1: Tensor, index_L1: Tensor, hidden_LD: Tensor, head_VD: Tensor, softcap: float | None
) -> Tensor:
    """-log of the targets' probabilities [L], also where these are too small for float32."""
    losses_L = -shares_LV.gather(1, index_L1).squeeze(1).log()
    small_L = losses_L > -math.log(_TINY)
    rows: Any = slice(None)  # all, on an accelerator: the host would wait for it to say which
    if small_L.device.type == "cpu":
        rows = small_L.nonzero().squeeze(1)
        if not len(rows):
            return losses_L
    # log p(target) = z(target) - z(best) + log p(best), with the best token's logit computed once more.
    best_p, best = shares_LV[rows].max(-1)
    best_z = (hidden_LD[rows].float() * head_VD[best].float()).sum(-1)
    if softcap is not None:
        best_z = torch.tanh(best_z / softcap) * softcap
    losses_L[rows] = torch.where(small_L[rows], best_z - best_p.log() - target_L1[rows, 0], losses_L[rows])
    return losses_L


def _divergence(logits_LV: Tensor, ids_LK: Tensor, log_p_LK: Tensor, rest_p_L: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [L] and the gradient with respect to the logits [L, V], also where probabilities are too small for
    float32."""
    log_q = torch.log_softmax(logits_LV, -1)
    rest = log_q.scatter(1, ids_LK, -torch.inf)
    log_rest_q = torch.logsumexp(rest, -1)
    p, has_rest = log_p_LK.exp(), rest_p_L > 0
    losses = (p * (log_p_LK - log_q.gather(1, ids_LK))).sum(-1)
    losses += torch.where(has_rest, rest_p_L * (rest_p_L.log() - log_rest_q), 0.0)
    slope = log_q.exp()
    slope -= torch.where(has_rest[:, None], rest_p_L[:, None] * (rest - log_rest_q[:, None]).exp(), 0.0)
    return losses, slope.scatter_add_(1, ids_LK, -p)
