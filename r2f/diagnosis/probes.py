"""Test vectors as networks that a device can be given: one MAC layer whose weights, biases and scales are the test.

The layer is a 1x1 convolution of R channels, so that its weight k of filter n lies in the processing element (k, n mod C): C
filters are a *tile* of weights on the whole array, and the filters of one network are several tiles, each with a bias a
column and a scale of its own. An image of one pixel is a test vector: the inputs of the R rows. Of a sum only the eight bits
are seen that bias and scale bring into the output byte, ``clamp(rint((sum + bias) * 2**-shift))``.

A bias near 2^31 is none that an int32 accumulator can have. Where one would be needed, the layer has 2R channels: what
leaves the array for a second vector is added outside of it, and two sums near 2^31 are near 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from accelsim.int8.network import INPUT, Activation, Conv, Int8, Int32, Network, UInt8
from accelsim.timing import Array

Int64 = npt.NDArray[np.int64]
NAME: Final = "probe"
FILTERS: Final = 8192
"""The most filters of one network: what they answer stays under ten megabytes."""


class Tile(NamedTuple):
    """Weights for the whole array, and how its sums are read."""

    weight: Int8
    """(R, C)"""
    shift: int
    bias: Int64
    """(C,), modulo 2^32."""


class Probe(NamedTuple):
    """What a device is to run: images, uint8 (T, 1, 1, R or 2R), through the network's one layer, to (T, 1, 1, tiles * C)."""

    network: Network
    images: UInt8


def wrapped(values: npt.ArrayLike) -> Int64:
    """Integers as 32-bit registers hold them, int64."""
    found: Int64 = (np.asarray(values, np.int64) + 2**31) % 2**32 - 2**31
    return found


def most(array: Array) -> int:
    """The largest bias that a probe can have: what comes to it must stay in int32."""
    return 2**31 - 1 - 2 * 128 * 128 * array.rows


def probe(array: Array, tiles: Sequence[Tile], vectors: Int64, beside: Int64 | None = None) -> Probe:
    """These vectors (T, R), each in -128..127, through these tiles, the sums of the vectors ``beside`` (T, R) added if given.

    A bias beyond ``most`` is cut to that.
    """
    filters = len(tiles) * array.columns
    if beside is not None:
        tiles = [tile._replace(weight=np.concatenate([tile.weight, tile.weight])) for tile in tiles]
        vectors = np.concatenate([vectors, beside], axis=1)
    rows = vectors.shape[1]
    scale = np.repeat(np.array([2.0**-tile.shift for tile in tiles], np.float32), array.columns)
    bias: Int32 = np.clip(wrapped(np.concatenate([tile.bias for tile in tiles])), -most(array), most(array)).astype(np.int32)
    weight = np.concatenate([tile.weight.T for tile in tiles])
    layer = Conv(
        name=NAME,
        inputs=(INPUT,),
        shape=(1, 1, filters),
        scale=1.0,
        weight=np.ascontiguousarray(weight, np.int8).reshape(filters, rows, 1, 1),
        bias=bias,
        weight_scale=scale,
        multiplier=scale,
    )
    # Every pixel value stands for one int8.
    table = np.tile(np.arange(-128, 128).astype(np.int8), (rows, 1))
    network = Network(name=NAME, input_shape=(1, 1, rows), input_scale=1.0, input_table=table, layers=(layer,))
    return Probe(network, (vectors + 128).astype(np.uint8).reshape(len(vectors), 1, 1, rows))


def answered(outputs: Activation, tiles: int) -> Int64:
    """Outputs (T, 1, 1, tiles * C) as int64 (T, tiles, C)."""
    return outputs.reshape(len(outputs), tiles, -1).astype(np.int64)
