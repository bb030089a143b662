"""The second exam of trained adapters: what an adapter has by heart is read by the model without it.

    for each question:
        title ← the question's own, or what the adapter names as its topic
        text  ← what the adapter writes under that title
        A     ← the answer of the model without it, with the text in its prompt

A question whose topic is no title that was learned is answered by the model as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from selfedit.engine.jobs import Completion, DecodeRequest, TokenSequence
from selfedit.evaluation.exam import TEXT, TITLE
from selfedit.execution.tasks import Recital, Recited
from selfedit.models import Tokenizer

Decode = Callable[[Sequence[DecodeRequest]], list[Completion]]


def recite(
    tokenizer: Tokenizer,
    decode: Decode,
    recitals: Mapping[int, Recital],
    learned: Mapping[int, Sequence[TokenSequence]],
) -> dict[int, Recited]:
    """What becomes of these recitals, each of the adapter in a place of the bank, which has `learned` these
    sequences."""
    titles, texts = remember(tokenizer, decode, recitals, learned)
    requests = []
    for place, recital in recitals.items():
        for reading, title in zip(recital.readings, titles[place], strict=True):
            prompt = reading.plain
            if (place, title) in texts:
                shown = reading.shown.replace(TITLE, title).replace(TEXT, texts[place, title])
                prompt = tuple(tokenizer.prompt_ids(shown))
            requests.append(DecodeRequest(prompt, recital.answer_tokens, tokenizer.stop_ids))
    said = iter(decode(requests))
    return {
        place: Recited(
            tuple(f"{title}\n{text}" for (where, title), text in texts.items() if where == place),
            tuple(
                title if reading.title is None else None
                for reading, title in zip(recital.readings, titles[place], strict=True)
            ),
            tuple(next(said) for _ in recital.readings),
        )
        for place, recital in recitals.items()
    }


def remember(
    tokenizer: Tokenizer,
    decode: Decode,
    recitals: Mapping[int, Recital],
    learned: Mapping[int, Sequence[TokenSequence]] = MappingProxyType({}),
) -> tuple[dict[int, list[str]], dict[tuple[int, str], str]]:
    """The title of each question, its own or the topic that the adapter names, by place; and the texts that the
    adapters then write, by place and title, of the titles that they have learned.  What they have `learned`, where it
    is known, is a draft of these: an adapter that has it by heart is only read, not written by."""
    stop = tokenizer.stop_ids
    asked = [
        DecodeRequest(reading.topic, recital.topic_tokens, stop, place)
        for place, recital in recitals.items()
        for reading in recital.readings
        if reading.title is None
    ]
    named = iter(decode(asked))
    titles = {
        place: [
            tokenizer.decode(next(named).ids).strip() if reading.title is None else reading.title
            for reading in recital.readings
        ]
        for place, recital in recitals.items()
    }
    prompts = {
        (place, title): recitals[place].prompts[title]
        for place, some in titles.items()
        for title in some
        if title in recitals[place].prompts
    }
    written = decode(
        [
            DecodeRequest(
                prompt, recitals[place].text_tokens, stop, place, draft=_behind(prompt, learned.get(place, ()))
            )
            for (place, _), prompt in prompts.items()
        ]
    )
    return titles, {key: tokenizer.decode(one.ids).strip() for key, one in zip(prompts, written, strict=True)}


def _behind(prompt: tuple[int, ...], sequences: Sequence[TokenSequence]) -> tuple[int, ...]:
    """What was learned behind this prompt, first of all."""
    return next((one.ids[len(prompt) :] for one in sequences if one.ids[: len(prompt)] == prompt), ())
