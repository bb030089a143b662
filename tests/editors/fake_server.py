"""A fake OpenAI server on this machine, with faults on demand.  Knows the wire format only, nothing of the client.

Every completion repeats what it was asked: the reply to "x" is "reply to x", 10 input and 5 output tokens.
"""

import contextlib
import json
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Fault:
    """What the next completion request meets: a status with an error, bytes as they are, silence, a cut connection."""

    status: int = 200
    error: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    talk: Callable[[BaseHTTPRequestHandler], None] | None = None  # says what it likes on the open connection
    hang: bool = False
    cut: bool = False


@dataclass
class BatchPlan:
    """What becomes of the next batch; items go by their place in the upload."""

    statuses: list[str] = field(default_factory=lambda: ["validating", "in_progress"])
    end: str = "completed"
    reverse: bool = False
    missing: set[int] = field(default_factory=set)
    half_a_line: set[int] = field(default_factory=set)
    twice: set[int] = field(default_factory=set)
    expired: set[int] = field(default_factory=set)
    failed: dict[int, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    raw: dict[int, bytes] = field(default_factory=dict)  # a line as it is, with %s for the request's id


def error(message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "code": code, "param": param}}


class FakeServer:
    def __init__(self) -> None:
        self.faults: deque[Fault] = deque()
        self.plans: deque[BatchPlan] = deque()
        self.poll_faults: deque[int] = deque()
        self.lists_batches = True
        self.page = 100  # batches in a page of their list
        self.list_faults: deque[int] = deque()
        # What becomes of the next batch's creation: a status without or with (below 0) the batch, or what is done
        # with it in place of an answer.
        self.create_faults: deque[int | Callable[[], None]] = deque()
        self.refuse: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda body: None
        self.completions: list[dict[str, Any]] = []  # bodies, in order of arrival
        self.keys: list[str] = []  # Authorization headers
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.instead: dict[str, bytes] = {}  # answers to paths, whatever is asked
        self.models_asked = 0
        self.uploads: list[list[dict[str, Any]]] = []
        self.batches: dict[str, dict[str, Any]] = {}
        self.polls: list[str] = []
        self.files: dict[str, bytes] = {}
        self.most_at_once = 0
        self.connections: set[socket.socket] = set()
        self.released = threading.Event()  # ends every hang
        self.gate: threading.Barrier | None = None
        self.arrived = threading.Semaphore(0)  # released once a completion request
        self._now = 0
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                fake.connections.add(self.connection)

            def finish(self) -> None:
                fake.connections.discard(self.connection)
                super().finish()

            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                fake.get(self)

            def do_POST(self) -> None:
                fake.post(self)

        class Server(ThreadingHTTPServer):
            def handle_error(self, *where: Any) -> None:
                if not isinstance(sys.exception(), OSError):  # a client may hang up
                    super().handle_error(*where)

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):  # closed by now
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        if "messages" in body:
            text = "reply to " + body["messages"][-1]["content"]
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        else:
            choice = {"text": "reply to " + body["prompt"]}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 2}}
        return {"id": "c", "choices": [{"index": 0, "finish_reason": "stop", **choice}], "usage": usage}

    def get(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        if path in self.instead:
            return self._send(handler, 200, self.instead[path])
        if path == "/v1/models":
            self.models_asked += 1
            return self._send(handler, 200, {"object": "list", "data": []})
        if path == "/v1/batches" and self.lists_batches:
            if self.list_faults:
                return self._send(handler, self.list_faults.popleft(), error("list failed"))
            return self._send(handler, 200, self._list(parse_qs(urlsplit(handler.path).query)))
        if path.startswith("/v1/batches/"):
            batch_id = path.rpartition("/")[2]
            self.polls.append(batch_id)
            if self.poll_faults:
                return self._send(handler, self.poll_faults.popleft(), error("poll failed"))
            if batch_id not in self.batches:
                return self._send(handler, 404, error("no such batch"))
            batch = self.batches[batch_id]
            if batch["script"]:
                batch["status"] = batch["script"].pop(0)
            return self._send(handler, 200, {k: v for k, v in batch.items() if k != "script"})
        if path.startswith("/v1/files/"):
            return self._send(handler, 200, self.files[path.split("/")[3]])
        return self._send(handler, 404, error(f"no {path}"))

    def post(self, handler: BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers["Content-Length"]))
        path = handler.path.partition("?")[0]
        if path in self.instead:
            self._send(handler, 200, self.instead[path])
        elif path in ("/v1/chat/completions", "/v1/completions"):
            with self._lock:
                self._now += 1
                self.most_at_once = max(self.most_at_once, self._now)
            try:
                self._complete(handler, json.loads(data))
            finally:
                with self._lock:
                    self._now -= 1
        elif path == "/v1/files":
            head = f"Content-Type: {handler.headers['Content-Type']}\r\n\r\n".encode()
            parts = {
                part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                for part in message_from_bytes(head + data).get_payload()
            }
            assert parts["purpose"] == b"batch"
            file_id = f"file-{len(self.files)}"
            self.files[file_id] = parts["file"]
            self._send(handler, 200, {"id": file_id, "object": "file", "purpose": "batch"})
        elif path == "/v1/batches":
            self._answer_creation(handler, json.loads(data))
        else:
            self._send(handler, 404, error(f"no {path}"))

    def _complete(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            self.completions.append(body)
            self.keys.append(handler.headers.get("Authorization", ""))
            self.headers.append(handler.headers)
            self.paths.append(handler.path)
            fault = self.faults.popleft() if self.faults else None
        self.arrived.release()
        if self.gate is not None:
            self.gate.wait(timeout=10)
        if fault is not None and fault.hang:
            self.released.wait(timeout=30)
            handler.close_connection = True
        elif fault is not None and fault.talk is not None:
            handler.close_connection = True
            with contextlib.suppress(OSError):  # the client hangs up
                fault.talk(handler)
        elif fault is not None and fault.cut:
            handler.close_connection = True
            handler.connection.close()
        elif fault is not None:
            self._send(handler, fault.status, fault.error if fault.raw is None else fault.raw, fault.headers)
        elif (refusal := self.refuse(body)) is not None:
            self._send(handler, 400, refusal)
        else:
            self._send(handler, 200, self.reply(body))

    def _answer_creation(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        fault = self.create_faults.popleft() if self.create_faults else 0
        batch = {} if isinstance(fault, int) and fault > 0 else self._create_batch(body)
        if not isinstance(fault, int):
            fault()
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif fault:
            self._send(handler, abs(fault), error("create failed"))
        else:
            self._send(handler, 200, batch)

    def _list(self, query: dict[str, list[str]]) -> dict[str, Any]:
        """A page of the list of batches: the newest first, as many as are asked for."""
        ids = list(reversed(self.batches))
        start = ids.index(query["after"][0]) + 1 if "after" in query else 0
        page = ids[start : start + min(int(query["limit"][0]), self.page)]
        data = [{k: v for k, v in self.batches[id].items() if k != "script"} for id in page]
        return {"object": "list", "data": data, "has_more": ids[-1:] != page[-1:]}

    def _create_batch(self, body: dict[str, Any]) -> dict[str, Any]:
        plan = self.plans.popleft() if self.plans else BatchPlan()
        items = [json.loads(line) for line in self.files[body["input_file_id"]].decode().splitlines()]
        assert all(item["url"] == body["endpoint"] and item["method"] == "POST" for item in items)
        self.uploads.append(items)
        output: list[str | bytes] = []
        errors: list[str | bytes] = []
        for index, item in enumerate(items):
            key = item["custom_id"]
            refusal = self.refuse(item["body"])
            if index in plan.raw:
                output.append(plan.raw[index].replace(b"%s", key.encode()))
            elif index in plan.expired:
                code = {"code": "batch_expired", "message": "This request could not be executed in time."}
                errors.append(json.dumps({"custom_id": key, "response": None, "error": code}))
            elif index in plan.failed or refusal is not None:
                status, payload = plan.failed.get(index, (400, refusal))
                response = {"status_code": status, "body": payload}
                errors.append(json.dumps({"custom_id": key, "response": response, "error": None}))
            elif index not in plan.missing:
                response = {"status_code": 200, "body": self.reply(item["body"])}
                line = json.dumps({"custom_id": key, "response": response, "error": None}, ensure_ascii=False)
                line = line[: len(line) // 2] if index in plan.half_a_line else line
                output += [line] * (2 if index in plan.twice else 1)
        for key in plan.strangers:
            response = {"status_code": 200, "body": self.reply({"prompt": "?", "messages": [{"content": "?"}]})}
            output.append(json.dumps({"custom_id": key, "response": response, "error": None}))
        if plan.reverse:
            output.reverse()
        batch_id = f"batch-{len(self.batches)}"
        batch = {
            "id": batch_id,
            "object": "batch",
            "status": "validating",
            "script": [*plan.statuses, plan.end],
            "endpoint": body["endpoint"],
            "completion_window": body["completion_window"],
            "created_at": 0,
            "input_file_id": body["input_file_id"],
            "errors": {"object": "list", "data": plan.errors} if plan.errors else None,
            "request_counts": {"total": len(items), "completed": len(output), "failed": len(errors)},
        }
        if plan.end != "failed":
            for name, lines in (("output_file_id", output), ("error_file_id", errors)):
                if lines:
                    file_id = f"file-{len(self.files)}"
                    encoded = [line if isinstance(line, bytes) else line.encode() for line in lines]
                    self.files[file_id] = b"\n".join(encoded) + b"\n"
                    batch[name] = file_id
        self.batches[batch_id] = batch
        return {k: v for k, v in batch.items() if k != "script"}

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        body: dict[str, Any] | bytes | None,
        headers: dict[str, str] | None = None,
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        ).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)
