"""Ties: operands of concats and sums that take their scale, so that their integers move as they are."""

from __future__ import annotations

import math

from accelsim.int8.network import INPUT
from accelsim.lowering import graph as real
from accelsim.lowering.graph import MOVES, Graph

_FREE = math.sqrt(2.0)
"""Scales this close are made equal at a concat: rounding twice costs as much noise as a step this much wider."""


def _root(graph: Graph, index: int) -> int:
    while index != INPUT and isinstance(graph.nodes[index], MOVES):
        index = graph.nodes[index].inputs[0]
    return index


def _readers(graph: Graph) -> dict[int, set[int]]:
    """For each node, the nodes that compute with its values, seen through those that only move them."""
    readers: dict[int, set[int]] = {i: set() for i in range(INPUT, len(graph.nodes))}
    for index, node in enumerate(graph.nodes):
        if not isinstance(node, MOVES):
            for operand in node.inputs:
                readers[_root(graph, operand)].add(index)
    readers[_root(graph, len(graph.nodes) - 1)].add(len(graph.nodes))
    return readers


def tie(graph: Graph, own: dict[int, float], input_scale: float) -> dict[int, float]:
    """Makes operands share their concat's or sum's scale where that loses nothing, then fills in the moved ones.

    An operand that only a concat reads will be rounded to the concat's steps anyway; one that only a sum reads too, if
    its range fits. Operands with other readers (ShuffleNet's untouched half) join where the scales are close.
    """
    readers = _readers(graph)
    scales = dict(own)
    group = {index: [index] for index in own}
    for index, node in enumerate(graph.nodes):
        if not isinstance(node, real.Concat):
            continue
        for root in {_root(graph, i) for i in node.inputs} - {INPUT}:
            if readers[root] == {index} or group[root] is group[index]:
                continue
            together = group[root] + group[index]
            if max(own[i] for i in together) <= _FREE * min(own[i] for i in together):
                for i in together:
                    group[i] = together
    for index in own:
        scales[index] = max(own[i] for i in group[index])
    # Backwards, so that a concat within a concat takes the outer one's scale first.
    for index in reversed(range(len(graph.nodes))):
        node = graph.nodes[index]
        if isinstance(node, real.Concat | real.Add):
            for root in {_root(graph, i) for i in node.inputs} - {INPUT}:
                fits = isinstance(node, real.Concat) or scales[root] < scales[index]
                if readers[root] == {index} and fits:
                    scales[root] = scales[index]
    scales[INPUT] = input_scale
    return {index: scales[_root(graph, index)] for index in range(INPUT, len(graph.nodes))}
