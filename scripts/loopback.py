"""A small HTTP/1.1 server on the loopback interface, whose connections stay open; other scripts say what it answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection


class RequestServer(asyncio.Protocol):
    """Answers the requests of a connection, none of which has a body."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        """Keep the connection."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer the requests that are complete."""
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            self._transport.write(self.answer(head.decode()))

    def answer(self, request: str) -> bytes:
        """Return head and body of the answer to the head of a request."""
        raise NotImplementedError


def serve(server: Callable[[], RequestServer], port: Connection) -> None:
    """Serve until the process ends, and send the number of the port."""

    async def run() -> None:
        opened = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        port.send(opened.sockets[0].getsockname()[1])
        await opened.serve_forever()

    asyncio.run(run())
