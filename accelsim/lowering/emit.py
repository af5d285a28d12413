"""Emission: each node of the float graph, with its scales and integers, as a layer of the int8 network."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accelsim.int8 import network as net
from accelsim.int8.network import INPUT, Float32, Int32, Way
from accelsim.lowering import graph as real
from accelsim.lowering.deconv import Operand, convolutions
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
    image: Tensor
    """(C,) float64: what an integer step of each channel of the input is worth"""


def bounds(node: real.Node, scale: float, level: int) -> tuple[int, Int32]:
    """The node's bounds in steps of its result; the upper one is (O,) or (). Results use all of int8, or of uint8."""
    lowest = -128 if level == 127 else 0
    low = lowest if node.low == -math.inf else max(lowest, round(node.low / scale))
    gain = node.gain.numpy() if isinstance(node, real.Conv) else np.ones(())
    high = np.rint(np.minimum(node.high * gain / scale, level)).clip(lowest).astype(np.int32)
    return min(low, level), high


def emit(choice: Choice, way: Way) -> tuple[net.Layer, ...]:
    """The int8 layers of all nodes, a transposed convolution's by its ``way``."""
    layers: list[net.Layer] = []
    at = {INPUT: INPUT}
    for index, node in enumerate(choice.graph.nodes):
        made = _layer(index, choice)
        made = replace(made, inputs=tuple(at[i] for i in made.inputs))
        if isinstance(node, real.Deconv):
            assert isinstance(made, net.Conv)
            source = node.inputs[0]
            operand = Operand(choice.graph.shape_of(source), choice.scales[source], choice.levels[source] == 127)
            layers += convolutions(made, operand, len(layers), way)
        else:
            layers.append(made)
        at[index] = len(layers) - 1
    return tuple(layers)


def _layer(index: int, choice: Choice) -> net.Layer:
    """The int8 layer of a node, its operands by their nodes; a transposed convolution's is not yet one that can run."""
    scales = choice.scales
    node = choice.graph.nodes[index]
    operands = [scales[i] for i in node.inputs]
    scale = scales[index]
    low, highs = bounds(node, scale, choice.levels[index])
    high = int(highs.max())
    common = Common(
        name=node.name, inputs=tuple(node.inputs), shape=node.shape, scale=scale, signed=choice.levels[index] == 127
    )
    match node:
        case real.Conv():
            weight = choice.weights[index]
            steps = choice.biases[index].numpy() / (np.float64(operands[0]) * weight.scale.astype(np.float64))
            return net.Conv(
                **common, low=low, high=np.broadcast_to(highs, (len(steps),)).copy(),
                weight=np.ascontiguousarray(weight.integers.numpy().astype(np.int8)),
                bias=np.clip(np.rint(steps), -(2**30), 2**30).astype(np.int32),
                weight_scale=weight.scale,
                multiplier=net.multiplier(operands[0], weight.scale, scale),
                stride=node.stride, padding=node.padding, dilation=node.dilation, groups=node.groups,
            )  # fmt: skip
        case real.Add() | real.Concat():
            kind = net.Add if isinstance(node, real.Add) else net.Concat
            multipliers = tuple(net.operand_multiplier(s, scale) for s in operands)
            return kind(**common, multipliers=multipliers, low=low, high=high)
        case real.Mul():
            factor = float(net.multiplier(operands[0], np.array([operands[1]], np.float32), scale)[0])
            return net.Mul(**common, multiplier=factor, low=low, high=high)
        case real.MaxPool():
            return net.MaxPool(**common, kernel=node.kernel, stride=node.stride, padding=node.padding, dilation=node.dilation)
        case real.MeanPool():
            return net.MeanPool(
                **common, low=low, high=high, kernel=node.kernel, stride=node.stride, padding=node.padding,
                multiplier=net.operand_multiplier(operands[0], scale, node.kernel[0] * node.kernel[1]),
            )  # fmt: skip
        case real.Pointwise():
            table, slope = _table(node, operands[0], choice.levels[node.inputs[0]], scale, low, high)
            return net.Table(
                **common, table=np.ascontiguousarray(table, np.int8 if common["signed"] else np.uint8), slope=slope
            )
        case real.Channels():
            return net.Channels(**common, order=np.array(node.order, np.int32))
        case real.Slice():
            return net.Slice(**common, offset=node.offset, step=node.step)
        case real.Resample():
            shares = int(node.row_weights[0].sum()) * int(node.column_weights[0].sum())
            return net.Resample(
                **common, rows=node.rows, row_weights=node.row_weights, columns=node.columns,
                column_weights=node.column_weights, multiplier=net.operand_multiplier(1.0, 1.0, shares),
            )  # fmt: skip
        case real.Flatten():
            return net.Flatten(**common)
        case real.Interleave():
            blocks = np.array([(0, *block) for block in node.blocks], np.int32)
            return net.Interleave(**common, step=node.step, blocks=blocks, taps=np.zeros((0, 2), np.int32))
    raise TypeError(f"{node.name}: {type(node).__name__} was not folded into another layer")


class Common(TypedDict):
    """What all layers have."""

    name: str
    inputs: tuple[int, ...]
    shape: net.Shape
    scale: float
    signed: bool


def _table(
    node: real.Pointwise, operand: float, level: int, scale: float, low: int, high: int
) -> tuple[npt.NDArray[np.float64], Float32]:
    """The function at all 256 inputs, in steps of the output, and its derivative there: (256,), or (C, 256)."""
    x = (torch.arange(level - 255, level + 1, dtype=torch.float64) * operand)[:, None, None, None]
    channels = node.function(x).shape[1]
    with torch.enable_grad():
        x = x.repeat(1, channels, 1, 1).requires_grad_()
        y = real.clamp(node, node.function(x))
        (slope,) = torch.autograd.grad(y.sum(), x)
    steps = (y.detach() / scale).nan_to_num().round().clamp(low, high)
    size = (256,) if channels == 1 else (channels, 256)
    table, slopes = (v.reshape(256, channels).T.reshape(size).numpy() for v in (steps, slope.nan_to_num(0, 0, 0)))
    return table, np.ascontiguousarray(slopes, np.float32)
