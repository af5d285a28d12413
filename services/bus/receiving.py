"""What one Bus receives: each message once, in order, of the one who may send it, put together from its chunks.

Knows no broker: packets are given to it, and what it answers goes to a function.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from services.bus import encoding, topics
from services.bus.audit import Audit
from services.bus.chunks import Reassembler
from services.bus.encoding import MessageError
from services.bus.messages import Chunk, Claim, Flow, Manifest, Message, State
from services.shown import plain

CREDIT_EVERY: Final = 16
HELD = 1024
HELD_BYTES = 64 << 20
"""What came too early, of all senders; what is over that is asked for again."""
FARTHEST: Final = 1 << 20
"""A number that is further ahead than this is not a gap but nonsense."""
BEGINNING: Final = 4096
"""Numbers up to which a sender that was missed may have come: more than a second or two brings, and no old sender's history."""
SENDERS: Final = 4096
RECENT_S: Final = 600.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class In:
    """What arrives from one sender on one topic: the number that is ``next``, and what came too early."""

    next: int
    held: dict[int, tuple[Message | None, int]] = field(default_factory=dict)
    credited: int = 0
    gap_since: float = 0.0
    asked: float = 0.0
    refused: bool = False
    seen: float = 0.0


class Receiver:
    """The receiving half of a Bus.

    ``answer(topic, flow)`` sends a Flow back to the senders of a topic. ``session``: messages of another are dropped, where
    set. ``passive``: asks nobody and waits for nothing. ``message_limit``: bytes of the largest message; ``inbox_limit``:
    received and not yet read, where it stops taking. ``link_s``: for which what was sent before may be on the link, and what is
    asked for waits behind it. ``counts`` gets received, bad, foreign, duplicate, lost, refused. ``unseal`` takes a message of
    a topic out of its envelope, or raises MessageError; ``audit`` hears who was refused.
    """

    def __init__(
        self,
        answer: Callable[[str, Flow], None],
        *,
        session: str,
        passive: bool,
        message_limit: int,
        inbox_limit: int,
        counts: Counter[str],
        link_s: float = 0.0,
        unseal: Callable[[str, Message], Message] = lambda topic, message: message,
        audit: Audit | None = None,
    ) -> None:
        self._audit = audit
        self._unseal = unseal
        self.ins: OrderedDict[tuple[str, str], In] = OrderedDict()
        self._answer_with = answer
        self._session = session
        self._passive = passive
        self._link_s = link_s
        self._counts = counts
        self._reassembler = Reassembler(message_limit)
        self._inbox_limit = inbox_limit
        self._inbox: deque[tuple[str, Message, int]] = deque()
        self._inbox_bytes = 0
        self._held_bytes = 0
        self.reason = ""
        """Why the last one of those that are counted as bad was dropped."""
        self._dropped: dict[str, dict[str, int]] = {}
        """Who sent without having a sender's name, perhaps before the State that gives it: on each topic, the first number."""
        self._waiting: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None

    # -- reading --------------------------------------------------------------------------------------------------------

    async def next(self) -> tuple[str, Message]:
        """The next message and its topic. Raises the failure once there is one and everything before is read."""
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

    def waits(self) -> bool:
        """Whether ``next`` would wait."""
        return not self._inbox

    def fail(self, error: BaseException) -> None:
        """End all waiting with this error."""
        self._failure = self._failure or error
        self._notify()

    def bad(self, error: MessageError) -> None:
        """Count and log a message that is dropped."""
        self._counts["bad"] += 1
        self.reason = plain(str(error))
        if self._audit is not None:
            self._audit.refused(self.reason)
        log.warning("message dropped", error=self.reason, dropped=self._counts["bad"])

    # -- taking in ------------------------------------------------------------------------------------------------------

    def take(self, topic: str, message: Message, size: int, *, retained: bool, late: bool) -> None:
        """Take in one message of ``size`` bytes. ``late``: this Bus waited on that topic before its connection broke.

        Raises MessageError for a number that is nonsense.
        """
        origin, n = message.origin, message.n
        message.origin, message.n = "", 0  # they are the bus's, not the service's
        if n and origin:
            self.number(topic, origin, n, message, size, retained=retained, late=late)
        else:
            self._deliver(topic, origin, message, size)

    def number(
        self, topic: str, origin: str, n: int, message: Message | None, size: int, *, retained: bool, late: bool
    ) -> None:
        """Deliver a numbered message (None: one that could not be read) in its turn, once."""
        flow = self.ins.get((topic, origin))
        if flow is None:
            # After a reconnection an unknown sender at its beginning began while we had no broker: we want it all. It may have
            # come back before us and sent on.
            began = n <= BEGINNING and not retained and not self._passive and (late or origin in self._dropped)
            flow = self.ins[topic, origin] = In(1 if began else n)
            if len(self.ins) > SENDERS:
                _, gone = self.ins.popitem(last=False)
                self._held_bytes -= sum(held for _, held in gone.held.values())
        flow.seen = time.monotonic()
        if n < flow.next or n in flow.held:
            self._counts["duplicate"] += 1
        elif n > flow.next + FARTHEST:
            raise MessageError(f"{topic}: number {n} where {flow.next} is due")
        elif self._inbox_bytes > self._inbox_limit:
            self._counts["refused"] += 1
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

    def foreign(self, topic: str, origin: str, n: int) -> None:
        """Drop a message whose sender is not the one who has that name now. Should it become that, it is asked for all."""
        self._counts["foreign"] += 1
        if origin not in self._dropped:
            log.warning("messages of one who does not have the sender's name are dropped", topic=topic, origin=origin)
            if self._audit is not None:
                self._audit.refused("does not have the sender's name", topic=topic, boot=origin)
        if n and (origin in self._dropped or len(self._dropped) < SENDERS):
            self._dropped.setdefault(origin, {}).setdefault(topic, n)

    def named(self, origin: str) -> None:
        """A service announces itself: what it sent too early is asked for again, and the rest follows in order."""
        for topic, n in self._dropped.pop(origin, {}).items():
            flow = self.ins.setdefault((topic, origin), In(1 if n <= BEGINNING else n))
            flow.seen = time.monotonic()
            self._answer(topic, origin, flow, everything=True)

    def mend(self, patience_s: float) -> None:
        """Ask again for what is missing; pass over what has been for ``patience_s``, where it crosses the link for longer."""
        now = time.monotonic()
        for (topic, origin), flow in list(self.ins.items()):
            if not flow.gap_since:
                continue
            link_s = self._behind(topic)
            if now - flow.gap_since > patience_s + link_s:
                self._skip(topic, origin, flow)
            elif now - flow.asked > 1.0 + link_s:
                flow.asked = now
                self._answer(topic, origin, flow)

    def reconnected(self) -> None:
        """Say to all recent senders where this receiver is, and that it wants what follows."""
        now = time.monotonic()
        for (topic, origin), flow in self.ins.items():
            if now - flow.seen < RECENT_S:
                self._answer(topic, origin, flow, everything=True)

    def _early(self, topic: str, origin: str, flow: In, n: int, message: Message | None, size: int) -> None:
        now = time.monotonic()
        flow.gap_since = flow.gap_since or now
        if len(flow.held) < HELD and self._held_bytes + size <= HELD_BYTES:
            flow.held[n] = (message, size)
            self._held_bytes += size
        if self._passive:  # it asks nobody, so it does not wait either
            self._skip(topic, origin, flow)
        elif now - flow.asked > 0.5 + self._behind(topic):
            flow.asked = now
            self._answer(topic, origin, flow)

    def _behind(self, topic: str) -> float:
        """Seconds that an answer on that topic may wait behind what is on the link. Asked sooner, it would come twice."""
        return self._link_s if topics.parse(topic).plane in topics.LINK_PLANES else 0.0

    def _release_held(self, topic: str, origin: str, flow: In) -> None:
        while (entry := flow.held.pop(flow.next, None)) is not None:
            flow.next += 1
            self._held_bytes -= entry[1]
            self._deliver(topic, origin, *entry)
        flow.gap_since = time.monotonic() if flow.held else 0.0

    def _skip(self, topic: str, origin: str, flow: In) -> None:
        if not flow.held:
            flow.gap_since = 0.0
            return
        first = min(flow.held)
        self._counts["lost"] += first - flow.next
        if not self._passive:
            log.error("messages lost: the broker dropped them, its sender has them no more", topic=topic, origin=origin,
                      first=flow.next, last=first - 1)  # fmt: skip
        flow.next = first
        self._release_held(topic, origin, flow)

    def _deliver(self, topic: str, origin: str, message: Message | None, size: int) -> None:
        if message is None:
            return
        if self._is_of_another(message):
            return
        try:
            if isinstance(message, Manifest | Chunk):
                payload = self._reassembler.add(topic, message, origin)
                if payload is None:
                    return
                size = len(payload)
                message = encoding.decode(topic, payload, whole=True)
            message = self._unseal(topic, message)
        except MessageError as error:
            self.bad(error)
            return
        if self._is_of_another(message):
            return
        if self._audit is not None:
            self._audit.heard(topic, message, origin)
        self._counts["received"] += 1
        self._inbox.append((topic, message, size))
        self._inbox_bytes += size
        self._notify()

    def _is_of_another(self, message: Message) -> bool:
        """Whether a message is of another session than ours; it is counted then."""
        if not self._session or message.session in ("", self._session) or isinstance(message, State | Claim):
            return False
        self._counts["foreign"] += 1
        return True

    def _notify(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _answer(self, topic: str, origin: str, flow: In, everything: bool = False) -> None:
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
        answer = Flow(session="", to=origin, topic=topic, taken=flow.next - 1, missing=tuple(missing[:64]))
        self._answer_with(topic, answer)

    def _ask_refused(self) -> None:
        for (topic, origin), flow in self.ins.items():
            if flow.refused:
                flow.refused = False
                self._answer(topic, origin, flow, everything=True)
