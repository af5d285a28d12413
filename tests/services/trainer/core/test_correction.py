"""Bias correction: faults with a mean are taken back to the fault-free means, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accelsim import zoo
from accelsim.datasets import load
from accelsim.engine import Engine
from accelsim.int8.network import INPUT, Activation, Network
from accelsim.int8.parameters import dequantize
from accelsim.int8.walk import walk
from accelsim.lowering import lower
from services.trainer.core.correction import correct

DIGITS = load("digits")
IMAGES = DIGITS.train_images[:64]


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return lower(zoo.build("digits_cnn", 10).eval(), IMAGES, DIGITS.mean, DIGITS.std, name="small")


def struck(engine: Engine, x: Activation, up: dict[int, int]) -> dict[int, Activation]:
    """Every activation of a device that adds so many steps to some outputs of some layers: in all images, in one channel."""
    values: dict[int, Activation] = {INPUT: x}
    for index, _, operands in walk(engine.network, values, keep=True):
        y = engine.fault_free(index, operands)
        if index in up:
            limits = np.iinfo(y.dtype)
            y = y.copy()
            y[..., 0] = np.clip(y[..., 0].astype(int) + up[index], limits.min, limits.max)
        values[index] = y
    return values


def apart(network: Network, engine: Engine, x: Activation, up: dict[int, int], index: int) -> float:
    """Mean distance of the channels' means from the fault-free network's, in steps, but of the channel that is struck."""
    wanted = Engine(network, "portable").run(x)[index].mean(axis=(0, 1, 2))
    return float(np.abs(struck(engine, x, up)[index].mean(axis=(0, 1, 2)) - wanted)[1:].mean())


def test_means_come_back_in_every_layer_at_once(network: Network) -> None:
    """Errors of the first layer spread into all later ones; each is corrected for what the corrections before it leave."""
    macs = [index for index, _ in network.convs()]
    up = {macs[0]: 20, macs[1]: -15}
    engine = Engine(network, "portable")
    x = network.quantize_images(IMAGES)
    parameters = dequantize(network)
    corrected = correct(network, parameters, engine, engine, x, struck(engine, x, up), 1.0)
    after = Engine(corrected, "portable")
    assert apart(network, engine, x, up, macs[0]) == 0
    spread = [index for index in macs if apart(network, engine, x, up, index) > 0]
    assert len(spread) > 1
    for index in spread:
        assert apart(network, after, x, up, index) < 0.5 * apart(network, engine, x, up, index), index
    for (index, old), (_, new) in zip(network.convs(), corrected.convs(), strict=True):
        np.testing.assert_array_equal(old.weight, new.weight)
        np.testing.assert_array_equal(dequantize(corrected)[index][0], parameters[index][0])


def test_a_device_without_faults_needs_none(network: Network) -> None:
    engine = Engine(network, "portable")
    x = network.quantize_images(IMAGES)
    corrected = correct(network, dequantize(network), engine, engine, x, struck(engine, x, {}), 1.0)
    for (_, old), (_, new) in zip(network.convs(), corrected.convs(), strict=True):
        np.testing.assert_array_equal(old.bias, new.bias)


def test_one_image_that_was_struck_is_chance(network: Network) -> None:
    """One image in 64 by 100 steps shifts the mean as much as all by 1.6; the latter is taken back nearly whole."""
    macs = [index for index, _ in network.convs()]
    engine = Engine(network, "portable")
    x = network.quantize_images(IMAGES)
    device = struck(engine, x, {})
    outlier = {index: y.copy() for index, y in device.items()}
    last = outlier[macs[-1]]
    last[0, ..., 0] = np.clip(last[0, ..., 0].astype(int) - 100, np.iinfo(last.dtype).min, np.iinfo(last.dtype).max)
    moved = outlier[macs[-1]].mean() - device[macs[-1]].mean()
    assert moved < 0

    def shift(of: dict[int, Activation]) -> float:
        parameters = dequantize(network)
        bias = parameters[macs[-1]][1].copy()
        correct(network, parameters, engine, engine, x, of, 1.0)
        return float((parameters[macs[-1]][1] - bias)[0] / network.layers[macs[-1]].scale)

    whole = -10 * moved  # of ten classes one is struck
    assert 0 < shift(outlier) < 0.6 * whole
    assert shift(struck(engine, x, {macs[-1]: -2})) == pytest.approx(2, rel=0.1)
