"""How requests travel: an event loop in a thread of its own, and HTTP whose replies are bounded in size and in time.

The calling thread only waits for futures, so Ctrl-C interrupts it at once, whatever a server does; the thread is a
daemon, so that nothing waits for it at the process's end.  Imported when the first request is sent: the `openai`
package takes most of a second."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx2
import openai

T = TypeVar("T")

# A reply of 128,000 tokens in escaped JSON has about 2 MB.
MOST_BYTES = 8_000_000


def within(seconds: float) -> httpx2.Timeout:
    """Seconds for a whole reply.  Nobody at the address is told early, for that is another mistake than a slow
    server."""
    return httpx2.Timeout(seconds, connect=min(seconds / 2, 30.0))


class LoopThread:
    """An event loop that runs in a daemon thread until `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="api", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts it; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, call: Awaitable[T]) -> T:
        """Waits for it; interrupted, it is cancelled."""

        async def answer() -> T:
            return await call

        future = self.submit(answer())
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self, last: Coroutine[Any, Any, object], seconds: float = 0.5) -> None:
        """Cancels what is under way, awaits `last`, and ends the thread; leaves it behind if that takes longer than
        this."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await last

        self.submit(end()).add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._loop.stop))
        self._thread.join(seconds)
        if not self._thread.is_alive():
            self._loop.close()


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """The `openai` package's HTTP client, with replies of at most `most_bytes`, each within its request's timeout as a
    whole.

    Replies are asked for uncompressed, and a compressed one is refused: a few kilobytes could unfold to gigabytes.
    Redirects are not followed: the documents, and perhaps the key, would go to a server that the user did not name."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(follow_redirects=False, headers={"Accept-Encoding": "identity"}, **arguments)
        self.most_bytes = MOST_BYTES

    async def send(self, request: httpx2.Request, *, stream: bool = False, **arguments: Any) -> httpx2.Response:
        seconds = request.extensions["timeout"]["read"]
        try:
            async with asyncio.timeout(seconds):
                response = await super().send(request, stream=True, **arguments)
                try:
                    return await self._read(request, response)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise httpx2.ReadTimeout(f"no whole reply within {seconds:g} s", request=request) from error

    async def _read(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() not in ("", "identity"):
            return _refusal(request, f"the reply is compressed ({encoding}), which was not asked for")
        content = bytearray()
        async for part in response.aiter_raw():
            content += part
            if len(content) > self.most_bytes:
                return _refusal(request, f"the reply is larger than {self.most_bytes / 1e6:,.0f} MB")
        headers = [(name, value) for name, value in response.headers.multi_items() if name != "transfer-encoding"]
        return httpx2.Response(response.status_code, headers=headers, content=bytes(content), request=request)


def _refusal(request: httpx2.Request, reason: str) -> httpx2.Response:
    """What a gateway would say in place of a reply that it does not let through; asking again would be paid for
    again."""
    return httpx2.Response(502, headers={"x-should-retry": "false"}, json={"error": reason}, request=request)
