"""Layers that are not MAC layers, by the compiled kernels; what needs no speed, by the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np

from accelsim.engine import kernels, reference
from accelsim.engine.executions import address
from accelsim.engine.packing import window
from accelsim.int8.network import Add, Channels, Concat, Exact, Flatten, Int8, MaxPool, MeanPool, Mul, Slice, Table


def into(layer: Exact, xs: Sequence[Int8], y: Int8) -> None:
    """Write a layer's output into y (N, H, W, C) int8; xs are its operands, all C-contiguous, on the calling thread."""
    n, (h, w, c) = len(y), layer.shape
    shape = xs[0].shape[1], xs[0].shape[2], xs[0].shape[3]
    a, out = address(xs[0]), address(y)
    match layer:
        case Add():
            if len(xs) == 2:
                ma, mb = (np.float32(m) for m in layer.multipliers)
                kernels.add(a, address(xs[1]), ma, mb, layer.low, layer.high, out, y.size)
            else:
                y[...] = reference.layer(layer, xs)
        case Concat():
            offset = 0
            for x, m in zip(xs, layer.multipliers, strict=True):
                width = x.shape[3]
                kernels.scale(address(x), np.float32(m), layer.low, layer.high, out, n * h * w, width, c, offset)
                offset += width
        case Mul():
            broadcast = xs[1].shape[1:3] != (h, w)
            factor = np.float32(layer.multiplier)
            kernels.multiply(a, address(xs[1]), factor, layer.low, layer.high, out, n, h * w, c, broadcast)
        case MaxPool():
            kernels.max_pool(a, window(layer, shape), out, n)
        case MeanPool():
            kernels.mean_pool(a, window(layer, shape), np.float32(layer.multiplier), layer.low, layer.high, out, n)
        case Table():
            kernels.look_up(a, layer.table, out, y.size)
        case Channels():
            kernels.move_channels(a, layer.order, out, n * h * w, shape[2])
        case Flatten() | Slice():
            y[...] = reference.layer(layer, xs)
        case _:
            assert_never(layer)
