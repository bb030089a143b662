"""The second exam of trained adapters: what an adapter recites is read by the model without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from selfedit import engine
from selfedit.execution.tasks import Fit, Recited
from selfedit.models import Model


def recite(
    model: Model,
    bank: engine.AdapterBank,
    fits: Sequence[Fit],
    places: Mapping[int, int],
    memory: int | None,
    on_tokens: Callable[[int], None] | None,
) -> dict[int, Recited]:
    """The recitals of some fits, by number; `places` has their adapters' places in the bank."""
    tokenizer, numbers = model.tokenizer, [number for number in places if fits[number].recital.prompts]

    def decode(requests: Sequence[engine.DecodeRequest]) -> list[engine.Completion]:
        return engine.decode(model.hf, requests, bank=bank, memory=memory, on_tokens=on_tokens) if requests else []

    prompts = [replace(r, adapter=places[number]) for number in numbers for r in fits[number].recital.prompts]
    written = iter(decode(prompts))
    texts = {
        number: tuple(tokenizer.decode(next(written).ids).strip() for _ in fits[number].recital.prompts)
        for number in numbers
    }
    requests = [
        engine.DecodeRequest(
            tuple(tokenizer.prompt_ids(reading.before + texts[number][reading.recited] + reading.behind)),
            fits[number].recital.answer_tokens,
            tokenizer.stop_ids,
        )
        for number in numbers
        for reading in fits[number].recital.readings
    ]
    said = iter(decode(requests))
    return {
        number: Recited(texts[number], tuple(next(said) for _ in fits[number].recital.readings)) for number in numbers
    }
