"""A client for language models behind an OpenAI-compatible API, for editors that are API models and for judges.

`endpoint.py` holds where a server is and how it is used, `transport.py` sends bytes, `replies.py` says what a reply
must look like, `batch.py` runs batches, `prices.py` has what a token costs.

A reply is kept under the content of its request, in one transaction with what the caller makes of it and books for it,
so that nothing is paid for twice or forgotten.  A reply that cannot be used (refused, filtered, of another form) is
kept too, for it was paid for; the next time the same is asked, the client asks for a fresh sample.  A call that fails
after its retries is a result with an `error`, never an exception; what would fail every call (no key, unknown model, no
server) raises UserError.  Not on record is what a provider charges for a call whose reply never came whole: one that
timed out, or was cut off by Ctrl-C.

A model may refuse a parameter that it does not offer (reasoning models refuse a temperature).  The client then sends
the request again without it, leaves it out from then on, warns once, and lists it in `refused`.  It does so for
temperature, top_p, seed and the JSON schema; a refused reasoning effort is a UserError.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

from selfedit.editors.endpoint import DEFAULT_URL, Endpoint
from selfedit.editors.prices import Budget, ModelPrice
from selfedit.editors.replies import ApiRequest, ApiResult, NoAnswer, Refused, read_completion, read_json
from selfedit.errors import UserError

if TYPE_CHECKING:  # importing openai takes most of a second
    from selfedit.editors.transport import Server

logger = logging.getLogger(__name__)

_DISPENSABLE = ("temperature", "top_p", "seed", "response_format")
_REFUSAL_WORDS = ("unsupported", "not support", "unexpected", "unrecognized", "unknown", "not permitted", "not allowed")
_NO_SCHEMA_WORDS = ("response_format", "json_schema", "structured output", "guided", "grammar")
_UNKNOWN_MODEL_WORDS = ("not found", "not exist", "unknown model", "pinned to", "not available", "invalid model")
_GRACE = 0.5  # seconds in which replies still come that are under way at an interruption
# Servers count reasoning towards a reply's bound, so that without more room nothing would be left for the reply.
REASONING_TOKENS = 8192

OnResult = Callable[[int, ApiResult], None]
Accept = Callable[[ApiResult], bool]
Deliver = Callable[[str, ApiResult], None]
OnPoll = Callable[[str, str, int, int], None]


class ApiStore(Protocol):
    """Keeps replies, and which batch a request is in, by the sha256 of the request (the run's store).

    What is written within a `transaction` is kept whole or not at all.
    """

    def transaction(self) -> AbstractContextManager[None]: ...

    def get(self, key: str) -> dict[str, Any] | None: ...

    def put(self, key: str, model: str, request: dict[str, Any], response: dict[str, Any], *tokens: int) -> None: ...

    def get_batch(self, key: str) -> tuple[str, str] | None: ...

    def put_batch(self, key: str, batch_id: str, status: str) -> None: ...


@dataclass(eq=False)
class ApiClient:
    """Asks one model for completions, several at a time or by batch.

    With a `budget` and the model's `price`, a request is sent only if the most that it can cost still fits; otherwise
    BudgetReached is raised, after what is under way has been kept.  `on_poll(batch_id, status, done, total)` is called
    after every look at a batch.  Callbacks and store are used from the calling thread only.
    """

    model: str
    endpoint: Endpoint
    store: ApiStore
    price: ModelPrice | None = None
    budget: Budget = field(default_factory=Budget)
    on_poll: OnPoll | None = None
    refused: frozenset[str] = field(default=frozenset(), init=False)  # parameters, not sent any more
    _reached: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.address = self.endpoint.address(self.model)

    @property
    def url(self) -> str:
        """The server's address, as it may be shown."""
        return self.address.shown

    def key(self, request: ApiRequest) -> str:
        """The request's key in the store: the sha256 of its canonical JSON, with server, model, settings and sample."""
        text = json.dumps(self._canonical(request), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def check(self) -> None:
        """Raises UserError if no server can be reached: asks for the list of models and is content with any answer."""
        if self._reached:
            return
        # A server without a list of models, or a key that may not read it: the requests will tell.
        with suppress(Refused, NoAnswer):
            self.server.ask("/models", seconds=min(self.endpoint.timeout, 10.0), retries=1)
        self._reached = True

    def complete(
        self, requests: Sequence[ApiRequest], on_result: OnResult | None = None, accept: Accept | None = None
    ) -> list[ApiResult]:
        """Answers requests; one result each, in order.  `on_result(index, result)` is called as each becomes known, in
        the transaction that keeps its reply.

        Requests that are the same (with the same `sample`) are sent once, and `paid` for once.  An earlier reply that
        `accept` does not take (by default, one that is a `failure`) is replaced by a fresh sample.  Errors: UserError
        where no request can succeed (no server, no such model, refused key, no batches) and BudgetReached; what has
        come back by then is kept, and at a KeyboardInterrupt also what comes within half a second.
        """
        results: list[ApiResult | None] = [None] * len(requests)
        places: dict[str, list[int]] = {}
        pending: dict[str, ApiRequest] = {}
        known: dict[str, ApiResult] = {}
        for index, request in enumerate(requests):
            key, request, result = self._look(request, accept or (lambda result: result.failure() is None))
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
                    result = replace(result, paid=False, usd=0.0)

        for key, result in known.items():
            deliver(key, result)
        if pending:
            self.check()
            if self.endpoint.batch:
                from selfedit.editors.batch import BatchRun

                BatchRun(self, pending, deliver).run()
            else:
                self._run_live(pending, deliver)
        return cast("list[ApiResult]", results)

    def close(self) -> None:
        """Closes the connections; what is under way is cut off."""
        if "server" in self.__dict__:
            self.server.close()

    # What follows is shared with `batch.py`.

    @cached_property
    def server(self) -> Server:
        """What calls are made with; from the first one on."""
        from selfedit.editors.transport import Server

        return Server(self.address, timeout=self.endpoint.timeout, max_retries=self.endpoint.max_retries)

    def body(self, request: ApiRequest) -> dict[str, Any]:
        """The JSON body to send: without what the server has refused, and with its name for `max_tokens`."""
        body = {name: value for name, value in self._full_body(request).items() if name not in self.refused}
        if self.endpoint.kind == "chat" and (self.url == DEFAULT_URL or "max_tokens" in self.refused):
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
        texts = [message["content"] for message in request.messages]
        if request.json_schema is not None:
            texts.append(json.dumps(request.json_schema))
        input_tokens = sum(len(text.encode("utf-8")) + 16 for text in texts)
        return self.price.cost(input_tokens, self._bound(request), self.endpoint.batch)

    def settle(self, key: str, request: ApiRequest, reply: Mapping[str, Any], deliver: Deliver, *, batch: bool) -> None:
        """Keeps a reply's body and what `deliver` makes of it, in one transaction, and counts its cost."""
        stored = {"body": dict(reply), "batch": batch, "without": sorted(self.refused)}
        result = read_completion(reply, self.endpoint.kind, self.address.clean)
        usd = None
        if self.price is not None:
            known = result.input_tokens or result.output_tokens
            usd = self.price.cost(result.input_tokens, result.output_tokens, batch) if known else self.most(request)
        with self.store.transaction():
            # An interruption may have come after the transaction and before the caller had noted it.
            if self.store.get(key) is not None:
                return
            self.store.put(key, self.model, self._canonical(request), stored, result.input_tokens, result.output_tokens)
            deliver(key, replace(result, paid=True, usd=usd))
        self.budget.release(key)
        self.budget.spend(usd or 0.0)

    def leaves_out(self, error: Refused, body: Mapping[str, Any]) -> bool:
        """Whether the server has refused a parameter of `body` that can be left out; it is left out from then on."""
        message, named = error.message.lower(), []
        if error.status in (400, 422) and any(word in message for word in _REFUSAL_WORDS):
            named = [
                name
                for name in (*_DISPENSABLE, "max_tokens")
                if name in body and (name == error.param or name in error.message)
            ]
        elif error.status in (400, 415, 422, 501) and any(word in message for word in _NO_SCHEMA_WORDS):
            named = ["response_format"] if "response_format" in body else []
        # The parameter that the error names in its own field, else all that its message names.
        for name in [error.param] if error.param in named else named:
            if name not in self.refused:
                self.refused |= {name}
                if name != "max_tokens":  # sent under its new name
                    logger.warning("model '%s' at %s refuses '%s': requests go without it", self.model, self.url, name)
        return bool(named)

    def reason(self, error: Refused) -> str:
        """Why one request failed, in one line; raises UserError if every other request would fail alike."""
        status, code, model, at = error.status, error.code, f"model '{self.model}'", f"the server at {self.url}"
        message, variable = self.address.clean(error.message), self.endpoint.key_variable
        said = f"({status}: {message})"
        if 300 <= status < 400:
            raise UserError(f"{at} sends requests on to another address ({status}): give that one with --api-base")
        if status == 401:
            mend = f"check {variable}" if self.address.key else f"set the environment variable {variable}"
            raise UserError(f"{at} does not accept the API key (401): {mend}")
        if status == 403:
            raise UserError(f"{at} does not allow {model} to this key {said}")
        bad = status in (400, 422)
        unknown = self.model in message and any(word in message.lower() for word in _UNKNOWN_MODEL_WORDS)
        if status == 404 or code == "model_not_found" or (bad and (error.param == "model" or unknown)):
            raise UserError(
                f"{at} does not know {model} {said}: check the model's name, and the address (most end in /v1)"
            )
        if code == "insufficient_quota":
            raise UserError(f"the account behind {variable} has no credit left at {self.url} {said}")
        if bad and self.endpoint.effort is not None and "reasoning_effort" in error.param + message:
            raise UserError(
                f"{model} at {self.url} refuses the reasoning effort '{self.endpoint.effort}' {said}: choose "
                "another or leave it out"
            )
        return f"{status}: {message}"

    # What follows is not.

    def _bound(self, request: ApiRequest) -> int:
        """Tokens that a reply may have, with the reasoning before it."""
        return request.max_tokens + REASONING_TOKENS * (self.endpoint.effort not in (None, "none"))

    def _full_body(self, request: ApiRequest) -> dict[str, Any]:
        """All that is asked for, under the names of the older standard."""
        body: dict[str, Any] = {"model": self.model}
        if self.endpoint.kind == "chat":
            body["messages"] = request.messages
            if self.endpoint.effort is not None:
                body["reasoning_effort"] = self.endpoint.effort
            if request.json_schema is not None:
                schema = {"name": "reply", "strict": True, "schema": dict(request.json_schema)}
                body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif isinstance(request.asked, str):
            body["prompt"] = request.asked
        else:
            raise ValueError("plain completions need a prompt, not messages")
        body["max_tokens"] = self._bound(request)
        for name in ("temperature", "top_p", "seed"):
            if getattr(request, name) is not None:
                body[name] = getattr(request, name)
        if request.seed is not None and request.attempt:
            body["seed"] = (request.seed + request.attempt) % 2**31
        return body

    def _canonical(self, request: ApiRequest) -> dict[str, Any]:
        url = self.url + self.endpoint.path
        canonical = {"url": url, "body": self._full_body(request), "sample": request.sample}
        return canonical | ({"attempt": request.attempt} if request.attempt else {})

    def _look(self, request: ApiRequest, accept: Accept) -> tuple[str, ApiRequest, ApiResult | None]:
        """A request's key and what is known of it; after replies that are not accepted, those of its next attempt."""
        while True:
            key = self.key(request)
            stored = self.store.get(key)
            if stored is None:
                return key, request, None
            result = read_completion(stored["body"], self.endpoint.kind, self.address.clean)
            if accept(result):
                return key, request, replace(result, usd=0.0)
            request = replace(request, attempt=request.attempt + 1)

    def _run_live(self, pending: Mapping[str, ApiRequest], deliver: Deliver) -> None:
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
                while waiting and len(running) < self.endpoint.concurrency:
                    key, request = waiting[0]
                    most = self.most(request)
                    if self.budget.would_exceed(most):
                        if running:
                            break  # these may turn out cheaper than what is held for them
                        raise self.budget.reached(f"the next call of '{self.model}'", most)
                    waiting.popleft()
                    self.budget.hold(key, most)
                    running[self.server.submit(self._call(request))] = key
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    settle(future)
        except BaseException as error:
            # What is under way is paid for all the same, so it is kept if it comes; but Ctrl-C waits only so long.
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
                "%d calls of '%s' were cut off: the provider may charge for them%s, "
                "and the costs of this run do not have them",
                len(cut_off),
                self.model,
                f" ({most:.4f} USD at the most)" if self.price is not None else "",
            )

    async def _call(self, request: ApiRequest) -> dict[str, Any] | str:
        """One request: the reply's body, or why there is none."""
        while True:
            body = self.body(request)
            try:
                return cast("dict[str, Any]", read_json(await self.server.call(self.endpoint.path, body)))
            except Refused as error:
                if not self.leaves_out(error, body):
                    return self.reason(error)  # else again, with a parameter less
            except NoAnswer as error:
                return str(error)
