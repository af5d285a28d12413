"""A service that is told to end says goodbye; its exit code tells whether it was done or told."""

from __future__ import annotations

import asyncio
import signal

import pytest

from broker.child import environment, python
from broker.launch import launch
from services.bus import Bus
from services.bus.messages import State


async def state(bus: Bus) -> bool:
    while True:
        _, message = await bus.receive(60)
        if isinstance(message, State) and message.service == "voter":
            return message.online


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)])
async def test_a_service_that_is_told_to_end_says_goodbye(number: signal.Signals, code: int) -> None:
    async with launch() as running, Bus(running.url(), "agent", "d") as bus:
        await bus.subscribe("state/voter")
        voter = await asyncio.create_subprocess_exec(
            *python("services.voter", "--broker", running.url(), "--device", "d"), env=environment()
        )
        assert await state(bus) is True
        voter.send_signal(number)
        assert await asyncio.wait_for(voter.wait(), 60) == code
        assert await state(bus) is False
