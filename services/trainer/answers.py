"""What a device was asked for, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from accelsim.int8.network import Activation, Network, UInt8
from services.bus.messages import Ack, Tensor


@dataclass(slots=True)
class Asked:
    """A command that the device was given last of its kind, and what it says to that."""

    seq: int
    nonce: int
    answer: Ack | None = None


@dataclass(slots=True)
class Data:
    """What one forward pass of the device gave: Table I's getData.

    ``outputs`` is the network's int8 output (N, 1, 1, C). In training mode ``images`` is the batch, uint8 (N, H, W, C),
    and ``activations`` every MAC layer's output, int8 or uint8 (N, H, W, C), by layer index; in inference mode both are empty.
    ``labels`` is int64 (N,), or None if the device has none. ``mismatched_layers`` are those whose rebuilt tensor does not
    have the digest that the device sent; ``repairs`` counts elements that were wrong until a repair mended them.
    """

    iteration: int
    attempt: int
    samples: int = 0
    """That were asked for; 0 where nothing was."""
    nonce: int = 0
    """Of the command that is answered."""
    images: UInt8 | None = None
    labels: npt.NDArray[np.int64] | None = None
    outputs: Activation | None = None
    activations: dict[int, Activation] = field(default_factory=dict)
    mismatched_layers: set[int] = field(default_factory=set)
    repairs: dict[int, int] = field(default_factory=dict)
    """Of ``repaired``, by layer index."""

    @property
    def repaired(self) -> int:
        """Elements of all layers that a repair mended."""
        return sum(self.repairs.values())

    @property
    def mismatched(self) -> int:
        """Elements of the layers that are not the device's: an upper bound, for a digest does not count."""
        return sum(self.activations[index].size for index in self.mismatched_layers)


class Deployed(NamedTuple):
    """A network, the version that it has on the bus, and the iteration that made it (-1 for none)."""

    network: Network
    version: int
    iteration: int


def counted(what: str, tensor: Tensor, data: Data) -> None:
    """Raises ValueError where a tensor is not of just the samples that were asked for."""
    if not tensor.shape or tensor.shape[0] != data.samples:
        raise ValueError(f"{what}: shape {tensor.shape}, {data.samples} samples were asked for")
