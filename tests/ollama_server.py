"""A local HTTP server that behaves as Ollama does, or misbehaves, on a real socket.

`OllamaServer` keeps every request and answers each with what its `reply` function returns. `generated`
makes the answer that Ollama 0.34 gives for a distribution of next tokens: without log-probabilities where
the token it chose writes nothing.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Distribution = Iterable[tuple[str, float]]


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        return str(self.body["prompt"])


@dataclass(frozen=True)
class Reply:
    """An answer, and how it is given.

    Attributes:
        delay: seconds before the answer.
        drip: seconds between the bytes of the body.
        cut: how many bytes of the body are left out, though they were announced.
        hang_up: whether the connection is closed in place of an answer.
        endless: whether the body is repeated until the client goes.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    cut: int = 0
    hang_up: bool = False
    endless: bool = False


def as_json(content: object, status: int = 200) -> Reply:
    return Reply(json.dumps(content).encode(), status)


def error(status: int, message: str) -> Reply:
    """An error in Ollama's form."""
    return as_json({"error": message}, status)


def generated(tokens: Distribution, body: dict[str, Any]) -> Reply:
    """The answer of Ollama with log-probabilities: at most 20 tokens, likeliest first."""
    top = sorted(tokens, key=lambda item: -item[1])[: body.get("top_logprobs", 0)]
    options = body["options"]
    chosen = top[options["seed"] % len(top) if options["temperature"] > 0 else 0]
    content = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z", "response": chosen[0], "done": True}
    if not chosen[0]:
        return as_json({**content, "done_reason": "stop"})
    entry = {**_listed(*chosen), "top_logprobs": [_listed(*item) for item in top]}
    return as_json({**content, "done_reason": "length", "logprobs": [entry]})


def written(text: str, body: dict[str, Any]) -> Reply:
    """The answer of a server that gives no log-probabilities."""
    return as_json({"model": body["model"], "response": text, "done": True, "done_reason": "stop"})


def _listed(text: str, probability: float) -> dict[str, Any]:
    return {"token": text, "bytes": list(text.encode()) or None, "logprob": math.log(probability)}


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections that wait; with the default of 5, many threads at once meet a full queue

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that gave up, as some tests want it to
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class OllamaServer:
    """The server; `with` starts and stops it.

    Args:
        reply: makes the answer from the request's body.
        port: where it listens; 0 is any that is free.
    """

    def __init__(self, reply: Callable[[dict[str, Any]], Reply], *, port: int = 0) -> None:
        self.reply = reply
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = _Quiet(("127.0.0.1", port), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [request.body for request in self.requests]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = json.loads(raw) if raw else {}
                with outer._lock:
                    outer.requests.append(Request(self.command, self.path, dict(self.headers), body))
                    outer._at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer._at_once)
                try:
                    outer._answer(self, outer.reply(body))
                finally:
                    with outer._lock:
                        outer._at_once -= 1

            do_GET = do_POST

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        self._stopping.wait(reply.delay)
        if reply.hang_up:
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        handler.send_header("Content-Type", "application/json")
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if reply.endless:
            handler.end_headers()
            handler.close_connection = True
            while not self._stopping.is_set():
                handler.wfile.write(reply.body)
            return
        handler.send_header("Content-Length", str(len(reply.body)))
        handler.end_headers()
        handler.close_connection = reply.cut > 0
        body = reply.body[: len(reply.body) - reply.cut]
        if reply.drip == 0.0:
            handler.wfile.write(body)
            return
        for byte in body:
            if self._stopping.is_set():
                return
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(reply.drip)
