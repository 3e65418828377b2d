"""A proxy in front of an S3 server that lets a share of the requests go wrong, each in a way that its seed says."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

BEFORE = ("500", "503", "reset", "stall")
"""The server never hears of the request."""
AFTER = ("500 after", "reset after", "stall after", "truncated", "stall in body")
"""It does what it was asked, and the client never learns of it."""
FLIPS = ("flip up", "flip down")
"""One bit of a body is another one; only asked for by name."""
SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
INTERNAL = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>We encountered an error.</Message></Error>"


class FlakyProxy:
    """A context manager; `url` is what a client is given for its endpoint.

    Args:
        upstream: the server's URL.
        rate: share of requests that go wrong.
        faults: how; equally likely.

    Attributes:
        puts: what becomes of the next PUTs, one after the other, whatever the rate.
        done: how many requests met which fate.
    """

    def __init__(
        self, upstream: str, seed: int = 0, *, rate: float = 0.2, faults: Sequence[str] = (*BEFORE, *AFTER)
    ) -> None:
        self.rate, self.faults = rate, faults
        self.requests, self.done, self.puts = 0, Counter[str](), list[str]()
        self.upstream = urlsplit(upstream).netloc
        self._random, self._lock = random.Random(seed), threading.Lock()
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FlakyProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def fate(self, method: str) -> str:
        """What becomes of the next request."""
        with self._lock:
            self.requests += 1
            if method == "PUT" and self.puts:
                return self.puts.pop(0)
            fault = self._random.choice(self.faults) if self._random.random() < self.rate else "fine"
            self.done[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FlakyProxy

    def log_message(self, *words: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.fate(self.command)
        if fault in BEFORE:
            return self._break(fault)
        if fault == "flip up" and body:
            body = _flipped(body)
        status, headers, answer = self._ask(body)
        if fault.endswith(" after"):
            return self._break(fault.removesuffix(" after"))
        if fault == "flip down" and answer:
            answer = _flipped(answer)
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if fault not in ("truncated", "stall in body"):
            self.wfile.write(answer)
            return None
        self.wfile.write(answer[: len(answer) // 2])
        self.wfile.flush()
        return self._break("reset" if fault == "truncated" else "stall")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """The server's own answer; headers go there as they are, or the signature would not fit."""
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answered = connection.getresponse()
            data = answered.read()
            dropped = ("connection", "transfer-encoding", "content-length", "keep-alive")
            headers = [(name, value) for name, value in answered.getheaders() if name.lower() not in dropped]
            length = answered.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(data))
            return answered.status, [*headers, ("Content-Length", length)], data
        finally:
            connection.close()

    def _break(self, how: str) -> None:
        self.close_connection = True
        if how in ("500", "503"):
            answer = SLOW_DOWN if how == "503" else INTERNAL
            self.send_response_only(int(how))
            self.send_header("Content-Length", str(len(answer)))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)
            return
        if how == "stall":
            self.proxy.closing.wait(20)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
