"""What every broker must give the services; run on Mosquitto and on the embedded broker."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from pathlib import Path

import aiomqtt
import msgpack
import msgspec
import numpy as np
import pytest

from broker.accounts import make_accounts
from broker.ending import stop
from broker.launch import Running, find_mosquitto, free_port, launch
from services.bus import Bus, BusError, MessageError, encoding
from services.bus.messages import (
    Ack,
    Activations,
    Forward,
    Inputs,
    LayerActivation,
    Message,
    Outputs,
    Progress,
    SetMode,
    State,
    Timing,
)
from services.bus.sending import CREDIT_WAIT_S

ROOT = Path(__file__).resolve().parents[3]


def ack(seq: int, session: str = "s") -> Ack:
    return Ack(session=session, of="mode", seq=seq, ok=True)


def forward(iteration: int) -> Forward:
    return Forward(session="s", iteration=iteration, attempt=0, mode="training", version=1, split="train", samples=(1, 2))


def inputs(iteration: int, nbytes: int) -> Inputs:
    generator = np.random.default_rng(iteration)
    images = generator.integers(0, 256, (1, nbytes, 1, 1), np.uint8)
    return Inputs(session="s", iteration=iteration, attempt=0, images=encoding.inline(images), labels=None)


async def take(bus: Bus, count: int, timeout_s: float = 60.0) -> list[Message]:
    return [(await bus.receive(timeout_s))[1] for _ in range(count)]


def raw(url: str) -> aiomqtt.Client:
    """A client that knows nothing of the contract."""
    host, port = url.removeprefix("mqtt://").split(":")
    return aiomqtt.Client(host, int(port))


# -- publish and subscribe --------------------------------------------------------------------------------------------


async def test_messages_arrive_whole_once_and_in_order(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "server", device) as receiver, Bus(broker_url, "agent", device) as sender:
        await receiver.subscribe("up/ack", "up/#")  # overlapping: a broker may deliver twice
        sent = [ack(i) for i in range(1000)]
        for message in sent:
            await sender.publish("up/ack", message)
        assert await take(receiver, 1000) == sent
        await sender.flush()
        with pytest.raises(TimeoutError):
            await receiver.receive(0.2)
        assert receiver.counts["bad"] == receiver.counts["lost"] == 0


async def test_publishing_does_not_wait_for_each_acknowledgement(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "agent", device) as sender:
        for i in range(100):
            await sender.publish("up/ack", ack(i))
        assert len(sender._sender.pending) > 1
        await sender.flush()
        assert not sender._sender.pending


async def test_a_wildcard_on_events_and_states_sees_nothing_of_the_data(broker_url: str, device: str) -> None:
    async with (
        Bus(broker_url, "tap", device, passive=True) as tap,
        Bus(broker_url, "server", device) as receiver,
        Bus(broker_url, "agent", device) as sender,
    ):
        await tap.subscribe("event/#", "state/#")
        await receiver.subscribe("up/ack")
        for i in range(200):
            await sender.publish("up/ack", ack(i))
        async with sender.timing("s", "forward", 7) as timing:
            timing.bytes = 5
        await sender.publish("event/progress", Progress(session="s", phase="train", step=1, steps=2, value=0.5))
        await take(receiver, 200)
        seen: list[tuple[str, Message]] = []
        while not (seen and isinstance(seen[-1][1], Progress)):
            seen.append(await tap.receive(60))
        assert {type(message) for _, message in seen} == {State, Timing, Progress}
        timed = next(message for _, message in seen if isinstance(message, Timing))
        assert (timed.stage, timed.iteration, timed.bytes) == ("forward", 7, 5)
        assert 0 <= timed.host_s < 5
        assert tap.counts["received"] == len(seen)
        assert tap.counts["sent"] == 0


async def test_messages_of_another_session_are_dropped_and_counted(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "server", device, session="mine") as receiver, Bus(broker_url, "agent", device) as sender:
        await receiver.subscribe("up/ack")
        await sender.publish("up/ack", ack(1, "old"))
        await sender.publish("up/ack", ack(2, "mine"))
        assert [m.seq for m in await take(receiver, 1) if isinstance(m, Ack)] == [2]
        assert receiver.counts["foreign"] == 1


async def test_what_is_dropped_leaves_no_gap_behind(broker_url: str, device: str) -> None:
    """A numbered message of another session, or one that cannot be read, has come: nobody is asked for it again."""
    async with Bus(broker_url, "server", device, session="mine") as receiver, raw(broker_url) as other:
        await receiver.subscribe("up/ack")
        topic = f"r2f/v1/{device}/up/ack"
        for n, session in enumerate(("mine", "old", "mine", "unread", "mine"), 1):
            message = msgpack.unpackb(encoding.encode(ack(n, session))) | {"origin": "someone", "n": n}
            if session == "unread":
                message["seq"] = "x"
            await other.publish(topic, msgpack.packb(message), 1)
        assert [m.seq for m in await take(receiver, 3) if isinstance(m, Ack)] == [1, 3, 5]
        assert (receiver.counts["foreign"], receiver.counts["bad"], receiver.counts["lost"]) == (1, 1, 0)
        assert not any(flow.gap_since for flow in receiver._receiver.ins.values())


async def test_a_gap_that_nobody_fills_is_given_up_and_counted(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "server", device, give_up_s=0.6) as receiver, raw(broker_url) as other:
        await receiver.subscribe("up/ack")
        for n in (1, 4, 5):
            message = msgspec.structs.replace(ack(n), origin="someone", n=n)
            await other.publish(f"r2f/v1/{device}/up/ack", encoding.encode(message), 1)
        assert [m.seq for m in await take(receiver, 3) if isinstance(m, Ack)] == [1, 4, 5]
        assert receiver.counts["lost"] == 2


async def test_a_sender_without_our_client_is_understood(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "server", device) as receiver, raw(broker_url) as other:
        await receiver.subscribe("up/ack")
        payload = msgpack.packb({"type": "ack", "session": "s", "of": "mode", "seq": 3, "ok": True})
        await other.publish(f"r2f/v1/{device}/up/ack", payload, 1)
        await other.publish(f"r2f/v1/{device}/up/ack", payload, 1)  # unnumbered: taken as it comes
        assert await take(receiver, 2) == [ack(3), ack(3)]


# -- large messages ---------------------------------------------------------------------------------------------------


async def test_large_messages_go_in_chunks_and_leave_room_for_small_ones(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "codec", device) as receiver, Bus(broker_url, "agent", device, arena_bytes=0) as sender:
        await receiver.subscribe("edge/inputs", "up/ack")
        large = [inputs(i, 3_000_000 + i) for i in range(3)]

        async def publish() -> None:
            for message in large:
                await sender.publish("edge/inputs", message)

        publishing = asyncio.create_task(publish())
        await asyncio.sleep(0)
        await sender.publish("up/ack", ack(1))
        await publishing
        received = await take(receiver, 4)
        assert [m for m in received if isinstance(m, Inputs)] == large
        assert received[0] == ack(1)
        assert receiver._receiver._reassembler.held == 0


async def test_a_message_over_the_limit_is_refused_by_its_sender(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "agent", device, message_limit=1 << 20) as sender:
        with pytest.raises(MessageError, match="over the limit"):
            await sender.publish("edge/inputs", inputs(0, 1 << 21))


async def test_tensors_by_reference_arrive_and_their_slots_come_back(
    broker_url: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R2F_SHM_DIR", str(tmp_path))
    async with Bus(broker_url, "codec", device) as receiver, Bus(broker_url, "voter", device) as sender:
        await receiver.subscribe("server/activations")
        for i in range(20):
            array = np.random.default_rng(i).integers(-128, 128, (4, 32, 32, 16), np.int8)
            layer = LayerActivation(index=i, actual=sender.share(array))
            await sender.publish(
                "server/activations", Activations(session="s", iteration=i, attempt=0, segment=0, layers=(layer,))
            )
            _, message = await receiver.receive(60)
            assert isinstance(message, Activations)
            tensor = message.layers[0].actual
            assert tensor.ref is not None
            np.testing.assert_array_equal(receiver.open(tensor), array)
            assert receiver.release(tensor)
        assert sender._tensors._arena is not None
        sender._tensors._arena.collect()
        assert sender._tensors._arena.in_use == 0
    assert list(tmp_path.iterdir()) == []


async def test_a_reference_is_refused_where_the_topic_leaves_the_host(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "agent", device) as sender:
        outputs = sender.share(np.zeros((4096, 1, 1, 1), np.int8))
        assert outputs.ref is not None
        message = Outputs(session="s", iteration=0, attempt=0, outputs=outputs, labels=None)
        with pytest.raises(MessageError, match="inline"):
            await sender.publish("up/outputs", message)


# -- states -----------------------------------------------------------------------------------------------------------


async def state_of(bus: Bus, service: str) -> State:
    while True:
        topic, message = await bus.receive(60)
        if topic.endswith(f"state/{service}"):
            assert isinstance(message, State)
            return message


async def test_birth_change_and_goodbye_are_retained(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "agent", device) as agent:
        await agent.announce(version=4, samples={"train": 10})
        await agent.flush()
        async with Bus(broker_url, "watch", device, passive=True) as watch:
            await watch.subscribe("state/#")
            state = await state_of(watch, "agent")
            assert (state.online, state.version, state.samples) == (True, 4, {"train": 10})
            assert state.boot == agent.origin
    async with Bus(broker_url, "watch", device, passive=True) as watch:
        await watch.subscribe("state/agent")
        assert not (await state_of(watch, "agent")).online


async def test_the_last_will_tells_of_a_killed_service(broker_url: str, device: str) -> None:
    program = (
        "import asyncio\nfrom services.bus import Bus\n"
        "async def main():\n"
        f"    async with Bus({broker_url!r}, 'agent', {device!r}) as bus:\n"
        "        async for _ in bus: pass\n"
        "asyncio.run(main())\n"
    )
    async with Bus(broker_url, "watch", device, passive=True) as watch:
        await watch.subscribe("state/agent")
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT)
        born = await state_of(watch, "agent")
        assert born.online
        process.kill()
        died = await state_of(watch, "agent")
        assert (died.online, died.boot) == (False, born.boot)
        await process.wait()


async def test_the_late_will_of_a_predecessor_does_not_stand(broker_url: str, device: str) -> None:
    async with (
        Bus(broker_url, "agent", device) as agent,
        Bus(broker_url, "watch", device, passive=True) as watch,
        raw(broker_url) as other,
    ):
        await watch.subscribe("state/agent")
        assert (await state_of(watch, "agent")).online
        dead = State(session="", service="agent", online=False, boot="before")
        await other.publish(f"r2f/v1/{device}/state/agent", encoding.encode(dead), 1, True)
        assert not (await state_of(watch, "agent")).online
        again = await state_of(watch, "agent")
        assert (again.online, again.boot) == (True, agent.origin)


# -- what must not be taken -------------------------------------------------------------------------------------------


async def test_bad_messages_are_dropped_and_counted_and_the_next_good_one_arrives(broker_url: str, device: str) -> None:
    good = encoding.encode(ack(5))
    hostile: list[tuple[str, bytes]] = [
        ("up/ack", good[:-1]),
        ("up/ack", b"\xc1"),
        ("up/ack", b"\x00"),
        ("up/ack", b"\xdd\xff\xff\xff\xff"),
        ("up/ack", b"\x91" * 5000),
        ("up/ack", encoding.encode(forward(1))),
        ("up/ack", msgpack.packb({"type": "ack", "session": "s", "of": "mode", "seq": "x", "ok": True})),
        ("up/ack", msgpack.packb({"type": "ack", "v": 99, "session": "s", "of": "mode", "seq": 1, "ok": True})),
        ("up/ack", msgpack.packb({"type": "ack", "session": "s" * 65, "of": "mode", "seq": 1, "ok": True})),
        ("up/nothing", good),
        ("sideways/ack", good),
    ]
    async with Bus(broker_url, "server", device) as receiver, raw(broker_url) as other:
        await receiver.subscribe("up/#", "sideways/#")
        for name, payload in hostile:
            await other.publish(f"r2f/v1/{device}/{name}", payload, 1)
        await other.publish(f"r2f/v1/{device}/up/ack", good, 1)
        assert await take(receiver, 1) == [ack(5)]
        assert receiver.counts["bad"] == len(hostile)


async def test_a_message_on_the_wrong_topic_is_an_error_where_it_is_published(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "agent", device) as sender:
        with pytest.raises(MessageError, match="carries Forward, not Ack"):
            await sender.publish("down/forward", ack(1))
        with pytest.raises(MessageError, match="no message is defined"):
            await sender.publish("down/nothing", ack(1))
        with pytest.raises(ValueError, match="pattern"):
            await sender.subscribe("up/#/ack")


async def test_a_packet_over_the_limit_ends_at_the_broker(kind: str, broker_url: str, device: str) -> None:
    """Or, where the broker takes packets of any size, at the receiver."""
    async with Bus(broker_url, "server", device) as receiver, Bus(broker_url, "agent", device) as sender:
        await receiver.subscribe("up/ack")
        with contextlib.suppress(aiomqtt.MqttError):
            async with raw(broker_url) as other:
                await other.publish(f"r2f/v1/{device}/up/ack", b"\x00" * (encoding.PACKET_LIMIT + 2048), 1, timeout=1)
        await sender.publish("up/ack", ack(1))
        assert await take(receiver, 1) == [ack(1)]
        assert receiver.counts["reconnected"] == 0
        assert receiver.counts["bad"] in {"aedes": (1,), "named": (0, 1)}.get(kind, (0,))


# -- connections that fail --------------------------------------------------------------------------------------------


async def test_no_broker_is_one_clear_error(device: str) -> None:
    port = free_port()
    with pytest.raises(BusError, match=rf"broker mqtt://127.0.0.1:{port} is unreachable for 0.3 s: .*refused"):
        async with Bus(f"mqtt://127.0.0.1:{port}", "agent", device, give_up_s=0.3):
            pass


@pytest.mark.parametrize("url", ["http://x:1", "mqtt://", "mqtt://host:0", "mqtt://host:99999"])
async def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BusError, match="is no broker"):
        Bus(url, "agent", "d")


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: only it knows accounts")
async def test_accounts_keep_the_roles_apart(device: str) -> None:
    async with launch(accounts=make_accounts()) as running:
        anonymous = f"mqtt://127.0.0.1:{running.port}"
        with pytest.raises(BusError, match="refuses the credentials of no user"):
            async with Bus(anonymous, "agent", device):
                pass
        with pytest.raises(BusError, match="refuses the credentials of device") as caught:
            async with Bus(f"mqtt://device:guess@127.0.0.1:{running.port}", "agent", device):
                pass
        assert "guess" not in str(caught.value)
        async with (
            Bus(running.url("device"), "agent", device) as agent,
            Bus(running.url("server"), "trainer", device) as trainer,
            Bus(running.url("watch"), "tap", device, passive=True) as tap,
        ):
            await trainer.subscribe("up/#", "edge/#")
            await agent.subscribe("down/#", "server/#")
            await tap.subscribe("up/ack")
            # What a role may not write or read does not arrive; what it may, does, and comes after.
            await agent.publish("server/inputs", inputs(1, 10))
            await agent.publish("down/forward", forward(1))
            await agent.publish("edge/inputs", inputs(2, 10))
            await agent.publish("up/ack", ack(1))
            await agent.flush()
            await trainer.publish("down/forward", forward(2))
            assert await take(trainer, 1) == [ack(1)]
            assert await take(agent, 1) == [forward(2)]
            assert await take(tap, 1) == [ack(1)]
            await tap.publish("up/ack", ack(9))
            await tap.flush()
            await agent.publish("up/ack", ack(2))
            assert await take(trainer, 1) == [ack(2)]


# -- a broker that comes and goes -------------------------------------------------------------------------------------


class Broker:
    """A broker on one port that can be killed and started again."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._context = None
        self.running: Running | None = None

    async def start(self) -> None:
        self._context = launch(self.port, embedded=self.kind == "embedded")
        self.running = await self._context.__aenter__()

    async def kill(self) -> None:
        assert self.running is not None
        self.running.process.kill()
        await self.running.process.wait()
        await self._context.__aexit__(None, None, None)

    async def __aenter__(self) -> Broker:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop(self.running.process)
        await self._context.__aexit__(None, None, None)


@pytest.mark.parametrize("after", [1, 40, 300])
async def test_a_broker_killed_in_the_middle_loses_nothing(ours: str, device: str, after: int) -> None:
    total = 600
    async with (
        Broker(ours) as broker,
        Bus(broker.url, "server", device) as receiver,
        Bus(broker.url, "agent", device) as sender,
    ):
        await receiver.subscribe("up/ack")
        reached = asyncio.Event()

        async def publish() -> None:
            for i in range(total):
                await sender.publish("up/ack", ack(i))
                if i == after:
                    reached.set()
                if i % 20 == 0:
                    await asyncio.sleep(0.001)

        publishing = asyncio.create_task(publish())
        await reached.wait()
        await broker.kill()
        await asyncio.sleep(0.2)
        await broker.start()
        received = await take(receiver, total)
        await publishing
        assert [m.seq for m in received if isinstance(m, Ack)] == list(range(total))
        with pytest.raises(TimeoutError):
            await receiver.receive(0.3)
        assert receiver.counts["reconnected"] == sender.counts["reconnected"] == 1
        assert receiver.counts["lost"] == 0


async def test_who_had_the_name_has_it_when_the_broker_is_back(ours: str, device: str) -> None:
    """A second agent waited for the broker, which has forgotten the first; they come back in any order."""
    async with Broker(ours) as broker, Bus(broker.url, "agent", device) as first:
        first._presence._since = time.monotonic() - 60  # type: ignore[operator]
        await broker.kill()

        async def second() -> None:
            async with Bus(broker.url, "agent", device) as bus:
                await bus.receive(60)

        starting = [asyncio.create_task(second()) for _ in range(3)]
        await asyncio.sleep(0.2)
        await broker.start()
        for task in starting:
            with pytest.raises(BusError, match="another agent"):
                await task
        await first.flush()
        async with Bus(broker.url, "watch", device, passive=True) as watch:
            await watch.subscribe("state/agent")
            state = await state_of(watch, "agent")
            while state.boot != first.origin or not state.online:
                state = await state_of(watch, "agent")


async def test_a_broker_killed_under_large_messages_loses_nothing(ours: str, device: str) -> None:
    async with (
        Broker(ours) as broker,
        Bus(broker.url, "codec", device) as receiver,
        Bus(broker.url, "agent", device, arena_bytes=0) as sender,
    ):
        await receiver.subscribe("edge/inputs")
        large = [inputs(i, 2_000_000) for i in range(8)]

        async def publish() -> None:
            for message in large:
                await sender.publish("edge/inputs", message)

        publishing = asyncio.create_task(publish())
        received = await take(receiver, 2)
        await broker.kill()
        await broker.start()
        received += await take(receiver, 6)
        await publishing
        assert received == large


async def test_what_the_broker_acknowledged_and_took_with_it_is_asked_for_again(ours: str, device: str) -> None:
    """The receiver's connection is cut first: the broker acknowledges for nobody, then dies."""
    async with (
        Broker(ours) as broker,
        Bus(broker.url, "server", device) as receiver,
        Bus(broker.url, "agent", device) as sender,
    ):
        await receiver.subscribe("up/ack")
        await sender.publish("up/ack", ack(0))
        assert await take(receiver, 1) == [ack(0)]
        receiver._client._client._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
        for i in range(1, 6):
            await sender.publish("up/ack", ack(i))
        await sender.flush()
        received = await take(receiver, 5)
        assert [m.seq for m in received if isinstance(m, Ack)] == [1, 2, 3, 4, 5]


async def test_publishing_goes_on_while_there_is_no_broker(ours: str, device: str) -> None:
    async with (
        Broker(ours) as broker,
        Bus(broker.url, "server", device) as receiver,
        Bus(broker.url, "agent", device) as sender,
    ):
        await receiver.subscribe("up/ack")
        # A receiver that has never heard of a sender, and is back later than it, cannot know what to ask for.
        await sender.publish("up/ack", ack(50))
        await take(receiver, 1)
        await broker.kill()
        for i in range(50):  # each of these would hang for ever in aiomqtt
            await asyncio.wait_for(sender.publish("up/ack", ack(i)), 60)
        await sender.publish("event/progress", Progress(session="s", phase="train", step=1, steps=2, value=0.5))
        await broker.start()
        await asyncio.wait_for(sender.flush(), 60)
        assert len(await take(receiver, 50)) == 50


async def test_flushing_waits_for_what_is_sent_again(ours: str, device: str) -> None:
    async with Broker(ours) as broker, Bus(broker.url, "agent", device) as sender:
        await broker.kill()
        for i in range(10):
            await sender.publish("up/ack", ack(i))
        flushing = asyncio.create_task(sender.flush())
        await asyncio.sleep(0.1)
        assert not flushing.done()
        await broker.start()
        await asyncio.wait_for(flushing, 60)
        assert not sender._sender.pending


async def test_states_and_retained_modes_survive_the_broker(ours: str, device: str) -> None:
    async with Broker(ours) as broker, Bus(broker.url, "trainer", device) as trainer:
        await trainer.publish("down/mode", SetMode(session="s", seq=1, mode="training"), retain=True)
        await trainer.announce(version=2)
        await trainer.flush()
        await broker.kill()
        await broker.start()
        async with Bus(broker.url, "agent", device) as agent:
            await agent.subscribe("down/mode", "state/trainer")
            got: dict[str, Message] = {}
            while len(got) < 2:
                topic, message = await agent.receive(60)
                got[topic.rsplit("/", 1)[1]] = message
            assert isinstance(got["mode"], SetMode)
            assert isinstance(got["trainer"], State)
            assert (got["mode"].seq, got["trainer"].version, got["trainer"].online) == (1, 2, True)


async def test_a_broker_that_stays_away_is_an_error_everywhere(ours: str, device: str) -> None:
    async with Broker(ours) as broker:
        async with Bus(broker.url, "agent", device, give_up_s=0.5) as bus:
            await broker.kill()
            with pytest.raises(BusError, match=r"unreachable for 0\.5 s"):
                await bus.receive(60)
            with pytest.raises(BusError, match="unreachable"):
                await bus.publish("up/ack", ack(1))
            with pytest.raises(BusError, match="unreachable"):
                await bus.flush()
        await broker.start()


async def test_a_broker_that_hangs_is_waited_for(ours: str, device: str) -> None:
    """aiomqtt would give up a publish after its timeout (10 s by default, less here)."""
    async with (
        Broker(ours) as broker,
        Bus(broker.url, "server", device) as receiver,
        Bus(broker.url, "agent", device) as sender,
    ):
        await receiver.subscribe("up/ack")
        assert sender._client is not None
        sender._client.timeout = 0.2
        assert broker.running is not None
        broker.running.process.send_signal(signal.SIGSTOP)
        await sender.publish("up/ack", ack(1))
        await asyncio.sleep(0.6)
        broker.running.process.send_signal(signal.SIGCONT)
        assert await take(receiver, 1) == [ack(1)]
        await sender.flush()
        assert sender.counts["reconnected"] == 0


# -- slow receivers ---------------------------------------------------------------------------------------------------


async def test_the_acknowledgement_says_nothing_of_the_handler(broker_url: str, device: str) -> None:
    """QoS 1 is between a client and its broker. What a receiver took and did not handle is its service's to ask again."""
    async with Bus(broker_url, "server", device) as receiver, Bus(broker_url, "agent", device) as sender:
        await receiver.subscribe("up/ack")
        await sender.publish("up/ack", ack(1))
        await sender.flush()
        assert receiver.counts["received"] in (0, 1)  # acknowledged, though nobody has iterated
        assert await take(receiver, 1) == [ack(1)]


async def test_a_slow_receiver_holds_its_sender_back_and_loses_nothing(broker_url: str, device: str) -> None:
    async with (
        Bus(broker_url, "codec", device, inbox_bytes=1 << 20) as receiver,
        Bus(broker_url, "agent", device, arena_bytes=0) as sender,
    ):
        await receiver.subscribe("edge/inputs")
        large = [inputs(i, 100_000) for i in range(250)]

        async def publish() -> None:
            for message in large:
                await sender.publish("edge/inputs", message)

        publishing = asyncio.create_task(publish())
        await asyncio.sleep(1.0)
        assert receiver._receiver._inbox_bytes < (1 << 20) + 200_000
        received: list[Message] = []
        for _ in range(250):
            received += await take(receiver, 1)
        await publishing
        assert received == large
        assert receiver.counts["lost"] == 0


async def test_nobody_listening_does_not_hold_a_sender_back(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "agent", device) as sender:
        start = time.monotonic()
        for i in range(500):
            await sender.publish("up/ack", ack(i))
        await sender.flush()
        assert time.monotonic() - start < CREDIT_WAIT_S


async def test_credit_keeps_a_sender_within_its_window(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "server", device) as receiver, Bus(broker_url, "agent", device) as sender:
        await receiver.subscribe("up/ack")
        for i in range(100):
            await sender.publish("up/ack", ack(i))
        assert len(await take(receiver, 100)) == 100
        out = sender._sender.outs[sender.topic("up/ack")]
        await sender.flush()
        await asyncio.sleep(0.2)
        assert out.credited
        receiver._receiver._passive = True  # gives no more credit
        publishing = [asyncio.create_task(sender.publish("up/ack", ack(i))) for i in range(200)]
        await asyncio.sleep(0.3)
        assert out.n - out.taken == 64
        receiver._receiver._passive = False
        receiver._receiver._answer(
            sender.topic("up/ack"), sender.origin, receiver._receiver.ins[sender.topic("up/ack"), sender.origin]
        )
        await asyncio.gather(*publishing)
        assert len(await take(receiver, 200)) == 200


async def test_numbers_out_of_all_proportion_are_refused(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "server", device) as receiver, raw(broker_url) as other:
        await receiver.subscribe("up/ack")
        topic = f"r2f/v1/{device}/up/ack"
        for n in (1, 2**50, 3, 2, 2, 4):
            message = msgspec.structs.replace(ack(n), origin="someone", n=n)
            await other.publish(topic, encoding.encode(message), 1)
        assert [m.seq for m in await take(receiver, 4) if isinstance(m, Ack)] == [1, 2, 3, 4]
        assert receiver.counts["bad"] == 1
        assert receiver.counts["duplicate"] == 1


async def test_a_state_that_the_bus_knew_before_is_heard_by_who_asks_for_it(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "codec-server", device), Bus(broker_url, "trainer", device) as trainer:
        await trainer.subscribe("server/inputs")
        await asyncio.sleep(0.2)  # that of the one who sends there has come meanwhile
        await trainer.subscribe("state/codec-server")
        topic, state = await trainer.receive(60)
        assert (topic, isinstance(state, State)) == (trainer.topic("state/codec-server"), True)


# -- without a broker -------------------------------------------------------------------------------------------------


async def test_what_is_kept_for_sending_again_is_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.bus.sending.KEPT_BYTES", 2000)
    bus = Bus("mqtt://127.0.0.1:1", "agent", "d")
    monkeypatch.setattr(bus, "_passive", True)
    for i in range(200):
        await bus.publish(("up/ack", "down/forward", "edge/inputs")[i % 7 % 3], (ack, forward, tiny)[i % 7 % 3](i))
        kept = [len(entry.payload) for out in bus._sender.outs.values() for entry in out.kept]
        assert bus._sender._kept_bytes == sum(kept) <= 2000 + max(kept)
        assert len(bus._sender._kept) == len(kept)
        assert all(out.kept[-1].n == out.n for out in bus._sender.outs.values())


def tiny(iteration: int) -> Inputs:
    return inputs(iteration, 10)


def test_a_bus_can_be_made_before_there_is_a_loop() -> None:
    assert Bus("mqtt://user:secret@host:1", "agent", "d").url == "mqtt://…@host:1"


async def test_chunks_are_small_only_where_they_cross_a_thin_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2F_LINK_BITS_PER_S", "50000")
    bus = Bus("mqtt://127.0.0.1:1", "agent", "d")
    monkeypatch.setattr(bus, "_passive", True)
    array = encoding.inline(np.zeros((13_000, 1, 1, 1), np.uint8))
    await bus.publish("edge/inputs", Inputs(session="s", iteration=0, attempt=0, images=array, labels=None))
    signed = encoding.inline(np.zeros((26_000, 1, 1, 1), np.int8))
    await bus.publish("up/outputs", Outputs(session="s", iteration=0, attempt=0, outputs=signed, labels=None))
    assert {topic.rsplit("/", 1)[1]: out.n for topic, out in bus._sender.outs.items()} == {"inputs": 1, "outputs": 1 + 3}
    assert max(len(entry.payload) for entry in bus._sender.outs[bus.topic("up/outputs")].kept) < 12_500 + 200
    for text in ("fast", "0", "-1", "inf"):
        monkeypatch.setenv("R2F_LINK_BITS_PER_S", text)
        with pytest.raises(BusError, match="R2F_LINK_BITS_PER_S is"):
            Bus("mqtt://127.0.0.1:1", "agent", "d")


# -- back-pressure through shared memory ------------------------------------------------------------------------------


async def test_a_sender_waits_for_room(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "agent", device, arena_bytes=64 << 10) as sender, Bus(broker_url, "voter", device) as reader:
        full = [sender.share(np.zeros(30 << 10, np.int8)) for _ in range(2)]
        waiting = asyncio.create_task(sender.room(20 << 10, 8 << 10))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert reader.release(full[1])
        await asyncio.wait_for(waiting, 60)
        assert sender.share(np.zeros(20 << 10, np.int8)).ref is not None
        assert sender.share(np.zeros(8 << 10, np.int8)).ref is not None
        with pytest.raises(ValueError, match="--arena-mb 0"):
            await sender.room(40 << 10, 40 << 10)


async def test_a_reader_that_starts_anew_gives_everything_back(broker_url: str, device: str) -> None:
    async with Bus(broker_url, "agent", device, arena_bytes=64 << 10, readers=("voter",)) as sender:
        async with Bus(broker_url, "voter", device):
            tensor = sender.share(np.zeros(60 << 10, np.int8))
            waiting = asyncio.create_task(sender.room(60 << 10))
            await asyncio.sleep(0.1)
            assert not waiting.done()
        assert not waiting.done()  # a goodbye is no beginning: its successor may be another process that knows more
        async with Bus(broker_url, "voter", device) as successor:
            await asyncio.wait_for(waiting, 60)
            assert not successor.release(tensor)
