"""The second exam of trained adapters: what an adapter has by heart is read by the model without it.

    for each question:
        titles ← the question's own, or what the adapter names as its topic, asked several times
        texts  ← what the adapter writes under these titles
        text   ← of several, the one behind which the model without it finds the question likeliest
        A      ← the answer of the model without it, with the text in its prompt

The likelihood of the question is what tells passages apart in Sachan et al. 2022 (arXiv 2204.07496).  A question whose
topic is said to be general knowledge, or is no title that was learned, is answered by the model as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from selfedit.engine.jobs import Completion, DecodeRequest, TokenSequence
from selfedit.evaluation.exam import TEXT, TITLE
from selfedit.evaluation.general import GENERAL_TITLE
from selfedit.execution.tasks import NAMED, WEIGHED, Recital, Recited
from selfedit.models import Tokenizer

Decode = Callable[[Sequence[DecodeRequest]], list[Completion]]
Losses = Callable[[Sequence[tuple[int | None, TokenSequence]]], list[float]]


def recite(
    tokenizer: Tokenizer,
    decode: Decode,
    losses: Losses,
    recitals: Mapping[int, Recital],
    learned: Mapping[int, Sequence[TokenSequence]],
) -> dict[int, Recited]:
    """What becomes of these recitals, each of the adapter in a place of the bank, which has `learned` these
    sequences."""
    titles, texts = remember(tokenizer, decode, losses, recitals, learned)
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
    losses: Losses,
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

    def said(requests: Sequence[DecodeRequest]) -> list[str]:
        return [tokenizer.decode(one.ids).strip() for one in decode(requests)]

    likeliest = said(asked)
    unsure = [number for number, title in enumerate(likeliest) if title != GENERAL_TITLE]
    drawn = said([replace(asked[number], temperature=1.0, seed=seed) for seed in range(1, NAMED) for number in unsure])
    others = {number: drawn[k :: len(unsure)] for k, number in enumerate(unsure)}
    named = iter([[title, *others.get(number, ())] for number, title in enumerate(likeliest)])
    candidates = {
        place: [
            _candidates(next(named), recital.prompts) if reading.title is None else {reading.title: 1}
            for reading in recital.readings
        ]
        for place, recital in recitals.items()
    }
    prompts = {
        (place, title): recitals[place].prompts[title]
        for place, questions in candidates.items()
        for titles in questions
        for title in titles
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
    texts = {key: tokenizer.decode(one.ids).strip() for key, one in zip(prompts, written, strict=True)}
    return _likeliest(tokenizer, losses, recitals, candidates, texts), texts


def _candidates(named: Sequence[str], learned: Container[str]) -> dict[str, int]:
    """The titles to choose from, and how often each was named: the topic that was named greedily, first of all, where
    that is general knowledge, or no other is learned either; else those that are learned."""
    known = Counter(title for title in named if title in learned and title != GENERAL_TITLE)
    if named[0] == GENERAL_TITLE or not known:
        return {named[0]: 1}
    return dict(known.most_common(WEIGHED))


def _likeliest(
    tokenizer: Tokenizer,
    losses: Losses,
    recitals: Mapping[int, Recital],
    candidates: Mapping[int, Sequence[Mapping[str, int]]],
    texts: Mapping[tuple[int, str], str],
) -> dict[int, list[str]]:
    """For each question, by place, the likeliest candidate: by how often it was named, and how likely the question is
    behind its text."""
    weighed: dict[tuple[int, str, tuple[int, ...]], TokenSequence] = {}
    for place, questions in candidates.items():
        for reading, named in zip(recitals[place].readings, questions, strict=True):
            for title in named if len(named) > 1 and reading.question else ():
                before = tokenizer.encode(f"{title}\n{texts[place, title]}\n\n")
                weighed[place, title, reading.question] = TokenSequence((*before, *reading.question), len(before))
    measured = losses([(None, sequence) for sequence in weighed.values()])
    loss = {key: mean * len(key[2]) for key, mean in zip(weighed, measured, strict=True)}
    return {
        place: [
            max(named, key=lambda title: math.log(named[title]) - loss.get((place, title, reading.question), 0.0))
            for reading, named in zip(recitals[place].readings, questions, strict=True)
        ]
        for place, questions in candidates.items()
    }


def _behind(prompt: tuple[int, ...], sequences: Sequence[TokenSequence]) -> tuple[int, ...]:
    """What was learned behind this prompt, first of all."""
    return next((one.ids[len(prompt) :] for one in sequences if one.ids[: len(prompt)] == prompt), ())
