"""The embedded broker: amqtt, in a process of its own, on loopback and without accounts.

For a machine without Mosquitto. MQTT 3.1.1 only, no keepalive enforcement, and slower (see docs/bus.md). What it cannot keep
is refused where it is started (``launch.check_embedded``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import Any

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker

from services.bus.encoding import PACKET_LIMIT

GOODBYE_S = 1.0
"""A client that acknowledges nothing would keep amqtt from its end for ever."""


class _Bounded(StreamReaderAdapter):  # type: ignore[misc]
    """amqtt takes packets of any length; this ends the connection that announces one over the limit."""

    async def read(self, n: int = -1) -> bytes:
        if n > PACKET_LIMIT + 1024:
            raise ConnectionResetError(f"a packet of {n} bytes is over the limit")
        data: bytes = await super().read(n)
        return data


class _Payload(bytes):
    """amqtt formats every message for a log line that nobody asked for: 2 ms for 127 KiB, more than all else."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


class _Broker(Broker):  # type: ignore[misc]
    """amqtt 0.12 without two of its faults.

    Its own plugins suspend inside the loop over the subscriptions: one that comes just then makes that loop raise, and the
    message is lost. Ours never suspend. And it sends a new client the retained messages of everybody's subscriptions.
    """

    async def stream_connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str) -> None:
        await self._client_connected(listener_name, _Bounded(reader), StreamWriterAdapter(writer))

    async def _publish_retained_messages_for_subscription(self, subscription: tuple[str, int], session: Any) -> None:
        if any(known is session for known, _ in self._subscriptions.get(subscription[0], ())):
            await super()._publish_retained_messages_for_subscription(subscription, session)

    async def _broadcast_message(
        self, session: Any, topic: str | None, data: bytes | None, force_qos: int | None = None
    ) -> None:
        await super()._broadcast_message(session, topic, None if data is None else _Payload(data), force_qos)

    async def _authenticate(self, session: Any, _: Any) -> bool:
        return True

    async def _topic_filtering(self, session: Any, topic: str, action: Any) -> bool:
        return True


async def serve(host: str, port: int) -> None:
    """Run the broker until SIGTERM or SIGINT."""
    logging.getLogger("amqtt").setLevel(logging.ERROR)
    logging.getLogger("transitions").setLevel(logging.ERROR)
    broker = _Broker({"listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}}, "plugins": {}})
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await broker.start()
    await stop.wait()
    # amqtt closes the door last, and takes clients in while it says goodbye to the others, for as long as that takes.
    for server in broker._servers.values():
        server.instance.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GOODBYE_S):
            await broker.shutdown()
