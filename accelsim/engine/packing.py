"""Layers as the kernels read them, once a network."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from accelsim.engine import vnni
from accelsim.engine.kernels import Packed, Stored, Window
from accelsim.int8.network import INT8_MIN, Activation, Byte, Conv, Int32, MaxPool, MeanPool, Shape

_Number = TypeVar("_Number", np.int8, np.int32, np.float32)


def zero(x: Activation | Byte) -> int:
    """What turns an activation's byte into a number of 0..255, by xor or by addition: 128 of an int8, 0 of a uint8."""
    return 128 if (x.dtype if isinstance(x, np.ndarray) else x) == np.int8 else 0


def window(layer: Conv | MaxPool | MeanPool, shape: Shape) -> Window:
    """Where the windows of a layer lie in an input of ``shape``."""
    kernel: tuple[int, int] = (layer.weight.shape[2], layer.weight.shape[3]) if isinstance(layer, Conv) else layer.kernel
    dilation: tuple[int, int] = (1, 1) if isinstance(layer, MeanPool) else layer.dilation
    return Window(*shape, *layer.shape, *kernel, *layer.stride, *layer.padding, *dilation)


def is_depthwise(layer: Conv) -> bool:
    """Whether the layer has one input channel and one output channel a group, and more than one group."""
    return layer.weight.shape[1] == 1 and layer.groups == layer.weight.shape[0] and layer.groups > 1


def stored(layer: Conv, x: Activation) -> Stored:
    """A MAC layer on input x (N, H, W, C) for ``kernels.elements``."""
    where = window(layer, x.shape[1:])
    return Stored(where, zero(x), layer.low, layer.high, layer.weight, layer.bias, layer.multiplier)


def pack(layer: Conv, shape: Shape, dtype: Byte) -> Packed:
    """A MAC layer on inputs of ``shape`` and ``dtype`` for ``kernels.conv``, or for ``kernels.depthwise`` if it is one."""
    o, i, r, s = layer.weight.shape
    groups = 1 if is_depthwise(layer) else layer.groups
    blocks = -(-o // groups // vnni.LANES)
    quads = -(-(i * r * s) // 4)

    def padded(values: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        rows = np.zeros((groups, blocks * vnni.LANES), values.dtype)
        rows[:, : o // groups] = values.reshape(groups, -1)
        return rows

    # The kernels clamp int8 bytes, and turn those of a uint8 output back at the end.
    shift = 0 if layer.signed else -INT8_MIN
    high = padded((layer.high - shift).astype(np.int8))

    weight: npt.NDArray[np.int8] | Int32
    if is_depthwise(layer):
        weight = np.zeros((r * s, blocks * vnni.LANES), np.int32)
        # The kernel multiplies pairs of int16; the upper one of the weights is zero.
        weight[:, :o] = layer.weight.reshape(o, r * s).T.astype(np.int32) & 0xFFFF
        start, multiplier = padded(layer.bias)[0], padded(layer.multiplier)[0]
    else:
        # (g, o, i, r, s) -> (g, block, quad, 16, 4) with k = (r, s, i)
        k = np.zeros((groups, blocks * vnni.LANES, 4 * quads), np.int8)
        columns = layer.weight.reshape(groups, o // groups, i, r, s).transpose(0, 1, 3, 4, 2)
        k[:, : o // groups, : r * s * i] = columns.reshape(groups, o // groups, -1)
        weight = np.ascontiguousarray(k.reshape(groups, blocks, vnni.LANES, quads, 4).transpose(0, 1, 3, 2, 4))
        start, multiplier = padded(layer.bias) - zero(dtype) * k.sum(axis=2, dtype=np.int32), padded(layer.multiplier)
    tile = _tile(4 * quads, vnni.LANES * blocks)
    return Packed(window(layer, shape), groups, zero(dtype), shift, layer.low - shift, tile, weight, start, multiplier, high)


def _tile(width: int, stride: int) -> int:
    """Output pixels whose operands and accumulators fit the second-level cache beside the weights."""
    return max(1, min(8, 192 * 1024 // (24 * (width + 8 * stride)))) * 24
