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

The parts, each of which can be tried alone: ``sending``, ``receiving``, ``tensors``, ``identity``, ``connection``.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiomqtt
import msgspec
import structlog
from numpy.typing import NDArray

from services.bus import encoding, subscriptions, topics
from services.bus.address import BusError, Tls, broker_address
from services.bus.audit import Audit, path_of
from services.bus.connection import Connection, connection, keep
from services.bus.encoding import MessageError
from services.bus.identity import Names, Presence, sender_states
from services.bus.keys import keys_of
from services.bus.messages import REASON, Claim, Dropped, Flow, Message, Stage, State, Tensor, Timing
from services.bus.receiving import Receiver
from services.bus.sealing import Seals
from services.bus.sending import CREDIT_WAIT_S, UNACKNOWLEDGED, Sender, limits
from services.bus.subscriptions import Subscriptions
from services.bus.tensors import Tensors

TELL_S = 1.0
"""At most so often it is said that a message was dropped."""

log = structlog.get_logger(__name__)


class Bus:
    """One service's connection to the bus, as an async context manager and an async iterator of (topic, message).

    ``url``: ``mqtt[s]://[user:password@]host[:port]`` (``address.broker_address``). ``service`` names it in
    ``state/{service}``; ``device`` is the one whose topics short names stand for. ``session``: messages of another are dropped
    and counted, where set. ``tls``: files in place of the environment's. ``link_bits_per_s``, else $R2F_LINK_BITS_PER_S: the
    rate of the link, of which chunks on ``up`` and ``down`` are at most two seconds. ``passive``: only watch; no birth, no
    credit, no requests. ``arena_bytes``: shared memory for tensors on their way, 0 to send them inline; ``arena_age_s``: after
    which a slot is taken back from a reader that is silent. ``readers``: the services that open this one's tensors; when one
    of them starts anew all slots are taken back, since it knows nothing of them. ``signing_key_file``, else
    $R2F_SIGNING_KEY_FILE: keys of devices, by which messages are signed, and unsigned ones refused (``services.bus.sealing``);
    ValueError or OSError where it cannot be used. ``audit_log``, else $R2F_AUDIT_LOG: see ``services.bus.audit``.
    ``give_up_s``: how long to look for a broker, at first and whenever it goes away, before BusError. ``yields``: give the
    name to whoever else wants it, and end with BusError. ``message_limit``: bytes of the largest message; ``inbox_bytes``:
    received and not yet iterated, where it stops taking.
    """

    def __init__(
        self,
        url: str,
        service: str,
        device: str,
        *,
        session: str = "",
        tls: Tls | None = None,
        passive: bool = False,
        yields: bool = False,
        link_bits_per_s: float | None = None,
        arena_bytes: int = 256 << 20,
        arena_age_s: float = 30.0,
        readers: Sequence[str] = (),
        signing_key_file: Path | None = None,
        audit_log: Path | None = None,
        give_up_s: float = 30.0,
        keepalive_s: int = 30,
        message_limit: int = 256 << 20,
        inbox_bytes: int = 256 << 20,
    ) -> None:
        self.address = broker_address(url)
        self.url = self.address.shown
        self.service = service
        self.device = device
        self.session = session
        # Of two that begin at once the greater word stays, and "-" is below any digit.
        self.origin = ("-" if yields else "") + secrets.token_hex(6)
        self.counts: Counter[str] = Counter()
        """sent, received, bad, unsigned, forged, replayed, foreign, duplicate, lost, refused, resent, reconnected, arena_full,
        events_lost."""
        self._tls = tls or Tls()
        self._passive = passive
        self._give_up_s = give_up_s
        self._keepalive_s = keepalive_s
        self._keys = keys_of(signing_key_file)
        self._audit = None if passive else Audit(path_of(audit_log), service, device, self._keys.name(device))
        seals = Seals(self._keys, service, device, passive=passive, counts=self.counts)
        self._sender = Sender(self.origin, limits(link_bits_per_s, message_limit), self.counts, seals.seal)
        self._receiver = Receiver(
            lambda topic, flow: self._sender.say(topics.flow_topic(topic), flow),
            session=session,
            passive=passive,
            message_limit=message_limit,
            inbox_limit=inbox_bytes,
            counts=self.counts,
            link_s=self._sender.limits.link_wait_s - CREDIT_WAIT_S,
            unseal=seals.open,
            audit=self._audit,
        )
        self._tensors = Tensors(
            f"r2f-{service[:40]}-{self.origin}",
            f"{device}/{service}",
            arena_bytes,
            arena_age_s,
            [topics.build(device, "state", name) for name in readers],
            self.counts,
        )
        self._names = Names()
        state = State(session=session, service=service, online=True, boot=self.origin, key=self.key_name(device))
        self._presence = Presence(device, state, self._sender, yields=yields)
        self._client: Connection | None = None
        self._ready = asyncio.Event()
        self._subscriptions = Subscriptions(self.address)
        self._tasks: list[asyncio.Task[None]] = []
        self._connections = 0
        self._log = log.bind(service=service, device=device)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect, claim the name and announce it.

        Raises BusError where no broker answers within ``give_up_s``, it refuses the credentials, or the name is another's.
        """
        if not self._passive:
            await self._subscriptions.add((self._presence.topic, self._presence.claims, *self._tensors.readers))
        self._start(self._connect_for_ever())
        self._start(self._mend_for_ever())
        try:
            await self._ready.wait()
            self._sender.check()
            if not self._passive:
                await self._presence.begin()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Deliver what is under way (five seconds at most), say goodbye and disconnect."""
        self._presence.end()  # even after a failure: a service that is gone must not seem to be there
        flushing = asyncio.ensure_future(self.flush())
        try:
            await asyncio.wait([flushing], timeout=5.0)
        finally:
            flushing.cancel()
            await asyncio.gather(flushing, return_exceptions=True)  # of a failure all are told who wait for the Bus
            await self._stop()

    async def _stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tensors.close()

    def key_name(self, device: str) -> str:
        """Name of the key that messages of a device are signed with, and must be; empty where there is none."""
        return self._keys.name(device)

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
        try:
            parsed, kind = topics.travels(topic)
        except ValueError as error:
            raise MessageError(str(error)) from None
        if not isinstance(message, kind):
            raise MessageError(f"{topic} carries {kind.__name__}, not {type(message).__name__}")
        if parsed.plane in topics.LINK_PLANES:
            encoding.check_inline(topic, message)
        if parsed.plane == "event":
            self._event(topic, message)
            return 0
        if parsed.plane == "state":
            self._sender.say(topic, message, retain=True)
            return 0
        fresh = topic not in self._sender.outs
        out = self._sender.out(topic, parsed)
        if fresh and not self._passive:
            # Not waited for: it goes out before the message does, and answers come after.
            self._start(self._subscriptions.add([topics.flow_topic(topic)]))
        if self._audit is not None:
            self._audit.told(topic, message)
        return await self._sender.publish(topic, out, message, retain)

    async def flush(self) -> None:
        """Wait until the broker has acknowledged everything published so far. Raises BusError where it stays away."""
        await self._sender.flush()

    def _event(self, topic: str, message: Message) -> None:
        client = self._client
        if client is None:
            self.counts["events_lost"] += 1
            return
        self.counts["sent"] += 1
        client.send(topic, encoding.encode(message), 0)

    async def announce(self, **fields: Any) -> None:
        """Publish this service's retained State with these fields changed, such as ``version=3``."""
        self._presence.announce(msgspec.structs.replace(self._presence.state, **fields))

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
        wholes = [subscriptions.checked(topics.absolute(pattern, self.device)) for pattern in patterns]
        # First: who may send there is best known before it is heard.
        senders = [] if self._passive else [state for whole in wholes for state in sender_states(whole)]
        # What the Bus listened to for itself the broker will not say again.
        told = [whole for whole in wholes if whole not in self._subscriptions.wanted and self._names.known(whole) is not None]
        self._subscriptions.wanted.update(wholes)
        for topic in told:
            if (state := self._names.known(topic)) is not None:
                self._receiver.take(topic, state, len(encoding.encode(state)), retained=True, late=False)
        await self._subscriptions.add([*senders, *wholes])

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task in self._tasks:
            self._tasks.remove(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[str, Message]:
        """The next message. Raises BusError once the broker has been away for ``give_up_s``."""
        return await self._receiver.next()

    async def receive(self, timeout_s: float | None = None) -> tuple[str, Message]:
        """The next message, as iteration gives it. Raises TimeoutError after ``timeout_s`` seconds."""
        if not self._receiver.waits():
            return await self._receiver.next()
        async with asyncio.timeout(timeout_s):
            return await self._receiver.next()

    def reject(self, topic: str, reason: str) -> None:
        """Count and log a message that was taken in and turned out to be wrong; its receiver drops it."""
        self._receiver.bad(MessageError(f"{topic}: {reason}"))

    def _arrived(self, topic: str, payload: bytes, retained: bool) -> None:
        if not payload and retained:
            return  # a retained message was cleared
        late = self._connections > 1 and self._subscriptions.resumed(topic)
        try:
            try:
                message = encoding.decode(topic, payload)
            except MessageError as error:
                self._receiver.bad(error)
                # Its number has come all the same: asking for it again would bring the same bytes.
                stamp = encoding.stamp(payload)
                if stamp is not None and self._may_send(topic, *stamp):
                    self._receiver.number(topic, *stamp, None, len(payload), retained=retained, late=late)
                return
            if self._is_for_us(topic, message) and self._may_send(topic, message.origin, message.n):
                self._receiver.take(topic, message, len(payload), retained=retained, late=late)
        except MessageError as error:
            self._receiver.bad(error)
        except BusError as error:  # the name is another's
            self._fail(error)
        except Exception as error:
            # A mistake of ours on one message; raising here would only look like a lost connection.
            self._log.error("message failed", topic=topic[:300], bytes=len(payload), exc_info=True)
            self._receiver.bad(MessageError(f"{topic[:300]}: {type(error).__name__}: {error}"))

    def _may_send(self, topic: str, origin: str, n: int) -> bool:
        if not origin or self._passive or self._names.may_send(topic, origin):
            return True
        self._receiver.foreign(topic, origin, n)
        return False

    def _is_for_us(self, topic: str, message: Message) -> bool:
        """Whether whoever iterates is to see a message; what the Bus itself is told is taken note of here."""
        match message:
            case Flow():
                self._sender.flow(message)
                return False
            case Claim():
                if not self._passive and topic == self._presence.claims:
                    self._presence.claimed(message)
            case State():
                self._names.note(topic, message)
                if not self._passive and topic == self._presence.topic:
                    self._presence.told(message)
                    return False
                if message.online:
                    self._receiver.named(message.boot)
                self._tensors.reader_told(topic, message)
            case _:
                return True
        return self._subscriptions.asked_for(topic)

    async def _mend_for_ever(self) -> None:
        told, at = 0, 0.0
        while True:
            await asyncio.sleep(0.25)
            if self._client is None:
                continue
            self._sender.mend()
            self._receiver.mend(self._give_up_s)
            now, dropped = time.monotonic(), self.counts["bad"]
            if dropped > told and now - at >= TELL_S and not self._passive:
                told, at = dropped, now
                reason = self._receiver.reason[:REASON]
                self._event(
                    self.topic("event/dropped"), Dropped(session="", service=self.service, reason=reason, dropped=dropped)
                )

    # -- tensors ------------------------------------------------------------------------------------------------------

    def share(self, array: NDArray[Any], readers: int = 1) -> Tensor:
        """See ``tensors.Tensors.share``; the same of the others here."""
        return self._tensors.share(array, readers)

    async def room(self, *sizes: int) -> None:
        """Wait until tensors of so many bytes can be shared. Raises ValueError where they never could."""
        await self._tensors.room(*sizes)

    def withdraw(self, tensor: Tensor) -> None:
        """Take back a tensor that this Bus shared: whoever has not read it yet never will."""
        self._tensors.withdraw(tensor)

    def withdraw_all(self) -> None:
        """Take back every tensor that this Bus shared: a pass that is given up leaves them behind."""
        self._tensors.withdraw_all()

    def open(self, tensor: Tensor) -> NDArray[Any]:
        """The read-only array of a tensor, good until ``release``. Raises MessageError where it is gone."""
        return self._tensors.open(tensor)

    def release(self, tensor: Tensor) -> bool:
        """Give a tensor back to its sender. False where it had been taken back while it was being read."""
        return self._tensors.release(tensor)

    # -- the connection -----------------------------------------------------------------------------------------------

    def _new_client(self) -> Connection:
        will = None
        if not self._passive:
            will = aiomqtt.Will(self._presence.topic, encoding.encode(self._presence.will()), 1, True)
        return connection(
            self.address,
            self._tls,
            identifier=f"{self.service}-{self.device}-{self.origin}",
            will=will,
            inflight=UNACKNOWLEDGED,
            timeout_s=min(10.0, max(1.0, self._give_up_s)),
            keepalive_s=self._keepalive_s,
            arrived=self._arrived,
            acknowledged=self._sender.acknowledged,
        )

    async def _connect_for_ever(self) -> None:
        def under_way() -> tuple[str, int] | None:
            entry = self._sender.largest()
            return None if entry is None else (entry.topic, len(entry.payload))

        await keep(self._new_client, self._connected, self._disconnected, under_way, self.address, self._give_up_s)

    async def _connected(self, client: Connection) -> None:
        self._connections += 1
        await self._subscriptions.connected(client)
        self._client = client
        unacknowledged = len(self._sender.pending)
        self._sender.connected(client)
        if self._connections > 1:
            self.counts["reconnected"] += 1
            self.counts["resent"] += unacknowledged
            self._log.info("broker is back", broker=self.url, unacknowledged=unacknowledged)
            self._sender.repeat()
            self._receiver.reconnected()
        self._ready.set()

    def _disconnected(self) -> None:
        self._client = None
        self._subscriptions.disconnected()
        self._sender.disconnected()

    def _fail(self, error: BaseException) -> None:
        self._sender.fail(error)
        self._receiver.fail(error)
        self._ready.set()
