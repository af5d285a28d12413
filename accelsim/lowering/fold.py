"""Folding: batch norm into weights, ReLU into bounds, chains of pointwise functions into one table."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

from torch import Tensor

from accelsim.int8.network import INPUT
from accelsim.lowering import graph
from accelsim.lowering.graph import Graph, reachable
from accelsim.lowering.merge import merge


def fold(traced: Graph) -> Graph:
    """Batch norm into weights, ReLU into bounds, chains of pointwise functions and parallel convolutions into one.

    What remains has a layer.

    The graph's nodes are changed in place.
    """
    nodes = traced.nodes
    alias: dict[int, int] = {INPUT: INPUT}
    readers = traced.consumers()
    readers[len(nodes) - 1].append(len(nodes))
    for index, node in enumerate(nodes):
        node.inputs = [alias[i] for i in node.inputs]
        alias[index] = index
        source = node.inputs[0]
        before = nodes[source] if source != INPUT else None
        alone = len(readers[source]) == 1
        if isinstance(node, graph.Affine) and isinstance(before, graph.Conv) and alone and _open(before):
            before.weight = before.weight * node.factor[:, None, None, None]
            before.bias = before.bias * node.factor + node.shift
            alias[index], readers[source] = source, readers[index]
        elif isinstance(node, graph.Affine) and isinstance(before, graph.Affine) and alone:
            before.shift = before.shift * node.factor + node.shift
            before.factor = before.factor * node.factor
            alias[index], readers[source] = source, readers[index]
        elif isinstance(node, graph.Affine) and not _uniform(node):
            nodes[index] = _remaining_affine(node)
        elif isinstance(node, graph.Clamp) and _absorb(nodes, readers, source, node):
            alias[index], readers[source] = source, readers[index]
        elif isinstance(node, graph.Clamp):
            nodes[index] = _compose(nodes, node, node.inputs[0], lambda x: x)
        elif isinstance(node, graph.Pointwise):
            nodes[index] = _compose(nodes, node, node.inputs[0], node.function)
        elif isinstance(node, graph.Mul | graph.Add) and len(node.inputs) == 2:
            nodes[index] = _same_source(nodes, node)
    for index, node in enumerate(nodes):
        node.inputs = [alias[i] for i in node.inputs]
        if isinstance(node, graph.Affine):
            nodes[index] = _remaining_affine(node)
    return merge(reachable(traced, alias[len(nodes) - 1]))


def within(folded: Graph, low: float, high: float) -> None:
    """Bounds the output to [low, high], in place, where the layer that computes it has bounds of its own: there they cost
    nothing. Elsewhere nothing changes."""
    readers = folded.consumers()
    readers[len(folded.nodes) - 1].append(len(folded.nodes))
    bounds = graph.Clamp(name="", inputs=[], shape=(1, 1, 1), low=low, high=high)
    _absorb(folded.nodes, readers, len(folded.nodes) - 1, bounds)


def _open(node: graph.Node) -> bool:
    return node.low == -math.inf and node.high == math.inf


def _absorb(nodes: list[graph.Node], readers: dict[int, list[int]], source: int, bounds: graph.Node) -> bool:
    """Moves the bounds into the layer that computed the values, if nothing else reads it before them."""
    while source != INPUT and len(readers[source]) == 1:
        node = nodes[source]
        if isinstance(node, graph.Conv | graph.Add | graph.Concat | graph.Mul | graph.MeanPool | graph.Pointwise):
            node.low, node.high = (min(max(v, bounds.low), bounds.high) for v in (node.low, node.high))
            return True
        if not isinstance(node, graph.MOVES) or bounds.low > 0 or bounds.high < 0:
            return False
        if isinstance(node, graph.Resample) and node.blends:
            return False
        source = node.inputs[0]
    return False


def _compose(nodes: list[graph.Node], node: graph.Node, source: int, function: Callable[[Tensor], Tensor]) -> graph.Pointwise:
    """``function`` behind the pointwise nodes in front of it, as one function of what they read."""
    root, inner = _pointwise_of(nodes, source)
    return graph.Pointwise(
        name=node.name, inputs=[root], shape=node.shape, low=node.low, high=node.high,
        function=lambda x: function(inner(x)),
    )  # fmt: skip


def _pointwise_of(nodes: list[graph.Node], index: int) -> tuple[int, Callable[[Tensor], Tensor]]:
    """(node, function): the result of ``index`` is that function of the node's result, element by element."""
    node = nodes[index] if index != INPUT else None
    if isinstance(node, graph.Pointwise):
        return node.inputs[0], lambda x: graph.clamp(node, node.function(x))
    if isinstance(node, graph.Affine) and _uniform(node):
        root, inner = _pointwise_of(nodes, node.inputs[0])
        factor, shift = float(node.factor[0]), float(node.shift[0])
        return root, lambda x: inner(x) * factor + shift
    return index, lambda x: x


def _same_source(nodes: list[graph.Node], node: graph.Node) -> graph.Node:
    """A product or sum of two functions of one node is itself a function of it: ``x * relu6(x + 3)``."""
    (a, left), (b, right) = (_pointwise_of(nodes, i) for i in node.inputs)
    plain = a == node.inputs[0] and b == node.inputs[1]
    if a != b or (plain and isinstance(node, graph.Add)):
        return node
    if nodes[a].shape != node.shape if a != INPUT else False:
        return node
    combine = operator.mul if isinstance(node, graph.Mul) else operator.add
    return graph.Pointwise(
        name=node.name, inputs=[a], shape=node.shape, low=node.low, high=node.high,
        function=lambda x: combine(left(x), right(x)),
    )  # fmt: skip


def _uniform(node: graph.Affine) -> bool:
    return bool((node.factor == node.factor[0]).all() and (node.shift == node.shift[0]).all())


def _remaining_affine(node: graph.Affine) -> graph.Node:
    """A scale and shift with nothing to fold into: a table where all channels agree, else a 1x1 depthwise layer."""
    if _uniform(node):
        factor, shift = float(node.factor[0]), float(node.shift[0])
        return graph.Pointwise(
            name=node.name, inputs=node.inputs, shape=node.shape, low=node.low, high=node.high,
            function=lambda x: x * factor + shift,
        )  # fmt: skip
    return graph.Conv(
        name=node.name, inputs=node.inputs, shape=node.shape, low=node.low, high=node.high,
        weight=node.factor[:, None, None, None].clone(), bias=node.shift, groups=node.shape[2], origins=node.origins,
    )  # fmt: skip
