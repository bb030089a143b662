"""A client for language models behind an OpenAI-compatible API: editors that are API models, and the judge's transport.

Knows requests, replies, errors and what is kept of them.  It takes ready chat messages or a plain prompt and knows
nothing of documents, edits or grading; how a batch is run is in `batch.py`, what a token costs in `prices.py`, how
bytes travel in `transport.py`, and what a reply must look like in `replies.py`.

A reply is kept, with what the caller makes of it and books for it, in one transaction, under the content of its
request, so that nothing is paid for twice or forgotten.  A reply that cannot be used (refused, filtered, of another
form) is kept too, for it was paid for; the next time the same is asked, a fresh sample is asked for in its place.  A
call that fails after retries is a result with an `error`, never an exception; what no other call could do better (no
key, unknown model, no server) stops everything with a UserError.  Retries with backoff on 429, 5xx and timeouts are the
`openai` package's own.

Not on record is what a provider charges for a call whose reply never came whole: one that timed out, or was cut off by
Ctrl-C.

A model may refuse a parameter that it does not offer (reasoning models refuse a temperature).  The client then sends
the request again without it, leaves it out from then on, warns once, and lists it in `refused`.  It does so for
temperature, top_p, seed and the JSON schema, which are wishes; a refused reasoning effort is a UserError.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

from selfedit.editors.address import parse_address
from selfedit.editors.prices import Budget, ModelPrice
from selfedit.errors import UserError
from selfedit.text import one_line

if TYPE_CHECKING:  # importing openai takes most of a second
    import openai

    from selfedit.editors.transport import BoundedClient, LoopThread

T = TypeVar("T")

logger = logging.getLogger(__name__)

DEFAULT_URL = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"

_WISHES = ("temperature", "top_p", "seed", "response_format")
_REFUSAL_WORDS = ("unsupported", "not support", "unexpected", "unrecognized", "unknown", "not permitted", "not allowed")
_UNKNOWN_MODEL_WORDS = ("not found", "not exist", "unknown model", "pinned to", "not available", "invalid model")
_LONGEST_BACKOFF = 8.0
_LONGEST_REASON = 300  # characters of a server's words
_GRACE = 0.5  # seconds in which replies still come that are under way at an interruption
# Servers count reasoning towards a reply's bound: with the reply's own bound alone, nothing would be left for the
# reply.
REASONING_TOKENS = 8192


@dataclass(frozen=True)
class ApiRequest:
    """One completion to ask for: chat `messages` (mappings of role and content) or a plain `prompt`.

    `max_tokens` bounds the reply; a client with a reasoning effort allows `REASONING_TOKENS` more.  `sample` tells
    samples of one prompt apart in the cache; it is not sent.  `seed` is sent, but few servers honour it.  `json_schema`
    asks for a reply of that JSON schema; a server that does not offer it answers in free text, and with plain
    completions it is not sent. `attempt` counts the replies to it that could not be used; each has a seed of its own
    (`ApiClient.complete` sets it)."""

    messages: Sequence[Mapping[str, str]] = ()
    prompt: str | None = None
    max_tokens: int = 1024
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    json_schema: Mapping[str, Any] | None = None
    sample: int = 0
    attempt: int = 0

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.prompt is not None):
            raise ValueError("a request has either messages or a prompt")


@dataclass(frozen=True)
class ApiResult:
    """What became of a request.  `error` says in words why there is no text; it is None where there is one.

    `output_tokens` counts `reasoning_tokens` too; tokens are 0 where the server does not say, and where a call failed.
    `cached`: nothing was sent, the reply was there from before.  `batch`: it was answered at the price of a batch.
    `paid`: a reply came now, which is to be booked, whether it can be used or not; `usd` is its price (None: not
    known).  Where the server does not say its tokens, that is the most that it can have cost."""

    text: str = ""
    finish_reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    error: str | None = None
    cached: bool = False
    batch: bool = False
    paid: bool = False
    usd: float | None = None

    @property
    def truncated(self) -> bool:
        """Whether the reply ended because `max_tokens` were used up."""
        return self.finish_reason == "length"


class ApiCache(Protocol):
    """Keeps replies by the sha256 of their request (the run's store: table `api_calls`).

    What is written within a `transaction` is kept whole or not at all.
    """

    def transaction(self) -> AbstractContextManager[None]: ...

    def get(self, key: str) -> dict[str, Any] | None: ...

    def put(
        self,
        key: str,
        model: str,
        request: dict[str, Any],
        response: dict[str, Any],
        input_tokens: int,
        output_tokens: int,
    ) -> None: ...


class BatchStore(Protocol):
    """Keeps which batch a request is in, by the request's key (the run's store: table `api_batches`)."""

    def get_batch(self, key: str) -> tuple[str, str] | None: ...

    def put_batch(self, key: str, batch_id: str, status: str) -> None: ...


class MemoryCache:
    """An ApiCache and a BatchStore that last as long as the process."""

    def __init__(self) -> None:
        self.replies: dict[str, dict[str, Any]] = {}
        self.batches: dict[str, tuple[str, str]] = {}

    def transaction(self) -> AbstractContextManager[None]:
        return nullcontext()

    def get(self, key: str) -> dict[str, Any] | None:
        return self.replies.get(key)

    def put(
        self,
        key: str,
        model: str,
        request: dict[str, Any],
        response: dict[str, Any],
        input_tokens: int,
        output_tokens: int,
    ) -> None:
        self.replies[key] = response

    def get_batch(self, key: str) -> tuple[str, str] | None:
        return self.batches.get(key)

    def put_batch(self, key: str, batch_id: str, status: str) -> None:
        self.batches[key] = (batch_id, status)


OnResult = Callable[[int, ApiResult], None]
Accept = Callable[[ApiResult], bool]
OnPoll = Callable[[str, str, int, int], None]


class ApiClient:
    """Asks one model for completions, several at a time or by batch.

    `base_url` defaults to OPENAI_BASE_URL from the environment, then to OpenAI's own; the key is OPENAI_API_KEY from
    the environment and nowhere else (a server other than OpenAI's needs none).  `timeout` is seconds for one attempt,
    from its start to the reply's last byte; `max_retries` counts the attempts after the first.  `extra_body` is added
    to every request as it is (for what a server offers beyond the standard).

    With a `budget` and the model's `price`, a request is sent only if the most that it can cost still fits; otherwise
    BudgetReached is raised, after what is under way has been kept.  Callbacks, cache and store are used from the
    calling thread only.

    Batches: `poll_seconds` is the first wait between two polls; it grows by half to twenty times that.  Requests that
    come back failed or not at all are put into a further batch, at most `batch_tries` batches in all.
    `on_poll(batch_id, status, done, total)` is called after every poll.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        kind: Literal["chat", "completions"] = "chat",
        reasoning_effort: str | None = None,
        max_concurrency: int = 8,
        timeout: float = 600.0,
        max_retries: int = 5,
        batch: bool = False,
        cache: ApiCache | None = None,
        batches: BatchStore | None = None,
        on_poll: OnPoll | None = None,
        budget: Budget | None = None,
        price: ModelPrice | None = None,
        backoff_seconds: float = 0.5,
        poll_seconds: float = 15.0,
        batch_tries: int = 3,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        if max_concurrency < 1 or max_retries < 0 or batch_tries < 1:
            raise ValueError("max_concurrency and batch_tries must be at least 1, max_retries at least 0")
        if budget is not None and budget.limit is not None and price is None:
            raise ValueError("a budget can only be kept with a price")
        if reasoning_effort is not None and kind == "completions":
            raise UserError(
                "a reasoning effort can only be asked for with chat, not with plain completions: leave it out"
            )
        self.model = model
        self.kind = kind
        self.reasoning_effort = reasoning_effort
        self.max_concurrency = max_concurrency
        self.timeout = timeout
        self.max_retries = max_retries
        self.batch = batch
        memory = MemoryCache()
        self.cache: ApiCache = memory if cache is None else cache
        self.batches: BatchStore = memory if batches is None else batches
        self.budget = Budget() if budget is None else budget
        self.price = price
        self.backoff_seconds = backoff_seconds
        self.poll_seconds = poll_seconds
        self.batch_tries = batch_tries
        self.extra_body = dict(extra_body or {})
        self.on_poll = on_poll
        self._refused: frozenset[str] = frozenset()
        self._reached = False
        self._address = parse_address(base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL)
        self.url = self._address.shown
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"the environment variable {KEY_VARIABLE} holds characters that no key has: set it again")
        if not self._key and self.url == DEFAULT_URL:
            raise UserError(
                f"no API key for model '{model}' at {self.url}: set the environment variable {KEY_VARIABLE}, or name "
                "another server with --api-base (a local one needs no key)"
            )

    @property
    def path(self) -> str:
        """The path of the endpoint below the server's address."""
        return "/chat/completions" if self.kind == "chat" else "/completions"

    @property
    def refused(self) -> tuple[str, ...]:
        """The parameters that the server has refused and that are not sent any more."""
        return tuple(sorted(self._refused))

    def key(self, request: ApiRequest) -> str:
        """The request's key in the cache: the sha256 of its canonical JSON, with server, model, settings and sample."""
        text = json.dumps(self._canonical(request), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def check(self) -> None:
        """Raises UserError if no server can be reached: asks for the list of models and is content with any answer."""
        import openai

        if self._reached:
            return
        try:
            self.run(self.patient(min(self.timeout, 10.0), retries=1).models.with_raw_response.list())
        except openai.APIConnectionError as error:
            self.raise_if_unreachable(error)
        except (openai.OpenAIError, ValueError):
            pass  # a server without a list of models, or a key that may not read it: the requests will tell
        self._reached = True

    def complete(
        self, requests: Sequence[ApiRequest], on_result: OnResult | None = None, accept: Accept | None = None
    ) -> list[ApiResult]:
        """Answers requests; one result each, in order.  `on_result(index, result)` is called as each becomes known, in
        the transaction that keeps its reply.

        Requests that are the same (with the same `sample`) are sent once, and paid for once: the others' results are
        `cached`. A reply from before that `accept` does not take (by default, one with an error) gives way to a fresh
        sample. Raises UserError where no request can succeed (no server, no such model, refused key, no batches) and
        BudgetReached; what has come back by then is kept.  So it is at a KeyboardInterrupt, with what comes within half
        a second."""
        results: list[ApiResult | None] = [None] * len(requests)
        places: dict[str, list[int]] = {}
        pending: dict[str, ApiRequest] = {}
        known: dict[str, ApiResult] = {}
        for index, request in enumerate(requests):
            key, request, result = self._look(request, accept or _without_error)
            places.setdefault(key, []).append(index)
            if result is None:
                pending[key] = request
            else:
                known[key] = result

        def deliver(key: str, result: ApiResult) -> None:
            for index in places[key]:
                results[index] = result
                if on_result is not None:
                    on_result(index, result)
                if result.paid:
                    result = replace(result, cached=True, paid=False, usd=0.0)

        for key, result in known.items():
            deliver(key, result)
        if pending:
            self.check()
            if self.batch:
                from selfedit.editors.batch import run_batches

                run_batches(self, pending, deliver)
            else:
                self._run_live(pending, deliver)
        return cast("list[ApiResult]", results)

    def close(self) -> None:
        """Closes the connections; what is under way is cut off."""
        if "library" in self.__dict__:
            self.loop.close(self.library.close())

    # What follows is shared with `batch.py`.

    @cached_property
    def loop(self) -> LoopThread:
        """Where calls are made."""
        from selfedit.editors.transport import LoopThread

        return LoopThread()

    @cached_property
    def http(self) -> BoundedClient:
        """What the library sends its requests by."""
        from selfedit.editors.transport import BoundedClient

        return BoundedClient(params=self._address.query)

    @cached_property
    def library(self) -> openai.AsyncOpenAI:
        """The library's client."""
        import openai

        from selfedit.editors.transport import within

        return openai.AsyncOpenAI(
            # The library insists on a key; a server that needs none ignores it.
            api_key=self._key or "none",
            base_url=self._address.base,
            timeout=within(self.timeout),
            max_retries=self.max_retries,
            http_client=self.http,
        )

    def patient(self, seconds: float, *, retries: int | None = None) -> openai.AsyncOpenAI:
        """The library's client, for calls that may take another time."""
        from selfedit.editors.transport import within

        return self.library.with_options(
            max_retries=self.max_retries if retries is None else retries, timeout=within(seconds)
        )

    def run(self, call: Awaitable[T]) -> T:
        """Waits for one call."""
        return self.loop.run(call)

    def body(self, request: ApiRequest) -> dict[str, Any]:
        """The JSON body to send: without what the server has refused, and with its name for `max_tokens`."""
        body = {name: value for name, value in self._full_body(request).items() if name not in self._refused}
        if self.kind == "chat" and (self.url == DEFAULT_URL or "max_tokens" in self._refused):
            # The old name is all that some local servers know; OpenAI's reasoning models know the new one only.
            body["max_completion_tokens"] = self._bound(request)
            body.pop("max_tokens", None)
        return body

    def most(self, request: ApiRequest) -> float:
        """The most that a request can cost, in US dollars (0 without a price).

        A token is at least one byte of text, and a message's frame takes a few more.
        """
        if self.price is None:
            return 0.0
        texts = [message["content"] for message in request.messages] if request.messages else [request.prompt or ""]
        if request.json_schema is not None:
            texts.append(json.dumps(request.json_schema))
        input_tokens = sum(len(text.encode("utf-8")) + 16 for text in texts)
        return self.price.cost(input_tokens, self._bound(request), self.batch)

    def settle(
        self,
        key: str,
        request: ApiRequest,
        reply: Mapping[str, Any],
        deliver: Callable[[str, ApiResult], None],
        *,
        batch: bool,
    ) -> None:
        """Keeps a reply's body and what `deliver` makes of it, in one transaction, and counts its cost."""
        stored = {"body": dict(reply), "batch": batch, "without": list(self.refused)}
        result = self._result(stored, cached=False)
        usd = None
        if self.price is not None:
            known = result.input_tokens or result.output_tokens
            usd = self.price.cost(result.input_tokens, result.output_tokens, batch) if known else self.most(request)
        with self.cache.transaction():
            # An interruption may have come after the transaction and before the caller had noted it.
            if self.cache.get(key) is not None:
                return
            self.cache.put(key, self.model, self._canonical(request), stored, result.input_tokens, result.output_tokens)
            deliver(key, replace(result, paid=True, usd=usd))
        self.budget.release(key)
        self.budget.spend(usd or 0.0)

    def usable(self, reply: object) -> bool:
        """Whether a reply has the form that the endpoint promises."""
        if not isinstance(reply, dict):
            return False
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return False
        if self.kind == "chat":
            return isinstance(choices[0].get("message"), dict)
        return isinstance(choices[0].get("text"), str)

    def gives_way(self, status: int, payload: object, body: Mapping[str, Any]) -> bool:
        """Whether the server has refused a parameter of `body` that the request can do without; it is then left out."""
        if status not in (400, 422):
            return False
        _, param, message = _error_fields(payload)
        named = [name for name in (*_WISHES, "max_tokens") if name in body and (name == param or name in message)]
        if not named or not any(word in message.lower() for word in _REFUSAL_WORDS):
            return False
        # The parameter that the error names in its own field, else all that its message names.
        for name in [param] if param in named else named:
            if name not in self._refused:
                self._refused |= {name}
                if name != "max_tokens":  # sent under its new name
                    logger.warning("model '%s' at %s refuses '%s': requests go without it", self.model, self.url, name)
        return True

    def reason(self, status: int, payload: object) -> str:
        """Why one request failed, in one line; raises UserError if every other request would fail alike."""
        code, param, message = _error_fields(payload)
        message = self.clean(message)
        if 300 <= status < 400:
            raise UserError(
                f"the server at {self.url} sends requests on to another address ({status}): give that one with "
                "--api-base"
            )
        if status == 401:
            mend = f"check {KEY_VARIABLE}" if self._key else f"set the environment variable {KEY_VARIABLE}"
            raise UserError(f"the server at {self.url} does not accept the API key (401): {mend}")
        if status == 403:
            raise UserError(
                f"the server at {self.url} does not allow model '{self.model}' to this key (403: {message})"
            )
        unknown = self.model in message and any(word in message.lower() for word in _UNKNOWN_MODEL_WORDS)
        if status == 404 or code == "model_not_found" or (status in (400, 422) and (param == "model" or unknown)):
            raise UserError(
                f"the server at {self.url} does not know model '{self.model}' ({status}: {message}): check the model's "
                "name, and the address (most end in /v1)"
            )
        if code == "insufficient_quota":
            raise UserError(f"the account behind {KEY_VARIABLE} has no credit left at {self.url} ({status}: {message})")
        if status in (400, 422) and self.reasoning_effort is not None and "reasoning_effort" in param + message:
            raise UserError(
                f"model '{self.model}' at {self.url} refuses the reasoning effort '{self.reasoning_effort}' "
                f"({status}: {message}): choose another or leave it out"
            )
        return f"{status}: {message}"

    def raise_if_unreachable(self, error: openai.APIConnectionError) -> None:
        """Raises UserError if there is nobody at the address (a connection that broke later is another matter)."""
        # By name, for the library has changed from httpx to httpx2 without a change of these.
        if type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout"):
            said = self.clean(str(error.__cause__)) or "no answer"
            raise UserError(
                f"cannot reach the server at {self.url} ({said}): check the address and that the server is running"
            ) from None

    def clean(self, text: str) -> str:
        """A server's words in one line, short, and without anything secret."""
        text = text[: 100 * _LONGEST_REASON]
        for secret in (self._key, *self._address.secrets):
            if secret:
                text = text.replace(secret, "***")
        return one_line(" ".join(text.split()), _LONGEST_REASON)

    # What follows is not.

    def _bound(self, request: ApiRequest) -> int:
        """Tokens that a reply may have, with the reasoning before it."""
        thinks = self.reasoning_effort not in (None, "none")
        return request.max_tokens + REASONING_TOKENS * thinks

    def _full_body(self, request: ApiRequest) -> dict[str, Any]:
        """All that is asked for, under the names of the older standard."""
        body: dict[str, Any] = {"model": self.model}
        if self.kind == "chat":
            body["messages"] = [dict(message) for message in request.messages] or [
                {"role": "user", "content": request.prompt}
            ]
            if self.reasoning_effort is not None:
                body["reasoning_effort"] = self.reasoning_effort
            if request.json_schema is not None:
                schema = {"name": "reply", "strict": True, "schema": dict(request.json_schema)}
                body["response_format"] = {"type": "json_schema", "json_schema": schema}
        else:
            if request.prompt is None:
                raise ValueError("plain completions need a prompt, not messages")
            body["prompt"] = request.prompt
        body["max_tokens"] = self._bound(request)
        for name in ("temperature", "top_p", "seed"):
            if getattr(request, name) is not None:
                body[name] = getattr(request, name)
        if request.seed is not None and request.attempt:
            body["seed"] = (request.seed + request.attempt) % 2**31
        return body | self.extra_body

    def _canonical(self, request: ApiRequest) -> dict[str, Any]:
        canonical = {"url": self.url + self.path, "body": self._full_body(request), "sample": request.sample}
        return canonical | ({"attempt": request.attempt} if request.attempt else {})

    def _look(self, request: ApiRequest, accept: Accept) -> tuple[str, ApiRequest, ApiResult | None]:
        """A request's key and what is known of it; after replies that are not accepted, those of its next attempt."""
        while True:
            key = self.key(request)
            stored = self.cache.get(key)
            if stored is None:
                return key, request, None
            result = self._result(stored, cached=True)
            if accept(result):
                return key, request, result
            request = replace(request, attempt=request.attempt + 1)

    def _result(self, stored: Mapping[str, Any], cached: bool) -> ApiResult:
        from pydantic import ValidationError

        from selfedit.editors.replies import Completion, Usage, told

        usd = 0.0 if cached else None
        try:
            reply = Completion.model_validate(stored["body"])
        except ValidationError as wrong:
            reason = f"the reply cannot be used ({self.clean(told(wrong))})"
            return ApiResult(error=reason, cached=cached, batch=stored["batch"], usd=usd)
        choice, usage = reply.choices[0], reply.usage or Usage()
        finish_reason = choice.finish_reason or ""
        text = choice.message.content if self.kind == "chat" else choice.text
        error = None
        if finish_reason == "content_filter":
            error = "the server's content filter cut the reply"
        elif choice.message.refusal:
            error = f"the model refused: {self.clean(choice.message.refusal)}"
        elif text is None and finish_reason != "length":
            error = f"the reply has no text (finish reason: {self.clean(finish_reason) or 'none'})"
        if usage.prompt_tokens is None or usage.completion_tokens is None:
            usage = Usage()  # half of it would make a reply look cheaper than it was
        details = usage.completion_tokens_details
        return ApiResult(
            text=text or "",
            finish_reason=finish_reason,
            input_tokens=usage.prompt_tokens or 0,
            output_tokens=usage.completion_tokens or 0,
            reasoning_tokens=(details.reasoning_tokens or 0) if details else 0,
            error=error,
            cached=cached,
            batch=stored["batch"],
            usd=usd,
        )

    def _run_live(self, pending: Mapping[str, ApiRequest], deliver: Callable[[str, ApiResult], None]) -> None:
        waiting = deque(pending.items())
        running: dict[Future[dict[str, Any] | str], str] = {}

        def settle(future: Future[dict[str, Any] | str]) -> None:
            key = running[future]
            self.budget.release(key)
            reply = future.result()
            if isinstance(reply, str):
                deliver(key, ApiResult(error=reply, usd=0.0))
            else:
                self.settle(key, pending[key], reply, deliver, batch=False)
            del running[future]

        try:
            while waiting or running:
                while waiting and len(running) < self.max_concurrency:
                    key, request = waiting[0]
                    most = self.most(request)
                    if self.budget.would_exceed(most):
                        if running:
                            break  # these may turn out cheaper than what is held for them
                        raise self.budget.reached(f"the next call of '{self.model}'", most)
                    waiting.popleft()
                    self.budget.hold(key, most)
                    running[self.loop.submit(self._call(request))] = key
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    settle(future)
        except BaseException as error:
            # What is still under way is paid for all the same, so it is kept if it comes; but nobody who wants to stop
            # is held up.
            try:
                wait(running, timeout=_GRACE if isinstance(error, KeyboardInterrupt) else None)
            finally:
                for future in [future for future in running if future.done()]:
                    with suppress(UserError):  # the first one is told
                        settle(future)
                self._cut_off(running, pending)
            raise

    def _cut_off(self, running: Mapping[Future[Any], str], pending: Mapping[str, ApiRequest]) -> None:
        cut_off = [key for future, key in running.items() if future.cancel()]
        for key in running.values():
            self.budget.release(key)
        if cut_off:
            most = sum(self.most(pending[key]) for key in cut_off)
            logger.warning(
                "%d calls of '%s' were cut off: the provider may charge for them%s, and the costs of this run "
                "do not have them",
                len(cut_off),
                self.model,
                f" ({most:.4f} USD at the most)" if self.price is not None else "",
            )

    async def _call(self, request: ApiRequest) -> dict[str, Any] | str:
        """One request: the reply's body, or why there is none."""
        import openai

        damaged = 0
        while True:
            body = self.body(request)
            try:
                content = await self._send(body)
            except openai.APIStatusError as error:
                if self.gives_way(error.status_code, error.body, body):
                    continue  # ends: each time there is a parameter less
                return self.reason(error.status_code, error.body)
            except openai.APIConnectionError as error:
                self.raise_if_unreachable(error)
                if isinstance(error, openai.APITimeoutError):
                    return f"no whole answer within {self.timeout:g} s, tried {self.max_retries + 1} times"
                return f"the connection broke, tried {self.max_retries + 1} times ({self.clean(str(error.__cause__))})"
            reply = read_json(content)
            if self.usable(reply):
                return cast("dict[str, Any]", reply)
            # The library takes any answer with status 200 for a success, so this retry is our own.
            if damaged >= self.max_retries:
                said = (
                    f" ({self.clean(_error_fields(reply)[2])})" if isinstance(reply, dict) and "error" in reply else ""
                )
                return f"the server's answer is damaged or no completion{said}, tried {damaged + 1} times"
            await asyncio.sleep(min(self.backoff_seconds * 2**damaged, _LONGEST_BACKOFF))
            damaged += 1

    async def _send(self, body: dict[str, Any]) -> bytes:
        arguments = {name: value for name, value in body.items() if name not in self.extra_body}
        extra = {name: value for name, value in body.items() if name in self.extra_body} or None
        if self.kind == "chat":
            reply = await self.library.chat.completions.with_raw_response.create(**arguments, extra_body=extra)
        else:
            reply = await self.library.completions.with_raw_response.create(**arguments, extra_body=extra)
        return reply.http_response.content


def read_json(content: bytes | str) -> Any:
    """What a server's JSON says; None where it is none, or one that only an attacker would send."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _without_error(result: ApiResult) -> bool:
    return result.error is None


def estimate_tokens(text: str) -> int:
    """Roughly how many tokens an English text has, for plans: a token for every four characters, rounded up."""
    return -(-len(text) // 4)


def _error_fields(payload: object) -> tuple[str, str, str]:
    """Code, parameter and message of an error's body, in the forms that OpenAI, vLLM and FastAPI servers use."""
    if isinstance(payload, dict) and isinstance(payload.get("error"), dict | str):
        payload = payload["error"]
    if not isinstance(payload, dict):
        return "", "", str(payload or "no message")
    message = payload.get("message") or payload.get("detail") or json.dumps(payload)
    return str(payload.get("code") or ""), str(payload.get("param") or ""), str(message)
