"""Next-token cross-entropy without the logits of the whole batch in memory.

The head is frozen and the weight of every token in the loss is known beforehand, so the gradient with respect to the
hidden states is computed together with the loss, a block of rows at a time (the idea of the fused linear cross-entropy
in Liger Kernel, Hsu et al. 2024, arXiv 2410.10989).

Axes: L labelled tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from selfedit.engine.memory import device_kind

# Logits of one block: as many as make a matrix product fast.
_BLOCK_NUMBERS = {"cpu": 1024 * 49_152, "accelerator": 2048 * 151_936}
# Below this, a float32 probability has lost its last digits.
_TINY = 1e-30


def linear_cross_entropy(
    hidden_LD: Tensor, head_VD: Tensor, targets_L: Tensor, weights_L: Tensor, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the tokens' losses (nats; differentiable in `hidden_LD`) and each token's own loss [L],
    float32.

    `softcap` c replaces the logits z by c * tanh(z / c), as Gemma 2 does.
    """
    total, losses_L = _LinearCrossEntropy.apply(hidden_LD, head_VD, targets_L, weights_L, softcap)
    return total, losses_L


def block_bytes(vocabulary: int, number_bytes: int, device: torch.device) -> tuple[int, int]:
    """What the loss takes on top of the hidden states: bytes per row of logits (float32 and copies), and rows of a
    block."""
    return vocabulary * (2 * 4 + 2 * (number_bytes if number_bytes < 4 else 0)), _rows(vocabulary, device)


def _rows(vocabulary: int, device: torch.device) -> int:
    return max(16, _BLOCK_NUMBERS[device_kind(device)] // vocabulary)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_LD: Tensor, head_VD: Tensor, targets_L: Tensor, weights_L: Tensor, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        rows = _rows(head_VD.shape[0], hidden_LD.device)
        losses_L = torch.empty(hidden_LD.shape[0], device=hidden_LD.device)
        grad_LD = torch.empty_like(hidden_LD)
        # One buffer for all blocks: fresh memory costs a CPU more than the arithmetic on it.
        buffer = head_VD.new_empty(min(rows, hidden_LD.shape[0]), head_VD.shape[0])
        for start in range(0, hidden_LD.shape[0], rows):
            block = slice(start, start + rows)
            index = targets_L[block, None]
            logits = torch.mm(hidden_LD[block], head_VD.t(), out=buffer[: len(index)]).float()
            capped = None
            if softcap is not None:
                capped = torch.tanh(logits / softcap)
                logits = capped * softcap
            target = logits.gather(1, index)
            # One pass over the logits; log_softmax and its exponential would be two.
            slope = torch.softmax(logits, -1, out=logits)
            losses_L[block] = _losses(slope, target, index, hidden_LD[block], head_VD, softcap)
            slope.scatter_add_(1, index, slope.new_full(index.shape, -1.0))
            if capped is not None:
                slope.mul_(1 - capped.square_())
            torch.mm(slope.to(head_VD.dtype), head_VD, out=grad_LD[block])
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
    small = (losses_L > -math.log(_TINY)).nonzero().squeeze(1)
    if len(small):
        # log p(target) = z(target) - z(best) + log p(best), with the best token's logit computed once more.
        best_p, best = shares_LV[small].max(-1)
        best_z = (hidden_LD[small].float() * head_VD[best].float()).sum(-1)
        if softcap is not None:
            best_z = torch.tanh(best_z / softcap) * softcap
        losses_L[small] = best_z - best_p.log() - target_L1[small, 0]
    return losses_L
