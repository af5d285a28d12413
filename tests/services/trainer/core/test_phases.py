"""Phases of a transposed convolution learn as the one filter that they are parts of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from accelsim.datasets import load
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8 import network as net
from accelsim.int8.network import INPUT, Conv, Interleave, Network, Way
from accelsim.int8.phases import bias_groups, taps_of
from accelsim.lowering import lower
from accelsim.lowering.deconv import Operand, convolutions
from r2f import inprocess
from services.scheme import Scheme
from services.trainer.core.job import Job
from services.trainer.core.replay import Replay, replay
from services.trainer.core.task import PAPER, Sgd

OUT, FAN_IN, KERNEL = 2, 3, (5, 4)
SHAPE = (3, 4, FAN_IN)


def network(way: Way, *, numbered: bool) -> Network:
    """A transposed convolution and a classifier behind it. ``numbered``: its weights are 1, 2, 3, ..., to be found again."""
    random = np.random.default_rng(5)
    count = OUT * FAN_IN * KERNEL[0] * KERNEL[1]
    weight = np.arange(1, count + 1) if numbered else random.permutation(count) - count // 2
    scale = np.array([0.01, 0.02], np.float32)
    layer = Conv(
        name="up", inputs=(INPUT,), shape=(6, 8, OUT), scale=0.25, signed=False, low=0, high=np.array(255, np.int32),
        weight=weight.reshape(OUT, FAN_IN, *KERNEL).astype(np.int8), bias=np.array([300, -200], np.int32), weight_scale=scale,
        multiplier=net.multiplier(0.0625, scale, 0.25), stride=(2, 2), padding=(2, 1),
    )  # fmt: skip
    layers: list[net.Layer] = list(convolutions(layer, Operand(SHAPE, 0.0625, True), 0, way))
    last = len(layers) - 1
    layers.append(net.Flatten(name="flat", inputs=(last,), shape=(1, 1, 96), scale=0.25, signed=False))
    scales = np.full(4, 0.01, np.float32)
    layers.append(
        Conv(
            name="fc", inputs=(last + 1,), shape=(1, 1, 4), scale=1.0, bias=np.zeros(4, np.int32), weight_scale=scales,
            weight=random.integers(-60, 60, (4, 96, 1, 1), np.int8), multiplier=net.multiplier(0.25, scales, 1.0),
        )
    )  # fmt: skip
    table = np.tile((np.arange(256) - 128).astype(np.int8), (FAN_IN, 1))
    return Network(name="up", input_shape=SHAPE, input_scale=0.0625, input_table=table, layers=tuple(layers))


def replayed(of: Network) -> Replay:
    random = np.random.default_rng(0)
    x = random.integers(-128, 128, (6, *SHAPE), np.int8)
    engine = Engine(of)
    outputs = engine.run(x)
    return replay(of, x, {i: outputs[i] for i, _ in of.convs()}, np.arange(6) % 4, engine.fault_free)


@pytest.mark.parametrize("way", ["phases", "merged", "split"])
def test_gradients_gather_to_those_of_the_one_filter(way: Way) -> None:
    """Zero-padded, the filter is one, and turned round; numbered weights say where each tap has gone."""
    whole, parts = network("zero-padded", numbered=True), network(way, numbered=True)
    (index,) = [i for i, layer in whole.convs() if layer.name == "up"]
    found, gathered = replayed(whole), replayed(parts)
    one = whole.layers[index]
    assert isinstance(one, Conv)
    slopes = found.gradients[index][0].reshape(-1).tolist()
    wanted = dict(zip(one.weight.reshape(-1).tolist(), slopes, strict=True))
    assert found.loss == pytest.approx(gathered.loss)
    seen = []
    for i, layer in parts.convs():
        if layer.name == "fc":
            continue
        at_weight, at_bias = gathered.gradients[i]
        for number, slope in zip(layer.weight.reshape(-1).tolist(), at_weight.reshape(-1).tolist(), strict=True):
            assert slope == pytest.approx(wanted[number] if number else 0, rel=1e-4, abs=1e-6)
            seen += [number] if number else []
        many = len(at_bias) // OUT
        torch.testing.assert_close(at_bias, found.gradients[index][1].repeat(many), rtol=1e-4, atol=1e-6)
    assert sorted(seen) == sorted(wanted), "each tap is somewhere, once"
    assert max(map(abs, wanted.values())) > 1e-3, "the test itself is blind"


@pytest.mark.parametrize("way", ["phases", "merged", "split"])
def test_what_is_no_tap_stays_0_and_biases_stay_one(way: Way) -> None:
    digits = load("digits")
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 5, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(245, 10)
    )
    before = lower(module.eval(), digits.train_images[::9], digits.mean, digits.std, deconvolution=way)
    recipe = replace(PAPER, corrections=2, average=0.5)
    job = Job(
        session="s", device="d", rates=Rates.uniform(1e-3), iterations=6, batch=16, seed=3, recipe=recipe, labels="device",
        sgd=Sgd(rate=0.05, weight_decay=1e-3), evaluation_seeds=(1,), evaluation_samples=8, evaluation_batch=8,
        scheme=Scheme(codec="direct"),
    )  # fmt: skip
    after = inprocess.retrain(before, digits, job).network
    (groups,) = bias_groups(after)
    assert sum(part.stop - part.start for _, part in groups) == 4 * 5
    moved = 0
    for index, mask in taps_of(after).items():
        layer, first = after.layers[index], before.layers[index]
        assert isinstance(layer, Conv)
        assert isinstance(first, Conv)
        assert not layer.weight[np.broadcast_to(mask == 0, layer.weight.shape)].any()
        moved += int((layer.weight != first.weight).sum())
    assert moved > 0 or way == "phases"
    reals = [after.layers[i].bias[part] * after.layers[i].weight_scale[part].astype(np.float64) for i, part in groups]  # type: ignore[union-attr]
    steps = [after.layers[i].weight_scale[part] for i, part in groups]  # type: ignore[union-attr]
    for real, step in zip(reals, steps, strict=True):
        assert np.abs(real - reals[0]).max() <= 0.51 * (step + steps[0]).max()
    assert any(isinstance(layer, Interleave) for layer in after.layers)
