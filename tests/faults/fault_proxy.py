"""A proxy before a store's server, which disturbs what passes through it by a seeded plan."""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ANY_REQUEST = ("503", "503 with Retry-After", "429", "reset", "delay", "expired")
DATA = ("reset inside", "cut off", "cut off, length fits", "cut off, no length", "too long", "other range", "no length")
"""Faults of answers that hold the bytes of a file."""
HANGS = ("silence", "silence inside")
"""The connection stays open, and nothing comes: before the answer, or inside its body."""
_HOP = ("connection", "transfer-encoding", "content-length", "keep-alive", "date", "server")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
DELAY_S = 0.2
LONGEST_BURST = 4
LONGEST_SILENCE_S = 120.0
"""Unless the client goes away before."""

Expired = tuple[int, dict[str, str], bytes]


class FaultProxy:
    """What to do with the requests of one store.

    Parameters
    ----------
    upstream : int
        The port of the store's server.
    seed : int
    expired : callable
        Method → status, headers and body of the answer by which the store refuses an expired token.

    Attributes
    ----------
    rate : float
        How many of the requests are disturbed.
    counts : Counter
        Kind of fault → how often it was injected.
    renewed : callable or None
        Headers → whether they hold credentials that were asked for after the last refusal; without it every second
        request of a path is taken for one with new credentials.
    before_data, after_data : callable or None
        Called with the path of a read, before and after the server has answered it.
    """

    def __init__(self, upstream: int, seed: int, expired: Callable[[], Expired]) -> None:
        self.upstream, self.expired = upstream, expired
        self.rate = 0.0
        self.counts: Counter[str] = Counter()
        self.kinds: Sequence[str] = (*ANY_REQUEST, *DATA)
        self.is_refused: Callable[[Any], bool] = lambda headers: False
        self.expire: Callable[[], None] = lambda: None
        self.before_data: Callable[[str], None] = lambda path: None
        self.after_data: Callable[[str], None] = lambda path: None
        self.port = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._burst = ("", 0)
        self._refused: set[str] = set()

    def choose(self, path: str) -> str:
        """Return the next fault; empty for none."""
        with self._lock:
            kind, left = self._burst
            if left and self.rate:
                self._burst = (kind, left - 1)
                return kind
            if path in self._refused:  # with new credentials it is answered
                self._refused.discard(path)
                return ""
            if self._random.random() >= self.rate:
                return ""
            kind = self._random.choice(self.kinds)
            if kind in ("503", "503 with Retry-After", "429"):
                self._burst = (kind, self._random.randrange(LONGEST_BURST))
            if kind == "expired":
                self._refused.add(path)
            return kind

    def count(self, kind: str) -> None:
        """Record that a fault was injected."""
        with self._lock:
            self.counts[kind] += 1

    def fraction(self) -> float:
        """Return a number from 0 to 1 from the plan."""
        with self._lock:
            return self._random.random()


class _Answers(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_HEAD

    def _answer(self) -> None:
        proxy = self.proxy
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if proxy.is_refused(self.headers):
            self._send(*proxy.expired())
            return
        kind = proxy.choose(self.path)
        if kind in ANY_REQUEST or kind == "silence":
            proxy.count(kind)
            if self._disturb(kind):
                return
        status, headers, data, is_data = self._ask_upstream(asked)
        if kind not in (*DATA, *HANGS):
            self._send(status, headers, data)
        elif not is_data or len(data) < 2:
            if kind == "reset inside" and self.command == "GET" and data:
                proxy.count(kind)
                self._break_off(status, headers, data)
            else:
                self._send(status, headers, data)
        else:
            proxy.count(kind)
            self._spoil(kind, status, headers, data)

    def _disturb(self, kind: str) -> bool:
        """Answer in the server's place; return False where the server is to answer all the same."""
        if kind == "delay":
            time.sleep(DELAY_S)
            return False
        if kind == "silence":
            self._wait_for_the_end()
        elif kind == "reset":
            self._reset()
        elif kind == "expired":
            self.proxy.expire()
            self._send(*self.proxy.expired())
        else:
            extra = {"Retry-After": "1"} if kind == "503 with Retry-After" else {}
            self._send(int(kind[:3]), extra, b"")
        return True

    def _ask_upstream(self, asked: bytes) -> tuple[int, dict[str, str], bytes, bool]:
        """Return the server's status, headers and body, and whether that is the content of a file."""
        is_read = self.command == "GET"
        if is_read:
            self.proxy.before_data(self.path)
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream, timeout=60)
        with contextlib.closing(connection):
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            connection.request(self.command, self.path, asked or None, headers)
            answer = connection.getresponse()
            data = answer.read()
        if is_read:
            self.proxy.after_data(self.path)
        found = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
        if self.command == "HEAD" and answer.headers.get("Content-Length"):
            found["Content-Length"] = answer.headers["Content-Length"]
        if "Location" in found:  # of the same server, by another name
            found["Location"] = found["Location"].replace(f":{self.proxy.upstream}/", f":{self.proxy.port}/")
        text = ("xml", "json", "html")
        is_data = (
            is_read and answer.status in (200, 206) and not any(word in found.get("Content-Type", "") for word in text)
        )
        return answer.status, found, data, is_data

    def _spoil(self, kind: str, status: int, headers: dict[str, str], data: bytes) -> None:
        part = data[: int(self.proxy.fraction() * len(data))]
        span = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if kind == "reset inside":
            self._break_off(status, headers, data)
        elif kind == "silence inside":
            self._send(status, headers, part, length=len(data))
            self._wait_for_the_end()
        elif kind == "cut off":
            self._send(status, headers, part, length=len(data))
        elif kind == "cut off, length fits" or (kind == "other range" and span is None):
            self._send(status, headers, part)
        elif kind == "too long":
            self._send(status, headers, data + b"more")
        elif kind == "other range" and span is not None:
            first, last, total = (int(text) for text in span.groups())
            self._send(status, {**headers, "Content-Range": f"bytes {first + 1}-{last + 1}/{total}"}, data[::-1])
        else:  # right, or cut off: the end of the connection is the end of the body
            self._send(status, headers, data if kind == "no length" else part, length=-1)

    def _break_off(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self._send(status, headers, data[: len(data) // 2], length=len(data))
        self._reset()

    def _send(self, status: int, headers: dict[str, str], data: bytes, *, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers and length != -1:
            self.send_header("Content-Length", str(len(data) if length is None else length))
        if length is not None:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.wfile.flush()

    def _wait_for_the_end(self) -> None:
        self.close_connection = True
        self.connection.settimeout(LONGEST_SILENCE_S)
        with contextlib.suppress(OSError):
            self.connection.recv(1)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, not FIN
        # The socket must close now; the server's own shutdown would say goodbye first.
        with contextlib.suppress(OSError):
            self.connection.close()
        self.rfile.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


@contextlib.contextmanager
def fault_proxy(upstream: int, seed: int, expired: Callable[[], Expired]) -> Iterator[FaultProxy]:
    """Run a proxy; without a rate it passes everything on."""
    proxy = FaultProxy(upstream, seed, expired)
    server = _Server(("127.0.0.1", 0), type("Answers", (_Answers,), {"proxy": proxy}))
    proxy.port = int(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
