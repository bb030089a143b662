"""Completions by batch, at half price: upload, create, poll, fetch, and what to do when a batch comes back incomplete.

Every request's batch is stored under the request's key, for all requests of a batch in one transaction: first the
uploaded file, before the batch is created, then the batch.  After a restart a request that is in a batch already is
waited for, whatever else is asked for beside it, and is not sent again; of a file alone, the server's list of batches
says whether a batch was made of it before the process ended.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from selfedit.editors.api import ApiClient, Deliver
from selfedit.editors.replies import (
    ApiRequest,
    ApiResult,
    Batch,
    Batches,
    File,
    NoAnswer,
    Refused,
    is_completion,
    read_json,
)
from selfedit.errors import UserError, first_error

B = TypeVar("B", bound=BaseModel)

logger = logging.getLogger(__name__)

# OpenAI's limits are 50,000 requests and 200 MB a file.
MAX_REQUESTS = 50_000
MAX_BYTES = 190_000_000
_FILE_SECONDS = 3600.0  # to send or to fetch so large a file
_REPLY_BYTES = 64_000  # of a result file, per request: a reply of the longest edits, escaped, with its frame

UPLOADED, UNDER_WAY = "uploaded", "submitted"  # states of a request whose batch, or at least its file, is at the server
_FINAL = ("completed", "failed", "expired", "cancelled")
_TRIES = 3  # batches that a request is put into
_POLL_RETRIES = 200  # of one poll, 8 seconds apart: a batch takes hours, and a server may well fail meanwhile
_CREATE_SECONDS = 0.5  # between the first two tries to create a batch
_PAGES = 10  # of the list of batches, of 100 each
_AGAIN = "give the same command again to go on from here"


class BatchRun:
    """Answers `pending` (requests by key) through batches, calling `deliver` for each as it becomes known.

    Requests that come back failed or not at all are put into a further batch, three batches in all.
    """

    def __init__(self, client: ApiClient, pending: Mapping[str, ApiRequest], deliver: Deliver) -> None:
        self.client = client
        self.left = dict(pending)
        self.deliver = deliver

    def run(self) -> None:
        """Raises UserError where no batch can succeed; what has been fetched by then is kept."""
        tries: Counter[str] = Counter()
        reasons: dict[str, str] = {}
        while self.left:
            batches = self._under_way()
            under_way = {key for keys in batches.values() for key in keys}
            for key in under_way:
                self.client.budget.hold(key, self.client.most(self.left[key]))
            for chunk in self._chunks([key for key in self.left if key not in under_way], bool(batches)):
                batches[self._submit(chunk)] = list(chunk)
            # What one batch shows to be refused is left out of bodies that are made later.
            sent = {id: {key: self.client.body(self.left[key]) for key in keys} for id, keys in batches.items()}
            for batch_id, bodies in sent.items():
                tries.update(bodies.keys())
                reasons |= self._collect(batch_id, bodies)
            for key in [key for key in self.left if tries[key] >= _TRIES]:
                del self.left[key]
                error = f"{reasons[key]}, tried in {tries[key]} batches"
                self.deliver(key, ApiResult(error=error, usd=0.0))

    def _under_way(self) -> dict[str, list[str]]:
        """The batches that requests are in already: the keys by the batch's id."""
        batches: dict[str, list[str]] = {}
        uploaded: dict[str, list[str]] = {}
        for key in self.left:
            id, state = self.client.store.get_batch(key) or ("", "")
            if state in (UNDER_WAY, UPLOADED):
                (batches if state == UNDER_WAY else uploaded).setdefault(id, []).append(key)
        for file_id, keys in uploaded.items():
            batch_id = self._find(file_id)
            if batch_id is not None:
                self._note(keys, batch_id, UNDER_WAY)
                batches.setdefault(batch_id, []).extend(keys)
        return batches

    def _note(self, keys: Iterable[str], id: str, state: str) -> None:
        with self.client.store.transaction():
            for key in keys:
                self.client.store.put_batch(key, id, state)

    def _chunks(self, keys: Iterable[str], more: bool) -> Iterator[dict[str, str]]:
        """Splits requests into batches (lines of the upload by key) that keep the server's limits and the budget.

        What the budget has no room for yet is left for later, when the batches under way (`more`: there are some) have
        shown what they really cost; where there are none, BudgetReached is raised.
        """
        client = self.client
        chunk: dict[str, str] = {}
        size = 0
        for key in keys:
            most = client.most(self.left[key])
            if client.budget.would_exceed(most):
                if not chunk and not more:
                    raise client.budget.reached(f"the next call of '{client.model}'", most)
                break
            client.budget.hold(key, most)
            url, body = "/v1" + client.endpoint.path, client.body(self.left[key])
            # In ASCII, so that no line separator within a text is taken for the end of a line.
            line = json.dumps({"custom_id": key, "method": "POST", "url": url, "body": body}) + "\n"
            if chunk and (len(chunk) >= MAX_REQUESTS or size + len(line) > MAX_BYTES):
                yield chunk
                chunk, size, more = {}, 0, True
            chunk[key] = line
            size += len(line)
        if chunk:
            yield chunk

    def _submit(self, chunk: Mapping[str, str]) -> str:
        """Uploads a batch's requests, starts the batch and stores its id; returns the id."""
        content = "".join(chunk.values()).encode("ascii")
        with self._failing("did not take the batch", "give the same command again later"):
            try:
                form = {"purpose": "batch"}
                file_id = self._ask(File, "/files", form, file=content, seconds=_FILE_SECONDS).id
                self._note(chunk, file_id, UPLOADED)
                batch_id = self._create(file_id)
            except Refused as error:
                if error.status not in (404, 405):
                    raise
                raise UserError(
                    f"the server at {self.client.url} offers no batches ({error.status}): leave out --api-batch"
                ) from None
        self._note(chunk, batch_id, UNDER_WAY)
        logger.info("batch %s with %d requests of '%s' is under way", batch_id, len(chunk), self.client.model)
        return batch_id

    def _create(self, file_id: str) -> str:
        """Starts a batch; returns its id.  The `openai` package's retries could start, and have to be paid for, a
        second one: so before each further try the server is asked whether it has heard the one before."""
        endpoint = self.client.endpoint
        body = {"input_file_id": file_id, "endpoint": "/v1" + endpoint.path, "completion_window": "24h"}
        tries = 0
        while True:
            try:
                return self._ask(Batch, "/batches", body, retries=0).id
            except (Refused, NoAnswer) as error:
                if isinstance(error, Refused) and not _passing(error):
                    raise
                found = self._find(file_id)
                if found is not None:
                    return found
                if tries == endpoint.max_retries:
                    raise
            time.sleep(min(_CREATE_SECONDS * 2**tries, 8.0))
            tries += 1

    def _find(self, file_id: str) -> str | None:
        """The id of the batch that was made of an uploaded file; None where there is none, or the server lists none."""
        params = {"limit": "100"}
        for _ in range(_PAGES):
            with self._failing("does not say whether it has started a batch", _AGAIN):
                try:
                    page = Batches.model_validate(read_json(self.client.server.ask("/batches", params=params)))
                except (Refused, ValidationError) as error:
                    if isinstance(error, Refused) and error.status not in (404, 405, 501):
                        raise
                    break
            for batch in page.data:
                if batch.input_file_id == file_id:
                    return batch.id
            if not page.has_more or not page.data:
                return None
            params["after"] = page.data[-1].id
        logger.warning(
            "%s does not list its batches: one that was started unnoticed may have to be paid for twice",
            self.client.url,
        )
        return None

    def _collect(self, batch_id: str, bodies: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Waits for a batch and fetches it: keeps and delivers what it has, and takes that out of `left`.

        `bodies` are as they were sent.  Returns why the others of its requests are still left.
        """
        client = self.client
        batch = self._wait(batch_id, len(bodies))
        status = "lost" if batch is None else batch.status
        reasons = dict.fromkeys(bodies, f"batch {batch_id} ({status}) came back without it")
        fatal: UserError | None = None
        for key, reply in self._lines(batch, len(bodies)):
            if key not in bodies or key not in self.left:
                continue  # not of this batch, or there twice
            if isinstance(reply, Refused):
                try:
                    # A parameter that is refused is left out of the next batch.
                    again = client.leaves_out(reply, bodies[key]) or _passing(reply)
                    reasons[key] = client.reason(reply)
                except UserError as error:
                    fatal, again = error, True  # raised when the rest has been kept
                if again:
                    continue
            elif not is_completion(reply):
                reasons[key] = f"its reply in batch {batch_id} is damaged"
                continue
            with client.store.transaction():
                client.store.put_batch(key, batch_id, "done")
                if isinstance(reply, Refused):
                    self.deliver(key, ApiResult(error=reasons[key], usd=0.0))
                else:
                    client.settle(key, self.left[key], reply, self.deliver, batch=True)
            del self.left[key]
        for key in bodies:
            client.budget.release(key)
        missing = [key for key in bodies if key in self.left]
        self._note(missing, batch_id, f"{status}, missing")
        if fatal is not None:
            raise fatal
        if batch is not None and batch.status in ("failed", "cancelled"):
            # Its requests are wrong, a limit is reached, or it was stopped: the same again would meet the same.
            said = client.address.clean("; ".join(error.message or error.code or "" for error in batch.errors))
            happened = "was cancelled" if batch.status == "cancelled" else f"failed ({said or 'no reason given'})"
            raise UserError(
                f"batch {batch_id} of model '{client.model}' {happened} at {client.url}: "
                f"{len(bodies) - len(missing)} of {len(bodies)} replies are kept; give the same command again to ask "
                "for the rest"
            )
        if missing:
            logger.warning("batch %s (%s): %d of %d are missing", batch_id, status, len(missing), len(bodies))
        return {key: reasons[key] for key in missing}

    def _wait(self, batch_id: str, total: int) -> Batch | None:
        """Polls until a batch is over; None if the server does not know it (any more)."""
        first = pause = self.client.endpoint.poll_seconds
        while True:
            with self._failing(f"does not answer questions about batch {batch_id}", _AGAIN):
                try:
                    batch = self._ask(Batch, f"/batches/{batch_id}", retries=_POLL_RETRIES)
                except Refused as error:
                    if error.status != 404:
                        raise
                    return None
            if self.client.on_poll is not None:
                self.client.on_poll(batch_id, batch.status, batch.completed + batch.failed, batch.total or total)
            if batch.status in _FINAL:
                return batch
            time.sleep(pause)
            pause = min(pause * 1.5, first * 20)

    def _lines(self, batch: Batch | None, requests: int) -> Iterator[tuple[str, Any]]:
        """The lines of a batch's result files, which may be as long as its requests allow."""
        files = [] if batch is None else [batch.output_file_id, batch.error_file_id]
        for path in [f"/files/{file_id}/content" for file_id in files if file_id]:
            with self._failing("does not give a batch's results", _AGAIN):
                content = self.client.server.ask(path, seconds=_FILE_SECONDS, more_bytes=_REPLY_BYTES * requests)
            # Not splitlines(): replies may hold other line separators, which JSON does not escape.
            for line in content.decode("utf-8", errors="replace").split("\n"):
                yield _read_line(line)

    def _ask(self, kind: type[B], path: str, body: Mapping[str, Any] | None = None, **options: Any) -> B:
        """What a server says of a file or a batch.  Errors: UserError where it says something else."""
        client = self.client
        try:
            return kind.model_validate(read_json(client.server.ask(path, body, **options)))
        except ValidationError as error:
            raise UserError(
                f"the server at {client.url} answers a question about a batch with something else "
                f"({client.address.clean(first_error(error))}): leave out --api-batch, or give the same command "
                "again later"
            ) from None

    @contextmanager
    def _failing(self, what: str, remedy: str) -> Iterator[None]:
        """Makes a UserError of what a server answers in place of what was asked for."""
        try:
            yield
        except (Refused, NoAnswer) as error:
            said = self.client.reason(error) if isinstance(error, Refused) else error
            raise UserError(f"the server at {self.client.url} {what} ({said}): {remedy}") from None


def _passing(error: Refused) -> bool:
    """Whether the same request may well succeed later."""
    return error.status >= 500 or error.status in (408, 409, 429)


def _read_line(line: str) -> tuple[str, Any]:
    """A line of a result file: the request's key, and the reply's body or the error as a Refused.

    A line that is cut off or has another form has no body; its key is empty unless it can be read.
    """
    item = read_json(line)
    if not isinstance(item, dict):
        return "", None
    key = str(item.get("custom_id", ""))
    response, error = item.get("response"), item.get("error")
    if isinstance(response, dict) and isinstance(response.get("status_code"), int):
        status, body = response["status_code"], response.get("body")
        return key, body if status == 200 else Refused(status, body)
    # The batch's own errors have no status: above all batch_expired, which another batch mends.
    return key, Refused(503, error) if error else None
