"""Our services over a Bus that lies: programs that keep to the contract but in one thing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from accelsim import accelerators, faults
from accelsim.datasets import load
from accelsim.timing import Array
from r2f.conform.command import Role
from services.bus import Bus, BusError
from services.bus.messages import Message
from services.codec.device_side import DeviceCodec
from services.edge_agent.agent import Agent, Device
from services.voter.voter import serve as vote

SERVICES = {"agent": "agent", "voter": "voter", "codec": "codec-device"}


def as_it_is(message: Message) -> Message:
    return message


@dataclass
class Lie:
    """What is done to each message that goes out or comes in (None: it is lost), and to each packet (False: it is lost)."""

    out: Callable[[Any], Message | None] = as_it_is
    into: Callable[[Any], Message | None] = as_it_is
    packet: Callable[[bytes], bool] = lambda _: True
    said: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: fields
    """What is done to what its State says."""
    dies: bool = False
    """At the first message that it does not understand."""


class Crooked(Bus):
    """A Bus with a Lie."""

    def __init__(self, lie: Lie, url: str, service: str) -> None:
        super().__init__(url, service, "edge-0", arena_bytes=0)
        self.lie = lie
        self.died = asyncio.Event()

    async def publish(self, topic: str, message: Message, *, retain: bool = False) -> int:
        told = self.lie.out(message)
        return 0 if told is None else await super().publish(topic, told, retain=retain)

    async def announce(self, **fields: Any) -> None:
        await super().announce(**self.lie.said(fields))

    async def __anext__(self) -> tuple[str, Message]:
        while True:
            topic, message = await super().__anext__()
            told = self.lie.into(message)
            if told is not None:
                return topic, told

    def _arrived(self, topic: str, payload: bytes, retained: bool) -> None:
        if not self.lie.packet(payload):
            return
        bad = self.counts["bad"]
        super()._arrived(topic, payload, retained)
        if self.lie.dies and payload and self.counts["bad"] > bad:
            self.died.set()


@asynccontextmanager
async def running(role: Role, url: str, lie: Lie) -> AsyncIterator[None]:
    """A service of ours with that lie, for as long as the block runs."""
    task = asyncio.create_task(_serve(role, url, lie))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, BusError):
            await task


async def _serve(role: Role, url: str, lie: Lie) -> None:
    async with Crooked(lie, url, SERVICES[role]) as bus:
        match role:
            case "voter":
                work = vote(bus)
            case "codec":
                work = DeviceCodec(bus, "portable", 1 << 30).serve()
            case "agent":
                factory = accelerators.build("simulated:portable", faults.build("soft"), None)
                work = Agent(bus, Device(load("digits"), factory, Array(), "portable")).serve()
        serving, dying = asyncio.create_task(work), asyncio.create_task(bus.died.wait())
        try:
            await asyncio.wait([serving, dying], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (serving, dying):
                one.cancel()
            await asyncio.gather(serving, dying, return_exceptions=True)
