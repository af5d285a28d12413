"""Whatever a message makes a service raise ends with that message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from services.boundary import answer
from services.bus import Bus, BusError, MessageError
from services.bus.messages import Message, Rebuilt


class FakeBus:
    def __init__(self, count: int) -> None:
        self.count = count
        self.rejected: list[tuple[str, str]] = []

    async def __aiter__(self) -> AsyncIterator[tuple[str, Message]]:
        for n in range(self.count):
            yield "down/rebuilt", Rebuilt(session="s", iteration=n, attempt=0, layer=0)

    def reject(self, topic: str, reason: str) -> None:
        self.rejected.append((topic, reason))


def serve(bus: FakeBus, raised: BaseException) -> list[int]:
    """Iterations of the messages that were taken, where the second of them raises."""
    taken: list[int] = []

    async def take(message: Any) -> None:
        if message.iteration == 1:
            raise raised
        taken.append(message.iteration)

    asyncio.run(answer(cast(Bus, bus), take))
    return taken


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (ValueError("layer 3 is not kept"), "layer 3 is not kept"),
        (MessageError("a slot was taken back"), "a slot was taken back"),
        (KeyError("x"), "KeyError: 'x'"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (IndexError("list index out of range"), "IndexError: list index out of range"),
        (AssertionError(), "AssertionError: "),
        (MemoryError("cannot allocate"), "MemoryError: cannot allocate"),
        (OverflowError("too large"), "OverflowError: too large"),
    ],
)
def test_any_error_ends_with_its_message(raised: Exception, reason: str) -> None:
    bus = FakeBus(3)
    assert serve(bus, raised) == [0, 2]
    assert bus.rejected == [("down/rebuilt", reason)]


def test_the_bus_itself_gone_ends_the_service() -> None:
    bus = FakeBus(3)
    with pytest.raises(BusError, match="no broker"):
        serve(bus, BusError("no broker"))
    assert bus.rejected == []


def test_a_cancelled_service_stops() -> None:
    with pytest.raises(asyncio.CancelledError):
        serve(FakeBus(3), asyncio.CancelledError())
