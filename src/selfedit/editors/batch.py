"""Completions by batch, at half price: upload, create, poll, fetch, and what to do when a batch comes back incomplete.

Knows the batch protocol of OpenAI-compatible servers.  Requests, replies and errors are `api.py`'s; this runs on an
`ApiClient`.

Every request's batch is stored under the request's key, all of a batch's at once, before the first poll.  After a
restart a request that is in a batch already is waited for, whatever else is asked for beside it, and is not sent again.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from selfedit.editors.api import ApiClient, ApiRequest, ApiResult, read_json
from selfedit.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from selfedit.editors.replies import Batch

    B = TypeVar("B", bound=BaseModel)

logger = logging.getLogger(__name__)

# OpenAI's limits are 50,000 requests and 200 MB a file.
MAX_REQUESTS = 50_000
MAX_BYTES = 190_000_000
_FILE_SECONDS = 3600.0  # to send or to fetch so large a file
_REPLY_BYTES = 64_000  # of a result file, for each request: a reply of the longest edits, escaped, with its frame

UNDER_WAY = "submitted"
_FINAL = ("completed", "failed", "expired", "cancelled")
_FAILED_POLLS = 10
_WORTH_ANOTHER_TRY = (408, 409, 429)

Deliver = Callable[[str, ApiResult], None]


def run_batches(client: ApiClient, pending: Mapping[str, ApiRequest], deliver: Deliver) -> None:
    """Answers `pending` (requests by key) through batches, calling `deliver` for each as it becomes known.

    Raises UserError where no batch can succeed; what has been fetched by then is kept.
    """
    left = dict(pending)
    tries: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    while left:
        batches: dict[str, list[str]] = {}
        for key in left:
            known = client.batches.get_batch(key)
            if known is not None and known[1] == UNDER_WAY:
                batches.setdefault(known[0], []).append(key)
                client.budget.hold(key, client.most(left[key]))
        under_way = {key for keys in batches.values() for key in keys}
        for chunk in _chunks(client, {key: left[key] for key in left if key not in under_way}, bool(batches)):
            batches[_submit(client, chunk)] = list(chunk)
        for batch_id, keys in batches.items():
            tries.update(keys)
            reasons |= _collect(client, batch_id, {key: left[key] for key in keys}, left, deliver)
        for key in [key for key in left if tries[key] >= client.batch_tries]:
            del left[key]
            deliver(key, ApiResult(error=f"{reasons[key]}, tried in {tries[key]} batches", batch=True, usd=0.0))


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
        line = {"custom_id": key, "method": "POST", "url": "/v1" + client.path, "body": client.body(request)}
        # In ASCII, so that no line separator within a text is taken for the end of a line.
        text = json.dumps(line) + "\n"
        length = len(text)
        if chunk and (len(chunk) >= MAX_REQUESTS or size + length > MAX_BYTES):
            yield chunk
            chunk, size, more = {}, 0, True
        chunk[key] = text
        size += length
    if chunk:
        yield chunk


def _submit(client: ApiClient, chunk: Mapping[str, str]) -> str:
    """Uploads a batch, starts it and stores its id; returns the id."""
    import openai

    from selfedit.editors.replies import Batch, File

    endpoint: Any = "/v1" + client.path
    content = "".join(chunk.values()).encode("ascii")
    try:
        sent = client.run(
            client.patient(_FILE_SECONDS).files.with_raw_response.create(
                file=("requests.jsonl", content), purpose="batch"
            )
        )
        file = _read(client, File, sent.http_response.content)
        created = client.run(
            client.library.batches.with_raw_response.create(
                input_file_id=file.id, endpoint=endpoint, completion_window="24h"
            )
        )
        batch = _read(client, Batch, created.http_response.content)
    except openai.APIStatusError as error:
        if error.status_code in (404, 405):
            raise UserError(
                f"the server at {client.url} offers no batches ({error.status_code}): leave out --api-batch"
            ) from None
        raise UserError(f"the server at {client.url} did not take the batch ({_said(client, error)})") from None
    except openai.APIConnectionError as error:
        client.raise_if_unreachable(error)
        raise UserError(f"the server at {client.url} did not take the batch ({error}): try again later") from None
    with client.cache.transaction():
        for key in chunk:
            client.batches.put_batch(key, batch.id, UNDER_WAY)
    logger.info("batch %s with %d requests of '%s' is under way", batch.id, len(chunk), client.model)
    return batch.id


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
    lines: list[str] = []
    if batch is not None:
        for file_id in (batch.output_file_id, batch.error_file_id):
            lines += _fetch(client, batch_id, file_id, len(requests)) if file_id else []
    bodies = {key: client.body(request) for key, request in requests.items()}  # as they were sent
    fatal: UserError | None = None
    for line in lines:
        key, reply, failure = _read_line(line)
        if key not in requests or key not in left:
            continue  # not of this batch, or there twice
        if reply is not None and client.usable(reply):
            with client.cache.transaction():
                client.settle(key, requests[key], reply, deliver, batch=True)
                client.batches.put_batch(key, batch_id, "done")
            del left[key]
            continue
        if failure is None:
            reasons[key] = f"its reply in batch {batch_id} is damaged"
            continue
        code, payload = failure
        try:
            # A parameter that is refused is left out of the next batch.
            again = client.gives_way(code, payload, bodies[key]) or code >= 500
            reasons[key] = client.reason(code, payload)
        except UserError as error:
            fatal = error  # raised when the rest of the file has been kept
            continue
        if again or code in _WORTH_ANOTHER_TRY:
            continue
        with client.cache.transaction():
            client.batches.put_batch(key, batch_id, "done")
            deliver(key, ApiResult(error=reasons[key], batch=True, usd=0.0))
        client.budget.release(key)
        del left[key]
    missing = [key for key in requests if key in left]
    with client.cache.transaction():
        for key in missing:
            client.batches.put_batch(key, batch_id, f"{status}, missing")
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
    import openai

    from selfedit.editors.replies import Batch

    pause = client.poll_seconds
    failures = 0
    while True:
        try:
            said = client.run(client.library.batches.with_raw_response.retrieve(batch_id))
            batch = _read(client, Batch, said.http_response.content)
        except openai.NotFoundError:
            return None
        except (openai.APIConnectionError, openai.APIStatusError, UserError) as error:
            # A batch takes hours, and a poll may well fail meanwhile.
            if isinstance(error, openai.APIStatusError) and error.status_code < 500 and error.status_code != 429:
                client.reason(error.status_code, error.body)
            failures += 1
            if failures >= _FAILED_POLLS:
                raise UserError(
                    f"lost touch with the server at {client.url} while waiting for batch {batch_id} "
                    f"({_said(client, error)}): give the same command again to go on waiting for it"
                ) from None
        else:
            failures = 0
            if client.on_poll is not None:
                counts = batch.request_counts
                done = counts.completed + counts.failed if counts is not None else 0
                client.on_poll(batch_id, batch.status, done, counts.total if counts is not None else total)
            if batch.status in _FINAL:
                return batch
        time.sleep(pause)
        pause = min(pause * 1.5, client.poll_seconds * 20)


def _fetch(client: ApiClient, batch_id: str, file_id: str, requests: int) -> list[str]:
    """The lines of a result file, which may be as long as the batch's requests allow."""
    import openai

    usual = client.http.most_bytes
    client.http.most_bytes = usual + _REPLY_BYTES * requests
    try:
        content = client.run(client.patient(_FILE_SECONDS).files.with_raw_response.content(file_id)).content
    except (openai.APIConnectionError, openai.APIStatusError) as error:
        raise UserError(
            f"cannot fetch the results of batch {batch_id} from {client.url} ({_said(client, error)}): give the same "
            "command again to fetch them"
        ) from None
    finally:
        client.http.most_bytes = usual
    # Not splitlines(): replies may hold other line separators, which JSON does not escape.
    return [line for line in content.decode("utf-8", errors="replace").split("\n") if line.strip()]


def _read_line(line: str) -> tuple[str, dict[str, Any] | None, tuple[int, object] | None]:
    """A line of a result file: the request's key, the reply's body, or status and body of an error.

    A line that is cut off or has another form gives no reply and no error; its key is then empty unless it can be read.
    """
    item = read_json(line)
    if not isinstance(item, dict):
        return "", None, None
    key = str(item.get("custom_id", ""))
    response, error = item.get("response"), item.get("error")
    if isinstance(response, dict) and isinstance(response.get("status_code"), int):
        if response["status_code"] == 200:
            return key, response.get("body"), None
        return key, None, (response["status_code"], response.get("body"))
    if error:
        # The batch's own errors have no status: above all batch_expired, which another batch mends.
        return key, None, (503, error)
    return key, None, None


def _read(client: ApiClient, kind: type[B], content: bytes) -> B:
    """What a server says of a file or a batch.  Errors: UserError where it says something else."""
    from pydantic import ValidationError

    from selfedit.editors.replies import told

    try:
        return kind.model_validate(read_json(content))
    except ValidationError as error:
        raise UserError(
            f"the server at {client.url} answers a question about a batch with something else "
            f"({client.clean(told(error))}):"
            " leave out --api-batch, or give the same command again later"
        ) from None


def _stopped(client: ApiClient, batch: Batch, missing: int, total: int) -> UserError:
    """What to tell the user of a batch that failed as a whole (its requests are wrong, or a limit is reached) or was
    cancelled: the same again would meet the same, unless the user mends something first."""
    errors = (batch.errors.data if batch.errors is not None else None) or []
    said = client.clean("; ".join(error.message or error.code or "" for error in errors)) or "no reason given"
    happened = "was cancelled" if batch.status == "cancelled" else f"failed ({said})"
    return UserError(
        f"batch {batch.id} of model '{client.model}' {happened} at {client.url}: {total - missing} of {total} replies "
        "are kept; give the same command again to ask for the rest"
    )


def _said(client: ApiClient, error: Exception) -> str:
    import openai

    if isinstance(error, openai.APIStatusError):
        return client.reason(error.status_code, error.body)
    return client.clean(str(error))
