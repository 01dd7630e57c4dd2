"""An HTTP CONNECT proxy that holds back what it carries, as a long line does.

    python -m benchmarks.round_line SECONDS MEGABITS     prints the port that it listens on

Each connection has a line of its own in each direction: bytes leave one after the other at its
pace, and arrive SECONDS later. What is under way is bounded, so that a sender feels a slow line.
"""

import asyncio
import contextlib
import sys
import time

_READ_BYTES = 1 << 16
_ROOM_BYTES = 4 << 20
_LOOK_S = 0.002


async def serve(delay_s: float, megabits: float) -> None:
    """Serve for ever."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        host, port = head.split()[1].decode().rsplit(":", 1)
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        ways = (reader, far_writer), (far_reader, writer)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(*(Way(delay_s, megabits).carry(*way) for way in ways))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


class Way:
    """One direction of a connection.

    Args:
        delay_s: how long a byte is under way.
        megabits: a second; 0 is no limit.

    """

    def __init__(self, delay_s: float, megabits: float) -> None:
        self._delay_s = delay_s
        self._bytes_per_s = megabits * 1e6 / 8 or float("inf")
        on_line = self._bytes_per_s * delay_s if megabits else float("inf")
        self._room = _ROOM_BYTES + on_line
        self._held = 0
        self._queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry until the sender ends, and then end the other side."""
        arriving = asyncio.create_task(self._arrive(writer))
        try:
            await self._leave(reader)
        except ConnectionError:
            self._queue.put_nowait((0.0, b""))
        await arriving

    async def _leave(self, reader: asyncio.StreamReader) -> None:
        free, data = 0.0, b"more"
        while data:
            while self._held > self._room:
                await asyncio.sleep(_LOOK_S)
            data = await reader.read(_READ_BYTES)
            free = max(free, time.monotonic()) + len(data) / self._bytes_per_s
            self._held += len(data)
            self._queue.put_nowait((free + self._delay_s, data))

    async def _arrive(self, writer: asyncio.StreamWriter) -> None:
        data = b"more"
        while data:
            due, data = await self._queue.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            writer.write(data)
            self._held -= len(data)
            await writer.drain()
        writer.close()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]), float(sys.argv[2])))
