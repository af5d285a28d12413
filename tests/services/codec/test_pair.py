"""Both ends of the link against each other, without a broker: what the server rebuilds, and what the device has to keep."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.engine import Engine
from accelsim.int8 import storage
from accelsim.int8.network import INPUT, Activation, Conv, Network, UInt8
from accelsim.lowering import lower
from services.bus import Bus, encoding
from services.bus.messages import (
    Activations,
    Deploy,
    Forgotten,
    Forward,
    Inputs,
    LayerVoted,
    Message,
    Rebuilt,
    Repair,
    SetMode,
    Tensor,
    Timing,
    Voted,
)
from services.codec.core.samples import Samples
from services.codec.device_side import DeviceCodec
from services.codec.server_side import ServerCodec

SESSION = "s"


class Wire:
    """Stands in for the bus: what is published waits here; tensors travel inline, and those given back are counted."""

    def __init__(self) -> None:
        self.sent: deque[tuple[str, Message]] = deque()
        self.rejected: list[str] = []
        self.released = 0
        self.intact = True

    async def publish(self, topic: str, message: Message) -> int:
        if not isinstance(message, Timing):
            self.sent.append((topic, message))
        return 0

    def share(self, array: Any, readers: int = 1) -> Tensor:
        return encoding.inline(array)

    def open(self, tensor: Tensor) -> Any:
        return encoding.view(tensor)

    def release(self, tensor: Tensor) -> bool:
        self.released += 1
        return self.intact

    def withdraw(self, tensor: Tensor) -> None: ...

    def reject(self, topic: str, reason: str) -> None:
        self.rejected.append(reason)


class Pair:
    """A device's and a server's codec with the same network, an iteration under way."""

    def __init__(self, network: Network, images: UInt8, keep_bytes: int) -> None:
        self.up, self.down = Wire(), Wire()
        self.device = DeviceCodec(cast(Bus, self.up), "auto", keep_bytes)
        self.server = ServerCodec(cast(Bus, self.down), "auto")
        self.images = images
        mode = SetMode(session=SESSION, seq=1, mode="training")
        asyncio.run(self.device.take(mode))
        asyncio.run(self.server.take(mode))
        data = encoding.inline(np.frombuffer(storage.to_bytes(network), np.uint8))
        asyncio.run(self.server.take(Deploy(session=SESSION, iteration=0, version=1, network=data)))
        self.activations: dict[int, Activation] = {}
        self.rebuilt: list[Rebuilt] = []
        self.repairs = 0
        self.answer()
        self.up.sent.clear()

    def begin(self, iteration: int, attempt: int) -> None:
        forward = Forward(
            session=SESSION, iteration=iteration, attempt=attempt, mode="training", version=1, split="train", samples=(0,)
        )
        asyncio.run(self.server.take(forward))
        labels = np.zeros(len(self.images), np.int64)
        inputs = Inputs(
            session=SESSION,
            iteration=iteration,
            attempt=attempt,
            images=encoding.inline(self.images),
            labels=encoding.inline(labels),
        )
        asyncio.run(self.device.take(inputs))
        self.activations.clear()

    def voted(self, iteration: int, attempt: int, number: int, index: int, actual: Activation, vote: Activation) -> None:
        layer = LayerVoted(index=index, actual=encoding.inline(actual), vote=encoding.inline(vote))
        message = Voted(session=SESSION, iteration=iteration, attempt=attempt, segment=number, mode="training", layers=(layer,))
        asyncio.run(self.device.take(message))

    def answer(self) -> None:
        """Let everything that waits on the link arrive, and what it makes the other end say."""
        while self.up.sent or self.down.sent:
            while self.up.sent:
                topic, message = self.up.sent.popleft()
                if topic.startswith("up/"):
                    asyncio.run(self.server.take(message))
            while self.down.sent:
                topic, message = self.down.sent.popleft()
                if isinstance(message, Activations):
                    self.activations |= {a.index: encoding.view(a.actual) for a in message.layers}
                elif topic.startswith("down/"):
                    self.rebuilt += [message] if isinstance(message, Rebuilt) else []
                    self.repairs += isinstance(message, Repair)
                    asyncio.run(self.device.take(message))


@pytest.fixture(scope="module")
def images() -> UInt8:
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def network(images: UInt8) -> Network:
    torch.manual_seed(0)
    return lower(zoo.build("resnet20", 10).eval(), np.tile(images, (4, 1, 1, 1)), (0.5,) * 3, (0.25,) * 3, name="resnet20")


@pytest.fixture(scope="module")
def layers(network: Network, images: UInt8) -> dict[int, tuple[Activation, Activation]]:
    """Of each MAC layer the actual output and a vote; some votes are wrong."""
    engine, generator = Engine(network), np.random.default_rng(1)
    actual: dict[int, Activation] = {INPUT: network.quantize_images(images)}
    found = {}
    for index, layer in enumerate(network.layers):
        golden = engine.fault_free(index, [actual[i] for i in layer.inputs])
        actual[index] = golden
        if isinstance(layer, Conv):
            actual[index] = np.where(generator.random(golden.shape) < 0.02, golden + golden.dtype.type(7), golden)
            vote = golden.copy()
            if len(found) in (2, 9, 15):
                vote[0, 0, 0, :3] += 1
            found[index] = actual[index], vote
    return found


LARGEST = 2 * 32 * 32 * 16


@pytest.mark.parametrize("keep_bytes", [0, LARGEST, 3 * LARGEST, 1 << 30])
@pytest.mark.parametrize("late", [False, True])
def test_the_server_has_the_devices_tensors_however_little_the_device_may_keep(
    network: Network, images: UInt8, layers: dict[int, tuple[Activation, Activation]], keep_bytes: int, late: bool
) -> None:
    pair = Pair(network, images, keep_bytes)
    pair.begin(0, 0)
    waited = 0
    for number, (index, (actual, vote)) in enumerate(layers.items()):
        pair.voted(0, 0, number, index, actual, vote)
        waited = max(waited, len(pair.device.session.waiting))
        kept = pair.device.session.end.kept
        assert kept is not None
        # Beside what one message brings: the inputs, and what later layers read of those confirmed.
        assert kept.nbytes <= keep_bytes + 4 * LARGEST
        if not late:
            pair.answer()
    pair.answer()
    assert not pair.device.session.waiting
    assert pair.repairs == 2
    assert pair.up.rejected == pair.down.rejected == []
    assert pair.activations.keys() == layers.keys()
    for index, (actual, _) in layers.items():
        np.testing.assert_array_equal(pair.activations[index], actual)
    # Where there is no bound to speak of nobody asks; SEGMENT_BYTES makes all of this network's layers large.
    assert bool(pair.rebuilt) == (keep_bytes < 1 << 30)
    assert (waited > 0) == (late and keep_bytes < 1 << 30)
    assert pair.up.released == 1 + 2 * len(layers)


def test_a_pass_that_is_given_up_leaves_nothing_behind(
    network: Network, images: UInt8, layers: dict[int, tuple[Activation, Activation]]
) -> None:
    pair = Pair(network, images, 0)
    pair.begin(0, 0)
    for number, (index, (actual, vote)) in enumerate(layers.items()):
        pair.voted(0, 0, number, index, actual, vote)
    assert len(pair.device.session.waiting) == len(layers) - 1
    pair.up.sent.clear()  # the link is down, and the trainer repeats the iteration
    pair.begin(0, 1)
    assert not pair.device.session.waiting
    assert pair.up.released == 2 + 2 * len(layers)
    for number, (index, (actual, vote)) in enumerate(layers.items()):
        pair.voted(0, 1, number, index, actual, vote)
        pair.answer()
    for index, (actual, _) in layers.items():
        np.testing.assert_array_equal(pair.activations[index], actual)


def test_what_was_taken_back_while_it_was_encoded_is_not_sent(
    network: Network, images: UInt8, layers: dict[int, tuple[Activation, Activation]]
) -> None:
    pair = Pair(network, images, 1 << 30)
    pair.begin(0, 0)
    pair.up.sent.clear()
    pair.up.intact = False
    index, (actual, vote) = next(iter(layers.items()))
    with pytest.raises(ValueError, match=f"layer {index} was taken back"):
        pair.voted(0, 0, 0, index, actual, vote)
    assert not pair.up.sent


def test_a_new_network_ends_the_iteration_that_it_came_from(network: Network, images: UInt8) -> None:
    pair = Pair(network, images, 1 << 30)
    pair.begin(0, 0)
    assert pair.device.session.end.kept is not None
    data = encoding.inline(np.frombuffer(storage.to_bytes(network), np.uint8))
    asyncio.run(pair.server.take(Deploy(session=SESSION, iteration=0, version=2, network=data)))
    pair.answer()
    assert pair.device.session.end.version == 2
    assert pair.device.session.end.kept is None


@pytest.mark.parametrize("layer", [-1, 1, 10**6])
def test_a_confirmation_of_what_was_not_sent_is_dropped(
    network: Network, images: UInt8, layers: dict[int, tuple[Activation, Activation]], layer: int
) -> None:
    pair = Pair(network, images, 0)
    pair.begin(0, 0)
    index, (actual, vote) = next(iter(layers.items()))
    pair.voted(0, 0, 0, index, actual, vote)
    kept = pair.device.session.end.kept
    assert kept is not None
    before = kept.nbytes
    with pytest.raises(ValueError, match="not kept"):  # which ``serve`` counts and drops
        asyncio.run(pair.device.take(Rebuilt(session=SESSION, iteration=0, attempt=0, layer=layer)))
    asyncio.run(pair.device.take(Rebuilt(session=SESSION, iteration=0, attempt=7, layer=index)))
    assert kept.nbytes == before


def test_a_server_that_keeps_few_images_has_every_batch_at_the_first_try(network: Network) -> None:
    """The device names what it sent once; what the server dropped of that it is told, in time for the next pass."""
    generator = np.random.default_rng(5)
    first, second = (generator.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8) for _ in range(2))
    codecs = Pair(network, first, 1 << 30)
    codecs.server.session.end.samples = Samples(0, least=2)
    got: list[UInt8] = []
    for iteration, batch in enumerate((first, second, first, first)):
        codecs.images = batch
        codecs.begin(iteration, 0)
        codecs.down.sent.clear()
        while codecs.up.sent:
            asyncio.run(codecs.server.take(codecs.up.sent.popleft()[1]))
        for _, message in codecs.down.sent:
            if isinstance(message, Inputs):
                got.append(encoding.view(message.images))
            if isinstance(message, Forgotten):
                asyncio.run(codecs.device.take(message))
        codecs.down.sent.clear()
    for image, batch in zip(got, (first, second, first, first), strict=True):
        np.testing.assert_array_equal(image, batch)
    assert codecs.down.rejected == []
