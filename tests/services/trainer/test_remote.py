"""The server's view of a device: which messages count, and that a wrong one never ends the taking in."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import structlog
import torch

from accelsim import zoo
from accelsim.faults import Rates
from accelsim.int8.network import Network
from accelsim.lowering import lower
from services.bus import BusError, encoding, topics
from services.bus.messages import (
    Ack,
    Activations,
    Deploy,
    Dropped,
    EncodedModel,
    Forward,
    Inputs,
    LayerActivation,
    Message,
    Outputs,
    SetMode,
    State,
    Tensor,
    Timing,
)
from services.trainer import remote
from services.trainer.answers import Data
from services.trainer.patience import Patience
from services.trainer.remote import PATH, DeviceError
from services.trainer.table1 import Mode, serving

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
NOW: dict[str, Any] = {"session": "s", "iteration": 4, "attempt": 0}


class FakeBus:
    """Delivers what is put into ``inbox``; ``answer`` says what a device makes of what is published."""

    key = ""

    def key_name(self, device: str) -> str:
        return self.key

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[tuple[str, Message] | BusError] = asyncio.Queue()
        self.published: list[Message] = []
        self.rejected: list[str] = []
        self.counts: Counter[str] = Counter()
        self.answer = lambda message: []

    def topic(self, name: str, device: str | None = None) -> str:
        return topics.absolute(name, device or "d")

    async def subscribe(self, *patterns: str) -> None: ...

    async def __aiter__(self) -> AsyncIterator[tuple[str, Message]]:
        while True:
            found = await self.inbox.get()
            if isinstance(found, BusError):
                raise found
            yield found

    async def publish(self, topic: str, message: Message, *, retain: bool = False) -> None:
        self.published.append(message)
        for name, given in self.answer(message):
            self.inbox.put_nowait((self.topic(name), given))

    async def announce(self, **fields: Any) -> None: ...

    async def flush(self) -> None: ...

    def share(self, array: np.ndarray, readers: int = 1) -> Tensor:
        return encoding.inline(array)

    def open(self, tensor: Tensor) -> np.ndarray:
        return encoding.view(tensor)

    def release(self, tensor: Tensor) -> bool:
        return True

    def reject(self, topic: str, reason: str) -> None:
        self.rejected.append(reason)


@pytest.fixture(autouse=True)
def settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SETTLE_S", 0.01)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return lower(zoo.build("digits_cnn", 10).eval(), IMAGES, (0.5,), (0.25,), name="small")


def outputs(network: Network) -> dict[int, np.ndarray]:
    return {index: np.full((2, *layer.shape), index, layer.dtype) for index, layer in network.convs()}


def whole(network: Network, **of: Any) -> list[tuple[str, Message]]:
    """What a device and its codec send of one pass in training mode."""
    layers = tuple(
        LayerActivation(index=i, actual=encoding.inline(y), faithful=i > 0, repaired=i) for i, y in outputs(network).items()
    )
    labels = encoding.inline(np.array([3, 1]))
    return [
        ("server/inputs", Inputs(**NOW | of, images=encoding.inline(IMAGES), labels=labels)),
        ("server/activations", Activations(**NOW | of, segment=0, layers=layers)),
    ]


async def get_data(bus: FakeBus, network: Network, patience: float = 0.2) -> Data:
    async with serving(bus, "s", patience=patience, attempts=2) as server:  # type: ignore[arg-type]
        await server.deploy_model("d", network, version=3, wait=False)
        remote = await server._device("d")
        await remote.send_mode(SetMode(session="s", seq=1, mode="training", rates=Rates()))
        return await server.get_data("d", iteration=4, split="train", samples=[5, 6])


async def test_data_is_complete_when_every_layer_of_this_very_pass_is_there(network: Network) -> None:
    bus = FakeBus()
    wrong: list[tuple[str, Message]] = [
        ("server/activations", Activations(**NOW, segment=0, layers=(LayerActivation(index=i, actual=actual),)))
        for i, actual in (
            (99, encoding.inline(np.zeros((2, 1, 1, 1), np.int8))),
            (0, encoding.inline(np.zeros((2, 3), np.float32))),
        )
    ]
    bus.answer = lambda message: (
        [*whole(network, session="other"), *whole(network, iteration=3), *wrong, *whole(network)]
        if isinstance(message, Forward) else []
    )  # fmt: skip
    data = await get_data(bus, network)
    assert bus.rejected == [
        "layer 99 is no MAC layer of the network deployed", "layer 0: dtype float32, expected uint8",
    ]  # fmt: skip
    np.testing.assert_array_equal(data.images, IMAGES)
    assert data.labels is not None
    assert data.labels.tolist() == [3, 1]
    for index, y in outputs(network).items():
        np.testing.assert_array_equal(data.activations[index], y)
    assert data.mismatched_layers == {0}
    assert data.mismatched == outputs(network)[0].size
    assert data.repaired == sum(outputs(network))


async def test_a_repeat_says_again_all_that_a_pass_needs(network: Network) -> None:
    """Whatever got lost on the way: what the device has forgotten of the mode, too."""
    bus = FakeBus()
    bus.answer = lambda message: whole(network, attempt=1) if isinstance(message, Forward) and message.attempt == 1 else []
    data = await get_data(bus, network)
    assert data.attempt == 1
    assert [type(message) for message in bus.published] == [Deploy, SetMode, Forward, SetMode, Deploy, Forward]
    assert bus.published[1] == bus.published[3]
    assert [message.version for message in bus.published if isinstance(message, Deploy | Forward)] == [3, 3, 3, 3]


async def test_whatever_a_message_breaks_the_next_one_is_taken(network: Network) -> None:
    bus = FakeBus()

    def broken(timing: Timing) -> None:
        raise ZeroDivisionError("no layers")

    async with serving(bus, "s", patience=1) as server:  # type: ignore[arg-type]
        await server.on_events("d", broken, lambda votes: None)
        bus.inbox.put_nowait((bus.topic("event/forward"), Timing(session="s", stage="forward", iteration=0, host_s=1)))
        bus.answer = lambda message: whole(network) if isinstance(message, Forward) else []
        await server.deploy_model("d", network, wait=False)
        await (await server._device("d")).send_mode(SetMode(session="s", seq=1, mode="training"))
        assert (await server.get_data("d", iteration=4, split="train", samples=[0, 1])).images is not None
    assert bus.rejected == ["ZeroDivisionError: no layers"]


async def test_outputs_of_another_dtype_are_not_cast(network: Network) -> None:
    bus = FakeBus()
    real = encoding.inline(np.full((2, 1, 1, 10), 0.7, np.float32))
    good = encoding.inline(np.zeros((2, 1, 1, 10), np.int8))
    bus.answer = lambda message: (
        [("up/outputs", Outputs(**NOW, outputs=tensor, labels=None, nonce=message.nonce)) for tensor in (real, good)]
        if isinstance(message, Forward) else []
    )  # fmt: skip
    async with serving(bus, "s", patience=1) as server:  # type: ignore[arg-type]
        await server.deploy_model("d", network, wait=False)
        await (await server._device("d")).send_mode(SetMode(session="s", seq=1, mode="inference"))
        data = await server.get_data("d", iteration=4, split="test", samples=[0, 1])
    assert data.outputs is not None
    assert data.outputs.dtype == np.int8
    assert bus.rejected == ["outputs are float32, expected int8"]


async def test_where_the_bus_fails_so_does_who_waits(network: Network) -> None:
    bus = FakeBus()
    bus.answer = lambda message: bus.inbox.put_nowait(BusError("the broker is gone")) or []
    async with serving(bus, "s", patience=60) as server:  # type: ignore[arg-type]
        with pytest.raises(BusError, match="the broker is gone"):
            await server.set_mode("d", Mode.TRAINING, rates=Rates(), seed=0)
        with pytest.raises(BusError, match="the broker is gone"):
            await server.ready("other")


async def test_data_needs_a_network_and_a_mode(network: Network) -> None:
    bus = FakeBus()
    async with serving(bus, "s") as server:  # type: ignore[arg-type]
        with pytest.raises(DeviceError, match="deploy_model"):
            await server.get_data("d", iteration=0, split="train", samples=[0])
        await server.deploy_model("d", network, wait=False)
        with pytest.raises(DeviceError, match="set_mode"):
            await server.get_data("d", iteration=0, split="train", samples=[0])
    assert not [message for message in bus.published if isinstance(message, Forward | EncodedModel)]
    assert "agent" in PATH


async def test_what_ends_a_run_without_a_key_names_what_r2f_takes() -> None:
    """``r2f retrain`` has no option for keys: what is set for it is the environment."""
    async with serving(FakeBus(), "s", patience=0.2, attempts=2) as server:  # type: ignore[arg-type]
        device = await server._device("d")
        with pytest.raises(DeviceError, match="give it R2F_SIGNING_KEY_FILE, or a service's --signing-key-file"):
            device._same_key("voter", State(session="", service="voter", online=True, boot="b", key="a820ce7a"))


async def test_a_broker_that_is_away_is_no_silence_of_the_device(network: Network) -> None:
    """It is away for longer than all attempts last, and the first one is answered when it is back."""
    bus, back = FakeBus(), asyncio.Event()

    async def flush() -> None:
        await back.wait()
        for name, given in whole(network):
            bus.inbox.put_nowait((bus.topic(name), given))

    bus.flush = flush  # type: ignore[method-assign]
    getting = asyncio.create_task(get_data(bus, network, patience=0.05))
    await asyncio.sleep(1.0)
    back.set()
    assert (await getting).attempt == 0


async def test_services_are_given_as_long_again_where_the_broker_went_away(network: Network) -> None:
    bus = FakeBus()

    async def flush() -> None:
        bus.counts["reconnected"] += 1  # it was away for all that time, and is back
        for service in PATH:
            samples = {"train": 9, "test": 9} if service == "agent" else {}
            state = State(session="", service=service, online=True, boot="1", samples=samples)
            bus.inbox.put_nowait((bus.topic(f"state/{service}"), state))

    bus.flush = flush  # type: ignore[method-assign]
    async with serving(bus, "s") as server:  # type: ignore[arg-type]
        assert (await server.ready("d", within_s=0.2)).samples == {"train": 9, "test": 9}
        assert bus.counts["reconnected"] == 1
        bus.flush = FakeBus().flush  # type: ignore[method-assign]
        with pytest.raises(DeviceError, match="no sign of agent, codec-device"):
            await server.ready("other", within_s=0.2)


async def test_an_agent_that_is_there_may_take_long_to_look_through_its_data(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = FakeBus()

    def born(**of: Any) -> None:
        state = State(session="", service="agent", online=True, boot="1", **of)
        bus.inbox.put_nowait((bus.topic("state/agent"), state))

    async with serving(bus, "s") as server:  # type: ignore[arg-type]
        await server._device("d")
        for service in PATH[1:]:
            state = State(session="", service=service, online=True, boot="1")
            bus.inbox.put_nowait((bus.topic(f"state/{service}"), state))
        born()
        getting = asyncio.create_task(server.ready("d", within_s=0.2))
        await asyncio.sleep(1.0)
        assert not getting.done()
        born(samples={"train": 9, "test": 9})
        assert (await getting).samples == {"train": 9, "test": 9}
        born()
        await asyncio.sleep(0.1)
        monkeypatch.setattr(remote, "LOADING_S", 0.5)
        with pytest.raises(DeviceError, match="no sign of its samples within"):
            await server.ready("d", within_s=0.2)


async def test_services_that_start_anew_again_and_again_use_up_no_patience(network: Network) -> None:
    """More often than a silent device is asked; but a command that they die of is not given for ever."""
    bus, boots = FakeBus(), itertools.count()

    def born(service: str) -> tuple[str, Message]:
        samples = {"train": 9, "test": 9} if service == "agent" else {}
        return f"state/{service}", State(session="", service=service, online=True, boot=str(next(boots)), samples=samples)

    good = 6

    def answer(message: Message) -> list[tuple[str, Message]]:
        if not isinstance(message, Forward):
            return []
        return whole(network, attempt=message.attempt) if message.attempt == good else [born("agent")]

    bus.answer = answer
    for service in PATH:
        topic, state = born(service)
        bus.inbox.put_nowait((bus.topic(topic), state))
    assert (await get_data(bus, network, patience=300.0)).attempt == good
    good = -1
    for service in PATH:
        topic, state = born(service)
        bus.inbox.put_nowait((bus.topic(topic), state))
    with pytest.raises(DeviceError, match=f"after {remote.REPEATS} attempts, between which services started anew"):
        await get_data(bus, network, patience=300.0)


async def test_silence_is_counted_anew_behind_a_restart(network: Network) -> None:
    """Silent, started anew, silent, answered: two attempts that met silence, but not in a row."""
    bus, boots = FakeBus(), itertools.count()

    def born(service: str) -> tuple[str, Message]:
        samples = {"train": 9, "test": 9} if service == "agent" else {}
        return f"state/{service}", State(session="", service=service, online=True, boot=str(next(boots)), samples=samples)

    def answer(message: Message) -> list[tuple[str, Message]]:
        attempt = message.attempt if isinstance(message, Forward) else 0
        return {1: [born("agent")], 3: whole(network, attempt=3)}.get(attempt, [])

    bus.answer = answer
    for service in PATH:
        topic, state = born(service)
        bus.inbox.put_nowait((bus.topic(topic), state))
    assert (await get_data(bus, network, patience=0.2)).attempt == 3


async def test_a_device_that_is_only_slow_is_waited_for_longer_until_it_is_fast_again(network: Network) -> None:
    """A repeat makes its pass begin anew, so at one patience it would never end; what it took is remembered, and forgotten."""
    bus, takes = FakeBus(), 0.7
    tasks: set[asyncio.Task[None]] = set()

    async def slowly(forward: Forward) -> None:
        await asyncio.sleep(takes)
        topic, message = answered(forward)
        bus.inbox.put_nowait((bus.topic(topic), message))

    def answer(message: Message) -> list[tuple[str, Message]]:
        if isinstance(message, Forward):
            for task in tasks:
                task.cancel()
            tasks.clear()
            tasks.add(asyncio.create_task(slowly(message)))
        return []

    bus.answer = answer
    async with serving(bus, "s", patience=0.5, attempts=3) as server:  # type: ignore[arg-type]
        await server.deploy_model("d", network, wait=False)
        known = await server._device("d")
        await known.send_mode(SetMode(session="s", seq=1, mode="inference"))

        async def attempts() -> int:
            return 1 + (await server.get_data("d", iteration=4, split="test", samples=[0, 1])).attempt

        assert [await attempts() for _ in range(3)] == [2, 1, 1]
        of = remote.PASS, "inference"
        assert 1.4 <= known.waits_s[of] <= known.patience.longest == 2.0
        takes = 0.0
        assert await attempts() == 1
        assert known.waits_s[of] == 0.5
        takes = 60.0
        with pytest.raises(DeviceError, match=r"iteration 4 after 3 attempts \(3.5 s without anything new in all\)"):
            await attempts()
    for task in tasks:
        task.cancel()


async def test_a_device_that_was_slow_and_is_dead_is_given_up_no_later_than_any_other(network: Network) -> None:
    bus = FakeBus()
    async with serving(bus, "s", patience=0.2, attempts=3) as server:  # type: ignore[arg-type]
        await server.deploy_model("d", network, wait=False)
        known = await server._device("d")
        await known.send_mode(SetMode(session="s", seq=1, mode="inference"))
        known.waits_s[remote.PASS, "inference"] = known.patience.longest
        with pytest.raises(DeviceError, match=r"after 2 attempts \(1.4 s without anything new in all\)"):
            await server.get_data("d", iteration=4, split="test", samples=[0, 1])
    assert known.patience.in_all == pytest.approx(0.2 + 0.4 + 0.8)


async def test_a_device_that_hears_only_repeats_is_not_taken_for_slow(network: Network) -> None:
    """What was lost on the way says nothing of the time that a pass takes; an answer says which attempt it is of."""
    bus = FakeBus()
    bus.answer = lambda message: [answered(message)] if isinstance(message, Forward) and message.attempt else []
    async with serving(bus, "s", patience=0.2, attempts=4) as server:  # type: ignore[arg-type]
        await server.deploy_model("d", network, wait=False)
        known = await server._device("d")
        await known.send_mode(SetMode(session="s", seq=1, mode="inference"))
        for _ in range(3):
            assert (await server.get_data("d", iteration=4, split="test", samples=[0, 1])).attempt == 1
            assert known.waits_s[remote.PASS, "inference"] == 0.2


@pytest.mark.parametrize(
    ("seconds", "attempts", "waits"),
    [
        (20.0, 4, [20, 40, 80, 160]),
        (379.0, 4, [379, 399, 439, 519]),  # the link's, all but 20 s of it
        (20.0, 6, [20, 40, 80, 160, 160, 160]),
        (10.0, 1, [10]),
    ],
)
def test_each_time_more_for_the_device_and_no_more_for_the_link(seconds: float, attempts: int, waits: list[float]) -> None:
    patience = Patience(seconds, attempts)
    found = [seconds]
    while len(found) < attempts:
        found.append(patience.more(found[-1]))
    assert found == waits
    assert (patience.in_all, patience.longest) == (sum(waits), waits[-1])
    assert Patience(20.0, 10**6).longest == 160


async def test_a_restart_is_answered_when_all_listen_again_and_nothing_spins_until_then(network: Network) -> None:
    bus = FakeBus()
    sent: list[Forward] = []

    def born(service: str, boot: str, **of: Any) -> tuple[str, Message]:
        return f"state/{service}", State(session="", service=service, online=True, boot=boot, **of)

    def answer(message: Message) -> list[tuple[str, Message]]:
        if isinstance(message, Forward):
            sent.append(message)
            return whole(network, attempt=message.attempt) if message.attempt else []
        return []

    bus.answer = answer
    ready = {"samples": {"train": 9, "test": 9}}
    for service in PATH:
        bus.inbox.put_nowait((bus.topic(f"state/{service}"), born(service, "1", **(ready if service == "agent" else {}))[1]))
    getting = asyncio.create_task(get_data(bus, network, patience=300.0))
    async with asyncio.timeout(60):
        while not sent:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        gone = State(session="", service="voter", online=False, boot="1")
        bus.inbox.put_nowait((bus.topic("state/voter"), gone))
        for of in ({}, ready):  # the agent is born while the voter is away, and listens a while later
            topic, state = born("agent", "2", **of)
            bus.inbox.put_nowait((bus.topic(topic), state))
            await asyncio.sleep(0.1)  # comes back only where nobody spins
        assert len(sent) == 1
        topic, state = born("voter", "2")
        bus.inbox.put_nowait((bus.topic(topic), state))
        await getting
    assert [message.attempt for message in sent] == [0, 1]


SHAPE = (2, 1, 1, 10)


def answered(forward: Forward, *, value: int = 0, count: int = 2, labels: int = 2, **of: Any) -> tuple[str, Message]:
    given = {"iteration": forward.iteration, "attempt": forward.attempt, "nonce": forward.nonce} | of
    outputs = encoding.inline(np.full((count, *SHAPE[1:]), value, np.int8))
    return "up/outputs", Outputs(session="s", outputs=outputs, labels=encoding.inline(np.arange(labels)), **given)


async def infer(bus: FakeBus, network: Network, times: int = 1, patience: float = 0.1) -> list[Data]:
    async with serving(bus, "s", patience=patience, attempts=2) as server:  # type: ignore[arg-type]
        await server.deploy_model("d", network, wait=False)
        await (await server._device("d")).send_mode(SetMode(session="s", seq=1, mode="inference"))
        return [await server.get_data("d", iteration=4, split="test", samples=[0, 1]) for _ in range(times)]


async def test_an_evaluation_that_is_replayed_is_refused(network: Network) -> None:
    """Each fault seed's passes have the same numbers: what one pass answered must not stand for another's."""
    bus = FakeBus()
    first: list[tuple[str, Message]] = []

    def answer(message: Message) -> list[tuple[str, Message]]:
        if not isinstance(message, Forward):
            return []
        value = 1 + len(first)
        given = [*first, answered(message, value=value)]
        first[:] = first or given
        return given

    bus.answer = answer
    one, other = await infer(bus, network, times=2)
    assert one.outputs is not None
    assert other.outputs is not None
    assert (one.outputs[0, 0, 0, 0], other.outputs[0, 0, 0, 0]) == (1, 2)
    assert len(bus.rejected) == 1
    assert "answers a command that was not given" in bus.rejected[0]


async def test_outputs_of_more_samples_than_were_asked_for_are_refused(network: Network) -> None:
    bus = FakeBus()
    bus.answer = lambda message: (
        [answered(message, count=20, labels=20), answered(message, labels=1), answered(message, count=0), answered(message)]
        if isinstance(message, Forward) else []
    )  # fmt: skip
    (data,) = await infer(bus, network)
    assert data.labels is not None
    assert len(data.labels) == 2
    assert [reason.split(":")[0] for reason in bus.rejected] == ["outputs", "labels", "outputs"]


async def test_a_device_that_does_not_say_what_it_answers_is_taken_and_that_is_said_once(network: Network) -> None:
    bus = FakeBus()
    bus.answer = lambda message: [answered(message, nonce=0)] if isinstance(message, Forward) else []
    with structlog.testing.capture_logs() as logged:
        await infer(bus, network, times=2)
    assert [line["event"] for line in logged if "replay" in line["event"]] == [
        "answers of this device do not say which command they answer: a replay would not be noticed"
    ]
    bus.key = "0123abcd"
    with pytest.raises(DeviceError, match="no answer"):
        await infer(bus, network)


async def test_an_acknowledgement_of_an_earlier_life_is_none(network: Network) -> None:
    """A trainer that starts anew numbers its modes from 1 again."""
    bus = FakeBus()
    given: list[SetMode] = []

    def answer(message: Message) -> list[tuple[str, Message]]:
        if not isinstance(message, SetMode):
            return []
        given.append(message)
        stale = Ack(session="s", of="mode", seq=message.seq, ok=True, nonce=message.nonce ^ 1)
        true = Ack(session="s", of="mode", seq=message.seq, ok=True, nonce=message.nonce)
        return [("up/ack", stale)] if len(given) == 1 else [("up/ack", stale), ("up/ack", true)]

    bus.answer = answer
    async with serving(bus, "s", patience=0.1, attempts=2) as server:  # type: ignore[arg-type]
        await server.set_mode("d", Mode.TRAINING, rates=Rates(), seed=0)
    assert len(given) == 2
    assert given[0].nonce == given[1].nonce > 0
    assert len(bus.rejected) == 2


async def test_stray_acknowledgements_and_repeats_renew_no_patience(network: Network) -> None:
    """However much is said, only an answer's next part makes the waiting begin anew."""
    bus = FakeBus()

    async def chatter() -> None:
        while True:
            for name, message in whole(network)[1:]:
                bus.inbox.put_nowait((bus.topic(name), message))
            bus.inbox.put_nowait((bus.topic("up/ack"), Ack(session="s", of="model", seq=99, ok=True)))
            bus.inbox.put_nowait((bus.topic("up/ack"), Ack(session="s", of="base", seq=1, ok=False)))
            bus.inbox.put_nowait((bus.topic("state/voter"), State(session="", service="voter", online=True, boot="1")))
            await asyncio.sleep(0.01)

    talking = asyncio.create_task(chatter())
    try:
        async with asyncio.timeout(60):
            with pytest.raises(DeviceError, match="2 attempts"):
                await get_data(bus, network, patience=0.1)
    finally:
        talking.cancel()


async def test_why_a_service_dropped_something_is_in_the_error(network: Network) -> None:
    bus = FakeBus()
    bus.answer = lambda message: (
        [("event/dropped", Dropped(session="", service="codec-device", reason="edge/inputs: uint8 of shape (3,)", dropped=1))]
        if isinstance(message, Forward) else []
    )  # fmt: skip
    with pytest.raises(DeviceError, match=r"codec-device dropped: edge/inputs: uint8 of shape \(3,\)"):
        await get_data(bus, network, patience=0.1)


async def test_a_model_that_is_refused_ends_the_pass_that_waits_for_it(network: Network) -> None:
    bus = FakeBus()
    bus.answer = lambda message: (
        [("up/ack", Ack(session="s", of="model", seq=3, ok=False, error="no room"))] if isinstance(message, Deploy) else []
    )
    with pytest.raises(DeviceError, match="refused model 3: no room"):
        await get_data(bus, network, patience=60.0)
