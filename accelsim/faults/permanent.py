"""Permanent faults: worn-out processing elements of the array, and what they do to a layer (architecture.md, "Faults").

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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt

from accelsim.engine import Engine, reference
from accelsim.faults import Flips
from accelsim.int8.network import Activation, Conv, Int8, Int32, Network, UInt8
from accelsim.timing import Array

Int64 = npt.NDArray[np.int64]


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
    name: str
    """Of the chip; says nothing."""
    weight_keep: UInt8
    weight_force: UInt8
    """(R, C)"""
    sum_keep: Int32
    sum_force: Int32
    """(R, C)"""


def fault_map(array: Array, faults: Sequence[Fault], name: str = "") -> FaultMap:
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
        name=name,
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
        replace(layer, weight=faulty_weights(layer, faults)) if isinstance(layer, Conv) else layer for layer in network.layers
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


def accumulators(conv: Conv, x: Activation, weight: Int8, faults: FaultMap) -> Int32:
    """Accumulators, bias included, of the channels of ``faulty_channels`` in that order: (N, H, W, channels) int32.

    x is (N, H, W, C); ``weight`` (O, I/groups, R, S) int8 is what the registers hold (see ``faulty_weights``).
    Sums wrap at 32 bits, as registers do.
    """
    channels = faulty_channels(conv, faults)
    out = np.empty((len(x), *conv.shape[:2], len(channels)), np.int32)
    _, depth, kernel_h, kernel_w = weight.shape
    filters = weight.shape[0] // conv.groups
    (py, px), (dy, dx) = conv.padding, conv.dilation
    padded = np.pad(x, ((0, 0), (py, py), (px, px), (0, 0)))
    held = weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1)  # k in the order of the rows
    taps_y, taps_x = np.divmod(np.arange(kernel_h * kernel_w), kernel_w)
    of_channel = channels % filters % faults.array.columns
    for column in np.unique(of_channel):
        at = np.flatnonzero(of_channel == column)
        mine = channels[at]
        down = _through_taps if depth == 1 else _through_rows
        sums = np.empty((*out.shape[:3], len(at)), np.int32)
        down(
            padded,
            np.ascontiguousarray(held[mine]),
            mine // filters * depth,
            _stops(faults, int(column), held.shape[1]),
            taps_y * dy,
            taps_x * dx,
            conv.stride,
            sums,
        )
        out[..., at] = sums + conv.bias[mine]
    return out


def _stops(faults: FaultMap, column: int, depth: int) -> Int64:
    """Where a partial sum is changed on its way down a column, K tile after K tile: rows of (k, keep, force, leaves).

    The products before k are in the sum when it is masked; with ``leaves`` it then leaves the array, and the next begins.
    """
    rows = faults.array.rows
    keep, force = faults.sum_keep[:, column].astype(np.int64), faults.sum_force[:, column].astype(np.int64)
    found = []
    for tile in range(0, depth, rows):
        for row in np.flatnonzero((keep != -1) | (force != 0)):
            found.append((min(tile + int(row) + 1, depth), keep[row], force[row], 0))
        found.append((min(tile + rows, depth), -1, 0, 1))
    return np.array(found, np.int64)


@numba.njit(cache=True, nogil=True)
def _through_rows(
    x: Activation,
    weight: Int8,
    first: Int64,
    stops: Int64,
    taps_y: Int64,
    taps_x: Int64,
    stride: tuple[int, int],
    out: Int32,
) -> None:
    """Sums of some channels of one column: ``out`` (N, H, W, channels) from padded x (N, H', W', C).

    ``weight`` is (channels, K), k as in the module's docstring; ``first`` is the first input channel of each one's group.
    """
    taps = len(taps_y)
    depth = weight.shape[1] // taps
    window = np.zeros(weight.shape[1], np.int16)
    for n in range(out.shape[0]):
        for h in range(out.shape[1]):
            for w in range(out.shape[2]):
                seen = -1
                for channel in range(out.shape[3]):
                    if first[channel] != seen:  # the channels of a group see the same inputs
                        seen = first[channel]
                        for tap in range(taps):
                            y, z = h * stride[0] + taps_y[tap], w * stride[1] + taps_x[tap]
                            for c in range(depth):
                                window[tap * depth + c] = x[n, y, z, seen + c]
                    total, partial, k = np.int64(0), np.int64(0), 0
                    for stop in range(len(stops)):
                        dot = np.int32(0)
                        for i in range(k, stops[stop, 0]):
                            # The casts keep it in 32 bits, where it is vectorised; R products always fit.
                            dot = np.int32(dot + np.int32(np.int32(window[i]) * np.int32(weight[channel, i])))
                        k = stops[stop, 0]
                        # Only the low 32 bits are there.
                        partial = np.int64(np.int32(((partial + dot) & stops[stop, 1]) | stops[stop, 2]))
                        if stops[stop, 3]:
                            total += partial
                            partial = np.int64(0)
                    out[n, h, w, channel] = np.int32(total)


def _through_taps(
    x: Activation,
    weight: Int8,
    first: Int64,
    stops: Int64,
    taps_y: Int64,
    taps_x: Int64,
    stride: tuple[int, int],
    out: Int32,
) -> None:
    """``_through_rows`` for groups of one input channel: there all channels go down together, a tap at a time."""
    height, width = out.shape[1:3]
    streamed = x[..., first]
    partial = np.zeros_like(out)
    out[:] = 0
    k = 0
    for end, keep, force, leaves in stops:
        for tap in range(k, end):
            rows = slice(taps_y[tap], taps_y[tap] + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(taps_x[tap], taps_x[tap] + (width - 1) * stride[1] + 1, stride[1])
            partial += np.multiply(streamed[:, rows, columns], weight[:, tap], dtype=np.int32)
        k = end
        if leaves:
            out += partial
            partial[:] = 0
        else:
            partial &= np.int32(keep)
            partial |= np.int32(force)


def replicas(engine: Engine, faults: FaultMap, index: int, x: Activation, flips: Sequence[Flips]) -> list[Activation]:
    """Outputs of executions of MAC layer ``index`` on an array with permanent faults, one for each ``flips``.

    ``engine`` runs ``faulty_network(network, faults)``. x is (N, H, W, C), an output (N, H, W, O).
    Soft errors come on top: at the input and the weight before the array, at the accumulator and the output behind it.
    """
    conv = engine.conv(index)
    flips = [replace(f, weight=surviving(conv, faults, f.weight)) for f in flips]
    outputs = engine.replicas(index, x, flips)
    channels = faulty_channels(conv, faults)
    if not len(channels):
        return outputs
    # Positions at the accumulator and the output are of all channels; here only these are there.
    lane = np.full(conv.shape[2], -1)
    lane[channels] = np.arange(len(channels))
    part = replace(conv, multiplier=conv.multiplier[channels], high=conv.high[channels])
    patched = []
    for f, output in zip(flips, outputs, strict=True):
        held = reference.flip(conv.weight, f.weight).view(np.int8)
        acc = accumulators(conv, reference.flip(x, f.input), held, faults)
        struck = _among(f.accumulator, 32, lane, len(channels))
        bits = (np.int64(1) << (struck & 31)).astype(np.uint32)
        np.bitwise_xor.at(acc.reshape(-1).view(np.uint32), struck >> 5, bits)
        output = output.copy()
        output[..., channels] = reference.flip(reference.requantise(part, acc), _among(f.output, 8, lane, len(channels)))
        patched.append(output)
    return patched


def _among(positions: Int64, width: int, lane: Int64, count: int) -> Int64:
    """Bit positions in a tensor of some channels, of those in a tensor of all that fall into them."""
    element, bit = np.divmod(positions, width)
    pixel, channel = np.divmod(element, len(lane))
    kept: Int64 = ((pixel * count + lane[channel]) * width + bit)[lane[channel] >= 0]
    return kept


def _places(conv: Conv, index: Int64, array: Array) -> tuple[Int64, Int64]:
    """(row, column) of the PE that holds each weight, by its flat index in (O, I/groups, R, S)."""
    filters, depth, _, kernel_w = conv.weight.shape
    of, channel, r, s = np.unravel_index(index, conv.weight.shape)
    k = (r * kernel_w + s) * depth + channel
    return k % array.rows, of % (filters // conv.groups) % array.columns
