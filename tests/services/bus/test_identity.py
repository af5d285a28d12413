"""One service of a name a device, and messages only of the one who has the name (docs/bus.md, "Names")."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque

import aiomqtt
import msgpack
import msgspec
import pytest

from broker.launch import launch
from services.bus import Bus, BusError, encoding, identity, topics
from services.bus.identity import PROBE_S, Names, Presence, sender_states
from services.bus.messages import Ack, Claim, Message, SetMode, State
from services.bus.sending import Limits, Sender

TAKEN = r"another {} called {} is on this broker \(boot \w+\): stop it, or give this one a name of its own with --device"


def ack(seq: int) -> Ack:
    return Ack(session="s", of="mode", seq=seq, ok=True)


def raw(url: str) -> aiomqtt.Client:
    """A client that knows nothing of the contract."""
    host, port = url.removeprefix("mqtt://").split(":")
    return aiomqtt.Client(host, int(port))


async def take(bus: Bus, count: int) -> list[Message]:
    return [(await bus.receive(60))[1] for _ in range(count)]


async def state_of(bus: Bus, service: str) -> State:
    topic, message = await bus.receive(60)
    assert isinstance(message, State)
    assert topic.endswith(f"state/{service}")
    return message


async def retain(url: str, device: str, state: State) -> None:
    async with raw(url) as other:
        await other.publish(f"r2f/v1/{device}/state/{state.service}", encoding.encode(state), 1, True)
    await retained(url, device, state.service, state.boot, online=state.online)


async def retained(url: str, device: str, service: str, boot: str, session: str = "", *, online: bool = True) -> None:
    """The moment from which the broker tells whoever subscribes of this State: NATS acknowledges it before."""
    topic = f"r2f/v1/{device}/state/{service}"
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1), raw(url) as other:
                    await other.subscribe(topic, 1)
                    async for packet in other.messages:
                        state = encoding.decode(topic, packet.payload)  # type: ignore[arg-type]
                        assert isinstance(state, State)
                        if (state.boot, state.session, state.online) == (boot, session, online):
                            return


def born(boot: str, service: str = "agent", *, online: bool = True) -> State:
    return State(session="", service=service, online=online, boot=boot)


# -- on a broker --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_end_of_probing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hears that its name is taken waits for the other's answer however slow the machine is, and for nothing else."""
    monkeypatch.setattr(identity, "PROBE_S", 200.0)


@pytest.fixture
def retained_at_once(kind: str) -> None:
    """Where what is retained comes ahead of the acknowledgement; elsewhere the second hears it later."""
    if kind == "aedes":
        pytest.skip("aedes acknowledges a subscription before it sends what is retained")


@pytest.mark.usefixtures("retained_at_once", "no_end_of_probing")
@pytest.mark.parametrize("service", ["agent", "trainer", "voter", "codec-device", "codec-server"])
async def test_a_second_service_of_a_name_does_not_start(broker_url: str, device: str, service: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        watch = await stack.enter_async_context(Bus(broker_url, "watch", device, passive=True))
        await watch.subscribe(f"state/{service}")  # ahead of it: NATS may lose what is retained in that moment
        first = await stack.enter_async_context(Bus(broker_url, service, device))
        assert (await state_of(watch, service)).boot == first.origin
        await retained(broker_url, device, service, first.origin)
        for _ in range(3):
            with pytest.raises(BusError, match=TAKEN.format(service, device)):
                async with asyncio.timeout(60), Bus(broker_url, service, device):
                    pass
        await watch.subscribe("up/ack", "down/forward")
        await first.announce(version=3)
        seen = await state_of(watch, service)
        assert (seen.online, seen.boot) == (True, first.origin), "nobody heard of the others"
        assert first.counts["bad"] == first.counts["foreign"] == 0
    async with Bus(broker_url, service, device):
        pass


async def test_the_same_name_on_another_device_and_another_name_on_this_one(broker_url: str, device: str) -> None:
    async with (
        Bus(broker_url, "agent", device),
        Bus(broker_url, "agent", f"{device}-2"),
        Bus(broker_url, "voter", device),
        Bus(broker_url, "agent", device, passive=True),
    ):
        pass


@pytest.mark.parametrize("count", [2, 5])
async def test_of_several_that_start_at_once_exactly_one_stays(broker_url: str, device: str, count: int) -> None:
    stays: list[str] = []
    lost: list[str] = []
    settled = asyncio.Event()

    async def start() -> None:
        try:
            async with Bus(broker_url, "agent", device) as bus:
                waiting = asyncio.create_task(bus.receive())
                done, _ = await asyncio.wait({waiting, asyncio.create_task(settled.wait())}, return_when="FIRST_COMPLETED")
                if waiting in done:
                    waiting.result()
                waiting.cancel()
                stays.append(bus.origin)
        except BusError as error:
            lost.append(str(error))
            if len(lost) == count - 1:
                await asyncio.sleep(0.2)
                settled.set()

    async with Bus(broker_url, "watch", device, passive=True) as watch, asyncio.timeout(60):
        await watch.subscribe("state/agent")
        await asyncio.gather(*(start() for _ in range(count)))
        assert len(stays) == 1
        assert len(lost) == count - 1
        said = [await state_of(watch, "agent")]
        while (said[-1].boot, said[-1].online) != (stays[0], False):
            said.append(await state_of(watch, "agent"))
        assert (said[-2].boot, said[-2].online) == (stays[0], True), "before its goodbye the last word is of the one that stays"


@pytest.mark.usefixtures("retained_at_once")
async def test_a_birth_of_the_dead_costs_a_second(broker_url: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a broker and a service were killed together: nobody has said that it is gone."""
    await retain(broker_url, device, born("dead"))
    start = time.monotonic()
    async with Bus(broker_url, "agent", device) as agent:
        assert time.monotonic() - start >= PROBE_S
        async with Bus(broker_url, "watch", device, passive=True) as watch:
            await watch.subscribe("state/agent")
            assert (await state_of(watch, "agent")).boot == agent.origin
    await retain(broker_url, device, born("dead", online=False))
    monkeypatch.setattr(identity, "PROBE_S", 200.0)  # who said goodbye is not waited for
    async with asyncio.timeout(60), Bus(broker_url, "agent", device):
        pass


async def test_who_was_there_stays_after_the_broker_forgot_both(kind: str, device: str) -> None:
    """The newcomer finds a broker that has just been started, and no sign of the other; its State comes first."""
    async with launch(embedded=kind == "embedded") as one, Bus(one.url(), "agent", device) as first:
        first._presence._since = time.monotonic() - 60
        async with raw(one.url()) as other:
            rival = born("ffffffffffff")  # greater than any boot, but not for long
            await other.subscribe(f"r2f/v1/{device}/state/#", 1)
            await other.publish(f"r2f/v1/{device}/state/agent", encoding.encode(rival), 1, True)
            said: list[State | Claim] = []
            async with asyncio.timeout(60):
                async for packet in other.messages:
                    message = encoding.decode(str(packet.topic), packet.payload)  # type: ignore[arg-type]
                    assert isinstance(message, State | Claim)
                    said.append(message)
                    if isinstance(message, State) and message.boot == first.origin and not packet.retain:
                        break
        claims = [message for message in said if isinstance(message, Claim)]
        assert [(claim.boot, claim.rank) for claim in claims] == [(first.origin, 1 + (60).bit_length())]
        await first.flush()
        assert first.counts["bad"] == 0


async def test_a_service_that_loses_its_name_says_no_goodbye_for_the_other(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "watch", device, passive=True) as watch, raw(broker_url) as other:
        await watch.subscribe("state/agent")
        async with Bus(broker_url, "agent", device) as agent:
            assert (await state_of(watch, "agent")).online
            claim = Claim(session="", service="agent", boot="other", rank=40)
            await other.publish(f"r2f/v1/{device}/state/claim", encoding.encode(claim), 1)
            with pytest.raises(BusError, match="another agent"):
                await agent.receive(60)
        with pytest.raises(TimeoutError):
            await watch.receive(0.3)


@pytest.mark.usefixtures("retained_at_once")
async def test_one_that_yields_gives_the_name_to_who_wants_it(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "watch", device, passive=True) as watch:
        await watch.subscribe("state/trainer")
        async with Bus(broker_url, "trainer", device, yields=True) as first:
            assert (await state_of(watch, "trainer")).online
            await retained(broker_url, device, "trainer", first.origin)
            async with Bus(broker_url, "trainer", device) as second:
                with pytest.raises(BusError, match=TAKEN.format("trainer", device)):
                    await first.receive(60)
        states = [await state_of(watch, "trainer") for _ in range(2)]
        assert [(state.boot, state.online) for state in states] == [(second.origin, True), (second.origin, False)]


@pytest.mark.usefixtures("retained_at_once", "no_end_of_probing")
async def test_one_that_yields_does_not_start_where_the_name_is_taken(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "trainer", device) as first:
        await retained(broker_url, device, "trainer", first.origin)
        with pytest.raises(BusError, match="another trainer"):
            async with Bus(broker_url, "trainer", device, yields=True):
                pass
        await first.flush()


@pytest.mark.parametrize("attempt", range(5))
async def test_of_two_that_start_at_once_the_one_that_yields_stops(broker_url: str, device: str, attempt: int) -> None:
    one, other = Bus(broker_url, "trainer", device, yields=True), Bus(broker_url, "trainer", device)

    async def stays(bus: Bus) -> bool:
        try:
            async with bus:
                await bus.receive(2.0)
        except BusError:
            return False
        except TimeoutError:
            return True
        return True

    assert await asyncio.gather(stays(one), stays(other)) == [False, True]


async def test_a_service_that_fails_does_not_seem_to_be_there(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "watch", device, passive=True) as watch:
        await watch.subscribe("state/agent")
        async with Bus(broker_url, "agent", device) as agent:
            assert (await state_of(watch, "agent")).online
            agent._fail(ZeroDivisionError())
            with pytest.raises(ZeroDivisionError):
                await agent.receive(60)
        assert not (await state_of(watch, "agent")).online


# -- who sent it --------------------------------------------------------------------------------------------------------


async def send(other: aiomqtt.Client, device: str, n: int, origin: str) -> None:
    message = msgspec.structs.replace(ack(n), origin=origin, n=n)
    await other.publish(f"r2f/v1/{device}/up/ack", encoding.encode(message), 1)


async def test_messages_of_one_who_does_not_have_the_name_are_dropped(broker_url: str, device: str) -> None:
    await retain(broker_url, device, born("now"))
    await retain(broker_url, device, born("codec", "codec-device"))
    async with Bus(broker_url, "trainer", device) as trainer, raw(broker_url) as other:
        await trainer.subscribe("up/ack")
        async with asyncio.timeout(60):  # the embedded broker is slow to say what it retains
            while not all(map(trainer._names.known, sender_states(trainer.topic("up/ack")))):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await send(other, device, 1, "before")
        await send(other, device, 1, "now")
        await send(other, device, 2, "rival")
        await send(other, device, 1, "codec")  # two services send there
        await other.publish(f"r2f/v1/{device}/up/ack", msgpack.packb({**PLAIN, "seq": 7}), 1)  # who cannot say who it is
        assert [m.seq for m in await take(trainer, 3) if isinstance(m, Ack)] == [1, 1, 7]
        assert (trainer.counts["foreign"], trainer.counts["lost"]) == (2, 0)


PLAIN = {"type": "ack", "session": "s", "of": "mode", "ok": True}


async def test_who_sends_is_not_asked_where_it_is_not_known(broker_url: str, device: str) -> None:
    await retain(broker_url, device, born("", "agent"))  # of a service that cannot say which process it is
    await retain(broker_url, device, born("gone", "codec-device", online=False))
    async with Bus(broker_url, "trainer", device) as trainer, raw(broker_url) as other:
        await trainer.subscribe("up/ack")
        await send(other, device, 1, "anyone")
        assert await take(trainer, 1) == [ack(1)]
        assert trainer.counts["foreign"] == 0


async def test_what_a_successor_sent_before_its_birth_was_heard_is_asked_for(broker_url: str, device: str) -> None:
    await retain(broker_url, device, born("before"))
    await retain(broker_url, device, born("codec", "codec-device"))
    async with Bus(broker_url, "trainer", device) as trainer, raw(broker_url) as other:
        await trainer.subscribe("up/ack")
        async with asyncio.timeout(60):
            while not all(map(trainer._names.known, sender_states(trainer.topic("up/ack")))):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await other.subscribe(f"r2f/v1/{device}/down/flow", 1)
        await send(other, device, 1, "after")
        await send(other, device, 2, "after")
        await send(other, device, 1, "before")
        assert await take(trainer, 1) == [ack(1)]
        await other.publish(f"r2f/v1/{device}/state/agent", encoding.encode(born("after")), 1, True)
        async with asyncio.timeout(60):
            async for packet in other.messages:
                flow = msgpack.unpackb(packet.payload)  # type: ignore[arg-type]
                assert (flow["to"], flow["taken"], flow["missing"]) == ("after", 0, [[1, 0]])
                break
        for n in (1, 2):
            await send(other, device, n, "after")
        assert await take(trainer, 2) == [ack(1), ack(2)]
        await send(other, device, 2, "before")
        await send(other, device, 3, "after")
        assert await take(trainer, 1) == [ack(3)]
        assert trainer.counts["foreign"] == 3


# -- without a broker ---------------------------------------------------------------------------------------------------


def test_names() -> None:
    names = Names()
    agent, codec = topics.build("d", "state", "agent"), topics.build("d", "state", "codec-device")
    topic = topics.build("d", "up", "ack")
    assert sender_states(topic) == (agent, codec)
    assert sender_states("r2f/v1/+/up/ack") == sender_states(topics.build("d", "event", "progress")) == ()
    assert names.may_send(topic, "x")
    names.note(agent, born("a"))
    assert names.may_send(topic, "x"), "the codec may be x"
    names.note(codec, born("c", "codec-device"))
    assert [names.may_send(topic, origin) for origin in "acx"] == [True, True, False]
    assert names.may_send(topics.build("other", "up", "ack"), "x")
    names.note(agent, born("b"))
    assert [names.may_send(topic, origin) for origin in "abc"] == [False, True, True]
    names.note(agent, born("b", online=False))
    assert names.may_send(topic, "x")


class Network:
    """Presences that hear one another after a while, in any order that the test wants."""

    def __init__(self, boots: str) -> None:
        self.queues: dict[str, deque[Claim]] = {boot: deque() for boot in boots}
        self.lost: set[str] = set()
        self.everybody = {}
        for boot in boots:
            presence = Presence("d", born(boot), Sender(boot, Limits(), Counter()))
            presence._sender.say = self.said  # type: ignore[method-assign,assignment]
            self.everybody[boot] = presence

    def said(self, topic: str, message: State | Claim, *, retain: bool = False) -> None:
        if isinstance(message, Claim):
            for boot, queue in self.queues.items():
                if boot != message.boot:
                    queue.append(message)

    def hear(self, boot: str) -> None:
        claim = self.queues[boot].popleft()
        if boot in self.lost:
            return
        try:
            self.everybody[boot].claimed(claim)
        except BusError:
            self.lost.add(boot)


@pytest.mark.parametrize("order", ["abc", "cba", "bca", "bac", "acb", "cab"])
@pytest.mark.parametrize("announced", ["", "a", "ab", "c", "abc"])
def test_delays_do_not_change_that_one_stays(order: str, announced: str) -> None:
    """What one knew when it said it is old when it is heard. With ages that grow meanwhile both seemed the older."""
    network = Network("abc")
    for boot in "abc":
        network.everybody[boot]._claim()
    for boot in announced:
        network.everybody[boot]._since = time.monotonic()
    for _ in range(100):
        for boot in order:
            if network.queues[boot]:
                network.hear(boot)
    assert not any(network.queues.values()), "they go on for ever"
    assert len(network.lost) == 2
    assert "abc"[-1] not in network.lost or announced


@pytest.mark.usefixtures("retained_at_once", "no_end_of_probing")
async def test_who_is_refused_a_device_is_told_which_run_has_it(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "trainer", device) as first:
        await first.announce(session="run-7")
        await retained(broker_url, device, "trainer", first.origin, "run-7")
        with pytest.raises(BusError, match=rf"another trainer called {device} .*at work on run run-7"):
            async with Bus(broker_url, "trainer", device, session="run-8"):
                pass
        await first.publish("down/mode", SetMode(session="run-7", seq=1, mode="training"))
        await first.flush()
        assert first.counts["reconnected"] == 0, "the first one is untouched"
