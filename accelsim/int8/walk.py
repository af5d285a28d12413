"""The one walk over a network's layers: operands in order, each activation dropped behind its last reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from accelsim.int8.network import Layer, Network

T = TypeVar("T")


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
