"""Merging: a sum of convolutions of one tensor is one convolution.

Networks that train with parallel branches (RepVGG: 3x3, 1x1 and identity, each with batch norm) become the plain network
that they stand for: one layer where there were four, and one rounding. After Ding et al., "RepVGG: Making VGG-style ConvNets
Great Again", CVPR 2021, section 3.3.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

from accelsim.int8.network import INPUT
from accelsim.lowering import graph
from accelsim.lowering.graph import Graph, reachable
from accelsim.lowering.origins import Origin


def merge(folded: Graph) -> Graph:
    """The graph with convolutions of one tensor, that only one sum reads, made one; the float function stays.

    The graph's nodes are changed in place.
    """
    nodes = folded.nodes
    readers = folded.consumers()
    alias = {index: index for index in range(INPUT, len(nodes))}
    for index, node in enumerate(nodes):
        node.inputs = [alias[i] for i in node.inputs]
        if not isinstance(node, graph.Add):
            continue
        terms = _terms(nodes, readers, node)
        for group in _branches(nodes, readers, terms):
            made = _one([nodes[i] for i in group], folded.shape_of(nodes[group[0]].inputs[0])[2])
            if made is not None:
                nodes[group[-1]] = made
                terms = [i for i in terms if i not in group[:-1]]
        if len(terms) == 1:
            only = nodes[terms[0]]
            only.low, only.high = node.low, node.high
            alias[index], readers[terms[0]] = terms[0], readers[index]
        elif len(terms) < len(_terms(nodes, readers, node)):
            node.inputs = terms
            for term in terms:
                readers[term] = [index] if len(readers[term]) == 1 else readers[term]
    return reachable(folded, alias[len(nodes) - 1])


def _open(node: graph.Node) -> bool:
    return node.low == -math.inf and node.high == math.inf


def _terms(nodes: list[graph.Node], readers: dict[int, list[int]], node: graph.Node) -> list[int]:
    """The operands of a sum, with those of unbounded sums in it that nothing else reads, in order of the graph."""
    terms: list[int] = []
    for operand in node.inputs:
        inner = nodes[operand] if operand != INPUT else None
        if isinstance(inner, graph.Add) and _open(inner) and len(readers[operand]) == 1:
            terms += _terms(nodes, readers, inner)
        else:
            terms.append(operand)
    return sorted(terms)


def _branches(nodes: list[graph.Node], readers: dict[int, list[int]], terms: list[int]) -> list[list[int]]:
    """Terms that may be one convolution: of one tensor, stride and dilation; a 1x1 one, which has no dilation, joins any."""
    found: dict[tuple[int, tuple[int, int]], dict[tuple[int, int] | None, list[int]]] = defaultdict(dict)
    for term in terms:
        layer = nodes[term] if term != INPUT else None
        if isinstance(layer, graph.Conv) and len(readers[term]) == 1 and _open(layer):
            dilation = None if layer.weight.shape[2:] == (1, 1) else layer.dilation
            found[layer.inputs[0], layer.stride].setdefault(dilation, []).append(term)
    groups = []
    for by_dilation in found.values():
        points = by_dilation.pop(None, [])
        dilated = list(by_dilation.values()) or [[]]
        dilated[0] += points
        groups += [sorted(group) for group in dilated if len(group) > 1]
    return groups


def _one(layers: list[graph.Node], channels: int) -> graph.Conv | None:
    """The convolution that gives the sum of some, which read one tensor of ``channels``; None if none does."""
    convs = [layer for layer in layers if isinstance(layer, graph.Conv)]
    largest = max(convs, key=lambda c: c.weight.shape[2] * c.weight.shape[3])
    groups = math.gcd(*(c.groups for c in convs))
    size = largest.weight.shape[2:]
    weight = torch.zeros(largest.weight.shape[0], channels // groups, *size, dtype=torch.float64)
    for conv in convs:
        margins = []
        for axis in (0, 1):
            kernel, dilation = conv.weight.shape[2 + axis], largest.dilation[axis]
            margin, odd = divmod(size[axis] - kernel, 2)
            centred = largest.padding[axis] - conv.padding[axis] == margin * dilation
            if odd or margin < 0 or not centred or (kernel > 1 and conv.dilation[axis] != dilation):
                return None
            margins.append(margin)
        weight += F.pad(_grouped(conv, groups, channels), (margins[1], margins[1], margins[0], margins[0]))
    bias = torch.stack([conv.bias for conv in convs]).sum(0)
    origins = frozenset[Origin]().union(*(conv.origins for conv in convs))
    return graph.Conv(
        name=largest.name, inputs=largest.inputs, shape=largest.shape, weight=weight, bias=bias, origins=origins,
        stride=largest.stride, padding=largest.padding, dilation=largest.dilation, groups=groups,
    )  # fmt: skip


def _grouped(conv: graph.Conv, groups: int, channels: int) -> Tensor:
    """The weight of a convolution as one with fewer groups has it, zeros between channels of different groups."""
    out, fan_in = conv.weight.shape[:2]
    wide = torch.zeros(out, channels // groups, *conv.weight.shape[2:], dtype=torch.float64)
    for channel in range(out):
        first = channel * conv.groups // out % (conv.groups // groups) * fan_in
        wide[channel, first : first + fan_in] = conv.weight[channel]
    return wide
