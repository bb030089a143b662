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
    Counts,
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


def run_batches(client: ApiClient, pending: Mapping[str, ApiRequest], deliver: Deliver) -> None:
    """Answers `pending` (requests by key) through batches, calling `deliver` for each as it becomes known.

    Requests that come back failed or not at all are put into a further batch, three batches in all.
    Raises UserError where no batch can succeed; what has been fetched by then is kept.
    """
    left = dict(pending)
    tries: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    while left:
        batches = _under_way(client, left)
        for keys in batches.values():
            for key in keys:
                client.budget.hold(key, client.most(left[key]))
        under_way = {key for keys in batches.values() for key in keys}
        for chunk in _chunks(client, {key: left[key] for key in left if key not in under_way}, bool(batches)):
            batches[_submit(client, chunk)] = list(chunk)
        for batch_id, keys in batches.items():
            tries.update(keys)
            reasons |= _collect(client, batch_id, {key: left[key] for key in keys}, left, deliver)
        for key in [key for key in left if tries[key] >= _TRIES]:
            del left[key]
            deliver(key, ApiResult(error=f"{reasons[key]}, tried in {tries[key]} batches", batch=True, usd=0.0))


def _under_way(client: ApiClient, left: Mapping[str, ApiRequest]) -> dict[str, list[str]]:
    """The batches that requests are in already: the keys by the batch's id."""
    batches: dict[str, list[str]] = {}
    uploaded: dict[str, list[str]] = {}
    for key in left:
        id, state = client.store.get_batch(key) or ("", "")
        if state in (UNDER_WAY, UPLOADED):
            (batches if state == UNDER_WAY else uploaded).setdefault(id, []).append(key)
    for file_id, keys in uploaded.items():
        batch_id = _find(client, file_id)
        if batch_id is not None:
            _note(client, keys, batch_id, UNDER_WAY)
            batches.setdefault(batch_id, []).extend(keys)
    return batches


def _note(client: ApiClient, keys: Iterable[str], id: str, state: str) -> None:
    with client.store.transaction():
        for key in keys:
            client.store.put_batch(key, id, state)


def _chunks(client: ApiClient, fresh: Mapping[str, ApiRequest], more: bool) -> Iterator[dict[str, str]]:
    """Splits requests into batches (lines of the upload by key) that keep the server's limits and the budget.

    What the budget has no room for yet is left for later, when the batches under way (`more`: there are some) have
    shown what they really cost; where there are none, BudgetReached is raised.
    """
    chunk: dict[str, str] = {}
    size = 0
    for key, request in fresh.items():
        most = client.most(request)
        if client.budget.would_exceed(most):
            if not chunk and not more:
                raise client.budget.reached(f"the next call of '{client.model}'", most)
            break
        client.budget.hold(key, most)
        url = "/v1" + client.endpoint.path
        # In ASCII, so that no line separator within a text is taken for the end of a line.
        line = json.dumps({"custom_id": key, "method": "POST", "url": url, "body": client.body(request)}) + "\n"
        if chunk and (len(chunk) >= MAX_REQUESTS or size + len(line) > MAX_BYTES):
            yield chunk
            chunk, size, more = {}, 0, True
        chunk[key] = line
        size += len(line)
    if chunk:
        yield chunk


def _submit(client: ApiClient, chunk: Mapping[str, str]) -> str:
    """Uploads a batch's requests, starts the batch and stores its id; returns the id."""
    content = "".join(chunk.values()).encode("ascii")
    with _failing(client, "did not take the batch", "give the same command again later"):
        try:
            sent = client.server.ask("/files", {"purpose": "batch"}, file=content, seconds=_FILE_SECONDS)
            file_id = _read(client, File, sent).id
            _note(client, chunk, file_id, UPLOADED)
            batch_id = _create(client, file_id)
        except Refused as error:
            if error.status not in (404, 405):
                raise
            raise UserError(
                f"the server at {client.url} offers no batches ({error.status}): leave out --api-batch"
            ) from None
    _note(client, chunk, batch_id, UNDER_WAY)
    logger.info("batch %s with %d requests of '%s' is under way", batch_id, len(chunk), client.model)
    return batch_id


def _create(client: ApiClient, file_id: str) -> str:
    """Starts a batch; returns its id.  The `openai` package's retries could start, and have to be paid for, a second
    one: so before each further try the server is asked whether it has heard the one before."""
    body = {"input_file_id": file_id, "endpoint": "/v1" + client.endpoint.path, "completion_window": "24h"}
    tries = 0
    while True:
        try:
            return _read(client, Batch, client.server.ask("/batches", body, retries=0)).id
        except (Refused, NoAnswer) as error:
            if isinstance(error, Refused) and not _passing(error):
                raise
            found = _find(client, file_id)
            if found is not None:
                return found
            if tries == client.endpoint.max_retries:
                raise
        time.sleep(min(_CREATE_SECONDS * 2**tries, 8.0))
        tries += 1


def _find(client: ApiClient, file_id: str) -> str | None:
    """The id of the batch that was made of an uploaded file; None where there is none, or the server lists none."""
    params = {"limit": "100"}
    for _ in range(_PAGES):
        with _failing(
            client, "does not say whether it has started a batch", "give the same command again to go on from here"
        ):
            try:
                page = Batches.model_validate(read_json(client.server.ask("/batches", params=params)))
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
        "%s does not list its batches: one that was started unnoticed may have to be paid for twice", client.url
    )
    return None


def _collect(
    client: ApiClient,
    batch_id: str,
    requests: Mapping[str, ApiRequest],
    left: dict[str, ApiRequest],
    deliver: Deliver,
) -> dict[str, str]:
    """Waits for a batch and fetches it: keeps and delivers what it has, and takes that out of `left`.

    Returns why the others of its `requests` are still left.
    """
    batch = _wait(client, batch_id, len(requests))
    status = "lost" if batch is None else batch.status
    reasons = dict.fromkeys(requests, f"batch {batch_id} ({status}) came back without it")
    files = [] if batch is None else [batch.output_file_id, batch.error_file_id]
    lines = [line for file_id in files if file_id for line in _fetch(client, batch_id, file_id, len(requests))]
    bodies = {key: client.body(request) for key, request in requests.items()}  # as they were sent
    fatal: UserError | None = None
    for line in lines:
        key, reply = _read_line(line)
        if key not in requests or key not in left:
            continue  # not of this batch, or there twice
        if not isinstance(reply, Refused):
            if not is_completion(reply):
                reasons[key] = f"its reply in batch {batch_id} is damaged"
                continue
            with client.store.transaction():
                client.settle(key, requests[key], reply, deliver, batch=True)
                client.store.put_batch(key, batch_id, "done")
            del left[key]
            continue
        try:
            # A parameter that is refused is left out of the next batch.
            again = client.gives_way(reply, bodies[key]) or _passing(reply)
            reasons[key] = client.reason(reply)
        except UserError as error:
            fatal = error  # raised when the rest of the file has been kept
            continue
        if not again:
            with client.store.transaction():
                client.store.put_batch(key, batch_id, "done")
                deliver(key, ApiResult(error=reasons[key], batch=True, usd=0.0))
            client.budget.release(key)
            del left[key]
    missing = [key for key in requests if key in left]
    _note(client, missing, batch_id, f"{status}, missing")
    for key in missing:
        client.budget.release(key)
    if fatal is not None:
        raise fatal
    if batch is not None and batch.status in ("failed", "cancelled"):
        raise _stopped(client, batch, len(missing), len(requests))
    if missing:
        logger.warning("batch %s (%s): %d of %d are missing", batch_id, status, len(missing), len(requests))
    return {key: reasons[key] for key in missing}


def _wait(client: ApiClient, batch_id: str, total: int) -> Batch | None:
    """Polls until a batch is over; None if the server does not know it (any more)."""
    pause = client.endpoint.poll_seconds
    lost = f"does not answer questions about batch {batch_id}"
    while True:
        with _failing(client, lost, "give the same command again to go on waiting for it"):
            try:
                said = client.server.ask(f"/batches/{batch_id}", retries=_POLL_RETRIES)
            except Refused as error:
                if error.status != 404:
                    raise
                return None
        batch = _read(client, Batch, said)
        if client.on_poll is not None:
            counts = batch.request_counts or Counts(total=total)
            client.on_poll(batch_id, batch.status, counts.completed + counts.failed, counts.total)
        if batch.status in _FINAL:
            return batch
        time.sleep(pause)
        pause = min(pause * 1.5, client.endpoint.poll_seconds * 20)


def _fetch(client: ApiClient, batch_id: str, file_id: str, requests: int) -> list[str]:
    """The lines of a result file, which may be as long as the batch's requests allow."""
    with _failing(
        client, f"does not give the results of batch {batch_id}", "give the same command again to fetch them"
    ):
        content = client.server.ask(
            f"/files/{file_id}/content", seconds=_FILE_SECONDS, more_bytes=_REPLY_BYTES * requests
        )
    # Not splitlines(): replies may hold other line separators, which JSON does not escape.
    return [line for line in content.decode("utf-8", errors="replace").split("\n") if line.strip()]


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


def _read(client: ApiClient, kind: type[B], content: bytes) -> B:
    """What a server says of a file or a batch.  Errors: UserError where it says something else."""
    try:
        return kind.model_validate(read_json(content))
    except ValidationError as error:
        raise UserError(
            f"the server at {client.url} answers a question about a batch with something else "
            f"({client.address.clean(first_error(error))}): leave out --api-batch, or give the same command again later"
        ) from None


def _stopped(client: ApiClient, batch: Batch, missing: int, total: int) -> UserError:
    """What to tell the user of a batch that failed as a whole (its requests are wrong, or a limit is reached) or was
    cancelled: the same again would meet the same, unless the user mends something first."""
    errors = (batch.errors.data if batch.errors is not None else None) or []
    said = client.address.clean("; ".join(error.message or error.code or "" for error in errors)) or "no reason given"
    happened = "was cancelled" if batch.status == "cancelled" else f"failed ({said})"
    return UserError(
        f"batch {batch.id} of model '{client.model}' {happened} at {client.url}: {total - missing} of {total} replies "
        "are kept; give the same command again to ask for the rest"
    )


def _passing(error: Refused) -> bool:
    """Whether the same request may well succeed later."""
    return error.status >= 500 or error.status in (408, 409, 429)


@contextmanager
def _failing(client: ApiClient, what: str, remedy: str) -> Iterator[None]:
    """Makes a UserError of what a server answers in place of what was asked for."""
    try:
        yield
    except (Refused, NoAnswer) as error:
        said = client.reason(error) if isinstance(error, Refused) else error
        raise UserError(f"the server at {client.url} {what} ({said}): {remedy}") from None
