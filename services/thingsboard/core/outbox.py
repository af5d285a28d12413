"""What waits for ThingsBoard: attributes, of which the newest counts; answers; telemetry, of which the oldest goes first.

Bounded whatever happens there. One device's messages a packet: one bad entry would cost all that are in it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import msgspec

from services.thingsboard.core.values import Value
from services.thingsboard.core.watched import Point

GATEWAY: Final = "v1/gateway"
DEVICE: Final = "v1/devices/me"
PACKET_BYTES: Final = 60_000
"""Of a payload. ThingsBoard takes 65,536 of a packet with its topic and ids, and closes the session on one more."""
TELEMETRY_BYTES: Final = 8 << 20
"""Waiting, encoded: about an hour of a device."""
WORDS: Final = 1024
"""Answers and requests that wait."""
TYPE: Final = "r2f-device"

Kind = Literal["connect", "disconnect", "attributes", "telemetry", "word"]


class Packet(NamedTuple):
    """One MQTT message. ``device`` is empty for the gateway's own."""

    topic: str
    payload: bytes
    kind: Kind
    device: str = ""
    lost: int = 0
    """Sessions that ended soon with this packet alone under way."""


@dataclass(slots=True)
class Outbox:
    """Everything that waits. ``counts``: what was left out, and why."""

    most: int = TELEMETRY_BYTES
    counts: Counter[str] = field(default_factory=Counter)
    """``telemetry_dropped`` (points), ``words_dropped``, ``too_large``, ``refused`` (packets that ThingsBoard refused)."""
    packet_bytes: int = PACKET_BYTES
    held: int = 0
    """Bytes of telemetry."""
    _connecting: dict[str, None] = field(default_factory=dict)
    _away: dict[str, None] = field(default_factory=dict)
    """Devices that are gone and whose ``disconnect`` is due once nothing of theirs waits."""
    _gone: set[str] = field(default_factory=set)
    """Those whose agent is gone, whether ThingsBoard knows or not."""
    _words: deque[Packet] = field(default_factory=deque)
    _again: deque[Packet] = field(default_factory=deque)
    _attributes: dict[str, dict[str, Value]] = field(default_factory=dict)
    _telemetry: dict[str, deque[bytes]] = field(default_factory=dict)
    _sizes: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        """Things that wait."""
        points = sum(map(len, self._telemetry.values()))
        return points + len(self._again) + len(self._words) + len(self._attributes) + len(self._connecting) + len(self._away)

    # ---- putting in ----

    def present(self, device: str) -> None:
        """The device is there: said before anything else of it."""
        self._gone.discard(device)
        self._away.pop(device, None)
        self._connecting[device] = None

    def absent(self, device: str) -> None:
        """The device is gone: said after all that waits of it."""
        self._gone.add(device)
        self._connecting.pop(device, None)
        self._away[device] = None

    def tell(self, device: str, attributes: Mapping[str, Value]) -> None:
        """Client attributes; a newer value takes the place of one that waits. ``device`` "" is the gateway itself."""
        if attributes:
            self._attributes.setdefault(device, {}).update(attributes)

    def add(self, device: str, point: Point) -> None:
        """Telemetry. Where there is no room, the oldest of the device that has most waiting is dropped, and counted."""
        encoded = msgspec.json.encode({"ts": point.ts, "values": point.values})
        if len(encoded) + len(device) + 16 > self.packet_bytes:
            self.counts["too_large"] += 1
            return
        self._telemetry.setdefault(device, deque()).append(encoded)
        self._grow(device, len(encoded))
        self._make_room()

    def word(self, topic: str, message: Any) -> None:
        """An answer or a request, as JSON. Raises ValueError for one that no packet holds."""
        payload = msgspec.json.encode(message)
        if len(payload) > self.packet_bytes:
            raise ValueError(f"an answer of {len(payload)} bytes; at most {self.packet_bytes} go to ThingsBoard in one")
        if len(self._words) == WORDS:
            self._words.popleft()
            self.counts["words_dropped"] += 1
        self._words.append(Packet(topic, payload, "word"))

    # ---- taking out ----

    def next(self) -> Packet | None:
        """What goes next, no longer waiting; None where nothing is."""
        if self._connecting:
            device = next(iter(self._connecting))
            del self._connecting[device]
            return Packet(f"{GATEWAY}/connect", msgspec.json.encode({"device": device, "type": TYPE}), "connect", device)
        if self._again:
            self._mentioned(self._again[0].device)
            return self._again.popleft()
        if self._words:
            return self._words.popleft()
        return self._next_attributes() or self._next_telemetry() or self._next_goodbye()

    def _next_attributes(self) -> Packet | None:
        while self._attributes:
            device = next(iter(self._attributes))
            waiting, chosen, size = self._attributes[device], {}, len(device) + 16
            for key in list(waiting):
                cost = len(msgspec.json.encode({key: waiting[key]}))
                if len(device) + 16 + cost > self.packet_bytes:
                    self.counts["too_large"] += 1
                    del waiting[key]
                elif size + cost <= self.packet_bytes:
                    size += cost
                    chosen[key] = waiting.pop(key)
            if not waiting:
                del self._attributes[device]
            if chosen:
                self._mentioned(device)
                topic = f"{GATEWAY}/attributes" if device else f"{DEVICE}/attributes"
                body = {device: chosen} if device else chosen
                return Packet(topic, msgspec.json.encode(body), "attributes", device)
        return None

    def _next_telemetry(self) -> Packet | None:
        device = next(iter(self._telemetry), None)
        if device is None:
            return None
        waiting = self._telemetry.pop(device)
        head = b"[" if not device else msgspec.json.encode(device).join((b"{", b":["))
        size, points = len(head) + 2, []
        while waiting and size + len(waiting[0]) + 1 <= self.packet_bytes:
            points.append(waiting.popleft())
            size += len(points[-1]) + 1
        self._grow(device, -sum(map(len, points)))
        if waiting:
            self._telemetry[device] = waiting  # behind the others
        self._mentioned(device)
        topic = f"{GATEWAY}/telemetry" if device else f"{DEVICE}/telemetry"
        return Packet(topic, head + b",".join(points) + (b"]}" if device else b"]"), "telemetry", device)

    def _next_goodbye(self) -> Packet | None:
        device = next(iter(self._away), None)
        if device is None:
            return None
        del self._away[device]
        return Packet(f"{GATEWAY}/disconnect", msgspec.json.encode({"device": device}), "disconnect", device)

    def _mentioned(self, device: str) -> None:
        """ThingsBoard takes a device that it is told anything of to be there."""
        if device in self._gone:
            self._away[device] = None

    # ---- putting back ----

    def put_back(self, packet: Packet) -> None:
        """What was sent and not acknowledged goes again as it is, before what came later."""
        if packet.kind == "connect":
            if packet.device not in self._gone:
                self._connecting[packet.device] = None
        elif packet.kind != "disconnect":
            self._again.appendleft(packet)
        elif packet.device in self._gone:
            self._away[packet.device] = None

    def _grow(self, device: str, by: int) -> None:
        self.held += by
        self._sizes[device] += by

    def _make_room(self) -> None:
        while self.held > self.most:
            device, _ = self._sizes.most_common(1)[0]
            waiting = self._telemetry[device]
            self._grow(device, -len(waiting.popleft()))
            self.counts["telemetry_dropped"] += 1
            if not waiting:
                del self._telemetry[device]
