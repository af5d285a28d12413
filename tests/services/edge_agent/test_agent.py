"""The device between messages: sessions that come and go in any order, and messages that are well-formed and lie."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import structlog
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from accelsim import zoo
from accelsim.accelerators import Simulated
from accelsim.datasets import Dataset
from accelsim.faults import Rates, chip
from accelsim.faults.permanent import fault_map
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from accelsim.timing import Array
from services.bus import encoding, topics
from services.bus.messages import (
    Ack,
    Deploy,
    Forward,
    Inputs,
    LayerVoted,
    Message,
    Outputs,
    Replicas,
    SetMode,
    Tensor,
    Voted,
)
from services.codec.core import inputs
from services.edge_agent.agent import Agent, Device
from services.scheme import Scheme
from services.voter.core.vote import vote

RATES = Rates(input=1e-3, weight=1e-3, output=1e-3)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(12) % 10
DATA = Dataset(
    name="made", train_images=IMAGES, train_labels=LABELS, test_images=IMAGES, test_labels=LABELS, mean=(0.5,), std=(0.25,)
)


class FakeBus:
    """Gives the messages that it was made with, answers as the voter does, and keeps what is published and rejected."""

    device = "d"

    def __init__(self, *messages: Message) -> None:
        self.messages = messages
        self.agent: Agent | None = None
        self.published: list[Message] = []
        self.rejected: list[str] = []

    def topic(self, name: str) -> str:
        return name

    async def subscribe(self, *topics: str) -> None: ...

    async def announce(self, **fields: Any) -> None: ...

    async def __aiter__(self) -> AsyncIterator[tuple[str, Message]]:
        for message in self.messages:
            name = next(name for name, kind in topics.TABLE.items() if kind is type(message))
            yield name, encoding.decode(topics.absolute(name, "d"), encoding.encode(message), whole=True)
            await self.quiet()

    async def quiet(self) -> None:
        """Until the pass that runs has ended."""
        if self.agent is not None and self.agent.task is not None:
            await asyncio.wait([self.agent.task])

    async def publish(self, topic: str, message: Message) -> None:
        self.published.append(message)
        if isinstance(message, Replicas) and self.agent is not None and any(layer.awaited for layer in message.layers):
            layers = []
            for layer in message.layers:
                voted = encoding.inline(vote([encoding.view(y) for y in layer.replicas], message.vote))
                layers.append(LayerVoted(index=layer.index, actual=layer.actual or voted, vote=voted))
            answer = Voted(
                session=message.session, iteration=message.iteration, attempt=message.attempt, segment=message.segment,
                mode=message.mode, layers=tuple(layers),
            )  # fmt: skip
            await self.agent._take(answer)

    async def room(self, *sizes: int) -> None: ...

    def share(self, array: np.ndarray, readers: int = 1) -> Tensor:
        return encoding.inline(array)

    def open(self, tensor: Tensor) -> np.ndarray:
        return encoding.view(tensor)

    def release(self, tensor: Tensor) -> bool:
        return True

    def withdraw_all(self) -> None: ...

    def reject(self, topic: str, reason: str) -> None:
        self.rejected.append(reason)

    def of(self, kind: type[Message]) -> list[Any]:
        return [message for message in self.published if isinstance(message, kind)]


def simulated(rates: Rates, seed: int, device: str) -> Simulated:
    return Simulated(rates, seed, device, "portable")


def device(accelerator: Any = simulated) -> Device:
    return Device(DATA, accelerator, Array(), "portable")


def made(seed: int) -> Network:
    torch.manual_seed(seed)
    return lower(zoo.build("digits_cnn", 10).eval(), IMAGES, (0.5,), (0.25,), name=f"net{seed}")


@pytest.fixture(scope="module")
def networks() -> list[Network]:
    return [made(seed) for seed in range(3)]


def deploy(network: Network, session: str = "s", version: int = 1) -> Deploy:
    data = encoding.inline(np.frombuffer(storage.to_bytes(network), np.uint8))
    return Deploy(session=session, iteration=-1, version=version, network=data)


def mode(session: str = "s", seq: int = 1, seed: int = 0, **scheme: Any) -> SetMode:
    return SetMode(session=session, seq=seq, mode="training", rates=RATES, seed=seed, scheme=Scheme(**scheme))


def forward(
    session: str = "s", version: int = 1, iteration: int = 0, samples: tuple[int, ...] = (1, 2), **other: Any
) -> Forward:
    return Forward(
        **{"session": session, "iteration": iteration, "attempt": 0, "mode": "inference", "version": version, "split": "test"}
        | {"samples": samples} | other
    )  # fmt: skip


async def serve(*messages: Message, accelerator: Any = simulated) -> FakeBus:
    bus = FakeBus(*messages)
    bus.agent = Agent(bus, device(accelerator))  # type: ignore[arg-type]
    await bus.agent.serve()
    return bus


def expected(network: Network, seed: int, iteration: int, samples: tuple[int, ...]) -> np.ndarray:
    accelerator = simulated(RATES, seed, "d")
    accelerator.load(network)
    return accelerator.run(network.quantize_images(IMAGES[list(samples)]), iteration=iteration)[-1]


async def test_a_pass_gives_the_outputs_of_the_network_and_mode_of_its_session(networks: list[Network]) -> None:
    bus = await serve(
        mode("a", seed=1), deploy(networks[0], "a"), forward("a"),
        # Another run: the same version number, of another network; what was of the run before is not used for it.
        forward("b"), deploy(networks[1], "b"), mode("b", seed=2), forward("b", iteration=5), forward("a", iteration=6),
    )  # fmt: skip
    answers = bus.of(Outputs)
    assert [(answer.session, answer.iteration) for answer in answers] == [("a", 0), ("b", 0), ("b", 5)]
    for answer, network, seed in zip(answers, (networks[0], networks[1], networks[1]), (1, 2, 2), strict=True):
        wanted = expected(network, seed, answer.iteration, (1, 2))
        np.testing.assert_array_equal(encoding.view(answer.outputs), wanted)
    assert bus.rejected == []


async def test_a_late_model_of_the_run_before_does_not_lose_the_mode_of_this_one(networks: list[Network]) -> None:
    bus = await serve(mode("b", seed=2), deploy(networks[0], "a"), deploy(networks[1], "b"), forward("b"))
    (answer,) = bus.of(Outputs)
    np.testing.assert_array_equal(encoding.view(answer.outputs), expected(networks[1], 2, answer.iteration, (1, 2)))


class Broken(Simulated):
    def run_replicas(self, *arguments: Any, **named: Any) -> Any:
        raise ZeroDivisionError("the array is on fire")


async def test_what_goes_wrong_is_answered_and_the_device_lives_on(networks: list[Network]) -> None:
    rubbish = Tensor(dtype="uint8", shape=(4,), data=b"rubb")
    bus = await serve(
        mode(), Deploy(session="s", iteration=0, version=1, network=rubbish), deploy(networks[0]),
        forward(samples=(12,)), forward(samples=()), forward(samples=(-1,)), forward(iteration=7),
    )  # fmt: skip
    failed = [(ack.of, ack.error) for ack in bus.of(Ack) if not ack.ok]
    assert [of for of, _ in failed] == ["model", "forward", "forward", "forward"]
    assert all("test has 12 images" in error for of, error in failed if of == "forward")
    assert [answer.iteration for answer in bus.of(Outputs)] == [7]


async def test_an_accelerator_that_fails_is_named_to_the_server(networks: list[Network]) -> None:
    with structlog.testing.capture_logs() as logs:  # rich takes seconds to draw a traceback with all its arrays
        bus = await serve(mode(), deploy(networks[0]), forward(), accelerator=lambda *given: Broken(*given))
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["forward failed"]
    assert [ack.error for ack in bus.of(Ack) if not ack.ok] == ["ZeroDivisionError: the array is on fire"]


async def test_a_message_that_breaks_the_agent_itself_is_dropped(
    networks: list[Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(self: Agent, message: Deploy) -> Any:
        raise KeyError("layers")

    with monkeypatch.context() as patch:
        patch.setattr(Agent, "_load", torn)
        bus = await serve(mode(), deploy(networks[0]), mode(seq=2))
    assert bus.rejected == ["KeyError: 'layers'"]
    assert [ack.seq for ack in bus.of(Ack)] == [1, 2]


async def test_the_golden_codecs_threshold_is_measured_once_a_session(networks: list[Network]) -> None:
    def training(session: str, iteration: int) -> Forward:
        return forward(session, iteration=iteration, mode="training", split="train")

    golden = {"codec": "golden", "theta": 0.5, "vote": "bitwise"}
    bus = await serve(
        mode("a", **golden), deploy(networks[0], "a"), training("a", 0), training("a", 1),
        mode("b", **golden), deploy(networks[0], "b"), training("b", 0),
    )  # fmt: skip
    layers = sum(1 for _ in networks[0].convs())
    offline = [message for message in bus.of(Replicas) if message.mode == "inference"]
    assert [message.session for message in offline] == ["a"] * layers + ["b"] * layers
    assert [message.iteration for message in bus.of(Inputs)] == [0, 1, 0]
    assert not [ack for ack in bus.of(Ack) if not ack.ok]


SESSIONS, VERSIONS = st.sampled_from("abc"), st.integers(1, 3)
NETWORKS = [made(seed) for seed in range(3)]


class Runs(RuleBasedStateMachine):
    """Runs that start, stop, repeat and come back in any order: no answer is ever of another run's network or seed."""

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.restart()

    @rule()
    def restart(self) -> None:
        self.bus = FakeBus()
        self.agent = self.bus.agent = Agent(self.bus, device())  # type: ignore[arg-type]

    def take(self, *messages: Message) -> Iterator[Message]:
        before = len(self.bus.published)

        async def taken() -> None:
            for message in messages:
                await self.agent._take(message)
            await self.bus.quiet()

        self.loop.run_until_complete(taken())
        yield from self.bus.published[before:]

    @staticmethod
    def network(session: str, version: int) -> Network:
        return NETWORKS[("abc".index(session) + version) % 3]

    def check(self, answers: Iterator[Message]) -> int:
        found = [answer for answer in answers if isinstance(answer, Outputs)]
        for answer in found:
            version = answer.iteration % 10
            wanted = expected(self.network(answer.session, version), ord(answer.session), answer.iteration, (3,))
            np.testing.assert_array_equal(encoding.view(answer.outputs), wanted)
        return len(found)

    def forward(self, session: str, version: int) -> Forward:
        return forward(session, version, iteration=10 + version, samples=(3,))

    @rule(session=SESSIONS)
    def mode(self, session: str) -> None:
        self.check(self.take(mode(session, seed=ord(session))))

    @rule(session=SESSIONS, version=VERSIONS)
    def deploy(self, session: str, version: int) -> None:
        self.check(self.take(deploy(self.network(session, version), session, version)))

    @rule(session=SESSIONS, version=VERSIONS)
    def ask(self, session: str, version: int) -> None:
        self.check(self.take(self.forward(session, version)))

    @rule(session=SESSIONS, version=VERSIONS)
    def run(self, session: str, version: int) -> None:
        """What the server says again where a pass got lost, from whatever was before."""
        told = (
            mode(session, seed=ord(session)), deploy(self.network(session, version), session, version),
            self.forward(session, version),
        )  # fmt: skip
        assert self.check(self.take(*told)) == 1

    def teardown(self) -> None:
        self.loop.close()


Runs.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
test_runs = Runs.TestCase


async def test_images_that_come_with_the_command_are_run_in_place_of_the_devices_own(networks: list[Network]) -> None:
    images = IMAGES[[3, 1, 2]] ^ 255
    bus = await serve(
        mode(), deploy(networks[0]),
        forward(samples=(0, 0, 0), images=inputs.encode(images)),
        forward(iteration=1, samples=(0, 1), images=inputs.encode(images)),
        forward(iteration=2, samples=tuple(range(2000)), images=inputs.encode(images)),
    )  # fmt: skip
    (answer,) = bus.of(Outputs)
    accelerator = simulated(RATES, 0, "d")
    accelerator.load(networks[0])
    wanted = accelerator.run(networks[0].quantize_images(images), iteration=0)[-1]
    np.testing.assert_array_equal(encoding.view(answer.outputs), wanted)
    refused = [ack.error for ack in bus.of(Ack) if ack.of == "forward"]
    assert len(refused) == 2
    assert "images" in refused[0]
    assert "1 to 1024 are taken" in refused[1]


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (b"nonsense", "down/mode: known: no packed chip file"),
        (chip.packed(fault_map(Array(rows=16, columns=8), [])), "a chip with an array of 16x8, but --array has 32x32"),
    ],
)
async def test_a_mode_with_a_map_that_does_not_fit_is_refused(known: bytes, said: str) -> None:
    bus = await serve(msgspec.structs.replace(mode(), known=known))
    (ack,) = bus.of(Ack)
    assert not ack.ok
    assert said in ack.error


async def test_no_more_errors_are_made_than_the_devices_owner_allows(networks: list[Network]) -> None:
    wild, mild = (msgspec.structs.replace(RATES, weight=rate) for rate in (0.5, 5e-4))
    bus = FakeBus(
        msgspec.structs.replace(mode(), rates=wild),
        mode(),
        mode(seq=2),
        deploy(networks[0]),
        forward(rates=wild),
        forward(rates=mild),
        forward(iteration=1),
    )
    bus.agent = Agent(bus, device()._replace(max_ber=1e-3))  # type: ignore[arg-type]
    with structlog.testing.capture_logs() as logged:
        await bus.agent.serve()
    said = "rates: weight is 0.5; this device makes at most 0.001 (--max-ber)"
    answers = [(ack.of, ack.error) for ack in bus.of(Ack)]
    assert answers == [("mode", said), ("mode", ""), ("mode", ""), ("model", ""), ("forward", said)]
    assert len(bus.of(Outputs)) == 2
    shown = [(line["input"], line["weight"]) for line in logged if line["event"] == "error rates"]
    assert shown == [(1e-3, 1e-3), (1e-3, 5e-4), (1e-3, 1e-3)], (
        "what it makes is shown where it changes, a pass's own rates too"
    )


async def test_a_known_map_is_what_the_referee_refers_to(networks: list[Network]) -> None:
    """A chip without soft errors: what it computes is what a referee that knows it predicts, and of one that does not, not."""
    worn = chip.random_map(Array(), 0.05, 1)

    def factory(rates: Rates, seed: int, device: str) -> Simulated:
        return Simulated(Rates(), seed, device, "portable", permanent=worn)

    for known, alike in ((chip.packed(worn), True), (b"", False)):
        told = msgspec.structs.replace(mode(referee=True), known=known, rates=Rates())
        bus = await serve(told, deploy(networks[0]), forward(mode="training", split="train"), accelerator=factory)
        # The first layer has nine products a sum: the referee computes it whole.
        first = bus.of(Replicas)[0].layers[0]
        assert first.positions is None
        assert first.values is not None
        same = np.array_equal(encoding.view(first.values), encoding.view(first.replicas[0]).reshape(-1))
        assert same is alike
