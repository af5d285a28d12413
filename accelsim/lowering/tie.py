"""Ties: tensors that have one scale, so that their integers move as they are."""

from __future__ import annotations

from accelsim.int8.network import INPUT
from accelsim.lowering import graph as real
from accelsim.lowering.graph import MOVES, Graph


def tie(graph: Graph, without_sign: frozenset[int]) -> dict[int, int]:
    """For each tensor the one whose scale it has.

    What only moves values keeps their scale. An operand that only a concat reads has the concat's, if both have a sign or
    neither: it would be rounded to the concat's steps anyway, and its channels have gains of their own.
    """
    readers = _readers(graph)
    of = {index: _root(graph, index) for index in range(INPUT, len(graph.nodes))}
    # Backwards, so that a concat within a concat takes the outer one's scale first.
    for index in reversed(range(len(graph.nodes))):
        if isinstance(graph.nodes[index], real.Concat):
            for root in {of[i] for i in graph.nodes[index].inputs} - {INPUT}:
                if readers[root] == {index} and (root in without_sign) == (index in without_sign):
                    of[root] = of[index]
    return {index: of[_root(graph, index)] for index in of}


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
