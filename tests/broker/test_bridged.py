"""The bus over two Mosquittos joined by the bridge: nothing is lost, whichever of them dies."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import numpy as np
import pytest

from broker.config import Bridge
from broker.launch import Running, find_mosquitto, free_port, launch
from services.bus import Bus, BusError, encoding
from services.bus.messages import Ack, Message, Outputs

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: only it can bridge")


class Side:
    """One of the two brokers, on one port, that can be killed and started again."""

    def __init__(self, bridge: Bridge | None = None) -> None:
        self.port = free_port()
        self.bridge = bridge
        self._context: contextlib.AbstractAsyncContextManager[Running] | None = None
        self.running: Running | None = None

    async def start(self) -> Running:
        self._context = launch(self.port, embedded=False, bridge=self.bridge)
        self.running = await self._context.__aenter__()
        return self.running

    async def kill(self) -> None:
        assert self.running is not None
        assert self._context is not None
        self.running.process.kill()
        await self.running.process.wait()
        await self._context.__aexit__(None, None, None)

    async def __aenter__(self) -> Side:
        await self.start()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.kill()


def ack(seq: int) -> Ack:
    return Ack(session="s", of="mode", seq=seq, ok=True)


def outputs(nbytes: int) -> Outputs:
    array = np.random.default_rng(nbytes).integers(-128, 128, (nbytes, 1, 1, 1), np.int8)
    return Outputs(session="s", iteration=1, attempt=0, outputs=encoding.inline(array), labels=None)


@contextlib.asynccontextmanager
async def both() -> Any:
    async with Side() as server, Side(Bridge("127.0.0.1", server.port)) as device:
        assert device.running is not None
        assert server.running is not None
        async with (
            Bus(device.running.url(), "agent", "d") as agent,
            Bus(server.running.url(), "trainer", "d") as trainer,
        ):
            await trainer.subscribe("up/ack", "up/outputs", "state/agent")
            while True:  # until the bridge is there
                await agent.announce(version=1)
                try:
                    await trainer.receive(0.5)
                    break
                except TimeoutError:
                    continue
            yield server, device, agent, trainer


async def acks(bus: Bus, count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        _, message = await bus.receive(60)
        if isinstance(message, Ack):
            found.append(message.seq)
    return found


@pytest.mark.parametrize("victim", ["device", "server"])
async def test_nothing_is_lost_whichever_broker_dies(victim: str) -> None:
    async with both() as (server, device, agent, trainer):
        total = 300

        async def publish() -> None:
            for i in range(total):
                await agent.publish("up/ack", ack(i))
                await asyncio.sleep(0.002)

        publishing = asyncio.create_task(publish())
        first = await acks(trainer, 50)
        side = device if victim == "device" else server
        await side.kill()
        await asyncio.sleep(0.3)
        await side.start()
        rest = await acks(trainer, total - 50)
        await publishing
        assert first + rest == list(range(total))
        assert trainer.counts["lost"] == 0


async def test_a_second_service_of_a_name_on_the_other_side_of_the_bridge() -> None:
    async with both() as (server, _, agent, _):
        with pytest.raises(BusError, match="another agent called d is on this broker"):
            async with Bus(server.running.url(), "agent", "d") as bus:
                await bus.receive(60)
        await agent.flush()


async def test_large_messages_cross_in_chunks_and_credit_comes_back() -> None:
    async with both() as (_, _, agent, trainer):
        sent: list[Message] = [outputs(3_000_000 + i) for i in range(4)]
        for message in sent:
            await agent.publish("up/outputs", message)
        received: list[Message] = []
        while len(received) < 4:
            _, message = await trainer.receive(60)
            if isinstance(message, Outputs):
                received.append(message)
        assert received == sent
        await asyncio.sleep(0.3)
        assert agent._sender.outs[agent.topic("up/outputs")].credited
