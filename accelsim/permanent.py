"""Permanent faults: worn-out processing elements of the array, and what they do to a layer (design section 5).

The tiling is the timing model's (``accelsim.timing``). Weight k of filter n of a group lies in PE (row ``k % R``,
column ``n % C``) during K tile ``k // R`` and N tile ``n // C``. k counts (r, s, channel in the group), the channel
fastest, as the inputs lie in NHWC and as SCALE-Sim counts; n counts the filters of the group. A PE multiplies its
weight by the input of its row, adds the partial sum from the PE above, and latches the result, which the PE below
reads::

    p[i] = latch(p[i - 1] + x[k] * w[k, n])        p[-1] = 0, two's complement int32

What leaves the last row is added, in int32 and outside the array, over the K tiles; then the bias. A tile that
does not fill the array holds zeros in the rest: those PEs add nothing, but still pass partial sums down.

Faults of a PE, there in every tile, group, image and execution:

weight, stuck-at
    a bit of the weight register is 0 or 1, whatever is loaded. Soft errors strike the weight before, on its way there.
accumulator, stuck-at
    a bit of the latched partial sum is 0 or 1: it acts on what comes from above as well as on the PE's own product.
bypass
    the product is dropped and the sum goes round the PE, as in a repaired array: its other faults have no effect.

Weight faults and bypass are a transform of the weight tensor. Accumulator faults touch the output channels of their
columns; only those are computed again, the K tiles cut at the faulty rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from accelsim import reference
from accelsim.engine import Engine
from accelsim.faults import Flips
from accelsim.network import Conv, Int8, Int32, Network, UInt8
from accelsim.timing import Array

Int64 = npt.NDArray[np.int64]

_CHUNK_BYTES = 32 << 20
"""Of input windows at a time, so that memory stays small whatever the batch."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One defect of the PE at (row, column)."""

    row: int
    column: int
    kind: Literal["weight", "accumulator", "bypass"]
    bit: int = 0
    """Of a stuck-at: 0 is the least significant; to 7 in the weight, to 31 in the accumulator. Bypass has none."""
    value: int = 0
    """Of a stuck-at: 0 or 1."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FaultMap:
    """The array's faults as masks of its PEs; make one with ``fault_map``. ``register = (loaded & keep) | force``."""

    array: Array
    faults: tuple[Fault, ...]
    weight_keep: UInt8
    weight_force: UInt8
    """(R, C)"""
    sum_keep: Int32
    sum_force: Int32
    """(R, C)"""


def fault_map(array: Array, faults: Sequence[Fault]) -> FaultMap:
    """The masks of an array's faults.

    Raises ValueError naming a fault outside the array, of an unknown kind, with a bit or value out of range, or one
    that sticks a bit at 0 where another sticks it at 1.
    """
    shape = (array.rows, array.columns)
    stuck = {kind: (np.zeros(shape, np.int64), np.zeros(shape, np.int64)) for kind in ("weight", "accumulator")}
    bypassed = np.zeros(shape, np.bool_)
    for fault in faults:
        place = fault.row, fault.column
        if not (0 <= fault.row < array.rows and 0 <= fault.column < array.columns):
            raise ValueError(f"{fault}: the array has rows 0..{array.rows - 1} and columns 0..{array.columns - 1}")
        if fault.kind == "bypass":
            bypassed[place] = True
            continue
        if fault.kind not in stuck:
            raise ValueError(f"{fault}: kind must be 'weight', 'accumulator' or 'bypass'")
        width = 8 if fault.kind == "weight" else 32
        if not 0 <= fault.bit < width or fault.value not in (0, 1):
            raise ValueError(f"{fault}: a {fault.kind} has bits 0..{width - 1}, stuck at 0 or 1")
        stuck[fault.kind][fault.value][place] |= 1 << fault.bit
        if stuck[fault.kind][0][place] & stuck[fault.kind][1][place]:
            raise ValueError(f"{fault}: another fault sticks that bit at {1 - fault.value}")
    (weight_zero, weight_one), (sum_zero, sum_one) = stuck["weight"], stuck["accumulator"]
    return FaultMap(
        array=array,
        faults=tuple(faults),
        weight_keep=np.where(bypassed, 0, ~(weight_zero | weight_one) & 0xFF).astype(np.uint8),
        weight_force=np.where(bypassed, 0, weight_one).astype(np.uint8),
        sum_keep=np.where(bypassed, -1, ~(sum_zero | sum_one)).astype(np.uint32).view(np.int32),
        sum_force=np.where(bypassed, 0, sum_one).astype(np.uint32).view(np.int32),
    )


def faulty_weights(conv: Conv, faults: FaultMap) -> Int8:
    """What the weight registers really hold, (O, I/groups, R, S) int8: stuck bits set, bypassed PEs 0."""
    row, column = _places(conv, np.arange(conv.weight.size), faults.array)
    loaded = conv.weight.reshape(-1).view(np.uint8)
    held = (loaded & faults.weight_keep[row, column]) | faults.weight_force[row, column]
    return held.view(np.int8).reshape(conv.weight.shape)


def faulty_network(network: Network, faults: FaultMap) -> Network:
    """The network with each MAC layer's weights as the registers hold them; accumulator faults are not in it."""
    layers = tuple(
        replace(layer, weight=faulty_weights(layer, faults)) if isinstance(layer, Conv) else layer
        for layer in network.layers
    )
    return replace(network, layers=layers)


def surviving(conv: Conv, faults: FaultMap, positions: Int64) -> Int64:
    """Those bit positions of flipped weights (flat byte index * 8 + bit) that no stuck bit or bypass hides."""
    row, column = _places(conv, positions >> 3, faults.array)
    free = faults.weight_keep[row, column] >> (positions & 7).astype(np.uint8) & 1
    kept: Int64 = positions[free == 1]
    return kept


def faulty_channels(conv: Conv, faults: FaultMap) -> Int64:
    """Output channels, ascending, whose partial sums pass a PE with an accumulator fault."""
    filters = conv.weight.shape[0] // conv.groups
    broken = ((faults.sum_keep != -1) | (faults.sum_force != 0)).any(axis=0)
    return np.flatnonzero(broken[np.arange(conv.weight.shape[0]) % filters % faults.array.columns])


def accumulators(conv: Conv, x: Int8, weight: Int8, faults: FaultMap) -> Int32:
    """Accumulators, bias included, of the channels of ``faulty_channels`` in that order: (N, H, W, channels) int32.

    x is (N, H, W, C) int8; ``weight`` (O, I/groups, R, S) int8 is what the registers hold (see ``faulty_weights``).
    Sums wrap at 32 bits, as registers do.
    """
    channels = faulty_channels(conv, faults)
    groups, rows, columns = conv.groups, faults.array.rows, faults.array.columns
    filters = weight.shape[0] // groups
    depth = weight[0].size
    tiles = -(-depth // rows)
    # Integers below 2^24 are exact in float32, and a column adds up to R products of at most 2^14.
    exact = np.float32 if rows << 14 <= 1 << 24 else np.float64
    # (groups, tiles, R, filters): the array's contents, tile by tile.
    tiled = np.zeros((groups, tiles * rows, filters), exact)
    tiled[:, :depth] = weight.transpose(0, 2, 3, 1).reshape(groups, filters, depth).transpose(0, 2, 1)
    tiled = tiled.reshape(groups, tiles, rows, filters)
    of_group = channels[channels < filters]
    out = np.empty((len(x) * conv.shape[0] * conv.shape[1], groups, len(of_group)), np.int32)
    for at, windows in _windows(conv, x, tiles * rows, exact):
        # (groups, tiles, pixels, R)
        stream = windows.reshape(len(windows), groups, tiles, rows).transpose(1, 2, 0, 3)
        for column in np.unique(of_group % columns):
            mine = np.flatnonzero(of_group % columns == column)
            held = tiled[..., of_group[mine]]
            keep, force = faults.sum_keep[:, column], faults.sum_force[:, column]
            total = np.zeros((groups, tiles, stream.shape[2], len(mine)), np.int32)
            start = 0
            for row in np.flatnonzero((keep != -1) | (force != 0)):
                total += np.matmul(stream[..., start : row + 1], held[:, :, start : row + 1]).astype(np.int32)
                total &= keep[row]
                total |= force[row]
                start = int(row) + 1
            total += np.matmul(stream[..., start:], held[:, :, start:]).astype(np.int32)
            out[at, :, mine] = total.sum(axis=1, dtype=np.int32).transpose(1, 0, 2)
    result: Int32 = out.reshape(len(x), *conv.shape[:2], len(channels)) + conv.bias[channels]
    return result


def replicas(engine: Engine, faults: FaultMap, index: int, x: Int8, flips: Sequence[Flips]) -> list[Int8]:
    """Outputs of executions of MAC layer ``index`` on an array with permanent faults, one for each ``flips``.

    ``engine`` runs ``faulty_network(network, faults)``. x is (N, H, W, C) int8, an output (N, H, W, O) int8.
    Soft errors come on top: at the input and the weight before the array, at the accumulator and the output behind it.
    """
    conv = engine.conv(index)
    flips = [replace(f, weight=surviving(conv, faults, f.weight)) for f in flips]
    outputs = engine.replicas(index, x, flips)
    channels = faulty_channels(conv, faults)
    if not len(channels):
        return outputs
    patched = []
    for f, output in zip(flips, outputs, strict=True):
        acc = np.zeros((len(x), *conv.shape), np.int32)
        weight = reference.flip(conv.weight, f.weight)
        acc[..., channels] = accumulators(conv, reference.flip(x, f.input), weight, faults)
        bits = (np.int64(1) << (f.accumulator & 31)).astype(np.uint32)
        np.bitwise_xor.at(acc.reshape(-1).view(np.uint32), f.accumulator >> 5, bits)
        again = reference.flip(reference.requantise(conv, acc), f.output)
        output = output.copy()
        output[..., channels] = again[..., channels]
        patched.append(output)
    return patched


def _places(conv: Conv, index: Int64, array: Array) -> tuple[Int64, Int64]:
    """(row, column) of the PE that holds each weight, by its flat index in (O, I/groups, R, S)."""
    filters, depth, _, kernel_w = conv.weight.shape
    of, channel, r, s = np.unravel_index(index, conv.weight.shape)
    k = (r * kernel_w + s) * depth + channel
    return k % array.rows, of % (filters // conv.groups) % array.columns


def _windows(
    conv: Conv, x: Int8, width: int, dtype: type[np.float32] | type[np.float64]
) -> Iterator[tuple[slice, npt.NDArray[np.floating]]]:
    """Rows of the matrix of inputs, some at a time: where they lie, and (pixels, groups, width), zeros beyond K."""
    _, depth, kernel_h, kernel_w = conv.weight.shape
    (sy, sx), (py, px), (dy, dx) = conv.stride, conv.padding, conv.dilation
    height, wide, _ = conv.shape
    padded = np.pad(x, ((0, 0), (py, py), (px, px), (0, 0)))
    row_bytes = wide * conv.groups * width * np.dtype(dtype).itemsize
    lines = max(1, _CHUNK_BYTES // row_bytes)
    for image in range(len(x)):
        for top in range(0, height, lines):
            count = min(lines, height - top)
            chunk = np.zeros((count, wide, conv.groups, width), dtype)
            for r in range(kernel_h):
                for s in range(kernel_w):
                    first = top * sy + r * dy
                    seen = padded[
                        image,
                        first : first + (count - 1) * sy + 1 : sy,
                        s * dx : s * dx + (wide - 1) * sx + 1 : sx,
                    ]
                    k = (r * kernel_w + s) * depth
                    chunk[..., k : k + depth] = seen.reshape(count, wide, conv.groups, depth)
            start = (image * height + top) * wide
            yield slice(start, start + count * wide), chunk.reshape(count * wide, conv.groups, width)
