"""The oracle against the specification written out for one element, and against torch for the pools."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accelsim.engine import reference
from accelsim.faults import Flips
from accelsim.int8.network import INPUT, Add, Channels, Concat, Conv, Flatten, MaxPool, MeanPool, Mul, Network, Slice, Table

rng = np.random.default_rng(7)


def int8(*shape: int) -> np.ndarray:
    return rng.integers(-128, 128, shape, np.int8)


def test_convolution_is_the_sum_that_the_specification_writes() -> None:
    layer = Conv(
        name="c", inputs=(INPUT,), shape=(3, 2, 4), scale=1.0, weight=int8(4, 3, 2, 3), bias=np.array([5, -7, 0, 9], np.int32),
        weight_scale=np.ones(4, np.float32), multiplier=np.array([0.5, 0.01, 0.003, 0.25], np.float32),
        stride=(2, 3), padding=(1, 2), dilation=(2, 1), groups=2, low=-100, high=90,
    )  # fmt: skip
    x = int8(2, 6, 5, 6)
    y = reference.layer(layer, [x])
    for n, oy, ox, o in np.ndindex(2, 3, 2, 4):
        acc = int(layer.bias[o])
        for i, r, s in np.ndindex(3, 2, 3):
            iy, ix = oy * 2 - 1 + r * 2, ox * 3 - 2 + s
            if 0 <= iy < 6 and 0 <= ix < 5:
                acc += int(x[n, iy, ix, o // 2 * 3 + i]) * int(layer.weight[o, i, r, s])
        # Python's round is half to even as well, on the float32 product.
        expected = round(float(np.float32(acc) * layer.multiplier[o]))
        assert y[n, oy, ox, o] == min(max(expected, -100), 90)


def test_requantisation_rounds_half_to_even_and_clamps() -> None:
    layer = Conv(
        name="c", inputs=(INPUT,), shape=(1, 1, 1), scale=1.0, weight=int8(1, 1, 1, 1), bias=np.zeros(1, np.int32),
        weight_scale=np.ones(1, np.float32), multiplier=np.array([0.5], np.float32), low=-3,
    )  # fmt: skip
    acc = np.array([[1], [3], [5], [-1], [-3], [-5], [-100], [1000]], np.int32)
    assert reference.requantise(layer, acc).ravel().tolist() == [0, 2, 2, 0, -2, -2, -3, 127]


def test_accumulators_beyond_int32_are_refused() -> None:
    layer = Conv(
        name="wide", inputs=(INPUT,), shape=(1, 1, 1), scale=1.0, weight=np.full((1, 1, 1, 1), 127, np.int8),
        bias=np.array([2**31 - 1], np.int32), weight_scale=np.ones(1, np.float32), multiplier=np.ones(1, np.float32),
    )  # fmt: skip
    with pytest.raises(ValueError, match="wide: accumulators reach"):
        reference.layer(layer, [np.full((1, 1, 1, 1), 127, np.int8)])


def test_pools_equal_torch() -> None:
    x = int8(2, 7, 6, 3)
    image = torch.from_numpy(x).permute(0, 3, 1, 2)
    top = MaxPool(name="m", inputs=(INPUT,), shape=(4, 3, 3), scale=1.0, kernel=(3, 3), stride=(2, 2), padding=(1, 0))
    largest = torch.nn.functional.max_pool2d(image.float(), 3, 2, (1, 0), ceil_mode=True)
    assert np.array_equal(reference.layer(top, [x]), largest.permute(0, 2, 3, 1).numpy())
    mean = MeanPool(
        name="a", inputs=(INPUT,), shape=(4, 3, 3), scale=1.0, kernel=(2, 2), stride=(2, 2), padding=(1, 0), multiplier=0.25
    )
    average = torch.nn.functional.avg_pool2d(image.double(), 2, 2, (1, 0)).round()
    assert np.array_equal(reference.layer(mean, [x]), average.permute(0, 2, 3, 1).numpy())


def test_layers_that_are_not_pools() -> None:
    a, b = int8(2, 3, 4, 5), int8(2, 3, 4, 5)
    shape = (3, 4, 5)
    add = Add(name="add", inputs=(INPUT, 0), shape=shape, scale=1.0, multipliers=(0.5, 1.5), low=0)
    expected = np.rint(a * 0.5).astype(int) + np.rint(b * 1.5).astype(int)
    assert np.array_equal(reference.layer(add, [a, b]), expected.clip(0, 127))
    concat = Concat(name="cat", inputs=(INPUT, 0), shape=(3, 4, 10), scale=1.0, multipliers=(1.0, 0.25))
    assert np.array_equal(reference.layer(concat, [a, b]), np.concatenate([a, np.rint(b * 0.25)], axis=3))
    gate = int8(2, 1, 1, 5)
    mul = Mul(name="mul", inputs=(INPUT, 0), shape=shape, scale=1.0, multiplier=0.0078125)
    assert np.array_equal(reference.layer(mul, [a, gate]), np.rint(a.astype(int) * gate.astype(int) / 128).clip(-128, 127))
    table = Table(name="t", inputs=(INPUT,), shape=shape, scale=1.0, table=int8(256), slope=np.zeros(256, np.float32))
    assert reference.layer(table, [a])[1, 2, 3, 4] == table.table[int(a[1, 2, 3, 4]) + 128]
    channels = Channels(name="c", inputs=(INPUT,), shape=(3, 4, 3), scale=1.0, order=np.array([4, 0, 2], np.int32))
    assert np.array_equal(reference.layer(channels, [a]), a[..., [4, 0, 2]])
    flat = Flatten(name="f", inputs=(INPUT,), shape=(1, 1, 60), scale=1.0)
    assert np.array_equal(reference.layer(flat, [a]).reshape(2, 60), a.transpose(0, 3, 1, 2).reshape(2, 60))
    window = Slice(name="s", inputs=(INPUT,), shape=(2, 3, 7), scale=1.0, offset=(1, -1, -1), step=(2, 1))
    y = reference.layer(window, [a])
    for h, w, c in np.ndindex(2, 3, 7):
        y0, x0, c0 = 1 + 2 * h, w - 1, c - 1
        inside = 0 <= y0 < 3 and 0 <= x0 < 4 and 0 <= c0 < 5
        assert np.array_equal(y[:, h, w, c], a[:, y0, x0, c0] if inside else np.zeros(2))


def test_flips_change_exactly_their_bits() -> None:
    x = int8(2, 2, 2, 3)
    flipped = reference.flip(x, np.array([0, 7, 8 * 5 + 3]))
    assert (flipped.ravel() != x.ravel()).nonzero()[0].tolist() == [0, 5]
    assert flipped.ravel()[0] == np.int8(np.uint8(x.ravel()[0]) ^ 0x81)
    assert flipped.ravel()[5] == x.ravel()[5] ^ 8


def test_an_accumulator_flip_strikes_before_requantisation() -> None:
    layer = Conv(
        name="c", inputs=(INPUT,), shape=(1, 1, 1), scale=1.0, weight=np.ones((1, 1, 1, 1), np.int8),
        bias=np.zeros(1, np.int32), weight_scale=np.ones(1, np.float32), multiplier=np.array([0.25], np.float32),
    )  # fmt: skip
    x = np.full((1, 1, 1, 1), 8, np.int8)
    assert reference.replica(layer, x, Flips(accumulator=np.array([5]))).item() == 10
    assert reference.replica(layer, x, Flips(accumulator=np.array([31]))).item() == -128


def test_run_follows_the_graph() -> None:
    add = Add(name="add", inputs=(INPUT, INPUT), shape=(2, 2, 1), scale=1.0, multipliers=(1.0, 1.0))
    again = Add(name="again", inputs=(0, INPUT), shape=(2, 2, 1), scale=1.0, multipliers=(1.0, 1.0))
    network = Network(
        name="n", input_shape=(2, 2, 1), input_scale=1.0, input_table=np.zeros((1, 256), np.int8), layers=(add, again)
    )
    x = np.arange(4, dtype=np.int8).reshape(1, 2, 2, 1)
    first, second = reference.run(network, x)
    assert np.array_equal(first, 2 * x)
    assert np.array_equal(second, 3 * x)
