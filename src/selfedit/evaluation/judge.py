"""The judge: a language model is asked whether an answer conveys the gold answer.

The model is reached through a callable: `local_judge` makes it of the engine, `api_judge` of an API's client.  A failed
call, or a reply that is neither yes nor no, leaves the answer ungraded, with the reason, and never wrong."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfedit.editors.api import ApiClient
from selfedit.editors.base import Complete, Reader
from selfedit.editors.replies import ApiRequest, ApiResult
from selfedit.engine.jobs import Completion, DecodeRequest
from selfedit.errors import reason
from selfedit.evaluation.grade import Grade, GradeItem
from selfedit.prompts import Prompts

# A chat to be completed greedily, by at most REPLY_TOKENS tokens that match VERDICT_SCHEMA where it can be asked for.
Messages = tuple[dict[str, str], ...]
REPLY_TOKENS = 64

# One result per chat, in order: the completion's text, or an error (an exception, not raised; anything whose str() is a
# reason) where the call failed for good.  Retrying is the client's business.
Ask = Callable[[Sequence[Messages]], Sequence[Any]]

VERDICT_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}


def _quote(text: str) -> str:
    """One line of JSON in which no marker, tag or special token of a chat template can stand.

    Line ends become escapes, and so do `<`, `>`, `|`, `[` and `]`, of which `<|im_end|>`, `</s>`, `[/INST]` and the
    like are made."""
    line = json.dumps(text, ensure_ascii=False)
    return re.sub(r"[<>|\[\]\u2028\u2029\x85\x7f]", lambda m: f"\\u{ord(m.group()):04x}", line)


def _fence(item: GradeItem) -> str:
    """A marker that the student cannot have written: it is a hash of the text it fences."""
    digest = hashlib.sha256(json.dumps([item.question, item.gold, item.answer]).encode()).hexdigest()
    return f"====={digest[:24]}====="


def judge_messages(item: GradeItem, prompts: Prompts) -> Messages:
    """The chat that asks about one answer.  The same item always gives the same messages."""
    system, user = prompts.judge(
        question=_quote(item.question),
        gold=" or ".join(_quote(g) for g in item.gold),
        answer=_quote(item.answer),
        fence=_fence(item),
    )
    asked = {"role": "user", "content": user}
    return ({"role": "system", "content": system}, asked) if system.strip() else (asked,)


_THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCED = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)


def parse_reply(reply: str) -> bool | None:
    """True for yes, False for no, None for anything else.

    Accepts the JSON object that was asked for (also in a code fence) or the bare word with a full stop or quotes, after
    a closed thinking block.  `Yes, but ...` is neither: a judge that does not keep to the form is not trusted to have
    judged."""
    text = _THINKING.sub("", reply).strip()
    fenced = _FENCED.match(text)
    text = fenced.group(1) if fenced else text
    word: object = text
    if text.startswith("{"):
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(parsed, dict) or set(parsed) != {"verdict"}:
            return None
        word = parsed["verdict"]
    if not isinstance(word, str):
        return None
    return {"yes": True, "no": False}.get(word.strip().strip("\"'`*.!").casefold())


class JudgeGrader:
    """Grades by asking a model; `name` is `judge:MODEL`.  An empty answer is wrong without being asked about, and what
    is there twice is asked once."""

    def __init__(self, complete: Ask, model_name: str, prompts: Prompts) -> None:
        self.name = f"judge:{model_name}"
        self._complete = complete
        self._prompts = prompts

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]:
        asked = list(dict.fromkeys(item for item in items if item.answer.strip()))
        requests = [judge_messages(item, self._prompts) for item in asked]
        results = self._complete(requests) if requests else []
        grades = {item: self._grade(reply) for item, reply in zip(asked, results, strict=True)}
        return [grades.get(item) or Grade("wrong", 0.0, self.name) for item in items]

    def _grade(self, reply: object) -> Grade:
        if not isinstance(reply, str):
            return Grade("ungraded", None, self.name, note=f"the call failed: {reason(reply)}")
        yes = parse_reply(reply)
        if yes is None:
            return Grade("ungraded", None, self.name, note=f"neither yes nor no: {reason(reply.strip() or '(empty)')}")
        return Grade("right" if yes else "wrong", 1.0 if yes else 0.0, self.name)


def local_judge(model: Callable[[], Reader], complete: Complete) -> Ask:
    """Asks a model of the engine, untrained."""

    def ask(requests: Sequence[Messages]) -> list[Any]:
        tokenizer = model().tokenizer
        prompts = {
            str(number): [DecodeRequest(tuple(tokenizer.chat_ids(messages)), REPLY_TOKENS, tokenizer.stop_ids)]
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
                ApiRequest(messages, max_tokens=REPLY_TOKENS, temperature=0.0, json_schema=VERDICT_SCHEMA)
                for messages in requests
            ],
            lambda _, result: book(result),
            # An answer that is tried again must not get a reply again that could not be read.
            accept=lambda result: result.error is None and parse_reply(result.text) is not None,
        )
        failures = [result.failure("--judge-reasoning-effort") for result in results]
        return [
            result.text if failure is None else RuntimeError(failure)
            for result, failure in zip(results, failures, strict=True)
        ]

    return ask
