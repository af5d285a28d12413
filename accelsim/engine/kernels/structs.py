"""What the kernels are given: tuples with names, which compiled code takes apart without a copy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from accelsim.int8.network import Float32, Int8, Int32

Int64 = npt.NDArray[np.int64]


class Window(NamedTuple):
    """Where the windows of a layer lie: (h, w, c) of its input, (oh, ow, o) of its output, and the kernel's geometry."""

    h: int
    w: int
    c: int
    oh: int
    ow: int
    o: int
    r: int
    s: int
    sy: int
    sx: int
    py: int
    px: int
    dy: int
    dx: int


class Packed(NamedTuple):
    """A MAC layer as ``conv`` and ``depthwise`` read it.

    ``conv``: weight int8 (G, blocks, quads, 16, 4), column k = (r*S + s)*I + i; start int32 (G, 16*blocks), the bias less
    zero * sum(w); multiplier float32 (G, 16*blocks). A block is 16 output channels of a group, a quad four columns.
    ``depthwise``: weight int32 (R*S, 16*blocks), each int8 weight modulo 2^16; start int32 (16*blocks,), the bias;
    multiplier float32 (16*blocks,); the one group holds all channels.
    """

    window: Window
    groups: int
    zero: int
    """What an input's byte is xored with to become a uint8: 128 of an int8, 0 of a uint8."""
    shift: int
    """What an output's integer is lessened by to be an int8: 0 of an int8, 128 of a uint8."""
    low: int
    """Bound of the lessened output."""
    tile: int
    """Output pixels at a time."""
    weight: Int8 | Int32
    start: Int32
    multiplier: Float32
    high: Int8
    """(G, 16*blocks): bounds of the lessened outputs."""


class Stored(NamedTuple):
    """A MAC layer as the network has it."""

    window: Window
    zero: int
    """As ``Packed`` has it."""
    low: int
    high: Int32
    weight: Int8
    """(O, I/groups, R, S)"""
    bias: Int32
    multiplier: Float32


class Struck(NamedTuple):
    """Flips of the inputs, accumulators and outputs of all replicas of one execution, as bit positions (``accelsim.faults``).

    Those of replica r lie at ``at[r]`` to ``at[r + 1]``. Input flips are found by image row instead: row i of replica r has
    those from ``rows[r, i]`` to ``rows[r, i + 1]``; ``locate`` gives their columns and channels (int32).
    """

    inputs: Int64
    rows: Int64
    """(replicas, N*H + 1)"""
    columns: Int32
    channels: Int32
    accumulators: Int64
    accumulator_at: Int64
    outputs: Int64
    output_at: Int64


class Quads(NamedTuple):
    """Flips of a convolution's weights as ``vnni.add_quads`` takes them; ``weight_quads`` makes them.

    Not read where there is one replica: its flips are in the packed weights.
    """

    values: Int8
    """(n, 16, 4): what each adds to a quad"""
    at: Int64
    """(n,): byte offset of each one's columns in a row of operands"""
    block_at: Int64
    """(replicas, G, blocks + 1): where each block's begin"""
    start: Int32
    """(replicas, G, 16*blocks): what they add to the start values"""


class Taps(NamedTuple):
    """Flips of a depthwise convolution's weights: channel, tap r*S + s, and what is added (int32, one each)."""

    channels: Int32
    taps: Int32
    deltas: Int32
    replica_at: Int64
    """(replicas + 1,): where each replica's begin"""


class Execution(NamedTuple):
    """Replicas of a MAC layer on one input: everything but the range of output pixels.

    The addresses are of int8 or uint8 arrays in NHWC order, which the caller keeps alive.
    """

    mac: Packed
    x: int
    struck: Struck
    weights: Quads | Taps
    ys: Int64
    """(replicas,): addresses of their outputs"""

    def plain(self) -> tuple[Any, ...]:
        """The same without names: Numba tells the types of a plain tuple in a third of the time, and a layer is a call."""
        mac = (tuple(self.mac.window), *self.mac[1:])
        return mac, self.x, tuple(self.struck), tuple(self.weights), self.ys
