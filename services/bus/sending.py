"""What one Bus sends: numbered, kept for those who missed it, no further ahead of a receiver than its credit.

Knows no broker: it is given a connection when there is one, and told of acknowledgements.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import structlog

from services.bus import encoding, topics
from services.bus.address import link_rate, packet_limit
from services.bus.chunks import CHUNK, chunk_size, split
from services.bus.encoding import MessageError
from services.bus.messages import Flow, Message
from services.bus.topics import Topic

WINDOW: Final = 64
"""Messages that a sender may be ahead of a receiver that gives credit, on one topic."""
UNACKNOWLEDGED: Final = 256
UNACKNOWLEDGED_BYTES: Final = 16 << 20
KEPT_BYTES = 32 << 20
CREDIT_WAIT_S = 10.0
"""How long a sender waits for credit before it goes on without; on a link, and for the window to cross it."""
FRAMING: Final = 512
"""Bytes of a packet that are not the chunk in it, at most: topic, MQTT's header, the message's other fields."""
AGAIN_S: Final = 0.2
"""What is wanted again of a topic is sent no more often than so, however often it is asked for."""
RANGES: Final = 64
"""Of what is wanted and waits for that; more are taken as one range."""
OFTEN: Final = 5
"""A packet that was sent again as often, and is still asked for, is one that the broker drops."""

log = structlog.get_logger(__name__)


class Limits(NamedTuple):
    """How much goes in one packet, and at once."""

    chunk: int = CHUNK
    """Bytes of a message above which it is cut."""
    link_chunk: int = CHUNK
    """The same on ``up`` and ``down``."""
    link_wait_s: float = CREDIT_WAIT_S
    """How long to wait for credit there."""
    unacknowledged: int = UNACKNOWLEDGED_BYTES
    """Bytes that may be under way to the broker."""
    message: int = 256 << 20
    """Bytes of the largest message."""


def limits(link_bits_per_s: float | None, message: int) -> Limits:
    """Those of a link of that rate, else of $R2F_LINK_BITS_PER_S, and of $R2F_PACKET_BYTES. Raises BusError where these are
    no numbers."""
    rate = link_rate() if link_bits_per_s is None else link_bits_per_s
    packet = packet_limit()
    chunk = CHUNK if packet is None else min(CHUNK, packet - FRAMING)
    if rate is None:
        return Limits(chunk, chunk, CREDIT_WAIT_S, UNACKNOWLEDGED_BYTES, message)
    thin = min(chunk, chunk_size(rate))
    # A ping waits behind what is under way: eight seconds' worth at most.
    return Limits(chunk, thin, CREDIT_WAIT_S + WINDOW * thin * 8 / rate, 4 * thin, message)


class Link(Protocol):
    """A connection as the sender sees it."""

    def send(self, topic: str, payload: bytes, qos: int, retain: bool = False) -> int:
        """Hand a packet over; returns its id, which comes back with its acknowledgement."""
        ...


@dataclass(slots=True)
class Entry:
    """One packet, as often as it has to be sent."""

    topic: str
    payload: bytes
    retain: bool = False
    n: int = 0
    acknowledged: bool = False
    again: int = 0
    """How often it was sent again because a receiver has those after it."""


@dataclass(slots=True)
class Out:
    """What is sent on one topic: ``n`` messages so far, of which a receiver that gives credit has ``taken`` some."""

    chunk: int
    wait_s: float
    """How long the sender waits for credit before it goes on without."""
    n: int = 0
    taken: int = 0
    credited: bool = False
    kept: deque[Entry] = field(default_factory=deque)
    wanted: list[tuple[int, int]] = field(default_factory=list)
    """First and last of the ranges that are to be sent again."""
    sent_again: float = 0.0
    """When that was last done."""


class Sender:
    """The sending half of a Bus. ``origin`` is the sender's name in every message. ``counts`` gets sent and resent. ``seal``
    puts a message of a topic into its envelope."""

    def __init__(
        self,
        origin: str,
        limits: Limits,
        counts: Counter[str],
        seal: Callable[[str, Message], Message] = lambda topic, message: message,
    ) -> None:
        self._seal = seal
        self.origin = origin
        self.limits = limits
        self.outs: dict[str, Out] = {}
        self.retained: dict[str, Entry] = {}
        self.pending: OrderedDict[int, Entry] = OrderedDict()
        self._counts = counts
        self._link: Link | None = None
        self._serial = 0
        self._pending_bytes = 0
        self._by_packet: dict[int, int] = {}
        self._kept: deque[Out] = deque()
        """Whose kept messages they are, oldest first: one mention for each."""
        self._kept_bytes = 0
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    def out(self, topic: str, parsed: Topic) -> Out:
        """What has been sent on a topic, with the limits of its plane."""
        out = self.outs.get(topic)
        if out is None:
            crosses = parsed.plane in topics.LINK_PLANES
            chunk, wait_s = (self.limits.link_chunk, self.limits.link_wait_s) if crosses else (self.limits.chunk, CREDIT_WAIT_S)
            out = self.outs[topic] = Out(chunk, wait_s)
        return out

    async def publish(self, topic: str, out: Out, message: Message, retain: bool) -> int:
        """Send a message, in chunks where it is too large for one packet. Returns the bytes of all packets.

        Raises MessageError for one that is over the limit, or is to be retained and too large for that.
        """
        message = self._seal(topic, message)
        payload = encoding.encode(message)
        if len(payload) <= out.chunk:
            return await self._number(topic, out, message, retain)
        if retain:
            raise MessageError(f"{topic}: {len(payload)} bytes go in chunks, and chunks cannot be retained")
        if len(payload) > self.limits.message:
            raise MessageError(f"{topic}: {len(payload)} bytes are over the limit of {self.limits.message}")
        size = 0
        for frame in split(message.session, payload, out.chunk):
            size += await self._number(topic, out, frame, False)
            await asyncio.sleep(0)  # others may come between
        return size

    def say(self, topic: str, message: Message, *, retain: bool = False) -> None:
        """Send a message that is not numbered, and does not wait for room; the last one retained is what a new broker gets."""
        entry = Entry(topic, encoding.encode(message), retain)
        if retain:
            self.retained[topic] = entry
        self.send(entry)

    async def _number(self, topic: str, out: Out, message: Message, retain: bool) -> int:
        """Number a message and send it, once there is room. Returns its bytes."""
        await self._room(out)
        out.n += 1
        message.origin, message.n = self.origin, out.n
        entry = Entry(topic, encoding.encode(message), retain, out.n)
        message.origin, message.n = "", 0
        out.kept.append(entry)
        self._kept.append(out)
        self._kept_bytes += len(entry.payload)
        if self._kept_bytes > KEPT_BYTES:
            self._forget_oldest()
        if retain:
            self.retained[topic] = entry
        self.send(entry)
        return len(entry.payload)

    def send(self, entry: Entry) -> None:
        """Send a packet with QoS 1, and again on the next connection where this one breaks."""
        self._serial += 1
        entry.acknowledged = False
        self.pending[self._serial] = entry
        self._pending_bytes += len(entry.payload)
        self._counts["sent"] += 1
        if self._link is not None:
            self._transmit(self._link, self._serial, entry)

    def acknowledged(self, packet: int) -> None:
        """The broker has that packet."""
        serial = self._by_packet.pop(packet, None)
        entry = self.pending.pop(serial, None) if serial is not None else None
        if entry is not None:
            entry.acknowledged = True
            self._pending_bytes -= len(entry.payload)
            self.wake()

    async def flush(self) -> None:
        """Wait until the broker has acknowledged everything sent so far. Raises the failure where it stays away."""
        last = self._serial
        while self.pending and next(iter(self.pending)) <= last:
            await self._change()
        self.check()

    def flow(self, message: Flow) -> None:
        """A receiver says where it is, and what it wants again."""
        out = self.outs.get(message.topic)
        if message.to != self.origin or out is None or message.taken > out.n:
            return
        out.credited = True
        out.taken = max(out.taken, message.taken)
        out.wanted += message.missing
        if len(out.wanted) > RANGES:
            last = 0 if any(last == 0 for _, last in out.wanted) else max(last for _, last in out.wanted)
            out.wanted = [(min(first for first, _ in out.wanted), last)]
        self._send_again(out)
        self.wake()

    def mend(self) -> None:
        """Send again what was asked for too soon after the time before."""
        for out in self.outs.values():
            self._send_again(out)

    def _send_again(self, out: Out) -> None:
        now = time.monotonic()
        if not out.wanted or now - out.sent_again < AGAIN_S:
            return
        wanted, out.wanted, out.sent_again = out.wanted, [], now
        for entry in list(out.kept):
            asked = [last for first, last in wanted if first <= entry.n <= (last or out.n)]
            if not asked or not entry.acknowledged:
                continue
            self._counts["resent"] += 1
            entry.again += any(asked)
            if entry.again == OFTEN:
                log.error(
                    "the receiver has what came later and not this, though the broker took it: it seems to drop "
                    "packets of that size; raise its limit, or set R2F_PACKET_BYTES to it",
                    topic=entry.topic, bytes=len(entry.payload), sent=1 + OFTEN,
                )  # fmt: skip
            self.send(entry)

    def connected(self, link: Link) -> None:
        """There is a connection: what was not acknowledged on the one before goes out again, in order."""
        self._link = link
        for serial, entry in self.pending.items():
            self._transmit(link, serial, entry)

    def disconnected(self) -> None:
        """There is none."""
        self._link = None
        self._by_packet.clear()

    def repeat(self) -> None:
        """Tell a broker that may be new what it does not know: what is retained, and of each topic the last message, so that
        receivers see a gap."""
        known = {id(entry) for entry in self.pending.values()}
        for entry in [*self.retained.values(), *(out.kept[-1] for out in self.outs.values() if out.kept)]:
            if id(entry) not in known:
                known.add(id(entry))
                self._counts["resent"] += 1
                self.send(entry)

    def largest(self) -> Entry | None:
        """The largest packet that is not acknowledged."""
        return max(self.pending.values(), key=lambda entry: len(entry.payload), default=None)

    def fail(self, error: BaseException) -> None:
        """End all waiting with this error."""
        self._failure = self._failure or error
        self.wake()

    def check(self) -> None:
        """Raise the failure, if there is one."""
        if self._failure is not None:
            raise self._failure

    def wake(self) -> None:
        """Have whoever waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _transmit(self, link: Link, serial: int, entry: Entry) -> None:
        self._by_packet[link.send(entry.topic, entry.payload, 1, entry.retain)] = serial

    def _forget_oldest(self) -> None:
        # The last message of a topic is always kept: it is repeated after a reconnection.
        for _ in range(len(self._kept)):
            out = self._kept.popleft()
            if len(out.kept) == 1:
                self._kept.append(out)
                continue
            self._kept_bytes -= len(out.kept.popleft().payload)
            if self._kept_bytes <= KEPT_BYTES:
                return

    async def _room(self, out: Out) -> None:
        while len(self.pending) >= UNACKNOWLEDGED or self._pending_bytes >= self.limits.unacknowledged:
            await self._change()
        deadline = time.monotonic() + out.wait_s
        while out.credited and out.n - out.taken >= WINDOW:
            left = deadline - time.monotonic()
            if left <= 0:
                out.credited = False
                log.warning("no credit from the receiver, going on without", waited_s=out.wait_s)
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._change()
        self.check()

    async def _change(self) -> None:
        if self._failure is None:
            await self._changed.wait()
        self.check()
