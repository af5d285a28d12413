"""Rehearsal: the outputs that a choice of scales and integers gives, rounded and with flipped bits, in torch.

The integers are the engine's to within float32 rounding, the flips as many as the device's and elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from accelsim.int8.network import INPUT
from accelsim.lowering import graph as real
from accelsim.lowering.emit import Choice, bounds
from accelsim.lowering.ranges import BATCH


def rehearse(choice: Choice, x: Tensor, ber: float = 0.0, seed: int = 0) -> Iterator[Tensor]:
    """Outputs for images (N, C, H, W), by batch, with flips at inputs, weights and outputs of each convolution."""
    graph, scales = choice.graph, choice.scales
    generator = torch.Generator().manual_seed(seed)
    last = graph.last_use()
    image = choice.image.float()[:, None, None]
    ceilings = {i: torch.as_tensor(bounds(node, scales[i], choice.levels[i])[1]) for i, node in enumerate(graph.nodes)}
    for batch in torch.split(x, BATCH):
        values = {INPUT: (batch / image).round_().clamp_(-128, 127)}  # in steps
        for index, node in enumerate(graph.nodes):
            operands = [values[i] for i in node.inputs]
            scale = scales[index]
            if isinstance(node, real.Conv):
                weight = choice.weights[index]
                source = node.inputs[0]
                integers = flipped(weight.integers, ber, 127, generator)
                taken = flipped(operands[0], ber, choice.levels[source], generator)
                factor = torch.from_numpy(weight.scale) * (scales[source] / scale)
                bias = choice.biases[index].float() / scale / factor
                y = real.convolve(node, taken, integers, bias) * factor[:, None, None]
            else:
                y = real.apply(node, [v * scales[i] for v, i in zip(operands, node.inputs, strict=True)]) / scale
            low = bounds(node, scale, choice.levels[index])[0]
            high = ceilings[index][:, None, None] if ceilings[index].dim() else ceilings[index]
            y = torch.minimum(y.round_(), high).clamp_(min=low)
            values[index] = flipped(y, ber, choice.levels[index], generator) if isinstance(node, real.Conv) else y
            for operand in set(node.inputs):
                if last[operand] == index:
                    del values[operand]
        yield values[len(graph.nodes) - 1] * scales[len(graph.nodes) - 1]


def flipped(integers: Tensor, ber: float, level: int, generator: torch.Generator) -> Tensor:
    """The integers, whole numbers in float32, with about a share ``ber`` of their bits flipped; level 255 is uint8."""
    bits = 8 * integers.numel()
    count = int(torch.poisson(torch.tensor(bits * ber, dtype=torch.float64), generator=generator))
    if not count:
        return integers
    place = torch.randint(0, bits, (count,), generator=generator)
    dense = integers.contiguous().view(-1)
    before = dense[place // 8].to(torch.int32)
    after = before ^ torch.bitwise_left_shift(torch.ones_like(before), (place % 8).to(torch.int32))
    if level != 255:
        after = (after + 128) % 256 - 128
    return dense.index_copy(0, place // 8, after.float()).view(integers.shape)
