"""The kit's end of the bus: sends what it likes, right or wrong, and hears what the program under test answers."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

import aiomqtt
import msgspec

from services.bus import Bus, encoding
from services.bus.address import BusError, Tls, broker_address
from services.bus.chunks import CHUNK, split
from services.bus.messages import Ack, Chunk, Manifest, Message, State

SETTLE_S = 2.0
"""A service may say that it is there before it listens (docs/bus.md, "Names"); what is sent meanwhile goes unheard."""
Word = Literal["PASS", "FAIL", "SKIP"]
M = TypeVar("M", bound=Message)


class Verdict(NamedTuple):
    """What one check came to."""

    word: Word
    check: str
    sent: str = ""
    expected: str = ""
    came: str = ""

    def __str__(self) -> str:
        """One line for people."""
        if self.word == "PASS":
            return f"PASS {self.check}"
        return f"{self.word} {self.check}: sent {self.sent}; expected {self.expected}; came {self.came}"


class Failed(Exception):
    """A check that is not passed: what was sent, what should have come, and what did."""

    def __init__(self, sent: str, expected: str, came: str) -> None:
        super().__init__(sent, expected, came)
        self.sent, self.expected, self.came = sent, expected, came


class Skipped(Failed):
    """A check that this program cannot be put to, or need not pass."""


@dataclass(slots=True)
class Probe:
    """An open connection. ``within_s``: how long an answer may take."""

    client: aiomqtt.Client
    ears: Bus
    device: str
    within_s: float
    session: str = field(default_factory=lambda: f"conform-{uuid.uuid4().hex[:8]}")
    states: dict[str, State] = field(default_factory=dict)
    """Newest State of each service."""

    async def raw(self, key: str, payload: bytes, *, retain: bool = False) -> None:
        """Send bytes on ``plane/name`` as they are."""
        try:
            await self.client.publish(self.ears.topic(key), payload, 1, retain)
        except aiomqtt.MqttError as error:
            raise BusError(f"{self.ears.url}: {key} could not be sent, {len(payload)} bytes: {error}") from None

    async def send(self, key: str, message: Message, *, retain: bool = False, chunk: int = CHUNK) -> None:
        """Send a message, in chunks of ``chunk`` bytes where it is larger; not numbered."""
        payload = encoding.encode(message)
        parts = [payload] if len(payload) <= chunk else map(encoding.encode, split(message.session, payload, chunk))
        for part in parts:
            await self.raw(key, part, retain=retain)

    async def hear(
        self, kind: type[M], wanted: Callable[[M], bool] = lambda _: True, within_s: float | None = None
    ) -> M | None:
        """The next message of a type that is wanted; others are passed over. None where none comes in time."""
        until = time.monotonic() + (self.within_s if within_s is None else within_s)
        while (left := until - time.monotonic()) > 0:
            try:
                _, message = await self.ears.receive(left)
            except TimeoutError:
                break
            if isinstance(message, State):
                self.states[message.service] = message
            if isinstance(message, kind) and wanted(message):
                return message
        return None


@asynccontextmanager
async def probing(broker: str, device: str, within_s: float, *listen: str) -> AsyncIterator[Probe]:
    """A Probe that hears these topics of the device. Raises BusError where no broker answers."""
    address = broker_address(broker)
    async with (
        Bus(broker, service="conform", device=device, passive=True, give_up_s=max(5.0, within_s)) as ears,
        aiomqtt.Client(
            address.host,
            address.port,
            username=address.user,
            password=address.password,
            tls_params=Tls().parameters() if address.secure else None,
        ) as client,
    ):
        await ears.subscribe(*(ears.topic(topic) for topic in listen))
        yield Probe(client, ears, device, within_s)


Check = Callable[[Probe], Awaitable[None]]
"""Raises Failed or Skipped; its docstring's first line is its name."""


async def verdicts(probe: Probe, role: str, checks: Sequence[Check]) -> AsyncIterator[Verdict]:
    """Each check's verdict, in order; a program that is not there fails the first one and is not asked more."""
    for check in checks:
        name = f"{role}: {(check.__doc__ or '').splitlines()[0].rstrip('.')}"
        bad = probe.ears.counts["bad"]
        try:
            await check(probe)
        except Failed as error:
            broken = probe.ears.counts["bad"] - bad
            came = f"{error.came}, and {broken} messages that are none of the contract's" if broken else error.came
            yield Verdict("SKIP" if isinstance(error, Skipped) else "FAIL", name, error.sent, error.expected, came)
            if check is checks[0]:
                return
        else:
            if probe.ears.counts["bad"] > bad:
                yield Verdict("FAIL", name, "this", "messages as docs/bus.md has them", "ones that do not decode; see the log")
            else:
                yield Verdict("PASS", name)


async def present(probe: Probe, service: str) -> State:
    """The program's retained State. Raises Failed where it does not say that it is there."""
    await probe.hear(State, lambda state: state.service == service and state.online)
    state = probe.states.get(service)
    if state is None or not state.online:
        said = "none" if state is None else "online: false"
        raise Failed("nothing", f"a retained state/{service} with online: true", said)
    await asyncio.sleep(min(SETTLE_S, probe.within_s / 4))
    return state


async def survives(
    probe: Probe, service: str, hostile: Sequence[tuple[str, str, bytes]], alive: Callable[[], Awaitable[None]]
) -> None:
    """Send each of (what, topic, bytes), and see after each that the program does its work as before.

    Raises Failed naming the first that it did not take well: it died, started anew, or answered it.
    """
    before = probe.states.get(service)
    for what, key, payload in hostile:
        await probe.raw(key, payload)
        try:
            await alive()
        except Failed as error:
            raise Failed(f"{what} on {key}, then {error.sent}", error.expected, error.came) from None
        after = probe.states.get(service)
        if after != before:
            raise Failed(f"{what} on {key}", f"state/{service} as it was", str(after))


def damaged(message: Message) -> Iterator[tuple[str, bytes]]:
    """Bytes that a receiver of this message must drop, and what they are."""
    good = encoding.encode(message)
    plain = msgspec.msgpack.decode(good)
    pack = msgspec.msgpack.encode
    yield "an empty packet", b""
    yield "noise", bytes(range(255, 127, -1)) * 8
    yield "half a message", good[: len(good) // 2]
    yield "a header that claims an array of 2^32 - 1", b"\xdd\xff\xff\xff\xff"
    yield "maps 10,000 deep", b"\x81\xa1a" * 10_000 + b"\xc0"
    yield "a list in place of a map", pack([plain])
    yield "no session", pack({key: value for key, value in plain.items() if key != "session"})
    yield "a message of another type", encoding.encode(Ack(session=message.session, of="mode", seq=1, ok=True))
    yield "version 2 of the contract", pack(plain | {"v": 2})
    yield "text in place of each number", pack({k: "1" if isinstance(v, int) else v for k, v in plain.items()})
    yield "a large packet of what msgpack does not have", b"\xc1" * 900_000
    digest = bytes(range(16))
    manifest = Manifest(session=message.session, length=2**50, chunk=2**40, digest=digest)
    yield "a manifest of 2^50 bytes", encoding.encode(manifest)
    whole = msgspec.structs.replace(manifest, length=600, chunk=300)
    yield "a manifest whose digest is another's", encoding.encode(whole)
    for index in (0, 1, 2**40):
        yield (
            f"chunk {index} of it",
            encoding.encode(Chunk(session=message.session, digest=digest, index=index, data=good[:300].ljust(300))),
        )
