"""The link for real: a TCP proxy that passes bytes at a profile's rate in either direction, after its latency."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

from broker.link.clock import MSS, stream_bytes
from broker.link.profiles import Profile

_SLICE_S = 0.005


class _Pace:
    """One direction of the link, shared by all connections: a place in time for every byte."""

    def __init__(self, bits_per_s: float, latency_s: float) -> None:
        self.bytes_per_s = bits_per_s / 8
        self.latency_s = latency_s
        self.passed = 0
        """Bytes of the streams that went this way, without headers."""
        self._free_at = 0.0
        # Whole segments, so that their headers are counted as the clock counts them.
        self.slice = MSS * max(1, min(64, int(self.bytes_per_s * _SLICE_S / MSS)))

    def due(self, data: int, back: _Pace) -> float:
        """Take the link for ``data`` bytes of a stream; returns the loop's time at which the last has passed."""
        burst = stream_bytes(data)
        self.passed += data
        back._take(burst.backward)
        return self._take(burst.forward)

    def _take(self, wire: int) -> float:
        self._free_at = max(self._free_at, asyncio.get_running_loop().time()) + wire / self.bytes_per_s
        return self._free_at


@dataclass(frozen=True)
class Shaped:
    """A running proxy: where it listens, and the bytes that have passed (of the streams, without TCP/IP headers)."""

    host: str
    port: int
    _up: _Pace
    _down: _Pace

    @property
    def up_bytes(self) -> int:
        """From the device."""
        return self._up.passed

    @property
    def down_bytes(self) -> int:
        """To the device."""
        return self._down.passed


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pace: _Pace, back: _Pace) -> None:
    """Pass one direction of one connection on, at the link's pace and after its latency."""
    loop = asyncio.get_running_loop()
    line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            arrives, data = await line.get()
            await asyncio.sleep(max(0.0, arrives - loop.time()))
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    async def take() -> None:
        due = loop.time()
        while data := await reader.read(pace.slice):
            due = pace.due(len(data), back)
            line.put_nowait((due + pace.latency_s, data))
            # Reading waits for the link, so that the sender feels it too.
            await asyncio.sleep(max(0.0, due - loop.time() - 2 * _SLICE_S))
        line.put_nowait((due + pace.latency_s, b""))

    await asyncio.gather(take(), deliver())


@contextlib.asynccontextmanager
async def shape(link: Profile, connect: tuple[str, int], listen: tuple[str, int] = ("127.0.0.1", 0)) -> AsyncIterator[Shaped]:
    """A proxy that is the link, for the time of the block: the device connects to it, it to the server's broker.

    The device side is the one that connects, so what it sends is ``up``. Raises OSError where it cannot listen.
    """
    up, down = _Pace(link.up, link.latency_s), _Pace(link.down, link.latency_s)
    tasks: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            back, there = await asyncio.open_connection(*connect, limit=down.slice)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_pump(reader, there, up, down))
                    both.create_task(_pump(back, writer, down, up))
            finally:
                there.close()
        except* asyncio.CancelledError:
            pass  # the proxy ends
        except* OSError as errors:
            # One end is gone: the other is told by closing.
            print(f"link: connection to {connect[0]}:{connect[1]}: {errors.exceptions[0]}", file=sys.stderr)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(connection, *listen, limit=up.slice)
    try:
        host, port = server.sockets[0].getsockname()[:2]
        yield Shaped(host, port, up, down)
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
