"""What trained adapters are measured by beside their exams: forward passes alone, nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from selfedit import engine
from selfedit.execution.tasks import Fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Measured:
    """`divergence`: how far the adapter has moved from the policy that it sits on, as the mean of KL(policy || adapter)
    per token of texts that the policy wrote, over the policy's 20 most probable tokens of each position and all others
    as one class; 0 for an adapter that predicts what the policy does.  `answer_loss`: the mean over questions of the
    mean loss per token of what the model answers with the document in its prompt.  Nats; None where there was nothing
    to measure on."""

    divergence: float | None = None
    answer_loss: float | None = None


class Measures:
    """Measures the adapters of one task, wave by wave; what the policy expects of a text is computed once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._taught: dict[engine.TokenSequence, engine.TokenSequence] = {}

    def __call__(self, bank: engine.AdapterBank, fits: Sequence[Fit], places: Mapping[int, int]) -> dict[int, Measured]:
        """The measures of some fits, by number; `places` has their adapters' places in the bank."""
        self._teach([text for number in places for text in fits[number].texts])
        texts = [(number, self._taught[text]) for number in places for text in fits[number].texts]
        known = [(number, answer) for number in places for answer in fits[number].known]
        losses = engine.losses(self.model, [(places[number], one) for number, one in [*texts, *known]], bank=bank)
        divergences: dict[int, list[float]] = {number: [] for number in places}
        answer_losses: dict[int, list[float]] = {number: [] for number in places}
        for (number, text), loss in zip(texts, losses, strict=False):
            divergences[number] += [loss] * text.labelled
        for (number, _), loss in zip(known, losses[len(texts) :], strict=True):
            answer_losses[number].append(loss)
        return {number: Measured(_mean(divergences[number]), _mean(answer_losses[number])) for number in places}

    def _teach(self, texts: Sequence[engine.TokenSequence]) -> None:
        new = list(dict.fromkeys(text for text in texts if text not in self._taught))
        asked = [(text.ids[: text.prompt_length], text.ids[text.prompt_length :]) for text in new]
        targets = engine.soft_targets(self.model, asked)
        self._taught.update({text: replace(text, targets=soft) for text, soft in zip(new, targets, strict=True)})


def _mean(losses: Sequence[float]) -> float | None:
    # Rounding can make nothing a little less.
    return max(0.0, sum(losses) / len(losses)) if losses else None
