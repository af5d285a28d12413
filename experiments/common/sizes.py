"""How large a network is: bytes, layers, multiplications, cycles."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch

from accelsim import zoo
from accelsim.datasets import IMAGENET_MEAN, IMAGENET_STD
from accelsim.lowering import lower
from accelsim.timing import Array, layer_cycles


class Size(msgspec.Struct, kw_only=True, frozen=True):
    """A network of the zoo, for ImageNet."""

    network: str


class Measured(msgspec.Struct, kw_only=True, frozen=True):
    """What it comes to as an int8 network."""

    bytes: int
    """Of weights and biases."""
    layers: int
    """That multiply and accumulate."""
    macs: int
    """Multiplications of an image."""
    cycles: int
    """Of an image on the 32x32 array (``accelsim.timing``)."""


def measured(cell: Size, shared: Path) -> Measured:
    """Lowers it with random weights; sizes depend neither on them nor on the images that it is quantised by."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = zoo.build(cell.network, 1000).eval()
    images = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
    network = lower(module, images, IMAGENET_MEAN, IMAGENET_STD, cell.network)
    found = list(network.convs())
    shapes = {index: network.shape_of(layer.inputs[0]) for index, layer in found}
    places = {index: network.layers[index].shape[0] * network.layers[index].shape[1] for index, _ in found}
    return Measured(
        bytes=sum(layer.weight.nbytes + layer.bias.nbytes for _, layer in found),
        layers=len(found),
        macs=sum(layer.weight.size * places[index] for index, layer in found),
        cycles=sum(layer_cycles(layer, shapes[index], Array()) for index, layer in found),
    )
