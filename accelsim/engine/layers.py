"""Layers that are not MAC layers, by the compiled kernels; what needs no speed, by the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np

from accelsim.engine import kernels, reference
from accelsim.engine.executions import address
from accelsim.engine.packing import window, zero
from accelsim.int8.network import (
    INT8_MAX,
    INT8_MIN,
    UINT8_MAX,
    Activation,
    Add,
    Channels,
    Concat,
    Exact,
    Flatten,
    Int32,
    Interleave,
    MaxPool,
    MeanPool,
    Mul,
    Resample,
    Slice,
    Table,
)
from accelsim.int8.places import windows

_WHOLE = {True: (INT8_MIN, INT8_MAX), False: (0, UINT8_MAX)}
"""Bounds that clamp nothing, of signed and other integers."""


def into(layer: Exact, xs: Sequence[Activation], y: Activation) -> None:
    """Write a layer's output into y (N, H, W, C) of its dtype; xs are its operands, all C-contiguous, on the calling thread."""
    n, (h, w, c) = len(y), layer.shape
    shape = xs[0].shape[1], xs[0].shape[2], xs[0].shape[3]
    a, za, out = address(xs[0]), zero(xs[0]), address(y)
    match layer:
        case Add():
            if len(xs) == 2:
                ma, mb = (np.float32(m) for m in layer.multipliers)
                kernels.add(a, za, ma, address(xs[1]), zero(xs[1]), mb, layer.low, layer.high, out, y.size)
            else:
                y[...] = reference.layer(layer, xs)
        case Concat():
            offset = 0
            for x, m in zip(xs, layer.multipliers, strict=True):
                width = x.shape[3]
                same = m == 1 and x.dtype == y.dtype and (layer.low, layer.high) == _WHOLE[layer.signed]
                kernels.scale(address(x), zero(x), np.float32(m), layer.low, layer.high, same, out, n * h * w, width, c, offset)
                offset += width
        case Mul():
            broadcast = xs[1].shape[1:3] != (h, w)
            factor = np.float32(layer.multiplier)
            kernels.multiply(a, za, address(xs[1]), zero(xs[1]), factor, layer.low, layer.high, out, n, h * w, c, broadcast)
        case MaxPool():
            kernels.max_pool(a, za, window(layer, shape), out, n)
        case MeanPool():
            kernels.mean_pool(a, za, window(layer, shape), np.float32(layer.multiplier), layer.low, layer.high, out, n)
        case Table():
            kernels.look_up(a, za, layer.table.reshape(-1, 256).view(np.int8), out, y.size)
        case Channels():
            kernels.move_channels(a, layer.order, out, n * h * w, shape[2])
        case Flatten():
            y[...] = reference.layer(layer, xs)
        case Slice():
            cut(layer, xs[0], y)
        case Interleave():
            interleave(layer, xs, y)
        case Resample():
            resample(layer, xs[0], y)
        case _:
            assert_never(layer)


def cut(layer: Slice, x: Activation, y: Activation) -> None:
    """Write the window of x into y, one strided copy, and zeros where it reaches past x."""
    of, to = [], []
    for at, step, size, count in zip(layer.offset, (*layer.step, 1), x.shape[1:], y.shape[1:], strict=True):
        begin = max(0, -(at // step))
        end = max(begin, min(count, (size - 1 - at) // step + 1))
        of.append(slice(at + begin * step, at + end * step, step) if end > begin else slice(0, 0))
        to.append(slice(begin, end))
    if any(part.stop - part.start < count for part, count in zip(to, y.shape[1:], strict=True)):
        y[...] = 0
    y[:, to[0], to[1], to[2]] = x[:, of[0], of[1], of[2]]


def interleave(layer: Interleave, xs: Sequence[Activation], y: Activation) -> None:
    """Write the blocks of xs into y, a strided copy each."""
    shapes = [(x.shape[1], x.shape[2], x.shape[3]) for x in xs]
    parts = [(to, xs[number][:, of[0], of[1], channels]) for number, channels, of, to in windows(layer, shapes)]
    if sum(part.size for _, part in parts) < y.size:
        y[...] = 0
    for (rows, columns), part in parts:
        y[:, rows, columns] = part


def resample(layer: Resample, x: Activation, y: Activation) -> None:
    """Write the weighted means of x's pixels into y: rows first, then columns, which in integers is the same sum."""
    if layer.moves:
        y[...] = x[:, layer.rows[:, 0]][:, :, layer.columns[:, 0]]
        return
    total = _weighted(x, layer.rows, layer.row_weights, 1)
    total = _weighted(total, layer.columns, layer.column_weights, 2)
    y[...] = np.rint(total.astype(np.float32) * np.float32(layer.multiplier))


def _weighted(x: Activation | Int32, places: Int32, weights: Int32, axis: int) -> Int32:
    """Sum over the places' second axis of ``weights`` times what lies there along ``axis`` of x."""
    form = [1, 1, 1, 1]
    form[axis] = len(places)
    total = np.zeros((*x.shape[:axis], len(places), *x.shape[axis + 1 :]), np.int32)
    for of, by in zip(places.T, weights.T, strict=True):
        total += np.take(x, of, axis=axis) * by.reshape(form)
    return total
