"""The tiling's cycles and bytes, against a walk over the tiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelsim.int8.network import INPUT, Conv, Network, Shape
from accelsim.timing import (
    Array,
    layer_cycles,
    layer_seconds,
    layer_timing,
    layer_traffic,
    network_timing,
    port_seconds,
    vote_seconds,
    write_back_seconds,
)


def make_conv(
    input_shape: Shape = (8, 8, 4),
    filters: int = 4,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    groups: int = 1,
    inputs: tuple[int, ...] = (INPUT,),
) -> Conv:
    side = [(extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for extent in input_shape[:2]]
    return Conv(
        name=f"conv{kernel}x{kernel}",
        inputs=inputs,
        shape=(side[0], side[1], filters),
        scale=1.0,
        weight=np.ones((filters, input_shape[2] // groups, kernel, kernel), np.int8),
        bias=np.zeros(filters, np.int32),
        weight_scale=np.ones(filters, np.float32),
        multiplier=np.ones(filters, np.float32),
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(dilation, dilation),
        groups=groups,
    )


def walk(conv: Conv, array: Array) -> tuple[int, int, int, int]:
    """Cycles, bytes read from and written to the buffers, and weights loaded, tile by tile; all groups."""
    filters, depth, r, s = conv.weight.shape
    k_all, n_all, t = depth * r * s, filters // conv.groups, conv.shape[0] * conv.shape[1]
    cycles = reads = writes = weights = 0
    for _ in range(conv.groups):
        for n in range(0, n_all, array.columns):
            width = min(array.columns, n_all - n)
            for k in range(0, k_all, array.rows):
                height = min(array.rows, k_all - k)
                # Load R rows; the last pixel enters after T - 1, its sum falls R rows and C columns later.
                cycles += array.rows + (t - 1) + array.rows + (array.columns - 1)
                weights += height * width
                reads += height * width + t * height
                if k > 0:
                    reads += 4 * t * width
                last = k + array.rows >= k_all
                writes += t * width * (1 if last else 4)
    return cycles, reads, writes, weights


@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(6, 9),
)
def test_cycles_and_buffer_bytes_are_those_of_the_tiles(
    groups: int, depth: int, filters: int, kernel: int, stride: int, rows: int, columns: int, side: int
) -> None:
    shape = (side, side + 1, depth * groups)
    conv = make_conv(shape, filters * groups, kernel, stride, 1, 1, groups)
    array = Array(rows=rows, columns=columns)
    cycles, reads, writes, weights = walk(conv, array)
    traffic = layer_traffic(conv, shape, array)
    assert layer_cycles(conv, shape, array) == cycles
    assert (traffic.buffer_reads, traffic.buffer_writes, traffic.weight_reads) == (reads, writes, weights)
    assert traffic.output_writes == np.prod(conv.shape)


def test_known_layer() -> None:
    # ResNet's conv2_x: K = 576, N = 64, T = 3136 on 32 x 32.
    conv = make_conv((56, 56, 64), 64)
    assert layer_cycles(conv, (56, 56, 64), Array()) == (2 * 32 + 32 + 3136 - 2) * 18 * 2


def test_depthwise_runs_a_group_at_a_time() -> None:
    shape = (14, 14, 96)
    assert layer_cycles(make_conv(shape, 96, groups=96), shape, Array()) == 96 * (94 + 196)


def test_input_is_fetched_again_for_each_n_tile_only_where_it_does_not_fit() -> None:
    shape = (32, 32, 64)  # 64 KiB
    conv = make_conv(shape, 64)
    assert layer_traffic(conv, shape, Array(input_kb=64)).input_reads == 65536
    assert layer_traffic(conv, shape, Array(input_kb=63)).input_reads == 2 * 65536


def test_partial_sums_spill_only_where_one_n_tile_does_not_fit() -> None:
    shape = (32, 32, 64)
    conv = make_conv(shape, 64)  # 1024 pixels x 32 filters x 4 bytes = 128 KiB alive, 18 K tiles
    assert layer_traffic(conv, shape, Array(output_kb=128)).spill == 0
    assert layer_traffic(conv, shape, Array(output_kb=127)).spill == 2 * 17 * 1024 * 64 * 4
    one_tile = make_conv((32, 32, 32), 64, kernel=1, padding=0)
    assert layer_traffic(one_tile, (32, 32, 32), Array(output_kb=1)).spill == 0


def test_seconds_scale_with_batch_and_clock() -> None:
    conv, shape = make_conv(), (8, 8, 4)
    array = Array(clock_hz=1e6)
    assert layer_seconds(conv, shape, array, batch=5) == pytest.approx(5 * layer_cycles(conv, shape, array) / 1e6)
    halved = layer_seconds(conv, shape, replace(array, clock_hz=2e6), batch=5)
    assert halved == pytest.approx(layer_seconds(conv, shape, array, batch=5) / 2)


def test_tmr_costs_two_more_executions_their_write_back_and_a_vote() -> None:
    conv, shape, array = make_conv(), (8, 8, 4), Array()
    timing = layer_timing(3, conv, shape, array, batch=2)
    once = layer_seconds(conv, shape, array, batch=2) + write_back_seconds(conv, array, batch=2)
    assert timing.tmr_s == pytest.approx(2 * once + vote_seconds(2 * 256, 3, array))
    assert vote_seconds(512, 3, Array(vote_bytes_per_s=1024)) == 2.0
    assert write_back_seconds(conv, Array(memory_bytes_per_s=256), batch=2) == 2.0
    assert layer_timing(3, conv, shape, array, batch=2, executions=1).tmr_s == 0.0


def test_weights_that_fit_are_fetched_once_a_batch() -> None:
    shape = (4, 4, 64)
    conv = make_conv(shape, 64)  # 36 KiB of weights
    assert layer_timing(0, conv, shape, Array(weight_kb=36), batch=8).traffic.weight_reads == 36864
    assert layer_timing(0, conv, shape, Array(weight_kb=35), batch=8).traffic.weight_reads == 8 * 36864


def test_network_is_the_sum_of_its_layers() -> None:
    first = make_conv()
    second = make_conv(first.shape, 6, stride=2, inputs=(0,))
    network = Network(
        name="two",
        input_shape=(8, 8, 4),
        input_scale=1.0,
        input_table=np.zeros((4, 256), np.int8),
        layers=(first, second),
    )
    timing = network_timing(network, 3, Array())
    parts = [
        layer_timing(0, first, (8, 8, 4), Array(), batch=3),
        layer_timing(1, second, first.shape, Array(), batch=3),
    ]
    assert list(timing.layers) == parts
    assert timing.cycles == sum(part.cycles for part in parts)
    assert timing.forward_s == pytest.approx(sum(part.forward_s for part in parts))
    assert timing.write_back_s == pytest.approx(sum(part.write_back_s for part in parts))
    assert timing.tmr_s == pytest.approx(sum(part.tmr_s for part in parts))


def test_wrong_input_names_the_layer() -> None:
    with pytest.raises(ValueError, match=r"conv3x3.*channels"):
        layer_cycles(make_conv(), (8, 8, 5), Array())
    with pytest.raises(ValueError, match=r"conv3x3.*output pixels"):
        layer_cycles(make_conv(), (9, 8, 4), Array())
    with pytest.raises(ValueError, match="executions"):
        layer_timing(0, make_conv(), (8, 8, 4), Array(), batch=1, executions=0)


@pytest.mark.parametrize("field", ["rows", "columns", "input_kb", "clock_hz", "vote_bytes_per_s"])
def test_array_refuses_nothing_sized(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Array(**{field: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["clock_hz", "memory_bytes_per_s", "vote_bytes_per_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_rates_are_positive_and_finite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"array: {name} must be positive and finite, got {value}"):
        Array(**{name: value})  # type: ignore[arg-type]


def test_voting_at_a_port_moves_its_tensor_twice_more() -> None:
    array = Array(memory_bytes_per_s=1e6, weight_kb=1)
    small, large = make_conv((8, 8, 4), filters=4), make_conv((8, 8, 64), filters=4)
    # 4 * 4 * 9 weights fit in 1 KiB and come once a batch; 4 * 64 * 9 do not, and come for each image.
    assert port_seconds(small, (8, 8, 4), array, "weight", batch=16) == pytest.approx(2 * 144 / 1e6)
    assert port_seconds(large, (8, 8, 64), array, "weight", batch=16) == pytest.approx(2 * 16 * 2304 / 1e6)
    assert port_seconds(small, (8, 8, 4), array, "input", batch=3) == pytest.approx(2 * 3 * 256 / 1e6)
    # Two more copies go out, and three come back where there was one.
    assert port_seconds(small, (8, 8, 4), array, "output", batch=3) == pytest.approx(4 * 3 * 256 / 1e6)
    with pytest.raises(ValueError, match="accumulators are in the array"):
        port_seconds(small, (8, 8, 4), array, "accumulator")
