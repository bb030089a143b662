"""How a judge's model is reached: by the engine, or behind an API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from selfedit.editors.api import ApiClient
from selfedit.editors.base import Complete, Reader
from selfedit.editors.replies import ApiRequest, ApiResult
from selfedit.engine.jobs import Completion, DecodeRequest
from selfedit.evaluation.judge import REPLY_TOKENS, VERDICT_SCHEMA, Messages, parse_reply
from selfedit.evaluation.judge import Complete as Ask


def local_judge(model: Callable[[], Reader], complete: Complete) -> Ask:
    """Asks a model of the engine, untrained."""

    def ask(requests: Sequence[Messages]) -> list[Any]:
        tokenizer = model().tokenizer
        prompts = {
            str(number): [
                DecodeRequest(
                    tuple(tokenizer.chat_ids([dict(message) for message in messages])),
                    REPLY_TOKENS,
                    tokenizer.stop_ids,
                )
            ]
            for number, messages in enumerate(requests)
        }
        replies: dict[str, Any] = {}

        def keep(id: str, completions: Sequence[Completion], seconds: float) -> None:
            replies[id] = tokenizer.decode(completions[0].ids)

        def fail(id: str, reason: str) -> None:
            replies[id] = RuntimeError(f"the task was given up: {reason}")

        complete(prompts, (), keep, fail)
        return [replies[number] for number in prompts]

    return ask


def api_judge(client: Callable[[], ApiClient], book: Callable[[ApiResult], None]) -> Ask:
    """Asks a model behind an API; `book` is called with each reply, in the transaction that keeps it."""

    def ask(requests: Sequence[Messages]) -> list[Any]:
        results = client().complete(
            [
                ApiRequest(
                    messages=messages,
                    max_tokens=REPLY_TOKENS,
                    temperature=0.0,
                    json_schema=VERDICT_SCHEMA,
                )
                for messages in requests
            ],
            lambda _, result: book(result),
            # An answer that is tried again must not get a reply again that could not be read.
            accept=lambda result: result.error is None and parse_reply(result.text) is not None,
        )
        return [result.text if result.error is None else RuntimeError(result.error) for result in results]

    return ask
