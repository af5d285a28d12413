"""Channels in another order: the same function to the bit, less lost, and the best order where all can be tried."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.engine import Engine
from accelsim.faults import chip, mapping
from accelsim.faults.permanent import Fault, fault_map
from accelsim.int8.network import INPUT, Add, Channels, Conv, Layer, Network
from accelsim.lowering import lower
from accelsim.timing import Array
from tests.accelsim.faults.networks import mixed
from tests.quick import few_rounds

ARRAY = Array(rows=6, columns=5)


def in_order(network: Network, order: mapping.Order, saliency: mapping.Saliency) -> mapping.Saliency:
    return {
        index: saliency[index][order[index]] if layer.groups > 1 else saliency[index][order[index]][:, order[layer.inputs[0]]]
        for index, layer in network.convs()
    }


@pytest.mark.parametrize("seed", range(4))
def test_the_same_function_to_the_bit_and_less_is_lost(seed: int) -> None:
    network = mixed(seed)
    faults = chip.random_map(ARRAY, 0.2, seed)
    saliency = mapping.magnitude(network)
    found, order = mapping.mapped(network, faults, saliency)
    x = np.random.default_rng(seed).integers(-128, 128, (3, *network.input_shape), np.int8)
    ours, its = Engine(found).run(x), Engine(network).run(x)
    assert np.array_equal(ours[-1], its[-1])
    for index, (new, old) in enumerate(zip(ours, its, strict=True)):
        assert np.array_equal(new, old[..., order[index]]), network.layers[index].name
    moved = {network.layers[index].name for index in range(len(its)) if (np.diff(order[index]) != 1).any()}
    assert {"inner", "hidden", "after", "sum", "flat", "concat"} <= moved
    assert not moved & {"head", "grouped", "apart"}
    assert len(np.unique(its[-1])) > 4
    before, after = mapping.lost(network, faults, saliency), mapping.lost(found, faults, in_order(network, order, saliency))
    assert after < 0.8 * before


@pytest.mark.parametrize("name", ["digits_cnn", "resnet20", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_networks_of_the_zoo_stay_themselves(name: str) -> None:
    shape = {"digits_cnn": (8, 8, 1), "resnet20": (32, 32, 3)}.get(name, (64, 64, 3))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, *shape), np.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = zoo.build(name, 10).eval()
    with few_rounds():
        network = lower(module, images, (0.5,) * shape[2], (0.25,) * shape[2], name)
    found, order = mapping.mapped(network, chip.random_map(Array(), 0.05, 1), mapping.magnitude(network))
    x = network.quantize_images(images)
    assert np.array_equal(Engine(found).run(x)[-1], Engine(network).run(x)[-1])
    assert sum(bool((np.diff(places) != 1).any()) for places in order.values()) > 3


def two_layers() -> Network:
    random = np.random.default_rng(5)

    def conv(name: str, source: int, shape: tuple[int, int, int, int]) -> Conv:
        count = shape[0]
        return Conv(
            name=name, inputs=(source,), shape=(1, 1, count), scale=1.0, weight=random.integers(-127, 128, shape, np.int8),
            bias=np.zeros(count, np.int32), weight_scale=np.ones(count, np.float32),
            multiplier=np.full(count, 0.01, np.float32),
        )  # fmt: skip

    layers = (conv("first", INPUT, (5, 3, 1, 1)), conv("second", 0, (2, 5, 1, 1)))
    return Network(name="two", input_shape=(1, 1, 3), input_scale=1.0, input_table=np.zeros((3, 256), np.int8), layers=layers)


def test_of_one_class_of_wires_no_order_loses_less() -> None:
    network, array = two_layers(), Array(rows=4, columns=3)
    saliency = mapping.magnitude(network)
    for seed in range(5):
        faults = chip.random_map(array, 0.3, seed)
        found, order = mapping.mapped(network, faults, saliency)
        ours = mapping.lost(found, faults, in_order(network, order, saliency))
        least = np.inf
        for tried in permutations(range(5)):
            other = {INPUT: np.arange(3), 0: np.array(tried), 1: np.arange(2)}
            lost = mapping.lost(mapping.ordered(network, other), faults, in_order(network, other, saliency))
            least = min(least, lost)
        assert ours == pytest.approx(least)


def test_a_sound_chip_changes_nothing() -> None:
    network = mixed()
    found, order = mapping.mapped(network, fault_map(ARRAY, []), mapping.magnitude(network))
    assert found is network
    assert all(np.array_equal(places, np.arange(len(places))) for places in order.values())


def test_a_saliency_that_does_not_fit_is_named() -> None:
    network = mixed()
    saliency = mapping.magnitude(network)
    del saliency[1]
    with pytest.raises(ValueError, match=r"layer 1 \(inner\): no saliency of shape \(12, 8, 3, 3\)"):
        mapping.mapped(network, fault_map(ARRAY, [Fault(0, 0, "bypass")]), saliency)


def test_parts_of_one_wire_that_lie_crosswise_do_not_mix() -> None:
    """Two tables of one source, shuffled so that the parts of two wires come in either order."""
    network = mixed()
    layers = list(network.layers)
    crossed = np.argsort(np.random.default_rng(9).random(40)).astype(np.int32)
    layers[10] = replace(layers[10], order=crossed)  # type: ignore[type-var]
    network = replace(network, layers=tuple(layers))
    found, order = mapping.mapped(network, chip.random_map(ARRAY, 0.2, 4), mapping.magnitude(network))
    x = np.random.default_rng(1).integers(-128, 128, (2, *network.input_shape), np.int8)
    for index, (new, old) in enumerate(zip(Engine(found).run(x), Engine(network).run(x), strict=True)):
        assert np.array_equal(new, old[..., order[index]])
    assert (np.diff(order[10]) != 1).any()


def of_layers(*middle: Layer, seed: int, channels: int = 6) -> Network:
    """A convolution to so many channels, these layers on it, and a classifier of the last."""
    random = np.random.default_rng(seed)

    def conv(name: str, source: int, out: int, depth: int) -> Conv:
        return Conv(
            name=name, inputs=(source,), shape=(1, 1, out), scale=1.0,
            weight=random.integers(-127, 128, (out, depth, 1, 1), np.int8), bias=random.integers(-99, 99, out, np.int32),
            weight_scale=np.ones(out, np.float32), multiplier=np.full(out, 0.005, np.float32),
        )  # fmt: skip

    given = tuple(conv(layer.name, 0, channels, channels) if isinstance(layer, Conv) else layer for layer in middle)
    layers = (conv("first", INPUT, channels, 3), *given, conv("head", len(middle), 4, channels))
    return Network(name="made", input_shape=(1, 1, 3), input_scale=1.0, input_table=np.zeros((3, 256), np.int8), layers=layers)


@pytest.mark.parametrize("seed", range(8))
def test_a_sum_of_channels_with_channels_of_the_same_layer_stays_itself(seed: int) -> None:
    """Channels go round in two circles of three, one this way and one that way."""
    network = of_layers(
        Channels(name="turned", inputs=(0,), shape=(1, 1, 6), scale=1.0, order=np.array([1, 2, 0, 5, 3, 4], np.int32)),
        Add(name="sum", inputs=(0, 1), shape=(1, 1, 6), scale=1.0, multipliers=(0.7, 0.4)),
        seed=seed,
    )
    found, _ = mapping.mapped(network, chip.random_map(Array(rows=4, columns=4), 0.3, seed), mapping.magnitude(network))
    x = np.random.default_rng(seed).integers(-128, 128, (9, 1, 1, 3), np.int8)
    assert np.array_equal(Engine(found).run(x)[-1], Engine(network).run(x)[-1])


def test_a_layer_that_reads_and_writes_one_class_of_wires_loses_no_more() -> None:
    for seed in range(60):
        network = of_layers(
            two_layers().layers[0],  # stands for a convolution of the first
            Add(name="sum", inputs=(0, 1), shape=(1, 1, 6), scale=1.0, multipliers=(0.5, 0.5)),
            seed=seed,
        )
        saliency = mapping.magnitude(network)
        faults = chip.random_map(Array(rows=4, columns=4), 0.3, seed)
        found, order = mapping.mapped(network, faults, saliency)
        after = mapping.lost(found, faults, in_order(network, order, saliency))
        assert after <= mapping.lost(network, faults, saliency) * (1 + 1e-12)
