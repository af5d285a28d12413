"""Emission: each node of the float graph, with its scales and integers, as a layer of the int8 network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from accelsim.int8 import network as net
from accelsim.int8.network import Float32, Int8, Int32
from accelsim.lowering import graph as real
from accelsim.lowering.graph import Graph
from accelsim.lowering.weights import Weight


@dataclass(slots=True)
class Choice:
    """Everything that the int8 network adds to the float graph, by node."""

    graph: Graph
    levels: dict[int, int]
    """Largest integer of each tensor: 255 without a sign, 127 with one"""
    scales: dict[int, float]
    weights: dict[int, Weight]
    biases: dict[int, Tensor]
    """(O,) float64"""


def bounds(node: real.Node, scale: float, level: int) -> tuple[int, Int32]:
    """The node's bounds in steps of its result; the upper one is (O,) or (). Results use all of int8, or of uint8."""
    lowest = -128 if level == 127 else 0
    low = lowest if node.low == -math.inf else max(lowest, round(node.low / scale))
    gain = node.gain.numpy() if isinstance(node, real.Conv) else np.ones(())
    high = np.rint(np.minimum(node.high * gain / scale, level)).clip(lowest).astype(np.int32)
    return min(low, level), high


def emit(index: int, choice: Choice) -> net.Layer:
    """The int8 layer of a node."""
    scales = choice.scales
    node = choice.graph.nodes[index]
    operands = [scales[i] for i in node.inputs]
    scale = scales[index]
    low, high = bounds(node, scale)
    name, inputs, shape = node.name, tuple(node.inputs), node.shape
    match node:
        case real.Conv():
            weight = choice.weights[index]
            steps = choice.biases[index].numpy() / (np.float64(operands[0]) * weight.scale.astype(np.float64))
            return net.Conv(
                name=name, inputs=inputs, shape=shape, scale=scale, low=low, high=np.array(high, np.int32),
                weight=np.ascontiguousarray(weight.integers.numpy().astype(np.int8)),
                bias=np.clip(np.rint(steps), -(2**30), 2**30).astype(np.int32),
                weight_scale=weight.scale,
                multiplier=net.multiplier(operands[0], weight.scale, scale),
                stride=node.stride, padding=node.padding, dilation=node.dilation, groups=node.groups,
            )  # fmt: skip
        case real.Add() | real.Concat():
            kind = net.Add if isinstance(node, real.Add) else net.Concat
            multipliers = tuple(net.operand_multiplier(s, scale) for s in operands)
            return kind(name=name, inputs=inputs, shape=shape, scale=scale, multipliers=multipliers, low=low, high=high)
        case real.Mul():
            factor = float(net.multiplier(operands[0], np.array([operands[1]], np.float32), scale)[0])
            return net.Mul(name=name, inputs=inputs, shape=shape, scale=scale, multiplier=factor, low=low, high=high)
        case real.MaxPool():
            return net.MaxPool(
                name=name, inputs=inputs, shape=shape, scale=scale,
                kernel=node.kernel, stride=node.stride, padding=node.padding, dilation=node.dilation,
            )  # fmt: skip
        case real.MeanPool():
            return net.MeanPool(
                name=name, inputs=inputs, shape=shape, scale=scale, low=low, high=high,
                kernel=node.kernel, stride=node.stride, padding=node.padding,
                multiplier=net.operand_multiplier(operands[0], scale, node.kernel[0] * node.kernel[1]),
            )  # fmt: skip
        case real.Pointwise():
            table, slope = _table(node, operands[0], scale, low, high)
            return net.Table(name=name, inputs=inputs, shape=shape, scale=scale, table=table, slope=slope)
        case real.Channels():
            order = np.array(node.order, np.int32)
            return net.Channels(name=name, inputs=inputs, shape=shape, scale=scale, order=order)
        case real.Slice():
            return net.Slice(name=name, inputs=inputs, shape=shape, scale=scale, offset=node.offset, step=node.step)
        case real.Flatten():
            return net.Flatten(name=name, inputs=inputs, shape=shape, scale=scale)
    raise TypeError(f"{name}: {type(node).__name__} was not folded into another layer")


def _table(node: real.Pointwise, operand: float, scale: float, low: int, high: int) -> tuple[Int8, Float32]:
    """The function at all 256 inputs, in steps of the output, and its derivative there."""
    with torch.enable_grad():
        x = (torch.arange(-128, 128, dtype=torch.float64) * operand).requires_grad_()
        y = real.clamp(node, node.function(x))
        (slope,) = torch.autograd.grad(y.sum(), x)
    steps = (y.detach() / scale).nan_to_num().round().clamp(low, high)
    return steps.numpy().astype(np.int8), slope.nan_to_num(0, 0, 0).numpy().astype(np.float32)
