"""Equalisation: channels that use little of their tensor's steps are scaled up, and the weights behind them down.

The float function stays as it is. After Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, section 4.1, with the activations measured instead of derived from batch norm.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from accelsim.int8.network import INPUT
from accelsim.lowering import graph as real
from accelsim.lowering.graph import Graph
from accelsim.lowering.ranges import NORMS, Seen, scale_of

IntArray = npt.NDArray[np.int64]

_DENSE, _DEPTHWISE = 0.5, 1.0
"""How far a channel is scaled up, as an exponent of the room that it has. Dense layers behind it pay with coarser
weights, so half way; in a depthwise layer each channel has weight steps of its own, so all the way."""
_LARGEST_GAIN = 16.0


def equalise(graph: Graph, seen: dict[int, Seen]) -> None:
    """Scales channels up, and the weights that read them down, so that each makes use of its tensor's steps.

    A channel keeps its factor through everything that only adds, moves, pools or concatenates it, so the factor is
    chosen for whole sets of channels. Channels that reach the image, the output, a table or a product stay as they
    are, and so does one that a ReLU6 cuts off. Changes the convolutions' weights in place; the float function stays.
    """
    nodes = graph.nodes
    start = dict(zip(range(INPUT, len(nodes)), _starts(graph), strict=True))
    total = start[len(nodes) - 1] + nodes[-1].shape[2]

    def channels(index: int) -> IntArray:
        return np.arange(start[index], start[index] + graph.shape_of(index)[2])

    parent = np.arange(total)
    fixed = np.zeros(total, bool)
    fixed[channels(INPUT)] = fixed[channels(len(nodes) - 1)] = True
    room = np.full(total, _LARGEST_GAIN)
    exponent = np.full(total, _DEPTHWISE)
    for index, node in enumerate(nodes):
        own, operands = channels(index), [channels(i) for i in node.inputs]
        match node:
            case real.MaxPool() | real.MeanPool():
                _join(parent, own, operands[0])
            case real.Add():
                for operand in operands:
                    _join(parent, own, operand)
            case real.Concat():
                _join(parent, own, np.concatenate(operands))
            case real.Channels():
                _join(parent, own, operands[0][node.order])
            case real.Slice():
                source = np.arange(len(own)) + node.offset[2]
                inside = (source >= 0) & (source < len(operands[0]))
                _join(parent, own[inside], operands[0][source[inside]])
            case real.Conv():
                if node.weight.shape[1] > 1 or node.groups == 1:
                    exponent[operands[0]] = _DENSE
            case _:
                fixed[np.concatenate([own, *operands])] = True
        if node.low not in (0, -math.inf) or node.high <= 0:
            fixed[own] = True
        largest = np.maximum(seen[index].largest.numpy(), 1e-30)
        reach = np.full(len(own), 127 * scale_of(seen[index], NORMS[0], clip=True))
        room[own] = np.where(largest > 1e-30, np.minimum(reach, node.high) / largest, 1.0)
    root = np.array([_find(parent, i) for i in range(total)])
    least, power, held = np.full(total, _LARGEST_GAIN), np.full(total, np.inf), np.zeros(total, bool)
    np.minimum.at(least, root, room)
    np.minimum.at(power, root, exponent)
    np.logical_or.at(held, root, fixed)
    gain = np.where(held[root], 1.0, np.maximum(least[root], 1.0) ** power[root])
    for index, node in enumerate(nodes):
        if isinstance(node, real.Conv):
            own_gain = torch.from_numpy(gain[channels(index)])
            out, fan_in = node.weight.shape[:2]
            before = torch.from_numpy(gain[channels(node.inputs[0])]).reshape(node.groups, 1, fan_in)
            before = before.expand(node.groups, out // node.groups, fan_in).reshape(out, fan_in)
            node.weight = node.weight * (own_gain[:, None] / before)[:, :, None, None]
            node.bias = node.bias * own_gain


def _starts(graph: Graph) -> list[int]:
    """Where each tensor's channels begin in a list of all channels, the input first."""
    widths = [graph.shape_of(i)[2] for i in range(INPUT, len(graph.nodes))]
    return [0, *np.cumsum(widths[:-1]).tolist()]


def _find(parent: IntArray, place: int) -> int:
    while parent[place] != place:
        parent[place] = parent[parent[place]]
        place = int(parent[place])
    return place


def _join(parent: IntArray, left: IntArray, right: IntArray) -> None:
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        first, second = sorted((_find(parent, a), _find(parent, b)))
        parent[second] = first
