"""Numbers, repetition and credit without a broker: any loss, repetition and disorder ends in each message once, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.bus import Bus, encoding
from services.bus.messages import Ack, Flow, Inputs, Message
from services.bus.receiving import FARTHEST, HELD
from services.bus.sending import RANGES

TOPIC = "r2f/v1/d/edge/inputs"


class Broker:
    """Acknowledges at once; what it then does with a packet is told by the test."""

    def __init__(self, *buses: Bus) -> None:
        self.packets: deque[tuple[str, bytes]] = deque()
        self.buses = buses
        for bus in buses:
            bus._client = cast(Any, Connection(self, bus))
            bus._sender.connected(bus._client)

    def deliver(self, topic: str, payload: bytes) -> None:
        for bus in self.buses:
            if (topic == TOPIC) == (bus.service == "receiver"):
                bus._arrived(topic, payload, False)

    def drain(self) -> None:
        while self.packets:
            self.deliver(*self.packets.popleft())


class Connection:
    def __init__(self, broker: Broker, bus: Bus) -> None:
        self.broker, self.bus, self.packet = broker, bus, 0

    def send(self, topic: str, payload: bytes, qos: int, retain: bool = False) -> int:
        self.broker.packets.append((topic, payload))
        self.packet += 1
        asyncio.get_running_loop().call_soon(self.bus._sender.acknowledged, self.packet)
        return self.packet


def message(i: int) -> Inputs:
    """Every fourth goes in two chunks, so that a hole may be in the middle of one."""
    nbytes = 200_000 if i % 4 == 3 else 10
    images = np.random.default_rng(i).integers(0, 256, (1, nbytes, 1, 1), np.uint8)
    return Inputs(session="s", iteration=i, attempt=0, images=encoding.inline(images), labels=None)


def pair() -> tuple[Bus, Bus]:
    sender, receiver = Bus("mqtt://h:1", "sender", "d"), Bus("mqtt://h:1", "receiver", "d")
    receiver._connections = 2  # it was here before the sender
    receiver._subscriptions._resumed = ("r2f/v1/d/#",)
    return sender, receiver


def received(bus: Bus) -> list[Message]:
    return [entry[1] for entry in bus._receiver._inbox]


FATES = st.lists(st.sampled_from(["deliver", "deliver", "drop", "twice", "late"]), max_size=120)


@pytest.fixture(scope="module")
def at_once() -> Iterator[None]:
    """What is asked for again is sent without a pause."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.bus.sending.AGAIN_S", 0.0)
        yield


@pytest.mark.usefixtures("at_once")
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), FATES)
def test_any_fate_of_the_packets_ends_in_each_message_once_and_in_order(count: int, fates: list[str]) -> None:
    async def run() -> None:
        sender, receiver = pair()
        broker = Broker(sender, receiver)
        sent = [message(i) for i in range(count)]
        fate = iter(fates)
        late: list[tuple[str, bytes]] = []
        for one in sent:
            await sender.publish("edge/inputs", one)
            await asyncio.sleep(0)
            while broker.packets:
                packet = broker.packets.popleft()
                match next(fate, "deliver"):
                    case "deliver":
                        broker.deliver(*packet)
                    case "twice":
                        broker.deliver(*packet)
                        broker.deliver(*packet)
                    case "late":
                        late.append(packet)
        for packet in reversed(late):
            broker.deliver(*packet)
        # A new connection for both, whoever is first; from now on nothing is lost.
        for bus in (sender, receiver) if count % 2 else (receiver, sender):
            await asyncio.sleep(0)
            bus._sender.repeat()
            bus._receiver.reconnected()
            broker.drain()
        await asyncio.sleep(0)
        receiver._receiver.reconnected()  # the sender may have been told before all of its were acknowledged
        broker.drain()
        assert received(receiver) == sent
        assert receiver.counts["bad"] == receiver.counts["lost"] == receiver._receiver._held_bytes == 0
        assert receiver._receiver._reassembler.held == 0
        for bus in (sender, receiver):
            assert bus._sender._failure is None
            await bus._stop()

    asyncio.run(run())


number = st.one_of(st.integers(0, 40), st.integers(0, 2**53))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", ""]), number), max_size=80))
def test_any_numbers_are_delivered_in_order_once_and_held_within_bounds(stamps: list[tuple[str, int]]) -> None:
    bus = Bus("mqtt://h:1", "receiver", "d")
    for origin, n in stamps:
        one = Ack(session="s", of="mode", seq=min(n, 2**40), ok=True, origin=origin, n=n, error=origin)
        bus._arrived("r2f/v1/d/up/ack", encoding.encode(one), False)
    assert bus._sender._failure is None
    assert bus._receiver._held_bytes == sum(size for flow in bus._receiver.ins.values() for _, size in flow.held.values())
    for origin in ("a", "b"):
        got = [m.seq for m in received(bus) if isinstance(m, Ack) and m.error == origin and m.seq]
        assert got == sorted(set(got))
    assert all(len(flow.held) <= HELD for flow in bus._receiver.ins.values())
    assert all(n <= flow.next + FARTHEST for flow in bus._receiver.ins.values() for n in flow.held)


@pytest.mark.usefixtures("at_once")
@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(number, st.lists(st.tuples(number, number), max_size=5), st.booleans()), max_size=20))
def test_any_flow_only_sends_what_was_sent(flows: list[tuple[int, list[tuple[int, int]], bool]]) -> None:
    async def run() -> None:
        sender, _ = pair()
        broker = Broker(sender)
        for i in range(6):
            await sender.publish("edge/inputs", message(i))
            await asyncio.sleep(0)
        real = set(broker.packets)
        for taken, missing, right in flows:
            flow = Flow(session="", to=sender.origin, topic=TOPIC, taken=taken, missing=tuple(missing))
            if not right:
                flow = msgspec.structs.replace(flow, topic="r2f/v1/d/up/none")
            before = len(broker.packets)
            sender._arrived("r2f/v1/d/edge/flow", encoding.encode(flow), False)
            assert len(broker.packets) - before <= len(real)
            await asyncio.sleep(0)
        assert set(broker.packets) == real
        assert sender._sender.outs[TOPIC].taken <= sender._sender.outs[TOPIC].n
        assert sender._sender._failure is None
        assert sum(len(out.wanted) for out in sender._sender.outs.values()) <= RANGES
        await sender._stop()

    asyncio.run(run())
