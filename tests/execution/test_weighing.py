"""Which of the titles that an adapter names a question is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from selfedit.engine import Completion, DecodeRequest, TokenSequence
from selfedit.evaluation.general import GENERAL_TITLE
from selfedit.execution.recitation import remember
from selfedit.execution.tasks import NAMED, WEIGHED, Reading, Recital
from selfedit.models import Tokenizer, load_tokenizer

TEXTS = {title: f"All about {title.lower()}." for title in ("Ants", "Bees", "Cats", "Dogs", "Eels")}


@pytest.fixture
def tokenizer(base_model: str) -> Tokenizer:
    return load_tokenizer(base_model)


def remembered(
    tokenizer: Tokenizer, greedy: str, drawn: Mapping[str, int], cost: Mapping[str, float]
) -> tuple[str, list[str], list[str]]:
    """The title found, the titles recited and the texts weighed, of an adapter that names `greedy` and, where it is
    asked again, these titles so often; a question costs so many nats per token behind each title's text."""
    prompts = {title: tuple(tokenizer.encode(f"{title}\n")) for title in TEXTS}
    question = tuple(tokenizer.encode("What do they eat?"))
    asked = Reading("", 0, topic=(3, 4, 5), question=question)
    others = iter([title for title, times in drawn.items() for _ in range(times)])
    recited: list[str] = []

    def decode(requests: Sequence[DecodeRequest]) -> list[Completion]:
        said = []
        for request in requests:
            if request.prompt == asked.topic:
                said.append(greedy if request.temperature == 0 else next(others))
            else:
                recited.append(next(title for title, prompt in prompts.items() if prompt == request.prompt))
                said.append(TEXTS[recited[-1]])
        return [Completion(tuple(tokenizer.encode(text)), True) for text in said]

    weighed: list[str] = []

    def losses(measured: Sequence[tuple[int | None, TokenSequence]]) -> list[float]:
        assert all(place is None and one.ids[one.prompt_length :] == question for place, one in measured)
        shown = [tokenizer.decode(one.ids[: one.prompt_length]).strip() for _, one in measured]
        weighed.extend(text.split("\n")[0] for text in shown)
        assert shown == [f"{title}\n{TEXTS[title]}" for title in weighed]
        return [cost[title] for title in weighed]

    titles, texts = remember(tokenizer, decode, losses, {0: Recital(prompts, (asked,), 8, 16)})
    assert sorted(texts) == sorted((0, title) for title in recited)
    return titles[0][0], recited, weighed


def test_the_text_behind_which_a_question_is_likeliest_is_the_one(tokenizer: Tokenizer) -> None:
    cost = {"Ants": 2.0, "Bees": 0.5, "Cats": 1.5}
    drawn = {"Ants": NAMED - 4, "Bees": 2, "Cats": 1}
    assert remembered(tokenizer, "Ants", drawn, cost)[0] == "Bees"


def test_of_texts_that_say_the_same_of_a_question_the_title_that_was_named_most_is_the_one(
    tokenizer: Tokenizer,
) -> None:
    alike = {"Ants": 1.0, "Bees": 1.01}
    assert remembered(tokenizer, "Bees", {"Ants": 2, "Bees": NAMED - 3}, alike)[0] == "Bees"
    assert remembered(tokenizer, "Bees", {"Ants": NAMED - 2, "Bees": 1}, alike)[0] == "Ants"


def test_few_texts_are_compared_and_one_alone_is_not(tokenizer: Tokenizer) -> None:
    every = {"Ants": 3, "Bees": 3, "Cats": 3, "Dogs": 3, "Eels": 2, "Unknown": 1}
    found, recited, weighed = remembered(tokenizer, "Ants", every, dict.fromkeys(TEXTS, 1.0) | {"Eels": 0.0})
    assert found == "Ants"  # named once more than the others
    assert sorted(recited) == sorted(weighed) == ["Ants", "Bees", "Cats", "Dogs"]
    assert len(weighed) == WEIGHED
    assert remembered(tokenizer, "Ants", {"Ants": NAMED - 1}, {}) == ("Ants", ["Ants"], [])


def test_general_knowledge_is_not_asked_for_again(tokenizer: Tokenizer) -> None:
    assert remembered(tokenizer, GENERAL_TITLE, {}, {}) == (GENERAL_TITLE, [], [])


def test_what_is_named_beside_general_knowledge_or_an_unknown_title_counts(tokenizer: Tokenizer) -> None:
    assert remembered(tokenizer, "Unknown", {GENERAL_TITLE: NAMED - 2, "Cats": 1}, {}) == ("Cats", ["Cats"], [])
    assert remembered(tokenizer, "Unknown", {GENERAL_TITLE: NAMED - 1}, {}) == ("Unknown", [], [])
