"""A loopback server that speaks OpenAI's chat completions, and misbehaves by script.

    wait = Reply(status=429, headers={"Retry-After": "0.2"})
    with OpenAIServer([wait, "Hello."]) as server:
        OpenAILLM("m", base_url=server.url, api_key="k").generate("Hi")
    assert len(server.requests) == 2

Each request takes the next reply; the last one stays for all that follow. It is standard library
only, one thread per connection, and `with` leaves no thread or socket behind.
"""

import json
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 5,
    "total_tokens": 25,
    "prompt_tokens_details": {"cached_tokens": 8},
}


@dataclass
class Reply:
    """One scripted turn of the server.

    `cut` ends a stream after that many pieces, with no last chunk: "reset" resets the connection,
    "clean" ends the body as if it were complete. `body` replaces the whole answer. `refuses` names
    request fields that are answered with 400. Times are in seconds. With `read` each piece waits
    until the client has released it once for the piece before.
    """

    text: str = "Hello from the loopback server."
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: str = ""
    code: str | None = None
    body: bytes | None = None
    content_type: str = "application/json"
    delay: float = 0.0
    first_delay: float = 0.0
    gap: float = 0.0
    read: threading.Semaphore | None = None
    cut: tuple[int, str] | None = None
    bad_piece: bytes | None = None
    usage: dict[str, Any] | None = field(default_factory=lambda: dict(USAGE))
    finish_reason: str | None = "stop"
    model: str | None = None
    done: bool = True
    refuses: Sequence[str] = ()

    @property
    def pieces(self) -> list[str]:
        return re.findall(r"\s*\S+|\s+$", self.text)


@dataclass
class Seen:
    """A request as the server saw it; `client` is the connection."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    client: tuple[str, int]


class _Gone(Exception):
    """The client has closed the connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_Server"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._json(200, {"object": "list", "data": [{"id": "loopback", "object": "model"}]})

    def do_POST(self) -> None:
        owner = self.server.owner
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = json.loads(raw or b"{}")
        client = (str(self.client_address[0]), int(self.client_address[1]))
        seen = Seen(self.path, dict(self.headers), asked, client)
        reply = owner.take(seen)
        try:
            self._answer(reply, seen.body)
        except (_Gone, ConnectionError):
            self.close_connection = True
            owner.disconnected.set()

    def _answer(self, reply: Reply, asked: dict[str, Any]) -> None:
        self._wait(reply.delay)
        refused = next((name for name in reply.refuses if name in asked), None)
        if refused == "max_tokens":
            hint = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            self._json(400, {"error": {"message": hint, "param": refused}})
        elif refused:
            self._json(400, {"error": {"message": f"Unknown parameter: {refused}"}})
        elif reply.body is not None:
            self._send(reply.status, reply.body, reply.content_type, reply.headers)
        elif reply.status >= 400:
            error = {"message": reply.error or "as scripted", "code": reply.code}
            self._json(reply.status, {"error": error}, reply.headers)
        elif asked.get("stream"):
            self._stream(reply, asked)
        else:
            self._wait(reply.first_delay)
            message = {"role": "assistant", "content": reply.text}
            choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
            self._json(200, self._envelope(reply, asked, [choice], reply.usage), reply.headers)

    def _stream(self, reply: Reply, asked: dict[str, Any]) -> None:
        self.send_response(200)
        for name, value in {"Content-Type": "text/event-stream", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._wait(reply.first_delay)
        self._event(self._delta(reply, asked, {"role": "assistant", "content": ""}))
        for number, piece in enumerate(reply.pieces):
            if reply.cut and number == reply.cut[0]:
                return self._cut(reply.cut[1])
            self._event(self._delta(reply, asked, {"content": piece}))
            if reply.read is not None and not reply.read.acquire(timeout=60):
                raise _Gone
            self._wait(reply.gap)
        if reply.bad_piece is not None:
            self._chunk(b"data: " + reply.bad_piece + b"\n\n")
        self._event(self._delta(reply, asked, {}, reply.finish_reason))
        if reply.usage and (asked.get("stream_options") or {}).get("include_usage"):
            self._event(self._envelope(reply, asked, [], reply.usage))
        if reply.done:
            self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")
        return None

    def _cut(self, how: str) -> None:
        if how == "clean":
            self._chunk(b"")
            return
        linger = struct.pack("ii", 1, 0)  # close() then sends RST
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        raise _Gone

    def _envelope(
        self, reply: Reply, asked: dict[str, Any], choices: list[Any], usage: Any
    ) -> dict[str, Any]:
        kind = "chat.completion.chunk" if asked.get("stream") else "chat.completion"
        envelope = {"id": "loopback-1", "object": kind, "created": 1, "choices": choices}
        return {**envelope, "model": reply.model or asked.get("model"), "usage": usage}

    def _delta(
        self, reply: Reply, asked: dict[str, Any], delta: dict[str, Any], finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return self._envelope(reply, asked, [choice], None)

    def _wait(self, seconds: float) -> None:
        """Sleep, but wake up as soon as the client closes or the server stops."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self.server.owner.stopping.is_set():
                raise _Gone
            ready, _, _ = select.select([self.connection], [], [], min(left, 0.05))
            if ready and not self.connection.recv(1, socket.MSG_PEEK):
                raise _Gone

    def _event(self, data: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(data)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), "application/json", headers or {})

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        lengths = {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in {**lengths, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False
    owner: "OpenAIServer"

    def handle_error(self, *_: Any) -> None:
        """A client that went away is part of the script, not a traceback in the test's output."""


Script = Sequence[Reply | str] | Callable[[dict[str, Any]], Reply | str]


class OpenAIServer:
    """The server as a context manager: `url` ends in /v1, `requests` lists what came in.

    `script` is a list of replies (a string is its text) or a function of the request's body.
    `disconnected` is set when a client has gone before its answer was complete.
    """

    def __init__(self, script: Script = ("Hello from the loopback server.",)) -> None:
        self.script, self.requests = script, list[Seen]()
        self.disconnected, self.stopping = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def take(self, seen: Seen) -> Reply:
        with self._lock:
            self.requests.append(seen)
            number = len(self.requests) - 1
        if callable(self.script):
            reply = self.script(seen.body)
        else:
            reply = self.script[min(number, len(self.script) - 1)]
        return Reply(reply) if isinstance(reply, str) else reply

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(60)
