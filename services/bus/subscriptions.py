"""What one Bus listens to: made again on every connection."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterable
from typing import Any, Protocol

import aiomqtt
from paho.mqtt.client import topic_matches_sub

from services.bus.address import Address, BusError


class Link(Protocol):
    """A connection as this sees it: aiomqtt's ``subscribe``."""

    async def subscribe(self, topic: Any, *, timeout: float | None = None) -> Any:
        """The return code of each (pattern, QoS)."""
        ...


def checked(pattern: str) -> str:
    """A whole topic pattern as it is. Raises ValueError for what is none."""
    levels = pattern.split("/")
    for i, level in enumerate(levels):
        misplaced = "#" in level and (level != "#" or i < len(levels) - 1)
        if misplaced or not level or ("+" in level and level != "+"):
            raise ValueError(f"{pattern!r} is no topic pattern: '+' is one whole level, '#' the last")
    return pattern


class Subscriptions:
    """The patterns that are subscribed to. ``wanted`` are those that whoever reads the Bus asked for; others are its own."""

    def __init__(self, address: Address) -> None:
        self.wanted: set[str] = set()
        self._address = address
        self._patterns: dict[str, None] = {}
        self._link: Link | None = None
        self._gone: asyncio.Future[None] | None = None
        self._resumed: tuple[str, ...] = ()
        self._missed: dict[str, bool] = {}

    async def add(self, patterns: Iterable[str]) -> None:
        """Subscribe to patterns, now and on every connection. Raises BusError where the broker does not allow one."""
        fresh = [pattern for pattern in dict.fromkeys(patterns) if pattern not in self._patterns]
        self._patterns.update(dict.fromkeys(fresh))
        if self._link is None or self._gone is None or not fresh:
            return
        subscribing = asyncio.create_task(self._subscribe(self._link, fresh, math.inf))
        # Where the connection breaks this would never return; the next connection subscribes.
        await asyncio.wait({subscribing, self._gone}, return_when=asyncio.FIRST_COMPLETED)
        if subscribing.done():
            with contextlib.suppress(aiomqtt.MqttError):
                subscribing.result()
        else:
            subscribing.cancel()

    async def connected(self, link: Link) -> None:
        """Subscribe to everything on a new connection. Raises BusError as ``add`` does."""
        self._resumed, self._missed = tuple(self.wanted), {}
        asked: set[str] = set()
        while fresh := [pattern for pattern in self._patterns if pattern not in asked]:
            asked.update(fresh)
            await self._subscribe(link, fresh, None)
        self._link = link
        self._gone = asyncio.get_running_loop().create_future()

    def disconnected(self) -> None:
        """The connection is gone."""
        self._link = None
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def asked_for(self, topic: str) -> bool:
        """Whether whoever reads the Bus asked for a topic."""
        return any(topic_matches_sub(pattern, topic) for pattern in self.wanted)

    def resumed(self, topic: str) -> bool:
        """Whether whoever reads the Bus asked for a topic before this connection was made."""
        if topic not in self._missed:
            self._missed[topic] = any(topic_matches_sub(pattern, topic) for pattern in self._resumed)
        return self._missed[topic]

    async def _subscribe(self, link: Link, patterns: list[str], timeout_s: float | None) -> None:
        granted: list[Any] = list(await link.subscribe([(pattern, 1) for pattern in patterns], timeout=timeout_s))
        for pattern, code in zip(patterns, granted, strict=True):
            if getattr(code, "value", code) >= 0x80:
                del self._patterns[pattern]
                user = self._address.user or "no user"
                raise BusError(f"broker {self._address.shown} does not allow {user} to subscribe to {pattern}")
