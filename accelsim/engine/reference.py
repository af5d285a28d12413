"""The naive oracle: every layer type of ``accelsim.int8.network`` in plain NumPy int64 (architecture.md, "Arithmetic").

Slow on purpose and short enough to be read beside the specification. Nothing here is shared with the fast paths of
``accelsim.engine``, which must give the same integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np
import numpy.typing as npt

from accelsim.faults import Flips
from accelsim.int8.network import (
    INPUT,
    Activation,
    Add,
    Channels,
    Concat,
    Conv,
    Flatten,
    Int8,
    Int32,
    Interleave,
    Layer,
    MaxPool,
    MeanPool,
    Mul,
    Network,
    Resample,
    Slice,
    Table,
)
from accelsim.int8.walk import walk

Int64 = npt.NDArray[np.int64]


def layer(layer: Layer, operands: Sequence[Activation]) -> Activation:
    """Fault-free output (N, H, W, C) of one layer, of its dtype, on its operands, each (N, H, W, C) int8 or uint8."""
    x = operands[0]
    match layer:
        case Conv():
            return requantise(layer, accumulators(layer, x))
        case Add():
            total = np.sum([_scaled(x, m) for x, m in zip(operands, layer.multipliers, strict=True)], axis=0)
            return _bytes(layer, total)
        case Concat():
            parts = [_scaled(x, m) for x, m in zip(operands, layer.multipliers, strict=True)]
            return _bytes(layer, np.concatenate(parts, axis=3))
        case MaxPool():
            lowest = -128 if layer.signed else 0
            largest: Activation = _windows(layer, x, layer.dilation, fill=lowest).max(axis=0).astype(layer.dtype)
            return largest
        case MeanPool():
            return _bytes(layer, _scaled(_windows(layer, x, (1, 1), fill=0).sum(axis=0), layer.multiplier))
        case Mul():
            product = x.astype(np.int64) * operands[1].astype(np.int64)
            return _bytes(layer, _scaled(product, layer.multiplier))
        case Table():
            tables = np.broadcast_to(layer.table, (x.shape[3], 256))
            return tables[np.arange(x.shape[3]), x.astype(np.int64) + (128 if x.dtype == np.int8 else 0)]
        case Channels():
            return np.ascontiguousarray(x[..., layer.order])
        case Slice():
            return _slice(layer, x)
        case Flatten():
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2).reshape(len(x), 1, 1, -1))
        case Interleave():
            return _interleave(layer, operands)
        case Resample():
            return _resample(layer, x)
        case _:
            assert_never(layer)


def run(network: Network, x: Int8) -> list[Activation]:
    """Fault-free outputs of all layers, in order, for the quantised input x (N, H, W, C) int8."""
    values: dict[int, Activation] = {INPUT: x}
    for index, node, operands in walk(network, values, keep=True):
        values[index] = layer(node, operands)
    return [values[index] for index in range(len(network.layers))]


def accumulators(layer: Conv, x: Activation, weight: Activation | None = None) -> Int32:
    """Exact accumulators (N, H, W, O) int32, bias included; ``weight`` stands in for the layer's, same shape."""
    w = (layer.weight if weight is None else weight).astype(np.int64)
    o, i, r, s = w.shape
    (sy, sx), (py, px), (dy, dx), g = layer.stride, layer.padding, layer.dilation, layer.groups
    n = len(x)
    h, wd, _ = layer.shape
    padded = np.pad(x.astype(np.int64), ((0, 0), (py, py), (px, px), (0, 0)))
    acc = np.zeros((n, h, wd, o), np.int64)
    for group in range(g):
        of = slice(group * o // g, (group + 1) * o // g)
        for a in range(r):
            for b in range(s):
                ys = slice(a * dy, a * dy + (h - 1) * sy + 1, sy)
                xs = slice(b * dx, b * dx + (wd - 1) * sx + 1, sx)
                window = padded[:, ys, xs, group * i : (group + 1) * i]
                acc[..., of] += window @ w[of, :, a, b].T
    acc += layer.bias.astype(np.int64)
    if acc.size and (acc.max() > 2**31 - 1 or acc.min() < -(2**31)):
        raise ValueError(f"{layer.name}: accumulators reach {acc.min()}..{acc.max()}, beyond int32")
    return acc.astype(np.int32)


def requantise(layer: Conv, acc: Int32) -> Activation:
    """Outputs of int32 accumulators (..., O): ``clamp(rint(f32(acc) * multiplier[c]), low, high[c])``."""
    return _bytes(layer, np.rint(acc.astype(np.float32) * layer.multiplier))


def flip(tensor: Activation, positions: Int64) -> Activation:
    """Copy of an int8 or uint8 tensor with the bits at ``positions`` (flat byte index * 8 + bit) flipped."""
    flipped = np.array(tensor, order="C", copy=True)
    flat = flipped.reshape(-1).view(np.uint8)
    np.bitwise_xor.at(flat, positions >> 3, (1 << (positions & 7)).astype(np.uint8))
    return flipped


def replica(layer: Conv, x: Activation, flips: Flips) -> Activation:
    """Output (N, H, W, O) of one faulty execution, the naive way: flip operands, convolve, flip results."""
    acc = accumulators(layer, flip(x, flips.input), flip(layer.weight, flips.weight))
    bits = (np.int64(1) << (flips.accumulator & 31)).astype(np.uint32)
    np.bitwise_xor.at(acc.reshape(-1).view(np.uint32), flips.accumulator >> 5, bits)
    return flip(requantise(layer, acc), flips.output)


def _slice(layer: Slice, x: Activation) -> Activation:
    h, w, c = layer.shape
    y: Activation = np.zeros((len(x), h, w, c), x.dtype)
    at = [layer.offset[0] + layer.step[0] * np.arange(h), layer.offset[1] + layer.step[1] * np.arange(w)]
    at.append(layer.offset[2] + np.arange(c))
    # Places outside the operand stay zero.
    to = [np.flatnonzero((a >= 0) & (a < size)) for a, size in zip(at, x.shape[1:], strict=True)]
    y[np.ix_(np.arange(len(x)), *to)] = x[np.ix_(np.arange(len(x)), *(a[t] for a, t in zip(at, to, strict=True)))]
    return y


def _interleave(layer: Interleave, operands: Sequence[Activation]) -> Activation:
    """A pixel at a time."""
    h, w, c = layer.shape
    y: Activation = np.zeros((len(operands[0]), h, w, c), layer.dtype)
    for number, channel, row, column in layer.blocks.tolist():
        x = operands[number]
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                a, b = row + i * layer.step[0], column + j * layer.step[1]
                if 0 <= a < h and 0 <= b < w:
                    y[:, a, b] = x[:, i, j, channel : channel + c]
    return y


def _resample(layer: Resample, x: Activation) -> Activation:
    """A pixel at a time."""
    h, w, c = layer.shape
    y: Activation = np.zeros((len(x), h, w, c), layer.dtype)
    for i in range(h):
        for j in range(w):
            total = np.zeros((len(x), c), np.int64)
            for row, by_row in zip(layer.rows[i], layer.row_weights[i], strict=True):
                for column, by_column in zip(layer.columns[j], layer.column_weights[j], strict=True):
                    total += int(by_row) * int(by_column) * x[:, row, column].astype(np.int64)
            y[:, i, j] = _scaled(total, layer.multiplier)
    return y


def _scaled(x: Activation | Int64, multiplier: float) -> Int64:
    scaled: Int64 = np.rint(x.astype(np.float32) * np.float32(multiplier)).astype(np.int64)
    return scaled


def _bytes(layer: Conv | Add | Concat | MeanPool | Mul, value: npt.NDArray[np.generic]) -> Activation:
    """Values (..., C) within the layer's bounds, in its dtype."""
    clamped: Activation = np.clip(value, layer.low, layer.high).astype(layer.dtype)
    return clamped


def _windows(layer: MaxPool | MeanPool, x: Activation, dilation: tuple[int, int], fill: int) -> Int64:
    """(R*S, N, H, W, C): the element under each place of the window, ``fill`` outside the image."""
    (r, s), (sy, sx), (py, px), (dy, dx) = layer.kernel, layer.stride, layer.padding, dilation
    h, w, _ = layer.shape
    # ceil_mode can reach past the padding, so the far side is as wide as the last window needs.
    far_y = max(0, (h - 1) * sy + (r - 1) * dy + 1 - py - x.shape[1])
    far_x = max(0, (w - 1) * sx + (s - 1) * dx + 1 - px - x.shape[2])
    padded = np.pad(x.astype(np.int64), ((0, 0), (py, far_y), (px, far_x), (0, 0)), constant_values=fill)
    places = [
        padded[:, a * dy : a * dy + (h - 1) * sy + 1 : sy, b * dx : b * dx + (w - 1) * sx + 1 : sx]
        for a in range(r)
        for b in range(s)
    ]
    return np.stack(places)
