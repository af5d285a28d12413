"""Transposed convolutions on an array that knows ordinary ones: four ways against a scatter in integers, bit for bit."""

from __future__ import annotations

import typing
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from accelsim.engine import Engine, probe, reference
from accelsim.int8 import network as net
from accelsim.int8.checks import validate
from accelsim.int8.network import INPUT, Activation, Network, Way
from accelsim.lowering import lower
from accelsim.lowering.deconv import Operand, convolutions, macs

WAYS: tuple[Way, ...] = ("phases", "merged", "split", "zero-padded")
PATHS = [name for name, works, _ in probe() if works]


def scattered(layer: net.Conv, x: Activation) -> Activation:
    """Output (N, H, W, O) by the definition: each input pixel adds its products to the outputs that it reaches."""
    h, w, o = layer.shape
    (sy, sx), (py, px) = layer.stride, layer.padding
    acc = np.zeros((len(x), h, w, o), np.int64) + layer.bias
    per_group, fan_in = o // layer.groups, layer.weight.shape[1]
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            for r in range(layer.weight.shape[2]):
                for s in range(layer.weight.shape[3]):
                    a, b = i * sy + r - py, j * sx + s - px
                    if not (0 <= a < h and 0 <= b < w):
                        continue
                    for group in range(layer.groups):
                        of = slice(group * per_group, (group + 1) * per_group)
                        pixel = x[:, i, j, group * fan_in : (group + 1) * fan_in].astype(np.int64)
                        acc[:, a, b, of] += pixel @ layer.weight[of, :, r, s].astype(np.int64).T
    return reference.requantise(layer, acc.astype(np.int32))


@st.composite
def layers(draw: st.DrawFn) -> tuple[net.Conv, Operand, np.random.Generator]:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    fan_in, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    size = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    padding, shape = [], []
    for k, s, n in zip(kernel, stride, size, strict=True):
        extra = draw(st.integers(0, s - 1))
        most = ((n - 1) * s + k + extra - 1) // 2
        padding.append(draw(st.integers(0, min(most, 6))))
        shape.append((n - 1) * s + k + extra - 2 * padding[-1])
    out, signed = groups * per_group, draw(st.booleans())
    weight_scale = random.uniform(0.5, 2, out).astype(np.float32)
    scale = 1.0
    layer = net.Conv(
        name="up", inputs=(INPUT,), shape=(shape[0], shape[1], out), scale=scale, signed=signed,
        weight=random.integers(-128, 128, (out, fan_in, *kernel), np.int8),
        bias=random.integers(-3000, 3000, out, np.int32), weight_scale=weight_scale,
        multiplier=net.multiplier(2.0**-7, weight_scale, scale), stride=stride, padding=(padding[0], padding[1]), groups=groups,
        low=-128 if signed else 0, high=random.integers(60, 128, out).astype(np.int32),
    )  # fmt: skip
    return layer, Operand((size[0], size[1], groups * fan_in), 2.0**-7, True), random


def network_of(layer: net.Conv, operand: Operand, way: Way) -> Network:
    table = np.zeros((operand.shape[2], 256), np.int8)
    made = tuple(convolutions(layer, operand, 0, way))
    network = Network(name="up", input_shape=operand.shape, input_scale=operand.scale, input_table=table, layers=made)
    validate(network)
    return network


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layers())
def test_all_ways_are_the_scatter(case: tuple[net.Conv, Operand, np.random.Generator]) -> None:
    layer, operand, random = case
    x = random.integers(-128, 128, (2, *operand.shape), np.int8)
    want = scattered(layer, x)
    for way in WAYS:
        network = network_of(layer, operand, way)
        assert np.array_equal(reference.run(network, x)[-1], want), way
        for path in PATHS:
            assert np.array_equal(Engine(network, path).run(x)[-1], want), (way, path)


@settings(max_examples=100, deadline=None)
@given(layers())
def test_phases_multiply_what_counts_and_nothing_else(case: tuple[net.Conv, Operand, np.random.Generator]) -> None:
    """No more than the other ways, and no product of a zero that was put in."""
    layer, operand, _ = case
    counts = {way: macs(convolutions(layer, operand, 0, way)) for way in WAYS}
    assert counts["phases"] <= counts["split"] or min(layer.weight.shape[2:]) < max(layer.stride)
    assert counts["phases"] <= counts["zero-padded"]
    whole = [(n - 1) * k + k for n, k in zip(operand.shape[:2], layer.stride, strict=True)]
    if layer.padding == (0, 0) and layer.stride == layer.weight.shape[2:] and list(layer.shape[:2]) == whole:
        assert counts["phases"] == operand.shape[0] * operand.shape[1] * layer.weight.size, "each pixel meets each tap"


class Generator(nn.Module):
    """What generators are made of: transposed convolutions with batch norm, one in groups, a shuffle, repetition, tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.ConvTranspose2d(6, 8, 4, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.two = nn.ConvTranspose2d(8, 6, 5, 3, 2, output_padding=1, groups=2)
        self.three = nn.Conv2d(6, 12, 3, padding=1)
        self.four = nn.Conv2d(3, 3, 3, padding=1)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.one(x)))
        x = nn.functional.leaky_relu(self.two(x), 0.2)
        x = nn.functional.pixel_shuffle(self.three(x), 2)
        out: torch.Tensor = torch.tanh(self.four(nn.functional.interpolate(x, scale_factor=2)))
        return out


def images(count: int = 16) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, 5, 4, 6), np.uint8)


@pytest.fixture(scope="module")
def generator() -> nn.Module:
    torch.manual_seed(0)
    return Generator().eval()


@pytest.mark.parametrize("activations", ["auto", "signed"])
def test_a_generator_lowers_and_all_ways_are_one(generator: nn.Module, activations: Any) -> None:
    x = images()
    mean, std = (0.5,) * 6, (0.25,) * 6
    found = {}
    for way in typing.get_args(Way):
        network = lower(generator, x, mean, std, activations=activations, deconvolution=way)
        found[way] = Engine(network).run(network.quantize_images(x))[-1]
        assert network.layers[-1].shape == (116, 92, 3)
        assert np.array_equal(found[way], found["auto"])
    with torch.no_grad():
        pixels = torch.from_numpy((x / 255 - 0.5) / 0.25).float().permute(0, 3, 1, 2)
        want = generator(pixels).permute(0, 2, 3, 1).numpy()
    got = found["auto"] * np.float32(network.layers[-1].scale)
    assert 10 * np.log10(np.square(want).mean() / np.square(want - got).mean()) > 20
