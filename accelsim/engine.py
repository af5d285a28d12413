"""Runs the int8 network exactly, with and without faults (design sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from accelsim import reference
from accelsim.faults import Flips
from accelsim.network import INPUT, Conv, Int8, Int32, Network


class Engine:
    """One network, ready to run."""

    def __init__(self, network: Network, path: str = "auto") -> None:
        self.network = network
        self.path = "portable"
        self.reason = "exact float convolution"

    def golden(self, index: int, operands: Sequence[Int8]) -> Int8:
        """Fault-free output (N, H, W, C) int8 of layer ``index`` on its operands."""
        layer = self.network.layers[index]
        if isinstance(layer, Conv):
            return reference.requantise(layer, _accumulators(layer, operands[0], layer.weight))
        return reference.layer(layer, operands)

    def run(self, x: Int8) -> list[Int8]:
        """Fault-free outputs of all layers, in order, for the quantised input x (N, H, W, C)."""
        outputs: list[Int8] = []
        for index, layer in enumerate(self.network.layers):
            outputs.append(self.golden(index, [x if i == INPUT else outputs[i] for i in layer.inputs]))
        return outputs

    def replicas(self, index: int, x: Int8, flips: Sequence[Flips]) -> list[Int8]:
        """Outputs of faulty executions of MAC layer ``index`` on one input, one for each ``flips``."""
        layer = self.conv(index)
        results = []
        for f in flips:
            acc = _accumulators(layer, reference.flip(x, f.input), reference.flip(layer.weight, f.weight))
            bits = (np.int64(1) << (f.accumulator & 31)).astype(np.uint32)
            np.bitwise_xor.at(acc.reshape(-1).view(np.uint32), f.accumulator >> 5, bits)
            results.append(reference.flip(reference.requantise(layer, acc), f.output))
        return results

    def conv(self, index: int) -> Conv:
        """The MAC layer at ``index``; raises ValueError if that layer is of another type."""
        layer = self.network.layers[index]
        if not isinstance(layer, Conv):
            raise ValueError(f"layer {index} ({layer.name}) is a {type(layer).__name__}; only MAC layers have replicas")
        return layer


def _accumulators(layer: Conv, x: Int8, weight: Int8) -> Int32:
    bound = 128 * np.abs(weight.astype(np.int64)).sum(axis=(1, 2, 3)) + np.abs(layer.bias.astype(np.int64))
    dtype = torch.float32 if int(bound.max(initial=0)) < 2**24 else torch.float64
    acc = torch.nn.functional.conv2d(
        torch.tensor(x).permute(0, 3, 1, 2).to(dtype),
        torch.tensor(weight).to(dtype),
        torch.tensor(layer.bias).to(dtype),
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    return acc.permute(0, 2, 3, 1).contiguous().to(torch.int32).numpy()
