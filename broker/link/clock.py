"""The link as a clock: the bytes that a message puts on the wire, and the time that they take (architecture.md, "Time").

Counted are MQTT 3.1.1 framing at QoS 1, TCP/IPv4 with timestamps, one acknowledgement segment for two data segments, and
the chunks that the Bus would cut. ``broker.link.proxy`` is the same link for real.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from broker.link.profiles import Direction, Profile
from services.bus.chunks import chunk_size, count_of
from services.bus.messages import ROOT, Chunk, Manifest

MSS = 1448
"""Bytes of data in a segment: 1500 of Ethernet's, less 20 of IPv4, 20 of TCP, 12 of its timestamps."""
SEGMENT_HEADERS = 52
STAMP = 25
"""Bytes of ``origin`` and ``n``, which ``Bus.publish`` adds to an encoded message (``n`` of three bytes)."""
_DEVICE = "edge-0"


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
