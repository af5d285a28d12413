"""Weights: integers and one scale an output channel, and biases that take up what rounding adds to a channel's mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from accelsim.int8.network import Float32
from accelsim.lowering import graph as real
from accelsim.lowering.harm import FLIPS

_WEIGHT_CLIPS = torch.linspace(0.60, 1.0, 11)


@dataclass(slots=True)
class Weight:
    integers: Tensor
    """(O, I/groups, R, S) float32, whole numbers of [-127, 127]"""
    scale: Float32

    def real(self) -> Tensor:
        return self.integers * torch.from_numpy(self.scale)[:, None, None, None]


def quantise_weight(node: real.Conv, input_scale: float, felt: Tensor, ber: float) -> Weight:
    """Integers and scales of least expected harm; ``input_scale`` is that of the layer's operand.

    ``felt`` (O, I/groups) says how much each kernel's errors count, within its output channel; ``ber`` is the bit error
    rate that the weights will see.
    """
    weight = node.weight.float()
    flat = weight.flatten(1)
    count = (felt / felt.mean(1, keepdim=True).clamp(min=1e-30))[:, :, None, None].expand(weight.shape).flatten(1)
    largest = flat.abs().amax(1)
    # A channel of zeros still needs steps in which its bias is an int32 with room to spare.
    smallest = (node.bias.abs().float() / (input_scale * 2**24)).clamp(min=1e-12)
    best = (largest / 127).clamp(min=smallest)
    error = torch.full_like(largest, math.inf)
    for clip in _WEIGHT_CLIPS:
        step = (largest * clip / 127).clamp(min=smallest)
        lost = (flat - step[:, None] * (flat / step[:, None]).round().clamp(-127, 127)).square()
        harm = ((lost + FLIPS * ber * step.square()[:, None]) * count).sum(1)
        best = torch.where(harm < error, step, best)
        error = torch.minimum(harm, error)
    integers = (weight / best[:, None, None, None]).round().clamp(-127, 127)
    return Weight(integers, best.numpy().astype(np.float32))


def correct_bias(node: real.Conv, weight: Weight, mean: Tensor) -> Tensor:
    """The bias (O,) float64 that takes up the mean error of the rounded weights, for operands of that mean (C,)."""
    error = (node.weight - weight.real().double()).sum((2, 3))
    out, fan_in = error.shape
    operand = mean.reshape(node.groups, 1, fan_in)
    return node.bias + (error.reshape(node.groups, out // node.groups, fan_in) * operand).sum(2).reshape(out)
