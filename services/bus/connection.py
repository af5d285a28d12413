"""The connection to the broker: aiomqtt's client without what it costs and risks a message, and made again when it breaks.

aiomqtt 2.5 makes a task, an event and a timer for each publish, and another task for each message received; a publish
times out after 10 s, and never returns where the connection breaks under it. Here a publish returns its packet id at once
and a callback tells of its acknowledgement, and what arrives goes straight to a callback. Connecting, subscribing, TLS,
keepalive and the end of a connection stay aiomqtt's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self, TypeVar

import aiomqtt
import aiomqtt.exceptions
import paho.mqtt.client as paho
import structlog

from services.bus.address import Address, BusError, Tls

SHORT_S: Final = 2.0
"""A connection that breaks sooner, with packets under way, may have been broken for one of them."""
STRIKES: Final = 3
"""Such connections in a row, with the same packet under way, and it is plain that the broker does not take it."""
SMALL: Final = 1024
"""Bytes that every broker takes in a packet."""
STEADY_S: Final = 5.0
"""A connection that lasted as long starts the pauses between attempts anew."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0

_REFUSED = re.compile(r"ALERT_(\w*CERTIFICATE\w*|UNKNOWN_CA)")
"""How OpenSSL names what a broker had against a client's certificate."""

log = structlog.get_logger(__name__)
T = TypeVar("T")
_QUIET = logging.getLogger("services.bus.mqtt")
_QUIET.setLevel(logging.CRITICAL)  # what paho calls an error is a connection that ended, which we report ourselves


class Connection(aiomqtt.Client):
    """``arrived(topic, payload, retained)`` and ``acknowledged(packet id)`` are called in the event loop."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        arrived: Callable[[str, bytes, bool], None],
        acknowledged: Callable[[int], None],
        **options: Any,
    ) -> None:
        super().__init__(host, port, **options)
        self._arrived = arrived
        self._acknowledged = acknowledged
        self._thread = threading.get_ident()
        self._inside = False
        self._last_error = ""
        self._given_up = False
        self._client.on_log = self._on_log

    async def __aenter__(self) -> Self:
        """Connect. Where that fails the socket is closed: aiomqtt leaves it open, with its reader and its timer."""
        try:
            return await super().__aenter__()
        except BaseException:
            self._given_up = True
            self._client.disconnect()
            raise

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:
        """As aiomqtt has it, but cancelled even where what is awaited comes in the same turn of the loop: before Python 3.12
        ``asyncio.wait_for`` then goes on as if nobody had cancelled it; and up to 3.11.2 ``asyncio.timeout`` forgets its end
        in a task that was cancelled before."""
        seconds = self.timeout if timeout is None else timeout
        waiting = asyncio.ensure_future(fut)
        try:
            await asyncio.wait([waiting], timeout=None if seconds == math.inf else seconds)
            if waiting.done():
                return waiting.result()
            raise aiomqtt.MqttError("Operation timed out")
        finally:
            waiting.cancel()

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        """As aiomqtt has it, but for a connection that nobody waits for any more when its thread has made it: aiomqtt would
        start a timer for it that nobody ends."""
        if self._given_up:
            sock.close()
            return
        super()._on_socket_open(client, userdata, sock)

    def _on_log(self, client: paho.Client, userdata: Any, level: int, text: str) -> None:
        if level == paho.MQTT_LOG_ERR:
            self._last_error = text  # the only place that says why a TLS connection ended

    def _on_disconnect(
        self, client: paho.Client, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:  # fmt: skip
        """As aiomqtt has it; but of a connection that the broker ends before it accepts it, aiomqtt would not be told."""

        def tell() -> None:
            if not self._connected.done():
                why = self._last_error or "the broker closed the connection before it accepted it"
                self._connected.set_exception(aiomqtt.MqttError(why))

        if not self._connected.done():
            self._loop.call_soon_threadsafe(tell)
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def send(self, topic: str, payload: bytes, qos: int, retain: bool = False) -> int:
        """Hand a packet to the socket; returns its id, for ``acknowledged``. On a broken connection it goes nowhere."""
        return self._client.publish(topic, payload, qos, retain).mid

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        self._inside = True
        try:
            self._arrived(message.topic, bytes(message.payload), message.retain)
        finally:
            self._inside = False

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        self._inside = True
        try:
            self._acknowledged(mid)
        finally:
            self._inside = False

    def _on_socket_register_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        if sock.fileno() < 0:
            return  # closed meanwhile; the loop could only complain
        # The CONNECT packet comes from aiomqtt's connecting thread; and inside a callback paho holds a lock that writing
        # takes again.
        if threading.get_ident() != self._thread or self._inside:
            self._loop.call_soon_threadsafe(self._write_when_ready, client, sock)
            return
        # Write now: the socket is nearly always ready. aiomqtt would wake the loop twice to find that out.
        client.loop_write()
        if client.want_write():
            self._write_when_ready(client, sock)

    def _write_when_ready(self, client: paho.Client, sock: Any) -> None:
        """As aiomqtt does it, but for a socket that was closed since it was asked for, of which the loop would complain."""
        if sock.fileno() >= 0:
            self._loop.add_writer(sock.fileno(), self._write, client)

    def _write(self, client: paho.Client) -> None:
        try:
            client.loop_write()
        except Exception as error:
            if not self._disconnected.done():
                self._disconnected.set_exception(error)


def connection(
    address: Address,
    tls: Tls,
    *,
    identifier: str,
    will: aiomqtt.Will | None,
    inflight: int,
    timeout_s: float,
    keepalive_s: int,
    arrived: Callable[[str, bytes, bool], None],
    acknowledged: Callable[[int], None],
) -> Connection:
    """A connection that is not opened yet. ``inflight``: packets that may be under way."""
    return Connection(
        address.host,
        address.port,
        arrived=arrived,
        acknowledged=acknowledged,
        username=address.user,
        password=address.password,
        identifier=identifier,
        will=will,
        clean_session=True,
        timeout=timeout_s,
        keepalive=keepalive_s,
        max_inflight_messages=inflight,
        tls_params=tls.parameters() if address.secure else None,
        logger=_QUIET,
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    )


async def keep(
    make: Callable[[], Connection],
    connected: Callable[[Connection], Awaitable[None]],
    disconnected: Callable[[], None],
    under_way: Callable[[], tuple[str, int] | None],
    address: Address,
    patience_s: float,
) -> None:
    """Keeps a connection until cancelled; one that breaks is made again, after a pause that grows and has some chance in it.

    ``connected`` is called with each one, ``disconnected`` when it is gone. ``under_way`` is the topic and the bytes of the
    largest packet that the broker has not acknowledged, if any.

    Raises BusError where the broker is away for ``patience_s``, refuses the credentials or our trust, or closes one connection
    after another on the same packet.
    """
    since, pause, strikes = time.monotonic(), FIRST_PAUSE_S, 0
    suspect: tuple[str, int] | None = None
    while True:
        began, reason = math.inf, ""
        try:
            async with make() as client:
                await connected(client)
                began = time.monotonic()
                async for _ in client.messages:  # they go to ``arrived``; this only ends, with the connection
                    pass
        except aiomqtt.exceptions.MqttConnectError as error:
            if getattr(error.rc, "value", error.rc) in (4, 5, 134, 135):
                raise BusError(
                    f"broker {address.shown} refuses the credentials of {address.user or 'no user'} ({error})"
                ) from None
            reason = str(error)
        except (aiomqtt.MqttError, OSError) as error:
            reason = str(error)
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                raise BusError(
                    f"broker {address.shown} has no certificate that we trust: {reason}; R2F_IDENTITY or R2F_CA_FILE has to "
                    "name the authority that issued it, and the address a host that it is for"
                ) from None
            if refused := _REFUSED.search(reason):
                said = refused[1].replace("_", " ").lower()
                raise BusError(
                    f"broker {address.shown} does not take our certificate ({said}): R2F_IDENTITY or R2F_CERT_FILE has to name "
                    "one that holds; r2f provision makes and renews them"
                ) from None
        finally:
            disconnected()
        now = time.monotonic()
        if began < math.inf:
            packet = under_way()
            strikes = strikes + 1 if packet is not None and packet == suspect and now - began < SHORT_S else 0
            suspect = packet
            if strikes >= STRIKES and suspect is not None:
                limit = "raise its packet limit, or set R2F_PACKET_BYTES to that limit"
                raise BusError(
                    f"broker {address.shown} closes the connection on a packet of {suspect[1]} bytes on {suspect[0]}: "
                    + (limit if suspect[1] > SMALL else "its log may say why")
                )
            if strikes == 0:
                log.warning("broker lost", broker=address.shown, reason=reason)
            since = now
            pause = FIRST_PAUSE_S if now - began > STEADY_S else pause
        else:
            strikes = 0  # a broker that is gone did not close the connection for a packet
            if now - since > patience_s:
                hint = (
                    ""
                    if address.secure or "reset" not in reason.lower()
                    else "; a broker that takes TLS alone may do that: mqtts://"
                )
                raise BusError(f"broker {address.shown} is unreachable for {patience_s:g} s: {reason}{hint}")
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(2 * pause, LONGEST_PAUSE_S)
