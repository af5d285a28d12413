"""Which elements of its operands a layer that moves or pools reads: index arithmetic that every backend shares."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from accelsim.int8.network import Int32, Interleave, MaxPool, Shape

Window = tuple[slice, slice]
"""Rows and columns of an image."""


def windows(layer: Interleave, shapes: list[Shape]) -> Iterator[tuple[int, slice, Window, Window]]:
    """(operand's number, its channels, its rows and columns, where those go) of each block; ``shapes`` (H, W, C) are the
    operands'. Blocks of which nothing is inside are left out.
    """
    for number, channel, *first in layer.blocks.tolist():
        of, to = [], []
        for at, size, inside, step in zip(first, shapes[number][:2], layer.shape[:2], layer.step, strict=True):
            begin = max(0, -(at // step))
            end = min(size, (inside - 1 - at) // step + 1)
            of.append(slice(begin, end))
            to.append(slice(at + begin * step, at + (end - 1) * step + 1, step))
        if all(part.stop > part.start for part in of):
            yield number, slice(channel, channel + layer.shape[2]), (of[0], of[1]), (to[0], to[1])


def dense(places: Int32, weights: Int32, size: int) -> Int32:
    """(H, size): of a ``Resample``'s rows (H, A), or columns, the weight of each place, which may be named twice."""
    matrix = np.zeros((len(places), size), np.int32)
    np.add.at(matrix, (np.arange(len(places))[:, None], places), weights)
    return matrix


def pool_ends(layer: MaxPool, shape: Shape) -> list[int]:
    """Padding behind an image (H, W, C) with which whole windows give the layer's shape, ceil_mode or not."""
    return [
        max(0, (n - 1) * s + d * (k - 1) + 1 - size - p)
        for n, s, d, k, size, p in zip(
            layer.shape[:2], layer.stride, layer.dilation, layer.kernel, shape[:2], layer.padding, strict=True
        )
    ]
