"""What the phases of a transposed convolution have in common, though each is a MAC layer of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from accelsim.int8.network import Conv, Float32, Interleave, Network

Part = tuple[int, slice]
"""Index of a MAC layer, and channels of it."""


def bias_groups(network: Network) -> Iterator[list[Part]]:
    """The parts of MAC layers whose biases are one transposed convolution's, so that they are equal, a list each."""
    for layer in network.layers:
        if isinstance(layer, Interleave) and len(layer.taps):
            channels = layer.shape[2]
            parts = [(layer.inputs[of], slice(first, first + channels)) for of, first, _, _ in layer.blocks.tolist()]
            yield [(index, part) for index, part in parts if isinstance(network.layers[index], Conv)]


def taps_of(network: Network) -> dict[int, Float32]:
    """Where each weight of such a MAC layer is a tap of the transposed convolution, 1, and where it is and stays 0, by index:
    (O, 1, R, S). Layers whose weights all are taps are left out."""
    found: dict[int, Float32] = {}
    for layer in network.layers:
        if not isinstance(layer, Interleave) or not len(layer.taps):
            continue
        for (of, first, _, _), (rows, columns) in zip(layer.blocks.tolist(), layer.taps.tolist(), strict=True):
            index = layer.inputs[of]
            conv = network.layers[index]
            if isinstance(conv, Conv):
                out, _, height, width = conv.weight.shape
                mask = found.setdefault(index, np.zeros((out, 1, height, width), np.float32))
                mask[first : first + layer.shape[2], :, max(0, height - rows) :, max(0, width - columns) :] = 1
    return {index: mask for index, mask in found.items() if not mask.all()}
