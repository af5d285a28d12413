"""The one walk over a network's layers: operands in order, each activation dropped behind its last reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from accelsim.int8.network import Int32, Interleave, Layer, Network, Shape

T = TypeVar("T")
Window = tuple[slice, slice]
"""Rows and columns of an image."""


def last_uses(network: Network) -> dict[int, int]:
    """Index of the last layer that reads each activation, INPUT's too; what nobody reads, the output, has no entry."""
    return {operand: index for index, layer in enumerate(network.layers) for operand in layer.inputs}


def walk(network: Network, values: dict[int, T], *, first: int = 0, keep: bool = False) -> Iterator[tuple[int, Layer, list[T]]]:
    """(index, layer, operands) of each layer from ``first`` on, in order.

    ``values`` holds the activations by index, at the start those that the layers from ``first`` on read (INPUT for a
    whole pass). Before it goes on the caller puts the layer's own under ``index``. An activation is dropped from
    ``values`` once its last reader is done, unless ``keep``. Values may be anything: arrays, sizes, gradients.

    Raises KeyError for an operand that is not there.
    """
    last = {} if keep else last_uses(network)
    for index in range(first, len(network.layers)):
        layer = network.layers[index]
        yield index, layer, [values[operand] for operand in layer.inputs]
        for operand in dict.fromkeys(layer.inputs):
            if last.get(operand) == index:
                del values[operand]


def windows(layer: Interleave, shapes: list[Shape]) -> Iterator[tuple[int, slice, Window, Window]]:
    """(operand's number, its channels, its rows and columns, where those go) of each block; ``shapes`` are the operands'.

    Blocks of which nothing is inside are left out.
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
