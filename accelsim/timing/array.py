"""What the accelerator would take: cycles, seconds, and bytes moved, from one tiling (architecture.md, "Time").

The array is weight-stationary: R x C processing elements (PE), each holding one int8 weight. A layer is, a group, the
product of a T x K matrix of inputs (T output pixels, K = r*s*c_in/groups inputs each) and a K x N matrix of weights
(N filters). It is cut into ceil(K/R) * ceil(N/C) tiles of weights. A tile is loaded, T rows of inputs stream through,
and the array drains, which takes ``2R + C + T - 2`` cycles; nothing overlaps between tiles. Order of the tiles: the N
tiles outside, the K tiles inside, so that partial sums of one N tile only are alive at a time.

Everything here is **modelled device time**. Nothing is measured, and host time is never mixed in: a timing event of the
bus has a field for each. The paper's device is an Eyeriss-like array of 32 x 32, 1024 KB of buffer (section VI.A). It
gives neither the split of the buffer, nor the bandwidth of the memory, nor the rate of the general-purpose processor
(GPP) that votes: these are assumptions, named in ``Array``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import assert_never

from accelsim.faults import Site
from accelsim.int8.network import Conv, Network, Shape

ACCUMULATOR_BYTES = 4
"""A partial sum is int32; inputs, weights and outputs are int8, one byte each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """The accelerator's array, its buffers, its memory and the processor beside it."""

    rows: int = 32
    """R: the K dimension is cut into pieces of this many."""
    columns: int = 32
    """C: the N dimension is cut into pieces of this many."""
    input_kb: int = 512
    weight_kb: int = 256
    output_kb: int = 256
    """Buffers for inputs, weights and partial sums, in KiB. 1024 in all is the paper's; the split is an assumption."""
    clock_hz: float = 200e6
    memory_bytes_per_s: float = 2e9
    """DRAM bandwidth: an assumption, SCALE-Sim's default of 10 words a cycle at 200 MHz."""
    vote_bytes_per_s: float = 1e9
    """Bytes of replicas and vote that the GPP moves a second: an assumption, a Cortex-A53 bound by its memory."""

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "input_kb", "weight_kb", "output_kb"):
            if getattr(self, name) < 1:
                raise ValueError(f"array: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("clock_hz", "memory_bytes_per_s", "vote_bytes_per_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"array: {name} must be positive and finite, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes moved by one execution of a layer on one image, or on those that stream through it together."""

    buffer_reads: int
    """From the buffers to the array: weights, inputs, and partial sums of the K tiles before."""
    buffer_writes: int
    """From the array to the buffers: partial sums, and the int8 outputs of the last K tile."""
    weight_reads: int
    """DRAM: the weights, once."""
    input_reads: int
    """DRAM: the input once where its rows fit in the input buffer or there is one N tile, else once an N tile."""
    spill: int
    """DRAM: partial sums that leave and come back, where those of one N tile do not fit in the output buffer."""
    output_writes: int
    """DRAM: the int8 outputs. This is the write-back of an intermediate output; inference alone may keep it on chip."""

    @property
    def dram(self) -> int:
        """All bytes over the DRAM's pins, the write-back of the outputs included."""
        return self.weight_reads + self.input_reads + self.spill + self.output_writes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTiming:
    """Modelled time of one MAC layer on a batch. The traffic is of the batch and of one execution."""

    index: int
    name: str
    cycles: int
    """Of one execution on one image, all groups."""
    forward_s: float
    """One execution on the batch."""
    write_back_s: float
    """Outputs of that execution to memory, where they must be kept."""
    tmr_s: float
    """The executions beyond the first, their write-back, and the vote."""
    traffic: Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTiming:
    """Modelled time of all MAC layers on a batch; the other layers run on the GPP and are not modelled."""

    batch: int
    layers: tuple[LayerTiming, ...]

    @property
    def cycles(self) -> int:
        """Cycles of one execution of all layers on one image."""
        return sum(layer.cycles for layer in self.layers)

    @property
    def forward_s(self) -> float:
        """Stage FP: one execution of every layer on the batch, without write-back, in seconds."""
        return sum(layer.forward_s for layer in self.layers)

    @property
    def write_back_s(self) -> float:
        """What keeping every intermediate output of that execution adds, in seconds."""
        return sum(layer.write_back_s for layer in self.layers)

    @property
    def tmr_s(self) -> float:
        """Stage TMR: further executions, write-back of their outputs, votes, in seconds."""
        return sum(layer.tmr_s for layer in self.layers)


def _matrix(conv: Conv, input_shape: Shape) -> tuple[int, int, int]:
    """(K, N, T) of one group; raises ValueError where the layer cannot take that input."""
    filters, depth, kernel_h, kernel_w = conv.weight.shape
    if input_shape[2] != depth * conv.groups:
        raise ValueError(
            f"layer {conv.name!r}: input of shape {input_shape} has {input_shape[2]} channels, "
            f"the weights {conv.weight.shape} in {conv.groups} groups take {depth * conv.groups}"
        )
    size = tuple(
        (extent + 2 * pad - step * (kernel - 1) - 1) // stride + 1
        for extent, kernel, stride, pad, step in zip(
            input_shape[:2], (kernel_h, kernel_w), conv.stride, conv.padding, conv.dilation, strict=True
        )
    )
    if size != conv.shape[:2]:
        raise ValueError(f"layer {conv.name!r}: input {input_shape} gives {size} output pixels, not {conv.shape[:2]}")
    return depth * kernel_h * kernel_w, filters // conv.groups, size[0] * size[1]


def layer_cycles(conv: Conv, input_shape: Shape, array: Array, *, stream: int = 1) -> int:
    """Cycles of one execution of a MAC layer on one image, all groups one after another.

    ``(2R + C + T - 2) * ceil(K/R) * ceil(N/C)`` a group (architecture.md, "Time"). SCALE-Sim 3.0 reports exactly one
    less a group. ``input_shape`` is (H, W, C) of the operand. ``stream`` images go through a tile one behind another, T
    pixels of each, so that loading and draining it is paid once for them; the cycles are those of all of them.
    Raises ValueError where the layer cannot take the input.
    """
    k, n, t = _matrix(conv, input_shape)
    tiles = -(-k // array.rows) * -(-n // array.columns)
    return (2 * array.rows + array.columns + stream * t - 2) * tiles * conv.groups


def layer_macs(conv: Conv) -> int:
    """Multiplications of one execution of a MAC layer on one image."""
    return int(conv.weight[0].size) * math.prod(conv.shape)


def layer_traffic(conv: Conv, input_shape: Shape, array: Array, *, stream: int = 1) -> Traffic:
    """Bytes that one execution of a MAC layer on ``stream`` images moves, from the tiling of ``layer_cycles``.

    Biases and multipliers stay in the requantiser and are not counted. Raises ValueError where the layer cannot
    take the input.
    """
    k, n, t = _matrix(conv, input_shape)
    t *= stream
    k_tiles, n_tiles = -(-k // array.rows), -(-n // array.columns)
    groups = conv.groups
    partial = (k_tiles - 1) * t * n * ACCUMULATOR_BYTES * groups
    # A group streams its own channels, so what must stay for the next N tile is a group's share of the input.
    group_input = stream * input_shape[0] * input_shape[1] * (input_shape[2] // groups)
    fetches = 1 if group_input <= array.input_kb * 1024 else n_tiles
    alive = t * min(n, array.columns) * ACCUMULATOR_BYTES
    spilled = k_tiles > 1 and alive > array.output_kb * 1024
    return Traffic(
        buffer_reads=(k * n + t * k * n_tiles) * groups + partial,
        buffer_writes=partial + t * n * groups,
        weight_reads=k * n * groups,
        input_reads=group_input * groups * fetches,
        spill=2 * partial if spilled else 0,
        output_writes=t * n * groups,
    )


def layer_seconds(conv: Conv, input_shape: Shape, array: Array, *, batch: int = 1) -> float:
    """Seconds of one execution of a MAC layer on a batch: cycles by the clock, without write-back or vote."""
    return batch * layer_cycles(conv, input_shape, array) / array.clock_hz


def write_back_seconds(conv: Conv, array: Array, *, batch: int = 1) -> float:
    """Seconds to store the int8 outputs of one execution in memory, not overlapped with computing: an upper bound."""
    height, width, channels = conv.shape
    return batch * height * width * channels / array.memory_bytes_per_s


def vote_seconds(elements: int, replicas: int, array: Array) -> float:
    """Seconds of the GPP to read ``replicas`` int8 outputs of ``elements`` each and write their vote."""
    return elements * (replicas + 1) / array.vote_bytes_per_s


def layer_timing(index: int, conv: Conv, input_shape: Shape, array: Array, *, batch: int, executions: int = 3) -> LayerTiming:
    """All modelled times of one MAC layer on a batch.

    ``executions`` is how often it runs on the same input: 1 is no redundancy (``tmr_s`` is 0), 3 is TMR. Each further
    execution costs the first one's time and its write-back, and the vote reads them all (paper, section V.A).
    """
    if executions < 1 or batch < 1:
        raise ValueError(f"layer {conv.name!r}: executions and batch must be at least 1, got {executions} and {batch}")
    forward = layer_seconds(conv, input_shape, array, batch=batch)
    write_back = write_back_seconds(conv, array, batch=batch)
    elements = batch * conv.shape[0] * conv.shape[1] * conv.shape[2]
    vote = vote_seconds(elements, executions, array) if executions > 1 else 0.0
    one = layer_traffic(conv, input_shape, array)
    # Weights that fit in their buffer are fetched once for the batch; the rest is an image's.
    weight_fetches = 1 if conv.weight.size <= array.weight_kb * 1024 else batch
    return LayerTiming(
        index=index,
        name=conv.name,
        cycles=layer_cycles(conv, input_shape, array),
        forward_s=forward,
        write_back_s=write_back,
        tmr_s=(executions - 1) * (forward + write_back) + vote,
        traffic=Traffic(
            buffer_reads=batch * one.buffer_reads,
            buffer_writes=batch * one.buffer_writes,
            weight_reads=weight_fetches * one.weight_reads,
            input_reads=batch * one.input_reads,
            spill=batch * one.spill,
            output_writes=batch * one.output_writes,
        ),
    )


def port_seconds(conv: Conv, input_shape: Shape, array: Array, site: Site, *, batch: int = 1) -> float:
    """Seconds that voting on a tensor where it is read adds to one execution of a MAC layer on a batch: an upper bound.

    Weights and inputs are fetched from the memory three times, and a voter at the port of their buffer lets through what two
    of three say. Outputs are written three times and read three times by whoever reads them. Weights that fit in their
    buffer are fetched once a batch, so they cost little where batches are large. Nothing overlaps with computing. The voter
    itself takes no time: it is hardware that a plain array does not have. Raises ValueError at the accumulators, which
    no port reads.
    """
    traffic = layer_timing(0, conv, input_shape, array, batch=batch, executions=1).traffic
    match site:
        case "weight":
            moved = 2 * traffic.weight_reads
        case "input":
            moved = 2 * traffic.input_reads
        case "output":
            moved = 4 * traffic.output_writes
        case "accumulator":
            raise ValueError(f"layer {conv.name!r}: accumulators are in the array; no port could vote on them")
        case _:
            assert_never(site)
    return moved / array.memory_bytes_per_s


def network_timing(network: Network, batch: int, array: Array, *, executions: int = 3) -> NetworkTiming:
    """Modelled times and traffic of every MAC layer of a network on a batch.

    >>> network_timing(network, 16, Array()).forward_s  # doctest: +SKIP
    0.48

    Raises ValueError naming the layer whose weights and operand do not fit together.
    """
    return NetworkTiming(
        batch=batch,
        layers=tuple(
            layer_timing(
                index,
                conv,
                network.shape_of(conv.inputs[0]),
                array,
                batch=batch,
                executions=executions,
            )
            for index, conv in network.convs()
        ),
    )
