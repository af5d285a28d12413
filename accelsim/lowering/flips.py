"""Flips: how much more harm than errors of their mean square that are small they do, measured tensor by tensor.

Derivatives say what a small error does. A flip is none: it opens ReLUs that were closed and is what a max-pool takes. In
SqueezeNet, where a max-pool follows the first convolution, a flip in the image does 25 times what its derivatives say, in
ResNet-20 no more than they say. So each tensor is struck once, in the float network, and what comes of it is held against them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accelsim.int8.network import INPUT
from accelsim.lowering import graph as real
from accelsim.lowering.graph import Graph
from accelsim.lowering.harm import FLIPS, Felt, lengths_of, output
from accelsim.lowering.ranges import BATCH
from accelsim.lowering.rehearse import flipped

_LEAST = 256
"""Bits flipped in a tensor, where that is not too large a share of them"""
_DENSEST = 0.01
"""Share of the bits beyond which flips would get in one another's way"""
_IMAGES = 8


def further(
    graph: Graph, x: Tensor, felt: Felt, steps: dict[int, Tensor], levels: dict[int, int], ber: float
) -> dict[int, float]:
    """For each tensor that flips enter, the harm of flips over what the derivatives say of errors as large; at least 1.

    ``x`` are images (N, C, H, W), ``steps`` (C,) what an integer step of each tensor's channels is worth.
    """
    found: dict[int, float] = {}
    generator = torch.Generator().manual_seed(0)
    last = len(graph.nodes) - 1
    chosen = torch.linspace(0, len(x) - 1, min(_IMAGES, len(x))).long()
    lengths = lengths_of(torch.cat([output(graph, batch) for batch in torch.split(x, BATCH)]))[chosen]
    values = {INPUT: x[chosen], **dict(graph.run(x[chosen]))}
    for index, slopes in _slopes(graph, felt).items():
        bits = 8 * values[index].numel()
        rate = max(ber, min(_LEAST / bits, _DENSEST))
        expected = float((slopes * steps[index].square()).sum()) * FLIPS * rate
        if expected > 0:
            step = steps[index].float()[:, None, None]
            integers = (values[index] / step).round_().clamp_(levels[index] - 255 if levels[index] == 127 else 0, levels[index])
            struck = values[index] + (flipped(integers, rate, levels[index], generator) - integers) * step
            change = (_output(graph, values, index, struck) - values[last]).flatten(1).norm(dim=1) / lengths
            found[index] = max(1.0, float(change.square().mean()) / expected)
    return found


def _slopes(graph: Graph, felt: Felt) -> dict[int, Tensor]:
    """Squared derivatives (C,) at each tensor that a convolution reads or gives, the output left out."""
    found: dict[int, Tensor] = {}
    for index, node in enumerate(graph.nodes):
        if isinstance(node, real.Conv):
            read = node.inputs[0]
            found[read] = felt.results[read] if read in felt.results else found.get(read, 0) + felt.operands[index]
            if index < len(graph.nodes) - 1:
                found[index] = felt.results[index]
    return found


def _output(graph: Graph, values: dict[int, Tensor], struck: int, value: Tensor) -> Tensor:
    """The output where one tensor has another value and all else follows."""
    changed = {struck: value}
    for index, node in enumerate(graph.nodes):
        if index > struck and not changed.keys().isdisjoint(node.inputs):
            operands = [changed.get(i, values[i]) for i in node.inputs]
            changed[index] = real.clamp(node, real.apply(node, operands))
    return changed[len(graph.nodes) - 1]
