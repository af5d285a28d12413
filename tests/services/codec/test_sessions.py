"""Both ends of the link through runs that start, stop, repeat and restart in any order: a run never sees another one's past."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from accelsim import zoo
from accelsim.engine import Engine
from accelsim.int8 import network, storage
from accelsim.int8.network import INPUT, Activation, Conv, Network
from accelsim.int8.walk import walk
from accelsim.lowering import lower
from services.bus import Bus, encoding
from services.bus.messages import (
    Ack,
    Activations,
    Deploy,
    Forward,
    Inputs,
    LayerVoted,
    Message,
    SetMode,
    State,
    Tensor,
    Timing,
    Voted,
)
from services.codec.device_side import DeviceCodec
from services.codec.server_side import ServerCodec
from services.scheme import Codec, Scheme

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
BATCHES = {0: IMAGES[:2], 1: IMAGES[1:3], 2: IMAGES[2:]}
"""They share images, so that hashes of what was sent before are sent."""


def lowered(seed: int, activations: network.Activations) -> Network:
    torch.manual_seed(seed)
    images = np.tile(IMAGES, (4, 1, 1, 1))
    return lower(zoo.build("digits_cnn", 10).eval(), images, (0.5,), (0.5,), name="small", activations=activations)


NETWORKS = [lowered(0, "auto"), lowered(1, "signed")]
LOOP = asyncio.new_event_loop()


def computed(network: Network, batch: int) -> dict[int, tuple[Activation, Activation]]:
    """Of each MAC layer what the device computed and the vote, which is wrong here and there."""
    engine, generator = Engine(network), np.random.default_rng(batch)
    values: dict[int, Activation] = {INPUT: network.quantize_images(BATCHES[batch])}
    found: dict[int, tuple[Activation, Activation]] = {}
    for index, layer, operands in walk(network, values):
        right = engine.fault_free(index, operands)
        values[index] = right
        if isinstance(layer, Conv):
            values[index] = np.where(generator.random(right.shape) < 0.05, right + right.dtype.type(9), right)
            found[index] = values[index], np.where(generator.random(right.shape) < 0.01, right ^ right.dtype.type(1), right)
    return found


PASSES = {(n, batch): computed(network, batch) for n, network in enumerate(NETWORKS) for batch in BATCHES}


class Wire:
    """Stands in for a bus: what is published waits in one queue for its reader."""

    def __init__(self, sent: deque[tuple[str, Message]]) -> None:
        self.sent = sent
        self.rejected: list[str] = []

    async def publish(self, topic: str, message: Message) -> int:
        if not isinstance(message, Timing):
            self.sent.append((topic, encoding.decode(f"r2f/v1/d/{topic}", encoding.encode(message), whole=True)))
        return 0

    def share(self, array: Any, readers: int = 1) -> Tensor:
        return encoding.inline(array)

    def open(self, tensor: Tensor) -> Any:
        return encoding.view(tensor)

    def release(self, tensor: Tensor) -> bool:
        return True

    def withdraw(self, tensor: Tensor) -> None: ...


class Runs(RuleBasedStateMachine):
    """The trainer, the agent and what is between them and the two ends."""

    @initialize()
    def begin(self) -> None:
        self.boots = 0
        self.sessions = 0
        self.session = ""
        self.mode: SetMode | None = None
        self.running: tuple[int, Deploy] | None = None
        """Which network the run has deployed, and the message that did."""
        self.loaded = ("", 0)
        """(session, version) on the agent."""
        self.forward: Forward | None = None
        self.iteration = 0
        self.activations: dict[int, Activation] = {}
        self.upwards: deque[tuple[str, Message]] = deque()
        self.downwards: deque[tuple[str, Message]] = deque()
        self.unexpected: list[str] = []
        self.restart_device()
        self.restart_server()

    # ---- who sends what ----

    def to_device(self, message: Message) -> None:
        self.taken(self.device.take, message)

    def to_server(self, message: Message) -> None:
        self.taken(self.server.take, message)

    def taken(self, take: Any, message: Message) -> None:
        """As ``services.boundary`` does; a run that stands still must end in no other error."""
        try:
            LOOP.run_until_complete(take(message))
        except ValueError:
            pass
        except Exception as error:
            self.unexpected.append(repr(error))

    def state(self, service: str, version: int = 0) -> State:
        self.boots += 1
        return State(session="", service=service, online=True, boot=str(self.boots), version=version)

    def step(self) -> bool:
        """Let the oldest message on the link arrive, upwards first; False where there is none."""
        if self.upwards:
            topic, message = self.upwards.popleft()
            if topic == "edge/model":
                self.load(cast(Deploy, message))
            else:
                self.to_server(message)
        elif self.downwards:
            topic, message = self.downwards.popleft()
            if topic == "server/activations":
                self.receive(cast(Activations, message))
            elif topic.startswith("down/"):
                self.to_device(message)
        else:
            return False
        return True

    def load(self, message: Deploy) -> None:
        self.loaded = (message.session, message.version)
        ack = Ack(session=message.session, of="model", seq=message.version, ok=True, version=message.version)
        self.upwards.append(("up/ack", ack))

    def receive(self, message: Activations) -> None:
        forward = self.forward
        if forward is not None and (message.session, message.iteration, message.attempt) == (
            forward.session, forward.iteration, forward.attempt,
        ):  # fmt: skip
            self.activations |= {layer.index: encoding.view(layer.actual) for layer in message.layers}

    # ---- what happens ----

    @rule(which=st.sampled_from([0, 0, 1]), codec=st.sampled_from(["chained", "chained", "direct"]))
    def start(self, which: int, codec: Codec) -> None:
        """A new run; the one before may be at any point."""
        self.sessions += 1
        self.session, self.forward = f"run-{self.sessions}", None
        self.send_mode(Scheme(codec=codec))
        self.deploy(which, 1)

    def send_mode(self, scheme: Scheme) -> None:
        self.mode = SetMode(session=self.session, seq=1, mode="training", scheme=scheme)
        self.to_device(self.mode)
        self.to_server(self.mode)

    def deploy(self, which: int, version: int) -> None:
        data = encoding.inline(np.frombuffer(storage.to_bytes(NETWORKS[which]), np.uint8))
        self.running = which, Deploy(session=self.session, iteration=-1, version=version, network=data)
        self.to_server(self.running[1])

    @rule()
    def stop(self) -> None:
        """The trainer is gone; what it sent is still on its way."""
        self.running = self.forward = None

    @rule(count=st.integers(1, 6))
    def deliver(self, count: int) -> None:
        while count and self.step():
            count -= 1

    @rule(which=st.sampled_from([0, 1]))
    def train(self, which: int) -> None:
        """The run's next version; the same network where nothing was learnt."""
        if self.running is not None:
            self.deploy(which, self.running[1].version + 1)

    @rule(batch=st.sampled_from(list(BATCHES)))
    def iterate(self, batch: int) -> None:
        """Ask for a pass, and let it begin if the agent can."""
        if self.running is not None:
            self.iteration += 1
            self.ask(batch, 0)

    def ask(self, batch: int, attempt: int) -> None:
        assert self.running is not None
        which, deployed = self.running
        self.forward = Forward(
            session=self.session, iteration=self.iteration, attempt=attempt, mode="training", version=deployed.version,
            split="train", samples=(batch,),
        )  # fmt: skip
        self.activations = {}
        self.to_server(self.forward)
        if self.loaded == (self.session, deployed.version):
            self.run_pass(self.forward, PASSES[which, batch], BATCHES[batch])

    def run_pass(self, forward: Forward, found: dict[int, tuple[Activation, Activation]], images: Any) -> None:
        of: dict[str, Any] = {"session": forward.session, "iteration": forward.iteration, "attempt": forward.attempt}
        self.to_device(Inputs(**of, images=encoding.inline(images), labels=None))
        for number, (index, (actual, vote)) in enumerate(found.items()):
            layer = LayerVoted(index=index, actual=encoding.inline(actual), vote=encoding.inline(vote))
            self.to_device(Voted(**of, segment=number, mode="training", layers=(layer,)))

    @rule()
    def restart_device(self) -> None:
        self.device = DeviceCodec(cast(Bus, Wire(self.upwards)), "auto", 1 << 30)
        if self.mode is not None:
            self.to_device(self.mode)  # retained
        if hasattr(self, "server"):
            self.to_server(self.state("codec-device"))

    @rule()
    def restart_server(self) -> None:
        self.server = ServerCodec(cast(Bus, Wire(self.downwards)), "auto")
        if self.mode is not None:
            self.to_server(self.mode)
        self.to_server(self.state("codec-device"))
        self.to_device(self.state("codec-server"))

    @rule()
    def restart_agent(self) -> None:
        self.loaded = ("", 0)
        self.to_device(self.state("agent"))

    @rule()
    def lose(self) -> None:
        """What is on the link never arrives: a broker was killed."""
        self.upwards.clear()
        self.downwards.clear()

    @rule(batch=st.sampled_from(list(BATCHES)))
    def finish(self, batch: int) -> None:
        """Whatever was before, a run that is repeated as the trainer does gets the device's tensors, at the second time."""
        if self.running is None or self.mode is None:
            return
        self.iteration += 1
        for attempt in range(3):
            if attempt:
                self.send_mode(self.mode.scheme)
                self.to_server(self.running[1])
            while self.step():
                pass
            self.ask(batch, attempt)
            while self.step():
                pass
            if self.complete(batch):
                return
        raise AssertionError(f"no answer to iteration {self.iteration} of {self.session}")

    @rule(which=st.sampled_from([0, 1]), batch=st.sampled_from(list(BATCHES)))
    def run_at_once(self, which: int, batch: int) -> None:
        """A new run on services that are all up needs no repeat, whatever became of the one before."""
        self.start(which, "chained")
        while self.step():
            pass
        assert self.loaded == (self.session, 1), "the agent has the run's model"
        self.iteration += 1
        self.ask(batch, 0)
        while self.step():
            pass
        assert self.complete(batch), "the first attempt is enough"

    def complete(self, batch: int) -> bool:
        assert self.running is not None
        found = PASSES[self.running[0], batch]
        if self.activations.keys() != found.keys():
            return False
        for index, (actual, _) in found.items():
            np.testing.assert_array_equal(self.activations[index], actual)
        return True

    @invariant()
    def only_what_is_expected_goes_wrong(self) -> None:
        assert not getattr(self, "unexpected", [])


TestRuns = Runs.TestCase
TestRuns.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
