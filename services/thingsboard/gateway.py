"""The session with ThingsBoard: MQTT 5, QoS 1, one gateway for all devices; made again whenever it breaks."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import aiomqtt
import structlog
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from services.bus import BusError
from services.bus.address import Address, Tls, broker_address
from services.bus.connection import Connection, keep
from services.thingsboard.core import asked
from services.thingsboard.core.outbox import DEVICE, GATEWAY, PACKET_BYTES, Outbox, Packet

log = structlog.get_logger()
_QUIET = logging.getLogger("services.bus.mqtt")

LISTENS: Final = (
    f"{GATEWAY}/rpc",
    f"{GATEWAY}/attributes",
    f"{GATEWAY}/attributes/response",
    f"{DEVICE}/attributes",
    f"{DEVICE}/attributes/response/+",
    f"{DEVICE}/rpc/response/+",
    "v2/fw/response/+/chunk/+",
    "v2/fw/error",
)
INCOMING_BYTES: Final = 1 << 17
"""The largest packet that is read from ThingsBoard; on a larger one the connection is closed before it is."""
UNDER_WAY: Final = 50
"""Packets without an acknowledgement; ThingsBoard takes 100."""
LIMITS_S: Final = 5.0
"""For the answer to ``getSessionLimits``, which older servers do not give."""
ACKNOWLEDGED_S: Final = 30.0
SHORT_S: Final = 2.0
STRIKES: Final = 3
"""Connections that end soon with the same packet under way; then that packet is dropped."""
TAKEN_OVER: Final = 0x8E
QUOTA: Final = 0x97
MARGIN: Final = 512
"""Of a packet's limit, for its topic and ids."""


def address(url: str, token_file: Path | None) -> Address:
    """ThingsBoard's, with the token as the user: from the file, else from ``mqtt[s]://TOKEN@host[:port]``.

    Raises BusError, ValueError for a token that is none.
    """
    found = broker_address(url)
    token = found.user if "@" in url else None
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--token-file {token_file}: {error}") from None
    if not token or len(token) > 256 or not token.isprintable() or any(map(str.isspace, token)):
        where = f"--token-file {token_file}" if token_file else "--thingsboard"
        raise ValueError(f"{where}: no access token; put that of ThingsBoard's gateway device in a file, one line")
    return found._replace(user=token, password=None)


class Link(Connection):
    """The bus's connection with MQTT 5's reasons, and a bound on what is read."""

    def __init__(
        self, where: Address, arrived: Callable[[str, bytes, bool], None], refused: Callable[[int, int], None]
    ) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = INCOMING_BYTES
        super().__init__(
            where.host,
            where.port,
            arrived=arrived,
            acknowledged=lambda mid: refused(mid, 0),
            protocol=aiomqtt.ProtocolVersion.V5,
            username=where.user,
            identifier=f"r2f-{secrets.token_hex(6)}",
            clean_start=True,
            keepalive=30,
            timeout=10.0,
            max_inflight_messages=UNDER_WAY,
            tls_params=Tls().parameters(bus=False) if where.secure else None,
            properties=properties,
            logger=_QUIET,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )
        self._refused = refused
        self.reason = 0
        """Of the server's DISCONNECT."""
        receive = self._client._sock_recv

        def bounded(size: int) -> bytes:
            if self._client._in_packet["remaining_length"] > INCOMING_BYTES:
                raise ConnectionError(f"a packet of more than {INCOMING_BYTES} bytes")
            return receive(size)

        # paho would take up to 256 MB of one packet before anybody is asked.
        self._client._sock_recv = bounded  # type: ignore[method-assign, assignment]

    def drop(self, reason: str) -> None:
        """End the connection as if it had broken."""
        if not self._disconnected.done():
            self._disconnected.set_exception(aiomqtt.MqttError(reason))

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        self._inside = True
        try:
            self._refused(mid, int(getattr(reason_code, "value", 0)))
        finally:
            self._inside = False

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        self.reason = int(getattr(reason_code, "value", 0))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)


class Gateway:
    """Sends what is in an outbox, for as long as ``serve`` runs. ``take(topic, payload)`` is called with what arrives.

    ``begin`` is called with every session before anything is sent. Raises BusError where the token is refused, another
    client takes the session, or the token is no gateway's.
    """

    def __init__(
        self, where: Address, outbox: Outbox, take: Callable[[str, bytes], None], begin: Callable[[], None]
    ) -> None:  # fmt: skip
        self.where = where
        self.outbox = outbox
        self.sessions = 0
        """That were begun."""
        self._take = take
        self._begin = begin
        self._link: Link | None = None
        self._under_way: dict[int, tuple[Packet, float]] = {}
        self._window = UNDER_WAY
        self._wake = asyncio.Event()
        self._limits: asyncio.Future[asked.Limits] | None = None
        self._since = 0.0
        self._tried = 0
        self._careful = 0
        """Packets that go one at a time: one of so many may have ended the session before."""
        self._pause_until = 0.0
        self.spacing = 0.0
        """Seconds between two messages, by ThingsBoard's rate limits."""
        self._requests = itertools.count(1)

    @property
    def there(self) -> bool:
        """Whether there is a session."""
        return self._link is not None

    @property
    def idle(self) -> bool:
        """Whether ThingsBoard has all that there was for it."""
        return self._link is not None and not self._under_way and not len(self.outbox)

    def wake(self) -> None:
        """There is something in the outbox."""
        self._wake.set()

    def publish(self, topic: str, payload: bytes) -> bool:
        """Send one message of the gateway's own now, at QoS 1, and not again; whether there is a session."""
        if self._link is None:
            return False
        self._link.send(topic, payload, 1)
        return True

    async def serve(self) -> None:
        """Keep a session until cancelled. ThingsBoard may be away for as long as it likes."""
        sending = asyncio.create_task(self._send())
        keeping = asyncio.create_task(
            keep(self._new, self._connected, self._disconnected, lambda: None, self.where, math.inf)  # type: ignore[arg-type]
        )
        try:
            done, _ = await asyncio.wait([sending, keeping], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            sending.cancel()
            keeping.cancel()
            await asyncio.gather(sending, keeping, return_exceptions=True)

    def _new(self) -> Link:
        self._tried += 1
        if self._tried == 2:
            log.warning("ThingsBoard is out of reach; it is tried again", thingsboard=self.where.shown)
        return Link(self.where, self._arrived, self._acknowledged)

    async def _connected(self, link: Link) -> None:
        codes: Any = await link.subscribe([(topic, 1) for topic in LISTENS])
        refused = [topic for topic, code in zip(LISTENS, codes, strict=True) if code.value >= 0x80]
        if refused:
            raise BusError(f"ThingsBoard {self.where.shown} refuses to let us listen to {', '.join(refused)}")
        self._limits = asyncio.get_running_loop().create_future()
        link.send(f"{DEVICE}/rpc/request/{next(self._requests)}", b'{"method":"getSessionLimits","params":{}}', 1)
        try:
            async with asyncio.timeout(LIMITS_S):
                limits = await self._limits
        except TimeoutError:
            log.info("ThingsBoard does not say its limits; its defaults are taken")
        else:
            self._heed(limits)
        self._link, self._since, self._tried = link, time.monotonic(), 0
        self.sessions += 1
        log.info("session with ThingsBoard", thingsboard=self.where.shown, waiting=len(self.outbox))
        self._begin()
        self.wake()

    def _heed(self, limits: asked.Limits) -> None:
        if limits.gateway_rate_limits is None:
            raise BusError(
                f"ThingsBoard {self.where.shown}: the token is of a device that is no gateway; tick 'Is gateway' in its details"
            )
        if limits.max_payload_size > 0:
            self.outbox.packet_bytes = max(1024, min(PACKET_BYTES, limits.max_payload_size - MARGIN))
        if limits.max_inflight_messages > 0:
            self._window = min(UNDER_WAY, limits.max_inflight_messages)
        self.spacing = asked.spacing(limits)

    def _disconnected(self) -> None:
        link, self._link = self._link, None
        soon = time.monotonic() - self._since < SHORT_S
        lost = [packet for packet, _ in self._under_way.values()]
        self._under_way.clear()
        if soon and lost:
            self._careful = len(lost)
        for packet in reversed(lost):
            strikes = packet.lost + 1 if soon and len(lost) == 1 else 0
            if strikes >= STRIKES:
                self.outbox.counts["refused"] += 1
                log.error(
                    "given up: the session ends on it", topic=packet.topic, device=packet.device, bytes=len(packet.payload)
                )
            else:
                self.outbox.put_back(packet._replace(lost=strikes))
        if link is not None and link.reason == TAKEN_OVER:
            raise BusError(
                f"ThingsBoard {self.where.shown}: another client has the session of this token; give each bridge a gateway of "
                "its own"
            )

    def _arrived(self, topic: str, payload: bytes, retained: bool) -> None:
        if topic.startswith(f"{DEVICE}/rpc/response/"):
            try:
                limits = asked.decode(payload, asked.Limits)
            except ValueError as error:
                log.warning("ThingsBoard's limits make no sense", error=str(error)[:200])
                return
            if self._limits is not None and not self._limits.done():
                self._limits.set_result(limits)
            return
        self._take(topic, payload)

    def _acknowledged(self, mid: int, code: int) -> None:
        packet, _ = self._under_way.pop(mid, (None, 0.0))
        self._careful = max(0, self._careful - (packet is not None))
        self.wake()
        if packet is None or code < 0x80:
            return
        if code == QUOTA:
            self._pause_until = time.monotonic() + 1.0
            self.outbox.put_back(packet)
            return
        self.outbox.counts["refused"] += 1
        log.error("ThingsBoard refuses a message", topic=packet.topic, device=packet.device, reason=f"{code:#04x}")

    async def _send(self) -> None:
        while True:
            try:
                pause = self._pause_until - time.monotonic()
                async with asyncio.timeout(min(pause, 1.0) if pause > 0 else 1.0):
                    await self._wake.wait()
            except TimeoutError:
                self._check()
            self._wake.clear()
            while self._link is not None and (packet := self._due()) is not None:
                self._under_way[self._link.send(packet.topic, packet.payload, 1)] = (packet, time.monotonic())
                self._pause_until = max(self._pause_until, time.monotonic() + self.spacing)

    def _due(self) -> Packet | None:
        full = len(self._under_way) >= (1 if self._careful else self._window)
        return None if full or time.monotonic() < self._pause_until else self.outbox.next()

    def _check(self) -> None:
        """A session on which nothing is acknowledged is none."""
        oldest = min((at for _, at in self._under_way.values()), default=math.inf)
        if self._link is not None and time.monotonic() - oldest > ACKNOWLEDGED_S:
            log.error("ThingsBoard acknowledges nothing; is the token a gateway's?", thingsboard=self.where.shown)
            self._link.drop("nothing is acknowledged")
