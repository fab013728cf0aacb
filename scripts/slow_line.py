"""A proxy that makes a store on this machine as slow as one far away: a latency per request, and a bandwidth for all.

    python scripts/slow_line.py PORT [--latency 0.05] [--bandwidth 100e6]

Listens on a port of its own, which it prints, and passes everything on to PORT of the loopback interface. What a client
sends arrives later by the latency; what the store sends comes at the bandwidth that all connections share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

CHUNK = 1 << 16


class SlowLine:
    """Passes connections on.

    Parameters
    ----------
    port : int
        Of the store.
    latency : float
        Seconds.
    bandwidth : float
        Bytes per second.
    """

    def __init__(self, port: int, latency: float, bandwidth: float) -> None:
        self._port, self._latency, self._bandwidth = port, latency, bandwidth
        self._free_at = 0.0

    async def start(self) -> asyncio.Server:
        """Begin to listen on a free port."""
        return await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=CHUNK)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            store_reader, store_writer = await asyncio.open_connection("127.0.0.1", self._port, limit=CHUNK)
        except OSError:
            writer.close()
            return
        up = asyncio.create_task(self._delayed(reader, store_writer))
        with contextlib.suppress(OSError):
            await self._throttled(store_reader, writer)
        up.cancel()
        for one in (writer, store_writer):
            one.close()

    async def _delayed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(CHUNK):
            loop.call_later(self._latency, writer.write, data)
        loop.call_later(self._latency, writer.close)

    async def _throttled(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        while data := await reader.read(CHUNK):
            now = clock()
            self._free_at = max(now, self._free_at) + len(data) / self._bandwidth
            if self._free_at - now > 0.001:  # shorter sleeps would last longer than they are to
                await asyncio.sleep(self._free_at - now)
            writer.write(data)
            await writer.drain()


def _serve(port: int, latency: float, bandwidth: float, answer: Connection) -> None:
    async def run() -> None:
        server = await SlowLine(port, latency, bandwidth).start()
        answer.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextlib.contextmanager
def slow_line(port: int, latency: float, bandwidth: float = 100e6) -> Iterator[int]:
    """Run the proxy in a process of its own; the value is its port."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(port, latency, bandwidth, sender), daemon=True
    )
    process.start()
    try:
        yield receiver.recv()
    finally:
        process.terminate()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--bandwidth", type=float, default=100e6)
    options = parser.parse_args()

    async def run() -> None:
        server = await SlowLine(options.port, options.latency, options.bandwidth).start()
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
