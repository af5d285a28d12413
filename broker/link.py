"""The link between device and server: as a clock for experiments, and as a shaping proxy for demos (architecture.md, "Time").

The clock counts what a message puts on the wire: MQTT 3.1.1 framing at QoS 1, TCP/IPv4 with timestamps, one
acknowledgement segment for two data segments, and the chunks that the Bus would cut. ``python -m broker.link --profile
hspa --listen 127.0.0.1:1884 --connect 127.0.0.1:1883`` is the same link for real: bytes pass at the profile's rate in
either direction, after its latency.

Rates are Table II of the paper; it gives no latencies, so the clock's default is none.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from services.bus.chunks import chunk_size, count_of
from services.bus.messages import ROOT, Chunk, Manifest

Direction = Literal["up", "down"]

MSS = 1448
"""Bytes of data in a segment: 1500 of Ethernet's, less 20 of IPv4, 20 of TCP, 12 of its timestamps."""
SEGMENT_HEADERS = 52
STAMP = 25
"""Bytes of ``origin`` and ``n``, which ``Bus.publish`` adds to an encoded message (``n`` of three bytes)."""
_SLICE_S = 0.005
_DEVICE = "edge-0"


@dataclass(frozen=True)
class Profile:
    """A link, in bits a second either way; ``up`` is from the device. ``latency_s`` is one way."""

    name: str
    up: float
    down: float
    latency_s: float = 0.0

    def rate(self, direction: Direction) -> float:
        """Bits a second that way."""
        return self.up if direction == "up" else self.down


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("lora", 50e3, 50e3),
        Profile("802.15.4g", 800e3, 800e3),
        Profile("hspa", 5.76e6, 21.1e6),
        Profile("lte", 50e6, 150e6),
    )
}


def profile(name: str) -> Profile:
    """The profile of that name. Raises ValueError naming those there are."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ValueError(f"no link profile {name!r}; there are {', '.join(PROFILES)}") from None


@dataclass(frozen=True)
class WireBytes:
    """What a message costs: bytes that way, and what comes back for it."""

    forward: int
    backward: int


def packet_bytes(topic: str, payload: int, qos: int = 1) -> int:
    """Bytes of one MQTT 3.1.1 PUBLISH: fixed header, topic, packet id from QoS 1 on, payload of that length."""
    rest = 2 + len(topic.encode()) + (2 if qos else 0) + payload
    if rest > 268_435_455:
        raise ValueError(f"an MQTT packet cannot carry {payload} bytes")
    return 1 + _length_bytes(rest) + rest


def _length_bytes(length: int) -> int:
    return 1 if length < 128 else 2 if length < 16384 else 3 if length < 2097152 else 4


def stream_bytes(data: int) -> WireBytes:
    """Bytes of a burst of ``data`` bytes of a TCP stream: full segments, and an acknowledgement for every other one."""
    segments = -(-data // MSS)
    return WireBytes(data + segments * SEGMENT_HEADERS, -(-segments // 2) * SEGMENT_HEADERS)


def frames(payload: int, chunk: int | None = None, session: str = "0" * 12) -> list[int]:
    """Payload lengths of the packets that the Bus makes of a message of ``payload`` encoded bytes.

    Itself with its stamp, or manifest and chunks. The framing of chunks is counted by encoding one, with numbers as long
    as they get in such a transfer.
    """
    chunk = chunk_size() if chunk is None else chunk
    if payload <= chunk:
        return [payload + STAMP]
    origin, digest, count = "0" * 12, bytes(16), count_of(payload, chunk)
    manifest = Manifest(session=session, origin=origin, n=count, length=payload, chunk=chunk, digest=digest)
    lengths = [len(msgspec.msgpack.encode(manifest))]
    for size, many in ((chunk, payload // chunk), (payload % chunk, 1 if payload % chunk else 0)):
        if many:
            part = Chunk(session=session, origin=origin, n=count, digest=digest, index=count, data=bytes(size))
            lengths += [len(msgspec.msgpack.encode(part))] * many
    return lengths


def wire_bytes(topic: str, payload: int, qos: int = 1, chunk: int | None = None) -> WireBytes:
    """What a message of ``payload`` encoded bytes costs on the wire: forward, and backward in acknowledgements.

    ``topic`` is the whole one, ``r2f/v1/...``; ``payload`` is ``len(wire.encode(message))``, without the Bus's stamp.

    Every packet is a burst of its own, as the Bus sends it (TCP_NODELAY); at QoS 1 each is answered with a PUBACK of four
    bytes in a segment, which the sender's TCP acknowledges with its next data.
    """
    forward = backward = 0
    for length in frames(payload, chunk):
        burst = stream_bytes(packet_bytes(topic, length, qos))
        forward += burst.forward
        backward += burst.backward
        if qos:
            backward += 4 + SEGMENT_HEADERS
    return WireBytes(forward, backward)


def message_bytes(name: str, payload: int, link: Profile | None = None) -> int:
    """Bytes on the wire of a message on ``up/...`` or ``down/...`` of a device with a name of usual length.

    In the chunks that the Bus cuts for that direction of ``link``, else in its largest; ``payload`` as for ``wire_bytes``.
    """
    chunk = chunk_size(None if link is None else link.rate("up" if name.startswith("up/") else "down"))
    return wire_bytes(f"{ROOT}/{_DEVICE}/{name}", payload, chunk=chunk).forward


def seconds(wire: int, link: Profile, direction: Direction) -> float:
    """Time that ``wire`` bytes on the wire take: their bits at the link's rate, after its latency."""
    return wire * 8 / link.rate(direction) + link.latency_s


def transfer_s(topic: str, payload: int, link: Profile, direction: Direction) -> float:
    """Time from the first bit sent to the last received of a message of ``payload`` encoded bytes."""
    chunk = chunk_size(link.rate(direction))
    return seconds(wire_bytes(topic, payload, chunk=chunk).forward, link, direction)


# -- the proxy --------------------------------------------------------------------------------------------------------


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


def main() -> None:
    """Run the proxy until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m broker.link", description="A slow link between device and broker.")
    parser.add_argument("--profile", choices=list(PROFILES), required=True)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="one way")
    parser.add_argument("--listen", default="127.0.0.1:1884", help="host:port for the device")
    parser.add_argument("--connect", default="127.0.0.1:1883", help="host:port of the server's broker")
    options = parser.parse_args()

    async def run() -> None:
        link = profile(options.profile)
        link = Profile(link.name, link.up, link.down, options.latency_ms / 1e3)
        async with shape(link, _address(options.connect), _address(options.listen)) as shaped:
            print(f"{link.name} on {shaped.host}:{shaped.port}", flush=True)
            await asyncio.Event().wait()

    try:
        asyncio.run(run())
    except (OSError, ValueError) as error:
        sys.exit(f"link: {error}")
    except KeyboardInterrupt:
        pass


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"{text!r} is no host:port")
    return host or "127.0.0.1", int(port)


if __name__ == "__main__":
    main()
