"""The one way onto the bus: a client that keeps its promises over a broker that comes and goes (architecture.md, "The bus").

At least once, in order a topic, from any one sender:

- QoS 1, with many packets under way at once: a publish does not wait for its acknowledgement, it waits only where the
  window is full. What was not acknowledged when a connection broke is sent again, in order, on the next.
- A broker that dies takes with it what it had acknowledged and not delivered. So every message of the planes down, up,
  edge and server is numbered (``origin``, ``n``); a receiver drops what it had, holds back what came too early, and
  asks the sender for what it missed on ``{plane}/flow``. A sender keeps its latest messages for that. After a
  reconnection the sender repeats its last message of each topic and the receiver says where it is: whoever comes last
  closes the gap.
- The same Flow message carries credit: a sender is at most a window ahead of the receiver, so that neither the broker's
  queue (which drops silently when it is full) nor the device's memory fills up over a slow link.

``state/*`` is retained and repeated after a reconnection; ``event/*`` is QoS 0 and lost while there is no broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import secrets
import socket
import ssl
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import aiomqtt
import aiomqtt.exceptions
import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from services.bus import arena as arenas
from services.bus import encoding, topics
from services.bus.chunks import CHUNK, Reassembler, chunk_size, split
from services.bus.connection import Connection
from services.bus.encoding import MessageError
from services.bus.messages import Chunk, Flow, Manifest, Message, Stage, State, Tensor, Timing
from services.bus.topics import Topic

WINDOW = 64
"""Messages that a sender may be ahead of a receiver that gives credit, on one topic."""
CREDIT_EVERY = 16
CREDIT_WAIT_S = 10.0
"""How long a sender waits for credit before it goes on without; on a link, and for the window to cross it."""
UNACKNOWLEDGED = 256
UNACKNOWLEDGED_BYTES = 16 << 20
KEPT_BYTES = 32 << 20
HELD = 1024
HELD_BYTES = 64 << 20
"""What came too early, of all senders; what is over that is asked for again."""
FARTHEST = 1 << 20
"""A number that is further ahead than this is not a gap but nonsense."""
SMALL_TENSOR = 2048
"""Bytes under which a tensor travels inline: a slot of the arena would cost more."""

log = structlog.get_logger(__name__)
_QUIET = logging.getLogger("services.bus.mqtt")
_QUIET.setLevel(logging.CRITICAL)  # what paho calls an error is a connection that ended, which we report ourselves


class BusError(Exception):
    """The bus cannot be used: broker unreachable, credentials refused, subscription not allowed."""


@dataclass(slots=True)
class _Entry:
    topic: str
    payload: bytes
    retain: bool = False
    n: int = 0
    acknowledged: bool = False


@dataclass(slots=True)
class _Out:
    """What this Bus sends on one topic."""

    chunk: int
    wait_s: float
    n: int = 0
    taken: int = 0
    credited: bool = False
    kept: deque[_Entry] = field(default_factory=deque)


@dataclass(slots=True)
class _In:
    """What arrives from one sender on one topic."""

    next: int
    held: dict[int, tuple[Message | None, int]] = field(default_factory=dict)
    credited: int = 0
    gap_since: float = 0.0
    asked: float = 0.0
    refused: bool = False
    seen: float = 0.0


def broker_address(url: str) -> tuple[str, int, str | None, str | None, bool]:
    """Host, port, user, password and whether TLS of ``mqtt[s]://[user:password@]host[:port]``. Raises BusError."""
    parts = urlsplit(url if "://" in url else f"mqtt://{url}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == 0:
        raise BusError(f"{_hidden(url)} is no broker; write mqtt://host:port or mqtts://user:password@host:port")
    secure = parts.scheme == "mqtts"
    user = unquote(parts.username) if parts.username else os.environ.get("R2F_USERNAME")
    password = unquote(parts.password) if parts.password else os.environ.get("R2F_PASSWORD")
    return parts.hostname, port or (8883 if secure else 1883), user, password, secure


def _link_rate() -> float | None:
    """$R2F_LINK_BITS_PER_S, None where it is not set. Raises BusError where it is no rate."""
    text = os.environ.get("R2F_LINK_BITS_PER_S", "")
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < math.inf:
        raise BusError(f"R2F_LINK_BITS_PER_S is {text!r}; set it to the link's bits a second")
    return rate


def _hidden(url: str) -> str:
    """The URL without its password, for messages."""
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://…@{tail}" if at else url


class Bus:
    """One service's connection to the bus, as an async context manager and an async iterator of (topic, message).

    ``url``: ``mqtt[s]://[user:password@]host[:port]``; user and password else from $R2F_USERNAME, $R2F_PASSWORD.
    ``ca_file``, ``cert_file``, ``key_file``: PEM files for TLS, else $R2F_CA_FILE, $R2F_CERT_FILE, $R2F_KEY_FILE, else the
    system's authorities and no certificate of our own.
    ``service`` names it in ``state/{service}``; ``device`` is the one whose topics short names stand for.
    ``session``: messages of another are dropped and counted, where set. ``link_bits_per_s``, else $R2F_LINK_BITS_PER_S: the
    rate of the link, of which chunks on ``up`` and ``down`` are at most two seconds. ``passive``: only watch; no birth, no
    credit, no requests. ``arena_bytes``: shared memory for tensors on their way, 0 to send them inline; ``arena_age_s``: after
    which a slot is taken back from a reader that is silent. ``readers``: the services that open this one's tensors; when one of
    them starts anew all slots are taken back, since it knows nothing of them. ``give_up_s``: how long to look for a broker,
    at first and whenever it goes away, before BusError. ``message_limit``: bytes of the largest message; ``inbox_bytes``:
    received and not yet iterated, where it stops taking.
    """

    def __init__(
        self,
        url: str,
        service: str,
        device: str,
        *,
        session: str = "",
        ca_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        passive: bool = False,
        link_bits_per_s: float | None = None,
        arena_bytes: int = 256 << 20,
        arena_age_s: float = 30.0,
        readers: Sequence[str] = (),
        give_up_s: float = 30.0,
        keepalive_s: int = 30,
        message_limit: int = 256 << 20,
        inbox_bytes: int = 256 << 20,
    ) -> None:
        self.host, self.port, self._user, self._password, self._secure = broker_address(url)
        self.url = _hidden(url)
        self.service = service
        self.device = device
        self.session = session
        self.origin = secrets.token_hex(6)
        self.counts: Counter[str] = Counter()
        """sent, received, bad, foreign, duplicate, lost, refused, resent, reconnected, arena_full, events_lost."""
        self._state_topic = topics.build(device, "state", service)
        self._state = State(session=session, service=service, online=True, boot=self.origin)
        self._tls = (
            aiomqtt.TLSParameters(
                ca_certs=ca_file or os.environ.get("R2F_CA_FILE"),
                certfile=cert_file or os.environ.get("R2F_CERT_FILE"),
                keyfile=key_file or os.environ.get("R2F_KEY_FILE"),
                cert_reqs=ssl.CERT_REQUIRED,
            )
            if self._secure
            else None
        )
        self._passive = passive
        rate = _link_rate() if link_bits_per_s is None else link_bits_per_s
        self._link_chunk = chunk_size(rate)
        self._link_wait_s = CREDIT_WAIT_S + (0.0 if rate is None else WINDOW * self._link_chunk * 8 / rate)
        # On a thin link a ping waits behind what is under way: eight seconds' worth at most.
        self._unacknowledged_limit = UNACKNOWLEDGED_BYTES if rate is None else 4 * self._link_chunk
        self._arena_bytes = arena_bytes
        self._arena_age_s = arena_age_s
        self._reader_boots = {topics.build(device, "state", name): "" for name in readers}
        self._give_up_s = give_up_s
        self._keepalive_s = keepalive_s
        self._client: Connection | None = None
        self._gone: asyncio.Future[None] | None = None
        self._ready = asyncio.Event()
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self._patterns: dict[str, int] = {}
        self._outs: dict[str, _Out] = {}
        self._kept: deque[_Out] = deque()
        """Whose kept messages they are, oldest first: one mention for each."""
        self._kept_bytes = 0
        self._pending: OrderedDict[int, _Entry] = OrderedDict()
        self._pending_bytes = 0
        self._serial = 0
        self._by_packet: dict[int, int] = {}
        self._retained: dict[str, _Entry] = {}
        self._held_bytes = 0
        self._ins: OrderedDict[tuple[str, str], _In] = OrderedDict()
        self._inbox: deque[tuple[str, Message, int]] = deque()
        self._inbox_bytes = 0
        self._waiting: asyncio.Future[None] | None = None
        self._reassembler = Reassembler(message_limit)
        self._message_limit = message_limit
        self._inbox_limit = inbox_bytes
        self._tasks: list[asyncio.Task[None]] = []
        self._connections = 0
        self._arena: arenas.Arena | None = None
        self._reader: arenas.Reader | None = None
        self._where = arenas.folder() if arena_bytes else None
        self._log = log.bind(service=service, device=device)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect. Raises BusError where no broker answers within ``give_up_s`` or it refuses the credentials."""
        if not self._passive:
            await self._announce(self._state)
            await self._subscribe_now([(topic, 1) for topic in (self._state_topic, *self._reader_boots)])
        self._tasks = [asyncio.create_task(self._connect_for_ever()), asyncio.create_task(self._mend_for_ever())]
        for task in self._tasks:
            task.add_done_callback(self._ended)
        try:
            await self._until(self._ready)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Deliver what is under way (five seconds at most), say goodbye and disconnect."""
        if self._failure is None and self._ready.is_set():
            with contextlib.suppress(BusError, TimeoutError):
                if not self._passive:
                    self._state = msgspec.structs.replace(self._state, online=False)
                    await self._announce(self._state)
                await asyncio.wait_for(self.flush(), 5.0)
        await self._stop()

    async def _stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._arena is not None:
            self._arena.close()
            self._arena = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # -- sending ------------------------------------------------------------------------------------------------------

    def topic(self, name: str, device: str | None = None) -> str:
        """The whole topic of a short name such as ``up/layers``, of this Bus's device or another."""
        return topics.absolute(name, device or self.device)

    async def publish(self, topic: str, message: Message, *, retain: bool = False) -> int:
        """Send a message, in order after what was published before on that topic; waits only for room in the window.

        It returns before the message has arrived: ``flush`` waits for the broker. Messages above the chunk size go in
        chunks. Raises MessageError for a message that does not belong on that topic, and BusError once the broker has
        been away for ``give_up_s``.

        Returns the bytes of the MQTT payloads that it made, 0 for an event or a state.
        """
        topic = topics.absolute(topic, self.device)
        parsed = _checked(topic, message)
        if parsed.plane in topics.LINK_PLANES:
            encoding.check_inline(topic, message)
        if parsed.plane == "event":
            self._event(topic, message)
            return 0
        if parsed.plane == "state":
            await self._announce(message, topic)
            return 0
        out = self._outs.get(topic)
        if out is None:
            crosses = parsed.plane in topics.LINK_PLANES
            out = self._outs[topic] = _Out(
                self._link_chunk if crosses else CHUNK, self._link_wait_s if crosses else CREDIT_WAIT_S
            )
            if not self._passive:
                # Not waited for: it goes out before the message does, and answers come after.
                task = asyncio.create_task(self._subscribe_now([(_flow_topic(parsed), 1)]))
                task.add_done_callback(self._ended)
                self._tasks.append(task)
        payload = encoding.encode(message)
        if len(payload) <= out.chunk:
            return await self._number_and_send(topic, out, message, retain)
        if retain:
            raise MessageError(f"{topic}: {len(payload)} bytes go in chunks, and chunks cannot be retained")
        if len(payload) > self._message_limit:
            raise MessageError(f"{topic}: {len(payload)} bytes are over the limit of {self._message_limit}")
        size = 0
        for frame in split(message.session, payload, out.chunk):
            size += await self._number_and_send(topic, out, frame, False)
            await asyncio.sleep(0)  # others may come between
        return size

    async def _number_and_send(self, topic: str, out: _Out, message: Message, retain: bool) -> int:
        await self._room(out)
        out.n += 1
        message.origin, message.n = self.origin, out.n
        entry = _Entry(topic, encoding.encode(message), retain, out.n)
        message.origin, message.n = "", 0
        out.kept.append(entry)
        self._kept.append(out)
        self._kept_bytes += len(entry.payload)
        if self._kept_bytes > KEPT_BYTES:
            self._forget_oldest()
        if retain:
            self._retained[topic] = entry
        self._send(entry)
        return len(entry.payload)

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

    async def _room(self, out: _Out) -> None:
        while len(self._pending) >= UNACKNOWLEDGED or self._pending_bytes >= self._unacknowledged_limit:
            await self._change()
        deadline = time.monotonic() + out.wait_s
        while out.credited and out.n - out.taken >= WINDOW:
            left = deadline - time.monotonic()
            if left <= 0:
                out.credited = False
                self._log.warning("no credit from the receiver, going on without", waited_s=out.wait_s)
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._change(), left)
        if self._failure is not None:
            raise self._failure

    def _send(self, entry: _Entry) -> None:
        self._serial += 1
        entry.acknowledged = False
        self._pending[self._serial] = entry
        self._pending_bytes += len(entry.payload)
        self.counts["sent"] += 1
        if self._client is not None:
            self._transmit(self._client, self._serial, entry)

    def _transmit(self, client: Connection, serial: int, entry: _Entry) -> None:
        self._by_packet[client.send(entry.topic, entry.payload, 1, entry.retain)] = serial

    def _acknowledged(self, packet: int) -> None:
        serial = self._by_packet.pop(packet, None)
        entry = self._pending.pop(serial, None) if serial is not None else None
        if entry is not None:
            entry.acknowledged = True
            self._pending_bytes -= len(entry.payload)
            self._wake()

    async def flush(self) -> None:
        """Wait until the broker has acknowledged everything published so far. Raises BusError where it stays away."""
        last = self._serial
        while self._pending and next(iter(self._pending)) <= last:
            await self._change()
        if self._failure is not None:
            raise self._failure

    def _event(self, topic: str, message: Message) -> None:
        client = self._client
        if client is None:
            self.counts["events_lost"] += 1
            return
        self.counts["sent"] += 1
        client.send(topic, encoding.encode(message), 0)

    async def announce(self, **fields: Any) -> None:
        """Publish this service's retained State with these fields changed, such as ``version=3``."""
        self._state = msgspec.structs.replace(self._state, **fields)
        await self._announce(self._state)

    async def _announce(self, state: Message, topic: str | None = None) -> None:
        entry = _Entry(topic or self._state_topic, encoding.encode(state), True)
        self._retained[entry.topic] = entry
        self._send(entry)

    @contextlib.asynccontextmanager
    async def timing(self, session: str, stage: Stage, iteration: int, segment: int = -1) -> AsyncIterator[Timing]:
        """Measure the host time of a block and publish it on ``event/{stage}``; the block may fill in other fields."""
        timing = Timing(session=session, stage=stage, iteration=iteration, host_s=0.0, segment=segment)
        start = time.perf_counter()
        yield timing
        timing.host_s = time.perf_counter() - start
        await self.publish(f"event/{stage}", timing)

    # -- receiving ----------------------------------------------------------------------------------------------------

    async def subscribe(self, *patterns: str) -> None:
        """Listen to topics: short (``up/layers``, ``event/#``) or whole (``r2f/v1/+/up/#``). Survives reconnections.

        Raises BusError where the broker does not allow it, ValueError for what is no pattern.
        """
        wanted = []
        for pattern in patterns:
            whole = topics.absolute(pattern, self.device)
            levels = whole.split("/")
            if any(("#" in level and (level != "#" or i < len(levels) - 1)) or ("+" in level and level != "+")
                   for i, level in enumerate(levels)) or "" in levels:  # fmt: skip
                raise ValueError(f"{pattern!r} is no topic pattern: '+' is one whole level, '#' the last")
            wanted.append((whole, 1))
        await self._subscribe_now(wanted)

    async def _subscribe_now(self, wanted: list[tuple[str, int]]) -> None:
        fresh = [(pattern, qos) for pattern, qos in wanted if pattern not in self._patterns]
        self._patterns.update(fresh)
        client = self._client
        if client is not None and self._gone is not None and fresh:
            subscribing = asyncio.create_task(self._subscribe_on(client, fresh, math.inf))
            # Where the connection breaks this would never return; the next connection subscribes.
            await asyncio.wait({subscribing, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            if subscribing.done():
                with contextlib.suppress(aiomqtt.MqttError):
                    subscribing.result()
            else:
                subscribing.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task in self._tasks:
            self._tasks.remove(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def _subscribe_on(self, client: Connection, wanted: list[tuple[str, int]], timeout_s: float | None = None) -> None:
        granted: list[Any] = list(await client.subscribe(wanted, timeout=timeout_s))
        for (pattern, _), code in zip(wanted, granted, strict=True):
            if getattr(code, "value", code) >= 0x80:
                del self._patterns[pattern]
                user = self._user or "no user"
                raise BusError(f"broker {self.url} does not allow {user} to subscribe to {pattern}")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[str, Message]:
        """The next message. Raises BusError once the broker has been away for ``give_up_s``."""
        while not self._inbox:
            if self._failure is not None:
                raise self._failure
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        topic, message, size = self._inbox.popleft()
        before, self._inbox_bytes = self._inbox_bytes, self._inbox_bytes - size
        if before > self._inbox_limit // 2 >= self._inbox_bytes:
            self._ask_refused()
        return topic, message

    async def receive(self, timeout_s: float | None = None) -> tuple[str, Message]:
        """The next message, as iteration gives it. Raises TimeoutError after ``timeout_s`` seconds."""
        if self._inbox:
            return await self.__anext__()
        return await asyncio.wait_for(self.__anext__(), timeout_s)

    def _arrived(self, topic: str, payload: bytes, retained: bool) -> None:
        if not payload and retained:
            return  # a retained message was cleared
        try:
            try:
                message = encoding.decode(topic, payload)
            except MessageError as error:
                self._bad(error)
                # Its number has come all the same: asking for it again would bring the same bytes.
                stamp = encoding.stamp(payload)
                if stamp is not None:
                    self._number(topic, *stamp, None, len(payload), retained)
                return
            self._take(topic, message, len(payload), retained)
        except MessageError as error:
            self._bad(error)
        except Exception as error:
            # Not the sender's fault but ours; raising here would only look like a lost connection.
            self._fail(error)

    def reject(self, topic: str, reason: str) -> None:
        """Count and log a message that was taken in and turned out to be wrong; its receiver drops it."""
        self._bad(MessageError(f"{topic}: {reason}"))

    def _bad(self, error: MessageError) -> None:
        self.counts["bad"] += 1
        self._log.warning("message dropped", error=str(error), dropped=self.counts["bad"])

    def _take(self, topic: str, message: Message, size: int, retained: bool) -> None:
        if isinstance(message, Flow):
            self._flow(message)
            return
        if isinstance(message, State) and topic == self._state_topic and not self._passive:
            self._own_state(message)
            return
        if isinstance(message, State) and topic in self._reader_boots:
            self._reader_state(topic, message)
        origin, n = message.origin, message.n
        message.origin, message.n = "", 0  # they are the bus's, not the service's
        if n and origin:
            self._number(topic, origin, n, message, size, retained)
        else:
            self._deliver(topic, origin, message, size)

    def _number(self, topic: str, origin: str, n: int, message: Message | None, size: int, retained: bool) -> None:
        """Deliver a numbered message (None: one that could not be read) in its turn, once."""
        key = (topic, origin)
        flow = self._ins.get(key)
        if flow is None:
            # After a reconnection an unknown sender at its beginning began while there was no broker: we want it all.
            began = self._connections > 1 and n <= UNACKNOWLEDGED and not retained and not self._passive
            first = 1 if began else n
            flow = self._ins[key] = _In(first)
            if len(self._ins) > 4096:
                _, gone = self._ins.popitem(last=False)
                self._held_bytes -= sum(held for _, held in gone.held.values())
        flow.seen = time.monotonic()
        if n < flow.next or n in flow.held:
            self.counts["duplicate"] += 1
        elif n > flow.next + FARTHEST:
            raise MessageError(f"{topic}: number {n} where {flow.next} is due")
        elif self._inbox_bytes > self._inbox_limit:
            self.counts["refused"] += 1
            flow.refused = True
        elif n > flow.next:
            self._early(topic, origin, flow, n, message, size)
        else:
            flow.next += 1
            self._deliver(topic, origin, message, size)
            if flow.gap_since:
                self._release_held(topic, origin, flow)
            if flow.next - flow.credited > CREDIT_EVERY:
                self._answer(topic, origin, flow)

    def _early(self, topic: str, origin: str, flow: _In, n: int, message: Message | None, size: int) -> None:
        now = time.monotonic()
        flow.gap_since = flow.gap_since or now
        if len(flow.held) < HELD and self._held_bytes + size <= HELD_BYTES:
            flow.held[n] = (message, size)
            self._held_bytes += size
        if self._passive:  # it asks nobody, so it does not wait either
            self._skip(topic, origin, flow)
        elif now - flow.asked > 0.5:
            flow.asked = now
            self._answer(topic, origin, flow)

    def _release_held(self, topic: str, origin: str, flow: _In) -> None:
        while (entry := flow.held.pop(flow.next, None)) is not None:
            flow.next += 1
            self._held_bytes -= entry[1]
            self._deliver(topic, origin, *entry)
        flow.gap_since = time.monotonic() if flow.held else 0.0

    def _skip(self, topic: str, origin: str, flow: _In) -> None:
        if not flow.held:
            flow.gap_since = 0.0
            return
        first = min(flow.held)
        self.counts["lost"] += first - flow.next
        if not self._passive:
            self._log.error("messages lost", topic=topic, origin=origin, first=flow.next, last=first - 1)
        flow.next = first
        self._release_held(topic, origin, flow)

    def _deliver(self, topic: str, origin: str, message: Message | None, size: int) -> None:
        if message is None:
            return
        if self.session and message.session not in ("", self.session) and not isinstance(message, State):
            self.counts["foreign"] += 1
            return
        try:
            if isinstance(message, Manifest | Chunk):
                payload = self._reassembler.add(topic, message, origin)
                if payload is None:
                    return
                size = len(payload)
                message = encoding.decode(topic, payload, whole=True)
        except MessageError as error:
            self._bad(error)
            return
        self.counts["received"] += 1
        self._inbox.append((topic, message, size))
        self._inbox_bytes += size
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _own_state(self, state: State) -> None:
        if state.boot == self.origin:
            return
        if state.online:
            self._log.warning("another service has this name", boot=state.boot)
        elif self._state.online:
            # The last will of our predecessor came after our birth.
            self._send(self._retained[self._state_topic])

    def _reader_state(self, topic: str, state: State) -> None:
        known = self._reader_boots[topic]
        if not state.online or known == state.boot:
            return
        self._reader_boots[topic] = state.boot
        if known and self._arena is not None:
            taken = self._arena.withdraw_all()
            self._log.info("a reader started anew, its tensors are taken back", reader=state.service, slots=taken)

    # -- numbers: credit, and what went missing -----------------------------------------------------------------------

    def _answer(self, topic: str, origin: str, flow: _In, everything: bool = False) -> None:
        if self._passive:
            return
        missing: list[tuple[int, int]] = []
        first = flow.next
        for n in sorted(flow.held):
            if n > first:
                missing.append((first, n - 1))
            first = n + 1
        if everything or (flow.gap_since and not flow.held):
            missing = [(flow.next, 0)]
        flow.credited = flow.next - 1
        parsed = topics.parse(topic)
        answer = Flow(session="", to=origin, topic=topic, taken=flow.next - 1, missing=tuple(missing[:64]))
        self._send(_Entry(_flow_topic(parsed), encoding.encode(answer)))

    def _ask_refused(self) -> None:
        for (topic, origin), flow in self._ins.items():
            if flow.refused:
                flow.refused = False
                self._answer(topic, origin, flow, everything=True)

    def _flow(self, message: Flow) -> None:
        if message.to != self.origin:
            return
        out = self._outs.get(message.topic)
        if out is None or message.taken > out.n:
            return
        out.credited = True
        out.taken = max(out.taken, message.taken)
        for first, last in message.missing:
            for entry in list(out.kept):
                if first <= entry.n <= (last or out.n) and entry.acknowledged:
                    self.counts["resent"] += 1
                    self._send(entry)
        self._wake()

    async def _mend_for_ever(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            now = time.monotonic()
            for (topic, origin), flow in list(self._ins.items()):
                if not flow.gap_since or self._client is None:
                    continue
                if now - flow.gap_since > self._give_up_s:
                    self._skip(topic, origin, flow)
                elif now - flow.asked > 1.0:
                    flow.asked = now
                    self._answer(topic, origin, flow)

    # -- tensors ------------------------------------------------------------------------------------------------------

    def share(self, array: NDArray[Any], readers: int = 1) -> Tensor:
        """A tensor for a message that stays on this host: by reference, for ``readers`` services to open and release.

        Inline instead where it is small, arenas are off, or the arena is full (counted as ``arena_full``).
        """
        array = np.asarray(array)
        if self._where is None or array.nbytes < SMALL_TENSOR:
            return encoding.inline(array)
        if array.dtype.name not in ("int8", "uint8", "int32", "int64", "float32"):
            raise TypeError(f"a tensor cannot be {array.dtype}; use int8, uint8, int32, int64 or float32")
        try:
            if self._arena is None:
                arenas.sweep(self._where)
                self._arena = arenas.Arena(
                    self._where, f"r2f-{self.service[:40]}-{self.origin}", self._arena_bytes, self._arena_age_s
                )
            return self._arena.put(array, readers)
        except arenas.ArenaFull as error:
            self.counts["arena_full"] += 1
            if self.counts["arena_full"] in (1, 10, 100) or self.counts["arena_full"] % 1000 == 0:
                self._log.warning("tensor sent inline", reason=str(error), times=self.counts["arena_full"])
            return encoding.inline(array)

    async def room(self, *sizes: int) -> None:
        """Wait until the readers have given back enough of the arena for tensors of so many bytes to be shared.

        So a sender that is faster than its readers slows down, and its memory stays under ``arena_bytes``. Raises ValueError
        where that would never be enough. After ``arena_age_s`` it is plain that they will not, and it returns.
        """
        if self._where is not None and sum(sizes) > self._arena_bytes:
            needed = math.ceil(sum(sizes) / 2**20)
            raise ValueError(f"{needed} MiB of tensors at once do not fit --arena-mb {self._arena_bytes >> 20}; raise it")
        deadline = time.monotonic() + self._arena_age_s
        while self._arena is not None and not self._arena.fits(sizes) and time.monotonic() < deadline:
            self._arena.collect()
            if not self._arena.fits(sizes):
                await asyncio.sleep(0.002)

    def withdraw(self, tensor: Tensor) -> None:
        """Take back a tensor that this Bus shared: whoever has not read it yet never will."""
        if tensor.ref is not None and self._arena is not None and tensor.ref.arena == self._arena.name:
            self._arena.withdraw(tensor.ref)

    def withdraw_all(self) -> None:
        """Take back every tensor that this Bus shared, as ``withdraw`` does: a pass that is given up leaves them behind."""
        if self._arena is not None:
            self._arena.withdraw_all()

    def open(self, tensor: Tensor) -> NDArray[Any]:
        """The read-only array of a tensor, without a copy. By reference it is good until ``release``.

        Raises MessageError where the slot was given away meanwhile, or is not of this host: drop the message.
        """
        if tensor.ref is None:
            return encoding.view(tensor)
        return self._arena_reader().open(tensor)

    def release(self, tensor: Tensor) -> bool:
        """Give a tensor's slot back to its sender, once the array is no longer looked at.

        False where the sender had given up waiting and taken it: then what was read may have changed under the reader.
        """
        return True if tensor.ref is None else self._arena_reader().release(tensor)

    def _arena_reader(self) -> arenas.Reader:
        if self._reader is None:
            where = arenas.folder()
            if where is None:
                raise MessageError("a tensor came by reference, and R2F_SHM_DIR is empty here; set it as the sender's")
            self._reader = arenas.Reader(where, f"{self.device}/{self.service}")
        return self._reader

    # -- the connection -----------------------------------------------------------------------------------------------

    def _new_client(self) -> Connection:
        will = None
        if not self._passive:
            gone = State(session=self.session, service=self.service, online=False, boot=self.origin)
            will = aiomqtt.Will(self._state_topic, encoding.encode(gone), 1, True)
        return Connection(
            self.host,
            self.port,
            arrived=self._arrived,
            acknowledged=self._acknowledged,
            username=self._user,
            password=self._password,
            identifier=f"{self.service}-{self.device}-{self.origin}",
            will=will,
            clean_session=True,
            timeout=min(10.0, max(1.0, self._give_up_s)),
            keepalive=self._keepalive_s,
            max_inflight_messages=UNACKNOWLEDGED,
            tls_params=self._tls,
            logger=_QUIET,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )

    async def _connect_for_ever(self) -> None:
        since = time.monotonic()
        delay = 0.05
        while True:
            reason = ""
            try:
                async with self._new_client() as client:
                    await self._connected(client)
                    since, delay = math.inf, 0.05
                    async for _ in client.messages:  # they go to _arrived; this only ends, with the connection
                        pass
            except aiomqtt.exceptions.MqttConnectError as error:
                value = getattr(error.rc, "value", error.rc)
                if value in (4, 5, 134, 135):
                    user = self._user or "no user"
                    self._fail(BusError(f"broker {self.url} refuses the credentials of {user} ({error})"))
                    return
                reason = str(error)
            except (aiomqtt.MqttError, OSError) as error:
                reason = str(error)
                if "CERTIFICATE_VERIFY_FAILED" in reason:
                    self._fail(BusError(f"broker {self.url} has no certificate that we trust: {reason}"))
                    return
            except BusError as error:
                self._fail(error)
                return
            finally:
                self._disconnected()
            now = time.monotonic()
            if since == math.inf:
                since = now
                self._log.warning("broker lost", broker=self.url, reason=reason)
            if now - since > self._give_up_s:
                self._fail(BusError(f"broker {self.url} is unreachable for {self._give_up_s:g} s: {reason}"))
                return
            await asyncio.sleep(delay)
            delay = min(2 * delay, 1.0)

    async def _connected(self, client: Connection) -> None:
        self._connections += 1
        asked: set[str] = set()
        while fresh := [(pattern, qos) for pattern, qos in self._patterns.items() if pattern not in asked]:
            asked.update(pattern for pattern, _ in fresh)
            await self._subscribe_on(client, fresh)
        self._client = client
        self._gone = asyncio.get_running_loop().create_future()
        for serial, entry in self._pending.items():
            self._transmit(client, serial, entry)
        if self._connections > 1:
            self.counts["reconnected"] += 1
            self.counts["resent"] += len(self._pending)
            self._log.info("broker is back", broker=self.url, unacknowledged=len(self._pending))
            self._repeat()
        self._ready.set()

    def _repeat(self) -> None:
        """Tell a broker that may be new what it does not know, and where we are to the senders."""
        known = {id(entry) for entry in self._pending.values()}
        # Of each topic the last, so that receivers see a gap.
        last = [*self._retained.values(), *(out.kept[-1] for out in self._outs.values() if out.kept)]
        for entry in last:
            if id(entry) not in known:
                known.add(id(entry))
                self.counts["resent"] += 1
                self._send(entry)
        now = time.monotonic()
        for (topic, origin), flow in self._ins.items():
            if now - flow.seen < 600:
                self._answer(topic, origin, flow, everything=True)

    def _disconnected(self) -> None:
        self._client = None
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        self._by_packet.clear()

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self._wake()
        self._ready.set()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        if self._failure is None:
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    async def _until(self, event: asyncio.Event) -> None:
        await event.wait()
        if self._failure is not None:
            raise self._failure


def _flow_topic(topic: Topic) -> str:
    """Where the receivers of a topic talk back to its sender."""
    return topics.build(topic.device, topics.ANSWERS[topic.plane], topics.FLOW)


_CHECKED: dict[str, tuple[Topic, type[Message]]] = {}


def _checked(topic: str, message: Message) -> Topic:
    """The parsed topic, if that message may travel on it. Raises MessageError."""
    known = _CHECKED.get(topic)
    if known is None:
        try:
            parsed = topics.parse(topic)
            known = _CHECKED[topic] = (parsed, topics.message_type(parsed))
        except ValueError as error:
            raise MessageError(str(error)) from None
    if not isinstance(message, known[1]):
        raise MessageError(f"{topic} carries {known[1].__name__}, not {type(message).__name__}")
    return known[0]
