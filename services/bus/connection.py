"""One connection to the broker: aiomqtt's client, without what it costs and risks a message.

aiomqtt 2.5 makes a task, an event and a timer for each publish, and another task for each message received; a publish
times out after 10 s, and never returns where the connection breaks under it. Here a publish returns its packet id at once
and a callback tells of its acknowledgement, and what arrives goes straight to a callback. Connecting, subscribing, TLS,
keepalive and the end of a connection stay aiomqtt's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

import aiomqtt
import paho.mqtt.client as paho


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

    async def __aenter__(self) -> Self:
        """Connect. Where that fails the socket is closed: aiomqtt leaves it open, with its reader and its timer."""
        try:
            return await super().__aenter__()
        except BaseException:
            self._client.disconnect()
            raise

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
        # The CONNECT packet comes from aiomqtt's connecting thread; and inside a callback paho holds a lock that writing
        # takes again.
        if threading.get_ident() != self._thread or self._inside:
            super()._on_socket_register_write(client, userdata, sock)
            return
        # Write now: the socket is nearly always ready. aiomqtt would wake the loop twice to find that out.
        client.loop_write()
        if client.want_write():
            super()._on_socket_register_write(client, userdata, sock)
