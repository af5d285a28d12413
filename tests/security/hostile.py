"""A device that has turned: it has its own certificate, which is good, and does with it whatever it can think of."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from services.bus import encoding
from services.bus.messages import Ack, Claim, Flow, State
from tests.security import raw

NAMES = (
    "up/layers", "up/inputs", "up/ack", "up/outputs", "up/repair", "up/flow", "down/mode", "down/forward", "down/model",
    "down/repair", "down/rebuilt", "down/flow", "edge/inputs", "edge/replicas", "edge/voted", "edge/model", "edge/flow",
    "server/activations", "server/inputs", "server/model", "state/agent", "state/voter", "state/codec-device",
    "state/codec-server", "state/trainer", "state/claim", "event/progress", "event/iteration",
)  # fmt: skip
LOUD = b"\xff" * 100_000
MOST_BYTES = 100 << 20
"""Of all floods together; the point is what others lose by them, not how warm this machine gets."""


class Hostile:
    """What it did, by kind, in ``did``; what it heard of others, in ``heard``. ``victims`` are other devices."""

    def __init__(self, home: Path, name: str, where: Sequence[tuple[str, int]], victims: Sequence[str]) -> None:
        self.name, self.where, self.victims = name, where, victims
        self.tls: ssl.SSLContext = raw.context(home, home / "ca.pem")
        self.did: Counter[str] = Counter()
        self.heard: set[bytes] = set()
        self.spent = 0
        self.over = False

    async def rage(self) -> None:
        """Everything, again and again, until it is ``over``."""
        ways: list[Callable[[str, int], Awaitable[None]]] = [
            self.lie, self.will, self.take_over, self.announce_huge, self.babble, self.half_open, self.flood, self.hoard,
        ]  # fmt: skip
        async with asyncio.TaskGroup() as tasks:
            for host, port in self.where:
                tasks.create_task(self.listen(host, port))
                for way in ways:
                    tasks.create_task(self.again(way, host, port))

    async def again(self, way: Callable[[str, int], Awaitable[None]], host: str, port: int) -> None:
        while not self.over:
            try:
                await way(host, port)
                self.did[way.__name__] += 1
            except (OSError, asyncio.IncompleteReadError):
                self.did[f"{way.__name__}, hung up on"] += 1
            await asyncio.sleep(0.3)

    def messages(self, device: str) -> list[tuple[str, bytes]]:
        """On each topic of a device what would do harm there, as far as it can be known without hearing anything."""
        state = encoding.encode(State(session="", service="trainer", online=False, boot="f" * 12))
        claim = encoding.encode(Claim(session="", service="trainer", boot="f" * 12, rank=2**31))
        flow = encoding.encode(Flow(session="", to="f" * 12, topic=f"r2f/v1/{device}/up/layers", taken=2**31))
        ack = encoding.encode(Ack(session="", of="model", seq=1, ok=False, error="down with it"))
        bodies = {"state": state, "up/ack": ack, "flow": flow, "state/claim": claim}
        found = []
        for name in NAMES:
            plane, _, last = name.partition("/")
            found.append((f"r2f/v1/{device}/{name}", bodies.get(name) or bodies.get(last) or bodies.get(plane) or LOUD[:500]))
        return found

    async def lie(self, host: str, port: int) -> None:
        """Publish as each of the others, retained and not, on each of its topics."""
        async with raw.opened(host, port, self.tls, raw.connect("")) as (code, reader, writer):
            assert code == 0
            for victim in self.victims:
                for topic, body in self.messages(victim):
                    for retain in (False, True):
                        writer.write(raw.publish(topic, body, qos=1, retain=retain))
            await writer.drain()
            await reader.read(1)

    async def will(self, host: str, port: int) -> None:
        """Leave a will that says that somebody else's services are gone."""
        for victim in self.victims:
            for service in ("trainer", "codec-server", "agent", "claim"):
                async with raw.opened(host, port, self.tls, raw.connect("", f"r2f/v1/{victim}/state/{service}")):
                    pass

    async def take_over(self, host: str, port: int) -> None:
        """Ask for others' sessions by names that they might have, and say to be another user."""
        for victim in self.victims:
            for identifier in (f"r2f-{victim}", f"local.r2f-{victim}", f"agent-{victim}", f"trainer-{victim}-", victim):
                hello = raw.connect(identifier, clean=False, user=victim)
                async with raw.opened(host, port, self.tls, hello) as (_, _, writer):
                    writer.write(raw.publish(f"r2f/v1/{victim}/up/ack", LOUD[:100], qos=1))

    async def announce_huge(self, host: str, port: int) -> None:
        """Packets above the limit: one that is as large as it says, one that never comes."""
        for body, length in ((b"\0\5topic" + bytes(2 << 20), None), (b"\0\5topic", 250 << 20)):
            async with raw.opened(host, port, self.tls, raw.connect("")) as (_, reader, writer):
                writer.write(raw.packet(0x30, body, length))
                await raw.drained(reader)

    async def babble(self, host: str, port: int) -> None:
        """What is no MQTT."""
        for hello in (
            b"\xff" * 64,
            raw.packet(0x10, b"\0\4MQTT"),
            raw.packet(0x10, raw.text("MQTT") + b"\x09\2\0\0\0\0"),
            b"GET /",
        ):
            async with raw.opened(host, port, self.tls, hello) as (_, _, writer):
                writer.write(raw.packet(0x82, b"\0\1\xff\xff") + raw.publish("r2f/v1/+/#", b""))

    async def half_open(self, host: str, port: int) -> None:
        """Connections that begin and go no further."""
        writers = [(await asyncio.open_connection(host, port))[1] for _ in range(20)]
        try:
            await asyncio.sleep(1)
        finally:
            for writer in writers:
                writer.transport.abort()

    async def flood(self, host: str, port: int) -> None:
        """As much as goes, on a topic that it may write and nobody reads."""
        await self._pour(host, port)

    async def hoard(self, host: str, port: int) -> None:
        """The same, with ten connections of its own that ask for it and never read."""
        openings = [raw.opened(host, port, self.tls, raw.connect("")) for _ in range(10)]
        held = [await one.__aenter__() for one in openings]
        try:
            for _, _, writer in held:
                writer.write(raw.subscribe(f"r2f/v1/{self.name}/#", "#"))
                writer.transport.pause_reading()  # type: ignore[attr-defined]
            await self._pour(host, port)
        finally:
            for one in openings:
                await one.__aexit__(None, None, None)

    async def _pour(self, host: str, port: int) -> None:
        async with raw.opened(host, port, self.tls, raw.connect("")) as (_, _, writer):
            for _ in range(100):
                if self.spent > MOST_BYTES:
                    return
                self.spent += len(LOUD)
                writer.write(raw.publish(f"r2f/v1/{self.name}/edge/replicas", LOUD, qos=1))
                await writer.drain()

    async def listen(self, host: str, port: int) -> None:
        """Ask for everything, and take note of what is somebody else's."""
        others = [f"r2f/v1/{victim}/".encode() for victim in self.victims]
        async with raw.opened(host, port, self.tls, raw.connect("")) as (_, reader, writer):
            patterns = ["#", "$SYS/#", *(f"r2f/v1/{victim}/{name}" for victim in self.victims for name in NAMES)]
            writer.write(raw.subscribe(*patterns))
            tail = b""
            while data := await reader.read(1 << 16):
                self.did["bytes heard"] += len(data)
                self.heard |= {name for name in others if name in tail + data}
                tail = data[-40:]
