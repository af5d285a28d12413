"""Signs: which tensors cannot be negative, so that uint8 holds them in half as large steps."""

from __future__ import annotations

import torch

from accelsim.int8.network import INPUT
from accelsim.lowering import graph as real
from accelsim.lowering.graph import MOVES, Graph

_GRID = torch.cat([torch.zeros(1), torch.logspace(-6, 4, 2001), -torch.logspace(-6, 4, 2001)]).double()
"""Where a function of one element is asked for its sign."""


def unsigned(graph: Graph) -> frozenset[int]:
    """The nodes whose results are never negative, whatever the image: behind a ReLU, and what keeps that."""
    found: set[int] = set()
    for index, node in enumerate(graph.nodes):
        match node:
            case real.Add() | real.Concat() | real.Mul() | real.MeanPool():
                positive = found.issuperset(node.inputs)
            case real.Pointwise():
                values = node.function(_GRID[:, None, None, None])
                positive = bool((values.nan_to_num(0) >= 0).all())
            case _:
                positive = isinstance(node, MOVES) and node.inputs[0] in found
        if positive or (node.low >= 0 and not isinstance(node, MOVES)):
            found.add(index)
    return frozenset(found - {INPUT})


def levels(graph: Graph, without_sign: frozenset[int]) -> dict[int, int]:
    """The largest integer of each tensor: 255 for those without a sign, 127 for the others and the input."""
    return {index: 255 if index in without_sign else 127 for index in range(INPUT, len(graph.nodes))}
