"""Energy that the modelled array would take: a price for a multiplication, for a byte of buffer and for one of DRAM.

The prices are Horowitz's, "Computing's energy problem", ISSCC 2014, figure 1.1.9, for 45 nm and 0.9 V. Not in it: leakage and
clock, the registers between processing elements, the general-purpose processor. A multiplication by an inserted zero costs
as much as any other, since nothing in the array looks for zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from accelsim.int8.network import Conv, Shape
from accelsim.timing.array import ACCUMULATOR_BYTES, Array, Traffic, layer_macs, layer_traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Picojoules of each thing that the array does."""

    mac: float = 0.2 + 0.1
    """An 8-bit multiplication (0.2) and a 32-bit addition (0.1)."""
    buffer_byte: float = 20 / 8
    """A byte of a buffer: 64 bits of a 32 KB SRAM take 20 pJ. Large buffers are made of such banks."""
    dram_byte: float = 1300 / 8
    """A byte of DRAM: 64 bits take 1.3 to 2.6 nJ; the lower end, which makes least of traffic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Picojoules by where they go."""

    macs: float
    buffer: float
    dram: float

    @property
    def picojoules(self) -> float:
        """All of it."""
        return self.macs + self.buffer + self.dram


def energy(macs: int, traffic: Traffic, prices: Prices) -> Energy:
    """Energy of so many multiplications and bytes."""
    return Energy(
        macs=macs * prices.mac,
        buffer=(traffic.buffer_reads + traffic.buffer_writes) * prices.buffer_byte,
        dram=traffic.dram * prices.dram_byte,
    )


def layer_energy(conv: Conv, input_shape: Shape, array: Array, prices: Prices, *, batch: int = 1) -> Energy:
    """Energy of one execution of a MAC layer on a batch of images, by ``traffic_on_chip``.

    ``input_shape`` is (H, W, C) of the operand. Raises ValueError where the layer cannot take it.
    """
    return energy(batch * layer_macs(conv), traffic_on_chip(conv, input_shape, array, batch=batch), prices)


def traffic_on_chip(conv: Conv, input_shape: Shape, array: Array, *, batch: int = 1) -> Traffic:
    """Bytes that one execution of a MAC layer on a batch moves if no partial sum leaves the chip.

    ``layer_traffic`` streams all output pixels through a tile and lets sums that do not fit go to DRAM, where they cost more
    than all else. Here the pixels of the batch are cut into pieces whose sums fit in the output buffer, and every tile is
    loaded once a piece. On the default array a piece has 2048 pixels, so that cutting adds at most 94 cycles to 2048. Pieces
    are made smaller still, so that their inputs fit too, where that saves traffic of DRAM. Weights that do not fit in their
    buffer are fetched once a piece, or the inputs once an N tile, whichever is less. The overlap of pieces is not counted.
    Raises ValueError where the layer cannot take the input, or where ``batch`` is below 1.
    """
    if batch < 1:
        raise ValueError(f"layer {conv.name!r}: batch must be at least 1, got {batch}")
    once = layer_traffic(conv, input_shape, array, stream=batch)
    inputs, weights = batch * math.prod(input_shape), conv.weight.size
    fewest, n_tiles = 1, -(-(conv.weight.shape[0] // conv.groups) // array.columns)
    if conv.weight[0].size > array.rows:
        columns = min(conv.weight.shape[0] // conv.groups, array.columns)
        fewest = -(-batch * math.prod(conv.shape[:2]) // max(1, array.output_kb * 1024 // (ACCUMULATOR_BYTES * columns)))
    smaller = max(fewest, -(-inputs // (conv.groups * array.input_kb * 1024)))
    weights_fit = weights // conv.groups <= array.weight_kb * 1024
    # (inputs, weights, pieces): inputs once, or once an N tile and then the weights once.
    choices = [(inputs, weights if weights_fit else weights * smaller, smaller), (inputs * n_tiles, weights, fewest)]
    read, loaded, pieces = min(choices, key=lambda choice: choice[0] + choice[1])
    again = weights * (pieces - 1)
    return replace(once, buffer_reads=once.buffer_reads + again, weight_reads=loaded, input_reads=read, spill=0)


def total(parts: Iterable[Energy]) -> Energy:
    """The sum of energies."""
    macs, buffer, dram = 0.0, 0.0, 0.0
    for part in parts:
        macs, buffer, dram = macs + part.macs, buffer + part.buffer, dram + part.dram
    return Energy(macs=macs, buffer=buffer, dram=dram)
