"""Equalisation: each channel's gain, which the weights in front of it apply and those behind it take back.

The float function stays as it is. After Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, section 4.1. A gain passes everything that only adds, moves, pools, concatenates or bounds a
channel, so gains belong to sets of channels that such layers join.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accelsim.int8.network import INPUT
from accelsim.lowering import graph as real
from accelsim.lowering.graph import Graph

IntArray = npt.NDArray[np.int64]


@dataclass(slots=True)
class Joined:
    """Which channels have one gain."""

    of: dict[int, Tensor]
    """(C,) int64 of each tensor: the set that a channel is in"""
    fixed: Tensor
    """(sets,) bool: channels that stay as they are"""


def join(graph: Graph, *, image: bool) -> Joined:
    """The sets of channels whose gains are one.

    Channels that reach the output or a table stay as they are, and so does a gate's side of a product; the image's too,
    unless ``image``.
    """
    nodes = graph.nodes
    start = dict(zip(range(INPUT, len(nodes)), _starts(graph), strict=True))
    total = start[len(nodes) - 1] + nodes[-1].shape[2]

    def channels(index: int) -> IntArray:
        return np.arange(start[index], start[index] + graph.shape_of(index)[2])

    parent = np.arange(total)
    fixed = np.zeros(total, bool)
    fixed[channels(INPUT)] = not image
    fixed[channels(len(nodes) - 1)] = True
    for index, node in enumerate(nodes):
        own, operands = channels(index), [channels(i) for i in node.inputs]
        match node:
            case real.MaxPool() | real.MeanPool() | real.Resample():
                _join(parent, own, operands[0])
            case real.Add():
                for operand in operands:
                    _join(parent, own, operand)
            case real.Mul():
                _join(parent, own, operands[0])
                fixed[operands[1]] = True
            case real.Concat():
                _join(parent, own, np.concatenate(operands))
            case real.Channels():
                _join(parent, own, operands[0][node.order])
            case real.Flatten():
                _join(parent, own, np.repeat(operands[0], len(own) // len(operands[0])))
            case real.Slice():
                source = np.arange(len(own)) + node.offset[2]
                inside = (source >= 0) & (source < len(operands[0]))
                _join(parent, own[inside], operands[0][source[inside]])
            case real.Interleave():
                for channel, _, _ in node.blocks:
                    _join(parent, own, operands[0][channel : channel + len(own)])
            case real.Conv():
                pass
            case _:
                fixed[np.concatenate([own, *operands])] = True
        # Bounds of a convolution are a channel's own; other layers have one for all.
        if node.low not in (0, -math.inf) or node.high <= 0 or (node.high < math.inf and not isinstance(node, real.Conv)):
            fixed[own] = True
    roots, of = np.unique([_find(parent, i) for i in range(total)], return_inverse=True)
    held = np.zeros(len(roots), bool)
    np.logical_or.at(held, of, fixed)
    tensors = {index: torch.from_numpy(of[channels(index)].astype(np.int64)) for index in start}
    return Joined(tensors, torch.from_numpy(held))


def equalise(graph: Graph, gains: dict[int, Tensor]) -> Graph:
    """The graph with each tensor's channels scaled up by ``gains`` (C,) float64; its float function is the same."""
    graph = copy.copy(graph)
    graph.nodes = list(graph.nodes)
    for index, node in enumerate(graph.nodes):
        if isinstance(node, real.Conv):
            made = copy.copy(node)
            out, fan_in = node.weight.shape[:2]
            before = gains[node.inputs[0]].reshape(node.groups, 1, fan_in)
            before = before.expand(node.groups, out // node.groups, fan_in).reshape(out, fan_in)
            made.weight = node.weight * (gains[index][:, None] / before)[:, :, None, None]
            made.bias = node.bias * gains[index]
            made.gain = gains[index]
            graph.nodes[index] = made
    return graph


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
