"""Model updates there and back, and what hostile bytes come to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim.int8 import storage
from accelsim.int8.network import INPUT, Conv, Flatten, Network, multiplier
from services.codec.core import model
from services.codec.core.bodies import CodecError


def conv(name: str, inputs: int, shape: tuple[int, int, int], weight_shape: tuple[int, ...], input_scale: float) -> Conv:
    generator = np.random.default_rng(len(name))
    weight_scale = generator.uniform(0.001, 0.01, weight_shape[0]).astype(np.float32)
    return Conv(
        name=name,
        inputs=(inputs,),
        shape=shape,
        scale=0.5,
        weight=np.clip(np.rint(generator.normal(0, 30, weight_shape)), -127, 127).astype(np.int8),
        bias=generator.integers(-1000, 1000, weight_shape[0], dtype=np.int32),
        weight_scale=weight_scale,
        multiplier=multiplier(input_scale, weight_scale, 0.5),
        padding=(1, 1) if weight_shape[2] == 3 else (0, 0),
    )


@pytest.fixture(scope="module")
def network() -> Network:
    table = np.tile(np.arange(-128, 128, dtype=np.int8), (3, 1))
    layers = (
        conv("first", INPUT, (8, 8, 64), (64, 3, 3, 3), 0.25),
        conv("second", 0, (8, 8, 128), (128, 64, 3, 3), 0.5),
        Flatten(name="flat", inputs=(1,), shape=(1, 1, 8192), scale=0.5),
        conv("last", 2, (1, 1, 10), (10, 8192, 1, 1), 0.5),
    )
    return Network(name="toy", input_shape=(8, 8, 3), input_scale=0.25, input_table=table, layers=layers)


def trained(network: Network, share: float, rescaled: int = 0) -> Network:
    """A step of training: some weights by one, every bias a little, a few channels rescaled."""
    generator = np.random.default_rng(7)
    layers = list(network.layers)
    for index, layer in network.convs():
        step = (generator.random(layer.weight.shape) < share) * generator.choice([-1, 1], layer.weight.shape)
        scale = layer.weight_scale.copy()
        scale[:rescaled] *= np.float32(1.01)
        layers[index] = dataclasses.replace(
            layer,
            weight=np.clip(layer.weight.astype(np.int16) + step, -128, 127).astype(np.int8),
            bias=layer.bias + generator.integers(-3, 4, layer.bias.shape, dtype=np.int32),
            weight_scale=scale,
            multiplier=multiplier(network.scale_of(layer.inputs[0]), scale, layer.scale),
        )
    return dataclasses.replace(network, layers=tuple(layers))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("rescaled", [0, 2])
def test_delta_round_trip(network: Network, share: float, rescaled: int) -> None:
    new = trained(network, share, rescaled)
    body = model.encode(network, new)
    assert storage.to_bytes(model.decode(network, body)) == storage.to_bytes(new)


def test_whole_round_trip(network: Network) -> None:
    body = model.encode(None, network)
    assert storage.to_bytes(model.decode(None, body)) == storage.to_bytes(network)


def test_a_typical_step_is_under_five_per_cent(network: Network) -> None:
    body = model.encode(network, trained(network, 0.01))
    assert len(body) < 0.05 * len(storage.to_bytes(network))


def test_weights_that_wrap_around_come_back(network: Network) -> None:
    low, high = (
        dataclasses.replace(network, layers=(dataclasses.replace(network.layers[0], weight=fill), *network.layers[1:]))
        for fill in (np.full((64, 3, 3, 3), -128, np.int8), np.full((64, 3, 3, 3), 127, np.int8))
    )
    assert (model.decode(low, model.encode(low, high)).layers[0].weight == 127).all()  # type: ignore[union-attr]


def test_another_graph_must_go_whole(network: Network) -> None:
    layers = list(network.layers)
    layers[1] = dataclasses.replace(layers[1], scale=0.75)
    with pytest.raises(ValueError, match="'second'"):
        model.encode(network, dataclasses.replace(network, layers=tuple(layers)))
    with pytest.raises(ValueError, match="number of layers"):
        model.encode(network, dataclasses.replace(network, layers=network.layers[:1]))


def test_a_delta_without_its_base_is_refused(network: Network) -> None:
    with pytest.raises(CodecError, match="whole"):
        model.decode(None, model.encode(network, trained(network, 0.01)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hostile_bytes_decode_or_are_refused(network: Network, data: st.DataObject) -> None:
    base = data.draw(st.sampled_from([None, network]))
    body = bytearray(model.encode(base, network if base is None else trained(network, 0.01)))
    for _ in range(data.draw(st.integers(0, 4))):
        body[data.draw(st.integers(0, min(len(body), 200) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        rebuilt = model.decode(base, bytes(body[: data.draw(st.integers(0, len(body)))]))
    except CodecError:
        return
    storage.validate(rebuilt)
