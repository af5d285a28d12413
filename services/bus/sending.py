"""What one Bus sends: numbered, kept for those who missed it, no further ahead of a receiver than its credit.

Knows no broker: it is given a connection when there is one, and told of acknowledgements.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from services.bus import encoding
from services.bus.messages import Flow, Message

WINDOW: Final = 64
"""Messages that a sender may be ahead of a receiver that gives credit, on one topic."""
UNACKNOWLEDGED: Final = 256
UNACKNOWLEDGED_BYTES: Final = 16 << 20
KEPT_BYTES = 32 << 20

log = structlog.get_logger(__name__)


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


class Sender:
    """The sending half of a Bus. ``origin`` is the sender's name in every message; ``unacknowledged_bytes`` what may be under
    way. ``counts`` gets sent and resent."""

    def __init__(self, origin: str, unacknowledged_bytes: int, counts: Counter[str]) -> None:
        self.origin = origin
        self.outs: dict[str, Out] = {}
        self.retained: dict[str, Entry] = {}
        self.pending: OrderedDict[int, Entry] = OrderedDict()
        self._limit = unacknowledged_bytes
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

    async def number(self, topic: str, out: Out, message: Message, retain: bool) -> int:
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
        if self._failure is not None:
            raise self._failure

    def flow(self, message: Flow) -> None:
        """A receiver says where it is, and what it wants again."""
        out = self.outs.get(message.topic)
        if message.to != self.origin or out is None or message.taken > out.n:
            return
        out.credited = True
        out.taken = max(out.taken, message.taken)
        for first, last in message.missing:
            for entry in list(out.kept):
                if first <= entry.n <= (last or out.n) and entry.acknowledged:
                    self._counts["resent"] += 1
                    self.send(entry)
        self.wake()

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
        while len(self.pending) >= UNACKNOWLEDGED or self._pending_bytes >= self._limit:
            await self._change()
        deadline = time.monotonic() + out.wait_s
        while out.credited and out.n - out.taken >= WINDOW:
            left = deadline - time.monotonic()
            if left <= 0:
                out.credited = False
                log.warning("no credit from the receiver, going on without", waited_s=out.wait_s)
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._change(), left)
        if self._failure is not None:
            raise self._failure

    async def _change(self) -> None:
        if self._failure is None:
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure
