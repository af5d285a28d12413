"""Permanent faults against an array simulated one processing element and one pixel at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim.accelerators import Simulated
from accelsim.engine import Engine, reference
from accelsim.faults import Flips, Rates, permanent
from accelsim.faults.permanent import Fault, fault_map
from accelsim.int8.network import INPUT, Conv, Int8, Int32, Network
from accelsim.timing import Array


def wrap(value: int) -> int:
    """Two's complement of 32 bits."""
    return (value + 2**31) % 2**32 - 2**31


def stick(value: int, width: int, fault: Fault) -> int:
    bits = value % 2**width
    bits = bits | 1 << fault.bit if fault.value else bits & ~(1 << fault.bit)
    return (bits + 2 ** (width - 1)) % 2**width - 2 ** (width - 1)


def naive_accumulators(conv: Conv, x: Int8, weight: Int8, array: Array, faults: list[Fault]) -> Int32:
    """Every partial sum through every PE, as the module's docstring says it; ``weight`` is what is loaded."""
    of_pe: dict[tuple[int, int], list[Fault]] = {}
    for fault in faults:
        of_pe.setdefault((fault.row, fault.column), []).append(fault)
    filters_all, depth, kernel_h, kernel_w = weight.shape
    filters = filters_all // conv.groups
    taps = [(r, s, c) for r in range(kernel_h) for s in range(kernel_w) for c in range(depth)]
    acc = np.zeros((len(x), *conv.shape), np.int32)
    for image, row, column, of in np.ndindex(*acc.shape):
        group, n = divmod(of, filters)
        total = int(conv.bias[of])
        for tile in range(0, len(taps), array.rows):
            sum_ = 0
            for i in range(array.rows):
                broken = of_pe.get((i, n % array.columns), [])
                if any(fault.kind == "bypass" for fault in broken):
                    continue
                held, streamed = 0, 0
                if tile + i < len(taps):
                    r, s, c = taps[tile + i]
                    held = int(weight[of, c, r, s])
                    y = row * conv.stride[0] + r * conv.dilation[0] - conv.padding[0]
                    z = column * conv.stride[1] + s * conv.dilation[1] - conv.padding[1]
                    if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                        streamed = int(x[image, y, z, group * depth + c])
                for fault in broken:
                    if fault.kind == "weight":
                        held = stick(held, 8, fault)
                sum_ = wrap(sum_ + held * streamed)
                for fault in broken:
                    if fault.kind == "accumulator":
                        sum_ = stick(sum_, 32, fault)
            total = wrap(total + sum_)
        acc[image, row, column, of] = total
    return acc


def naive_replica(conv: Conv, x: Int8, flips: Flips, array: Array, faults: list[Fault]) -> Int8:
    loaded = reference.flip(conv.weight, flips.weight)
    acc = naive_accumulators(conv, reference.flip(x, flips.input), loaded, array, faults)
    flat = acc.reshape(-1).view(np.uint32)
    for position in flips.accumulator:
        flat[position // 32] ^= np.uint32(1 << int(position % 32))
    return reference.flip(reference.requantise(conv, acc), flips.output)


@st.composite
def arrays_and_faults(draw: st.DrawFn) -> tuple[Array, list[Fault]]:
    array = Array(rows=draw(st.integers(1, 6)), columns=draw(st.integers(1, 4)))
    faults: dict[tuple[int, int, str, int], Fault] = {}
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(["weight", "accumulator", "accumulator", "bypass"]))
        row, column = draw(st.integers(0, array.rows - 1)), draw(st.integers(0, array.columns - 1))
        width = {"weight": 8, "accumulator": 32, "bypass": 1}[kind]
        bit = draw(st.one_of(st.just(width - 1), st.integers(0, width - 1)))
        faults[row, column, kind, bit] = Fault(row, column, kind, bit, draw(st.integers(0, 1)))
    return array, list(faults.values())


def make_conv(rng: np.random.Generator, groups: int, depth: int, filters: int, kernel: int, stride: int, dilation: int) -> Conv:
    side = [(extent + 2 - dilation * (kernel - 1) - 1) // stride + 1 for extent in (5, 4)]
    out = filters * groups
    return Conv(
        name="conv",
        inputs=(INPUT,),
        shape=(side[0], side[1], out),
        scale=1.0,
        weight=rng.integers(-128, 128, (out, depth, kernel, kernel), np.int8),
        bias=rng.integers(-5000, 5000, out, np.int32),
        weight_scale=np.ones(out, np.float32),
        multiplier=rng.uniform(1e-4, 1e-2, out).astype(np.float32),
        stride=(stride, stride),
        padding=(1, 1),
        dilation=(dilation, dilation),
        groups=groups,
    )


def make_network(conv: Conv, channels: int) -> Network:
    return Network(
        name="one",
        input_shape=(5, 4, channels),
        input_scale=1.0,
        input_table=np.zeros((channels, 256), np.int8),
        layers=(conv,),
    )


shapes = st.tuples(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 5),
    st.sampled_from([1, 2]),
    st.integers(1, 2),
    st.integers(1, 2),
)


@given(shapes, arrays_and_faults(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_accumulators_are_those_of_the_array(shape: tuple[int, ...], broken: tuple[Array, list[Fault]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    conv = make_conv(rng, *shape)
    array, faults = broken
    x = rng.integers(-128, 128, (2, 5, 4, shape[0] * shape[1]), np.int8)
    expected = naive_accumulators(conv, x, conv.weight, array, faults)
    masks = fault_map(array, faults)
    held = permanent.faulty_weights(conv, masks)
    channels = permanent.faulty_channels(conv, masks)
    np.testing.assert_array_equal(permanent.accumulators(conv, x, held, masks), expected[..., channels])
    healthy = np.setdiff1d(np.arange(conv.shape[2]), channels)
    np.testing.assert_array_equal(reference.accumulators(conv, x, held)[..., healthy], expected[..., healthy])


@given(shapes, arrays_and_faults(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_soft_errors_on_top_are_those_of_the_array(
    shape: tuple[int, ...], broken: tuple[Array, list[Fault]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    conv = make_conv(rng, *shape)
    array, faults = broken
    x = rng.integers(-128, 128, (1, 5, 4, shape[0] * shape[1]), np.int8)
    outputs = int(np.prod(conv.shape))

    def some(bits: int) -> np.ndarray:
        return np.sort(rng.choice(bits, min(bits, 4), replace=False)).astype(np.int64)

    flips = [
        Flips(),
        Flips(some(8 * x.size), some(8 * conv.weight.size), some(32 * outputs), some(8 * outputs)),
    ]
    masks = fault_map(array, faults)
    engine = Engine(permanent.faulty_network(make_network(conv, x.shape[3]), masks), "portable")
    got = permanent.replicas(engine, masks, 0, x, flips)
    for one, f in zip(got, flips, strict=True):
        np.testing.assert_array_equal(one, naive_replica(conv, x, f, array, faults))


def test_simulated_accelerator_has_the_faults_in_every_execution() -> None:
    rng = np.random.default_rng(3)
    conv = make_conv(rng, 1, 2, 4, 2, 1, 1)
    array, faults = Array(rows=3, columns=2), [Fault(0, 0, "weight", 7, 1), Fault(2, 1, "accumulator", 12, 1)]
    device = Simulated(Rates.uniform(1e-2), seed=5, permanent=fault_map(array, faults))
    device.load(make_network(conv, 2))
    x = rng.integers(-128, 128, (2, 5, 4, 2), np.int8)
    got = device.run_replicas(0, x, iteration=7)
    for replica, one in enumerate(got):
        flips = device.flips(0, x.shape, iteration=7, replica=replica)
        assert flips.count() > 0
        np.testing.assert_array_equal(one, naive_replica(conv, x, flips, array, faults))
    np.testing.assert_array_equal(device.run_layer(0, x, iteration=7), got[0])
    np.testing.assert_array_equal(device.run(x, iteration=7)[0], got[0])


def test_bypass_drops_exactly_the_weights_of_its_element() -> None:
    rng = np.random.default_rng(0)
    conv = make_conv(rng, 1, 3, 5, 2, 1, 1)  # K = 12 on 5 rows, N = 5 on 2 columns
    held = permanent.faulty_weights(conv, fault_map(Array(rows=5, columns=2), [Fault(2, 1, "bypass")]))
    expected = conv.weight.copy()
    for k in (2, 7):  # k = (r * 2 + s) * 3 + channel
        r, s, channel = k // 6, k // 3 % 2, k % 3
        expected[1::2, channel, r, s] = 0
    np.testing.assert_array_equal(held, expected)


def test_depthwise_uses_the_first_column_alone() -> None:
    rng = np.random.default_rng(0)
    conv = make_conv(rng, 4, 1, 1, 2, 1, 1)
    first = fault_map(Array(), [Fault(0, 0, "accumulator", 4, 1)])
    other = fault_map(Array(), [Fault(0, 1, "accumulator", 4, 1)])
    assert permanent.faulty_channels(conv, first).tolist() == [0, 1, 2, 3]
    assert permanent.faulty_channels(conv, other).tolist() == []


def test_tall_arrays_stay_exact() -> None:
    """One tile of 1152 products of -128 * -128, beyond what a float32 accumulator could count."""
    conv = replace(
        make_conv(np.random.default_rng(2), 1, 1152, 1, 1, 1, 1),
        weight=np.array([-127] + [-128] * 1151, np.int8).reshape(1, 1152, 1, 1),
        bias=np.ones(1, np.int32),
        padding=(0, 0),
        shape=(5, 4, 1),
    )
    masks = fault_map(Array(rows=2048, columns=1), [Fault(2047, 0, "accumulator", 1, 1)])
    x = np.full((1, 5, 4, 1152), -128, np.int8)
    x[..., 0] = -127
    expected = (1151 * 16384 + 127 * 127 | 2) + 1
    assert np.all(permanent.accumulators(conv, x, conv.weight, masks) == expected)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (Fault(4, 0, "bypass"), "rows 0..3"),
        (Fault(0, -1, "bypass"), "columns 0..1"),
        (Fault(0, 0, "weight", 8, 0), "bits 0..7"),
        (Fault(0, 0, "accumulator", 32, 0), "bits 0..31"),
        (Fault(0, 0, "weight", 1, 2), "stuck at 0 or 1"),
        (Fault(0, 0, "adder"), "kind must be"),  # type: ignore[arg-type]
        (Fault(1, 1, "weight", 3, 0), "sticks that bit at 1"),
    ],
)
def test_impossible_faults_are_refused(fault: Fault, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        fault_map(Array(rows=4, columns=2), [Fault(1, 1, "weight", 3, 1), fault])
