"""How requests travel: the `openai` package in an event loop of its own, with replies bounded in size and time.

The package does connections, authorisation, and retries with back-off: on 408, 409, 429, 5xx, time-outs and broken
connections, with a Retry-After of up to two minutes.  `_BoundedClient` adds that a reply has a largest size and a time
limit as a whole, that an answer of another form is tried again, and that no redirect is followed.  Nothing else in
`src/` uses `openai` or `httpx2`, and nothing here uses a private part of them.

The calling thread only waits for futures, so Ctrl-C interrupts it at once, whatever a server does; the loop's thread is
a daemon, so that nothing waits for it at the process's end.  Imported when the first request is sent: `openai` takes
most of a second.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx2
import openai

from selfedit.editors.endpoint import Address
from selfedit.editors.replies import NoAnswer, Refused, is_completion, read_json
from selfedit.errors import UserError

T = TypeVar("T")

# A reply of 128,000 tokens in escaped JSON has about 2 MB.
MOST_BYTES = 8_000_000


class Server:
    """One server.  `submit` starts a call, `ask` makes one and waits for it.

    Errors of a call: Refused where the server answers with an error, NoAnswer where no whole answer comes, UserError
    where nobody is at the address.
    """

    def __init__(self, address: Address, *, timeout: float, max_retries: int) -> None:
        self._address = address
        self._timeout = timeout
        self._max_retries = max_retries
        self._http = _BoundedClient(address.query)
        # The package insists on a key; a server that needs none ignores it.
        self._library = openai.AsyncOpenAI(api_key=address.key or "none", base_url=address.base, http_client=self._http)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, name="api", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def submit(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a call; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def ask(self, path: str, body: Mapping[str, Any] | None = None, **options: Any) -> bytes:
        """Makes a call (see there) and waits for it; interrupted, it is cancelled."""
        future = self.submit(self.call(path, body, **options))
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self, seconds: float = 0.5) -> None:
        """Cuts off what is under way and closes the connections; leaves them behind if that takes longer than this."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._library.close()
            self._loop.stop()

        if self._thread.is_alive():
            self.submit(end())
            self._thread.join(seconds)

    async def call(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        file: bytes | None = None,
        params: Mapping[str, str] | None = None,
        seconds: float | None = None,
        retries: int | None = None,
        more_bytes: int = 0,
    ) -> bytes:
        """The answer to a JSON body, to a form with a `file`, or, without a body, what is at the path.

        `seconds` bound each attempt, `retries` the attempts after the first; `more_bytes` are allowed beyond a reply's
        usual size.
        """
        seconds = self._timeout if seconds is None else seconds
        retries = self._max_retries if retries is None else retries
        # Nobody at the address is found out early, for that is another mistake than a slow server.
        limits = httpx2.Timeout(seconds, connect=min(seconds / 2, 30.0))
        options: Any = {"timeout": limits, "max_retries": retries, "params": params or {}}
        content: Any = {} if body is None else {"body": body}
        if file is not None:
            options["headers"] = {"Content-Type": "multipart/form-data"}
            content["files"] = {"file": ("requests.jsonl", file)}
        send = self._library.get if body is None else self._library.post
        self._http.most_bytes += more_bytes
        try:
            return (await send(path, cast_to=httpx2.Response, options=options, **content)).content
        except openai.APIStatusError as error:
            raise Refused(error.status_code, error.body) from None
        except openai.APIConnectionError as error:
            said = self._address.clean(str(error.__cause__))
            if isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout):
                raise UserError(
                    f"cannot reach the server at {self._address.shown} ({said or 'no answer'}): check the address "
                    "and that the server is running"
                ) from None
            if isinstance(error, openai.APITimeoutError):
                raise NoAnswer(f"no whole answer within {seconds:g} s, tried {retries + 1} times") from None
            raise NoAnswer(f"the connection broke, tried {retries + 1} times ({said})") from None
        finally:
            self._http.most_bytes -= more_bytes


class _BoundedClient(openai.DefaultAsyncHttpxClient):
    """The `openai` package's HTTP client, with replies of at most `most_bytes`, each within its request's timeout as a
    whole.

    Replies are asked for uncompressed, and a compressed one is refused: a few kilobytes could unfold to gigabytes.
    Redirects are not followed: the documents, and perhaps the key, would go to a server that the user did not name.
    """

    def __init__(self, query: tuple[tuple[str, str], ...]) -> None:
        super().__init__(follow_redirects=False, headers={"Accept-Encoding": "identity"}, params=query)
        self.most_bytes = MOST_BYTES

    async def send(self, request: httpx2.Request, *, stream: bool = False, **arguments: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(request.extensions["timeout"]["read"]):
                response = await super().send(request, stream=True, **arguments)
                try:
                    return await self._read(request, response)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise httpx2.ReadTimeout("no whole answer in time", request=request) from error

    async def _read(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() not in ("", "identity"):
            return _refusal(request, f"the reply is compressed ({encoding}), which was not asked for")
        content = bytearray()
        async for part in response.aiter_raw():
            content += part
            if len(content) > self.most_bytes:
                return _refusal(request, f"the reply is larger than {self.most_bytes / 1e6:,.0f} MB")
        if response.status_code == 200 and not request.url.path.endswith("/content"):  # of a file
            reply = read_json(bytes(content))
            if not isinstance(reply, dict):
                return _refusal(request, "the server's answer is damaged", again=True)
            if request.url.path.endswith("/completions") and not is_completion(reply):
                said = f" ({Refused(200, reply).message})" if "error" in reply else ""
                return _refusal(request, f"the server's answer is no completion{said}", again=True)
        headers = [(name, value) for name, value in response.headers.multi_items() if name != "transfer-encoding"]
        return httpx2.Response(response.status_code, headers=headers, content=bytes(content), request=request)


def _refusal(request: httpx2.Request, reason: str, *, again: bool = False) -> httpx2.Response:
    """What a gateway would say in place of a reply that it does not let through; to be tried `again`, or not."""
    headers = {"x-should-retry": "true" if again else "false"}
    return httpx2.Response(502, headers=headers, json={"error": reason}, request=request)
