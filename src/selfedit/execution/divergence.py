"""How far adapters have moved from the policy that they sit on, measured on texts that the policy itself wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from selfedit import engine

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Divergence:
    """Measures the adapters of one task, wave by wave; what the policy expects is computed once per text.

    The measure is the mean of KL(policy || adapter) over the labelled tokens, nats, over the policy's 20 most probable
    tokens of each position and all others as one class: 0 for an adapter that predicts what the policy does.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._taught: dict[engine.TokenSequence, engine.TokenSequence] = {}

    def __call__(
        self,
        bank: engine.AdapterBank,
        places: Mapping[int, int],
        texts: Mapping[int, Sequence[engine.TokenSequence]],
    ) -> dict[int, float]:
        """The measure of each adapter that has texts, by number; `places` are in the bank."""
        pairs = [(number, text) for number in places for text in texts[number]]
        self._teach(list(dict.fromkeys(text for _, text in pairs if text not in self._taught)))
        measured = [(places[number], self._taught[text]) for number, text in pairs]
        sums: dict[int, float] = {}
        tokens: dict[int, int] = {}
        for (number, text), loss in zip(pairs, engine.losses(self.model, measured, bank=bank), strict=True):
            sums[number] = sums.get(number, 0.0) + loss * text.labelled
            tokens[number] = tokens.get(number, 0) + text.labelled
        # Rounding can make nothing a little less.
        return {number: max(0.0, total / tokens[number]) for number, total in sums.items()}

    def _teach(self, texts: Sequence[engine.TokenSequence]) -> None:
        asked = [(text.ids[: text.prompt_length], text.ids[text.prompt_length :]) for text in texts]
        targets = engine.soft_targets(self.model, asked)
        self._taught.update({text: replace(text, targets=soft) for text, soft in zip(texts, targets, strict=True)})
