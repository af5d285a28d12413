"""Both ends of the codec against messages that are well-formed and lie: each is dropped, and the end lives on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from services.bus import encoding, topics
from services.bus.messages import (
    Activations,
    Deploy,
    EncodedInputs,
    EncodedLayer,
    EncodedLayers,
    EncodedModel,
    EncodedRepair,
    Forward,
    Inputs,
    LayerVoted,
    Message,
    Rebuilt,
    Repair,
    SetMode,
    Tensor,
    Voted,
)
from services.codec.core import inputs, layers, model
from services.codec.device_side import DeviceCodec
from services.codec.server_side import ServerCodec
from services.scheme import Scheme

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
NOW: dict[str, Any] = {"session": "s", "iteration": 3, "attempt": 0}
SENT = NOW | {"sent_at": 0.0}


class FakeBus:
    """Gives the messages that it was made with, keeps what is published, and counts what is rejected."""

    def __init__(self, *messages: Message) -> None:
        self.messages = messages
        self.published: list[Message] = []
        self.rejected: list[str] = []

    async def subscribe(self, *topics: str) -> None: ...

    async def __aiter__(self) -> AsyncIterator[tuple[str, Message]]:
        for message in self.messages:
            # As from the broker: what cannot be decoded does not get here.
            name = next(name for name, kind in topics.TABLE.items() if kind is type(message))
            yield name, encoding.decode(topics.absolute(name, "d"), encoding.encode(message), whole=True)

    async def publish(self, topic: str, message: Message, *, retain: bool = False) -> int:
        self.published.append(message)
        return len(encoding.encode(message))

    def share(self, array: np.ndarray) -> Tensor:
        return encoding.inline(array)

    def open(self, tensor: Tensor) -> np.ndarray:
        return encoding.view(tensor)

    def release(self, tensor: Tensor) -> bool:
        return True

    def withdraw(self, tensor: Tensor) -> None: ...

    def reject(self, topic: str, reason: str) -> None:
        self.rejected.append(reason)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return lower(zoo.build("digits_cnn", 10).eval(), np.tile(IMAGES, (8, 1, 1, 1)), (0.5,), (0.5,), name="small")


def sent_inputs(**changes: Any) -> EncodedInputs:
    hashes = tuple(inputs.sample_hash(image) for image in IMAGES)
    good = {"hashes": hashes, "labels": None, "shape": (8, 8, 1), "fresh": inputs.encode(IMAGES), "fresh_of": (0, 1)}
    return EncodedInputs(**SENT | good | changes)


def sent_layers(network: Network, segment: int, **changes: Any) -> EncodedLayers:
    """All MAC layers as they are, one a segment."""
    found = []
    for index, layer in network.convs():
        y = np.full((2, *layer.shape), index, layer.dtype)
        found.append(EncodedLayer(index, layers.digest(y), layers.encode(y, None, "direct")))
    return EncodedLayers(**SENT | {"segment": segment, "batch": 2, "layers": (found[segment],)} | changes)


async def served(network: Network, *messages: Message) -> FakeBus:
    """The server's end, with a network and a running iteration, after these messages and an honest repeat of all."""
    start = [
        Deploy(
            session="s", iteration=-1, version=1, network=encoding.inline(np.frombuffer(storage.to_bytes(network), np.uint8))
        ),
        SetMode(session="s", seq=1, mode="training", scheme=Scheme(codec="chained", exact=True)),
    ]
    passes = Forward(**NOW, mode="training", version=1, split="train", samples=(0, 1))
    honest = [passes, sent_inputs(), *(sent_layers(network, i) for i in range(len(list(network.convs()))))]
    bus = FakeBus(*start, passes, *messages, *honest, *messages)
    await ServerCodec(bus, "portable").serve()  # type: ignore[arg-type]
    done = [layer.index for m in bus.published[-1000:] if isinstance(m, Activations) for layer in m.layers]
    assert done[-len(list(network.convs())) :] == [index for index, _ in network.convs()], "the honest ones were served"
    return bus


async def test_images_of_a_pass_that_was_given_up_are_known_later(network: Network) -> None:
    """The device sends a name alone of what it sent before, and does not know which pass the server has dropped."""
    last = {"iteration": 4, "attempt": 0}
    bus = FakeBus(
        Deploy(
            session="s", iteration=-1, version=1, network=encoding.inline(np.frombuffer(storage.to_bytes(network), np.uint8))
        ),
        SetMode(session="s", seq=1, mode="training", scheme=Scheme(codec="chained", exact=True)),
        Forward(**NOW | last, mode="training", version=1, split="train", samples=(0, 1)),
        sent_inputs(session="another"),
        sent_inputs(),
        sent_inputs(**last, fresh=b"", fresh_of=()),
    )
    await ServerCodec(bus, "portable").serve()  # type: ignore[arg-type]
    assert bus.rejected == []
    (got,) = [m for m in bus.published if isinstance(m, Inputs)]
    assert got.iteration == 4
    np.testing.assert_array_equal(encoding.view(got.images), IMAGES)


HOSTILE = {
    "images a million times": sent_inputs(fresh_of=(0,) * 10**6, fresh=b"\x01" + b"\xff" * 4 * 10**6),
    "the same image twice": sent_inputs(fresh_of=(0, 0)),
    "images of another shape": sent_inputs(shape=(2**40, 2**40, 3)),
    "images outside the batch": sent_inputs(fresh_of=(0, -1)),
    "no images": sent_inputs(hashes=(), fresh_of=(), fresh=b""),
    "wrong hashes": sent_inputs(hashes=(b"x" * 16, b"y" * 16)),
    "hashes alone": sent_inputs(fresh_of=(), fresh=b""),
    "corrections nobody asked for": EncodedRepair(**SENT, layer=0, layers=(EncodedLayer(0, 0, b"\x04\xff"),)),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_the_server_drops_inputs_that_lie(network: Network, name: str) -> None:
    bus = await served(network, HOSTILE[name])
    assert bus.rejected or name == "corrections nobody asked for"
    assert any("twice" in reason for reason in bus.rejected) == (name in ("images a million times", "the same image twice"))


@pytest.mark.parametrize("index", [-1, 1, 2**40, -(2**40)])
async def test_the_server_drops_layers_out_of_turn(network: Network, index: int) -> None:
    lie = EncodedLayer(index, 0, b"\x00" + bytes(64))
    bus = await served(network, sent_inputs(), sent_layers(network, 0, layers=(lie,)))
    assert any("is next" in reason for reason in bus.rejected)


async def test_the_server_drops_layers_behind_the_last(network: Network) -> None:
    count = len(list(network.convs()))
    more = EncodedLayers(**SENT, segment=count, batch=2, layers=(EncodedLayer(len(network.layers), 0, b"\x00" + bytes(20)),))
    everything = [sent_inputs(), *(sent_layers(network, i) for i in range(count))]
    bus = await served(network, *everything, more)
    assert bus.rejected


@pytest.mark.parametrize("segment", [-1, 2**40])
async def test_the_server_drops_segments_that_cannot_be(network: Network, segment: int) -> None:
    await served(network, sent_inputs(), EncodedLayers(**SENT, segment=segment, batch=2, layers=()))


async def test_the_server_drops_networks_that_are_none(network: Network) -> None:
    noise = encoding.inline(np.frombuffer(b"\x10" + bytes(40), np.uint8))
    bus = await served(network, Deploy(session="s", iteration=0, version=9, network=noise))
    assert bus.rejected


def voted(network: Network, **changes: Any) -> Voted:
    index, layer = next(network.convs())
    y = encoding.inline(np.zeros((2, *layer.shape), layer.dtype))
    good = {"segment": 0, "mode": "training", "layers": (LayerVoted(index=index, actual=y, vote=y),)}
    return Voted(**NOW | good | changes)


async def test_the_devices_end_lives_through_lies(network: Network) -> None:
    index, layer = next(network.convs())
    y, less = (encoding.inline(np.zeros((n, *layer.shape), layer.dtype)) for n in (2, 1))
    assert layer.dtype == np.uint8
    signed = encoding.inline(np.zeros((2, *layer.shape), np.int8))
    whole = model.encode(None, network)

    def sent_model(**changes: Any) -> EncodedModel:
        good = {"iteration": -1, "version": 1, "base": 0, "digest": model.digest(network), "body": whole}
        return EncodedModel(session="s", sent_at=0.0, **good | changes)

    def plain(array: np.ndarray, **changes: Any) -> Inputs:
        return Inputs(**NOW | {"images": encoding.inline(array), "labels": None} | changes)

    honest = [sent_model(), plain(IMAGES), voted(network)]
    lies: list[Message] = [
        sent_model(version=2, body=b"\x00\x28\xb5\x2f\xfd"),
        sent_model(version=2, base=7),
        sent_model(version=2, base=1, body=b"\x01" + b"\xff" * 40),
        sent_model(version=2, digest=1),
        Repair(**NOW, layer=2**40),
        Repair(**NOW, layer=-1, digests=b"x"),
        Repair(**NOW, layer=index, digests=b"x"),
        Rebuilt(**NOW, layer=2**40),
        Rebuilt(**NOW, layer=-1),
        plain(np.zeros(3, np.uint8)),
        plain(np.zeros((2, 8), np.uint8), files=(b"x", b"y")),
        plain(np.zeros((2, 8, 8, 1), np.float32)),
        plain(np.zeros((0, 8, 8, 1), np.uint8)),
        plain(IMAGES, files=(b"x",)),
        voted(network, layers=()),
        voted(network, layers=(LayerVoted(index=2**40, actual=y, vote=y),)),
        voted(network, layers=(LayerVoted(index=-5, actual=y, vote=y),)),
        voted(network, layers=(LayerVoted(index=index, actual=y, vote=less),)),
        voted(network, layers=(LayerVoted(index=index, actual=encoding.inline(np.zeros((), layer.dtype))),)),
        voted(network, layers=(LayerVoted(index=index, actual=encoding.inline(np.zeros(3, np.uint8))),)),
        voted(network, layers=(LayerVoted(index=index, actual=signed, vote=signed),)),
    ]
    mode = SetMode(session="s", seq=1, mode="training", scheme=Scheme(codec="chained", exact=True))
    for lie in lies:
        bus = FakeBus(mode, *honest, lie, plain(IMAGES), voted(network))
        await DeviceCodec(bus, "portable", 1 << 24).serve()  # type: ignore[arg-type]
        sent = [m for m in bus.published if isinstance(m, EncodedLayers)]
        assert sent[-1].layers[0].index == index, lie
        assert len(sent) >= 2, lie
