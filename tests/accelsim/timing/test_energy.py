"""Energy: what a layer moves if partial sums stay on the chip, counted piece by piece."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelsim.int8.network import INPUT, Conv, Shape
from accelsim.timing import Array, layer_cycles, layer_macs, layer_traffic
from accelsim.timing.energy import Energy, Prices, energy, layer_energy, total, traffic_on_chip


def conv(input_shape: Shape, filters: int, kernel: int = 3, groups: int = 1) -> Conv:
    shape = (input_shape[0] - kernel + 1, input_shape[1] - kernel + 1, filters)
    return Conv(
        name="c", inputs=(INPUT,), shape=shape, scale=1.0,
        weight=np.ones((filters, input_shape[2] // groups, kernel, kernel), np.int8), bias=np.zeros(filters, np.int32),
        weight_scale=np.ones(filters, np.float32), multiplier=np.ones(filters, np.float32), groups=groups,
    )  # fmt: skip


def test_a_layer_by_hand() -> None:
    """6x6x8 and 10 filters of 3x3: 16 pixels of 72 products, on a 32x32 array 3 tiles deep and 1 wide."""
    layer, shape = conv((6, 6, 8), 10), (6, 6, 8)
    moved = traffic_on_chip(layer, shape, Array())
    assert (moved.weight_reads, moved.input_reads, moved.spill, moved.output_writes) == (720, 288, 0, 160)
    assert moved.buffer_reads == 720 + 16 * 72 + 2 * 160 * 4
    assert moved.buffer_writes == 2 * 160 * 4 + 160
    spent = layer_energy(layer, shape, Array(), Prices(mac=1, buffer_byte=10, dram_byte=100))
    assert spent.macs == layer_macs(layer) == 16 * 720
    assert spent.buffer == 10 * (moved.buffer_reads + moved.buffer_writes)
    assert spent.dram == 100 * (720 + 288 + 160)
    assert spent.picojoules == spent.macs + spent.buffer + spent.dram


def test_prices_are_horowitzs() -> None:
    """ISSCC 2014, figure 1.1.9: 0.2 + 0.1 pJ; 20 pJ and 1.3 nJ for 64 bits."""
    assert (Prices().mac, Prices().buffer_byte, Prices().dram_byte) == (pytest.approx(0.3), 2.5, 162.5)


def test_a_batch_fetches_weights_that_fit_once() -> None:
    layer, shape = conv((6, 6, 8), 10), (6, 6, 8)
    assert traffic_on_chip(layer, shape, Array(), batch=16).weight_reads == 720
    assert traffic_on_chip(layer, shape, Array(), batch=16).input_reads == 16 * 288


def test_sums_that_do_not_fit_are_done_piece_by_piece() -> None:
    """1 KB holds the sums of 8 pixels of 32 channels: 16 pixels are two pieces, and each loads all tiles."""
    layer, shape = conv((6, 6, 8), 32), (6, 6, 8)
    array = Array(output_kb=1)
    whole, pieces = traffic_on_chip(layer, shape, Array()), traffic_on_chip(layer, shape, array)
    assert layer_traffic(layer, shape, array).spill > 0 == pieces.spill
    assert pieces.buffer_reads == whole.buffer_reads + layer.weight.size
    assert pieces.weight_reads == layer.weight.size, "they fit in their buffer"
    # 2304 bytes of weights do not fit in 1 KB: once a piece, or the input once an N tile (one here), whichever is less.
    small = replace(array, weight_kb=1)
    assert traffic_on_chip(layer, shape, small).weight_reads == layer.weight.size


@given(
    st.integers(1, 6), st.integers(1, 70), st.integers(1, 3), st.integers(1, 20), st.sampled_from([1, 2]),
    st.sampled_from([1, 4, 256]), st.sampled_from([1, 256]), st.sampled_from([1, 512]),
)  # fmt: skip
def test_bounds(depth: int, filters: int, kernel: int, batch: int, groups: int, out: int, weights: int, inputs: int) -> None:
    """Nothing is moved less than once, nor is a batch more than its images; no sum leaves the chip."""
    shape = (9, 7, depth * groups)
    layer = conv(shape, filters * groups, kernel, groups)
    array = Array(output_kb=out, weight_kb=weights, input_kb=inputs)
    one, all_of_them = (traffic_on_chip(layer, shape, array, batch=size) for size in (1, batch))
    assert all_of_them.weight_reads >= layer.weight.size
    assert all_of_them.input_reads >= batch * 63 * depth * groups
    assert all_of_them.output_writes == batch * one.output_writes
    assert all_of_them.spill == 0
    assert all_of_them.dram <= batch * one.dram
    assert all_of_them.dram <= layer_traffic(layer, shape, replace(array, output_kb=1 << 20), stream=batch).dram * (batch + 9)


def test_images_that_stream_pay_for_the_pipeline_once() -> None:
    layer, shape = conv((6, 6, 8), 10), (6, 6, 8)
    assert layer_cycles(layer, shape, Array()) == (94 + 16) * 3
    assert layer_cycles(layer, shape, Array(), stream=16) == (94 + 256) * 3
    assert layer_traffic(layer, shape, Array(), stream=16).buffer_reads == 720 + 16 * (16 * 72 + 2 * 160 * 4)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="'c': batch must be at least 1, got 0"):
        layer_energy(conv((6, 6, 8), 10), (6, 6, 8), Array(), Prices(), batch=0)


def test_energies_add_up() -> None:
    layer, shape = conv((6, 6, 8), 10), (6, 6, 8)
    one = energy(5, layer_traffic(layer, shape, Array()), Prices())
    assert total([one, one]) == Energy(macs=2 * one.macs, buffer=2 * one.buffer, dram=2 * one.dram)
    assert total([]).picojoules == 0
