"""A causal language model taken apart: the decoder that yields hidden states, and the output head.

Hugging Face models are put together in much the same way; whether this one is, is checked on a few tokens before it is
used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from selfedit.engine.attention import Layout, packed_attention
from selfedit.engine.fused import exchanged, fused, known_forms, rotating_files
from selfedit.engine.jobs import UnsupportedModelError
from selfedit.engine.loss import head_logits

# Set on a model that passed the check: what of it can run fused.
_FORMS = "_selfedit_forms"


class Backbone:
    """The parts of a causal language model: `hidden` runs its decoder, `head_VD` is the output matrix, for a
    `vocabulary` of so many tokens.

    Errors: UnsupportedModelError for a model whose logits are not `head @ hidden` (capped or not), or whose attention
    does not go through transformers' attention interface; both are checked on a few tokens, once per model.  Also
    for a sequence that is too long for rotations of the types `longrope` and `dynamic`, see `check_length`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.decoder = model.get_decoder()
        head = model.get_output_embeddings()
        if head is None or getattr(head, "bias", None) is not None:
            raise UnsupportedModelError(f"{type(model).__name__} has no plain output head; it cannot be trained here")
        self.head_VD: Tensor = head.weight
        self.vocabulary = len(head.weight)
        self.softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self.longest = _longest(model.config.get_text_config())
        if not hasattr(model, _FORMS):
            self._check()
            setattr(model, _FORMS, known_forms(self.decoder))

    def hidden(self, **inputs: Any) -> Tensor:
        """Last hidden states [B, T, D]."""
        return self.decoder(**inputs).last_hidden_state

    def packed(self, layout: Layout) -> Tensor:
        """Last hidden states [1, P, D] of packed sequences; inside `packed_attention` only."""
        if not layout.step:
            self.check_length(max(layout.lengths))
        where = {"input_ids": layout.ids[None], "position_ids": layout.positions[None]}
        return self.hidden(**where, use_cache=False, packed_layout=layout)

    def check_length(self, length: int) -> None:
        """Errors: UnsupportedModelError for a sequence that would change what others beside it become."""
        if length > self.longest:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} rotates all sequences of a pass by the longest, where that has more than"
                f" {self.longest} tokens: one of {length} is not supported"
            )

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V], float32."""
        return head_logits(hidden, self.head_VD, self.softcap)

    @contextmanager
    def training(self, *, checkpointing: bool = False) -> Iterator[None]:
        """Within this context, the model takes packed rows and runs in the forms that are cheapest to train."""
        with (
            packed_attention(self.model),
            fused(getattr(self.model, _FORMS), rotating_files(self.decoder)),
            self._checkpointed() if checkpointing else nullcontext(),
        ):
            yield

    def _checkpointed(self) -> AbstractContextManager[None]:
        """Within this context, decoder layers keep their inputs only and compute the rest again in the backward pass.

        transformers' own switch needs training mode, which would also switch a model's dropout on.
        """
        layers = [module for module in self.decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise UnsupportedModelError(f"{type(self.model).__name__} has no layers that can be computed again")
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        return exchanged([(layer, "forward", partial(again, layer.forward)) for layer in layers])

    @torch.no_grad()
    def _check(self) -> None:
        name, device = type(self.model).__name__, self.head_VD.device
        listed = [(7 * k + 3) % self.vocabulary for k in range(11)]
        ids = torch.tensor(listed, device=device)
        whole = self.model(input_ids=ids[None], use_cache=False).logits[0].float()
        own = self.logits(self.hidden(input_ids=ids[None], use_cache=False)[0])
        if not _close(own, whole):
            raise UnsupportedModelError(f"{name} does not compute its logits as head times hidden state; not supported")
        layout = Layout.of([listed[:4], listed[:7]], device)
        try:
            with packed_attention(self.model):
                together = self.packed(layout)[0]
        except (RuntimeError, TypeError) as error:
            # Of these, those that say that a decoder drops the layout on the way to its attention, or takes none.
            if not isinstance(error, NotImplementedError) and not re.search("packed[ _]layout", str(error)):
                raise
            raise UnsupportedModelError(f"{name} is not supported: {error}") from None
        if not _close(self.logits(together[4:]), whole[:7]):
            raise UnsupportedModelError(f"{name} cannot take packed sequences: its attention mixes them")


def _longest(config: Any) -> float:
    """The length beyond which transformers rotates all sequences of a call by other frequencies."""
    rope = getattr(config, "rope_parameters", None) or {}
    limits = [math.inf]
    # One for all layers, or one for each type of layers.
    for one in [rope] if "rope_type" in rope else rope.values():
        kind = one.get("rope_type", "") if isinstance(one, dict) else ""
        if kind == "longrope":
            limits.append(one["original_max_position_embeddings"])
        elif "dynamic" in kind:
            limits.append(config.max_position_embeddings)
    return min(limits)


def _close(a: Tensor, b: Tensor) -> bool:
    # The check is on wiring, not on rounding: a wrong wiring gives errors of the order of the logits themselves.
    return bool((a - b).norm() <= 0.05 * b.norm())
