"""Harm: how far rounding, clipping and flipped bits are expected to move the output, as a function of all steps.

The step of a channel is the tensor's scale over the channel's gain: what one integer step of it is worth in the float
network. Everything that calibration chooses, gains and scales, is a choice of steps, so this one function judges both.

An error of variance v in an element moves the output by v times the squared derivative there, in expectation, as long as
it is small; errors of different elements are taken as independent. A flipped bit b changes an integer by 2^b, signed or
not, so with a bit error rate p an element is off by p * (4^8 - 1) / 3 = 21845 p steps squared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from accelsim.int8.network import INPUT
from accelsim.lowering import graph as real
from accelsim.lowering.graph import MOVES, Graph
from accelsim.lowering.ranges import Seen

FLIPS = (4**8 - 1) / 3
"""Mean square, in steps, of what one flip in each of an integer's eight bits would do to it."""
ROUNDING = 1 / 12
"""Mean square, in steps, of what rounding does."""
_BATCH = 2
_OCTAVES, _FINE = 8, 8
"""Clipping is tabled for ranges from 2^-8 of a channel's largest value up to it, 8 an octave."""


@dataclass(slots=True)
class Felt:
    """How strongly the output feels each tensor: mean over images of squared derivatives, summed over all outputs.

    Outputs are weighted so that each image's output, as far as it differs from the mean image's, has length 1.
    """

    results: dict[int, Tensor]
    """(C,) of each node, by its index: summed over pixels"""
    operands: dict[int, Tensor]
    """(C,) of what each convolution reads, as far as that convolution hands it on"""
    weights: dict[int, Tensor]
    """(O, I/groups) of each convolution: summed over the kernel"""


def feel(graph: Graph, x: Tensor, draws: int = 1) -> Felt:
    """Derivatives of the float graph on images (N, C, H, W), along random directions of the output: no labels."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        outputs = torch.cat([_last(graph, batch) for batch in torch.split(x, 16)])
        lengths = (outputs - outputs.mean(0)).flatten(1).norm(dim=1)
        lengths = lengths.clamp(min=float(lengths.mean()) * 1e-3 + 1e-20)
    felt = Felt({}, {}, {})
    for batch, length in zip(torch.split(x, _BATCH), torch.split(lengths, _BATCH), strict=True):
        points, output = _forward(graph, batch)
        for draw in range(draws):
            signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1
            direction = signs / length[:, None, None, None]
            slopes = torch.autograd.grad(output, [p for _, _, p in points], direction, retain_graph=draw + 1 < draws)
            for (kind, index, _), slope in zip(points, slopes, strict=True):
                square = slope.square().sum((2, 3) if kind == "weights" else (0, 2, 3)) / (len(x) * draws)
                table: dict[int, Tensor] = getattr(felt, kind)
                table[index] = table[index] + square if index in table else square
    return felt


def _last(graph: Graph, batch: Tensor) -> Tensor:
    *_, (_, y) = graph.run(batch)
    return y


@torch.enable_grad()
def _forward(graph: Graph, batch: Tensor) -> tuple[list[tuple[str, int, Tensor]], Tensor]:
    """(kind, node, tensor) of everything that errors enter, and the output."""
    points: list[tuple[str, int, Tensor]] = []
    values = {INPUT: batch.clone().requires_grad_()}
    for index, node in enumerate(graph.nodes):
        xs = [values[i] for i in node.inputs]
        if isinstance(node, real.Conv):
            weight = node.weight.float().requires_grad_()
            x = xs[0].view_as(xs[0])  # a point of its own for each convolution that reads the tensor
            points += [("operands", index, x), ("weights", index, weight)]
            y = real.convolve(node, x, weight, node.bias.float())
        else:
            y = real.apply(node, xs)
        values[index] = real.clamp(node, y)
        if not isinstance(node, MOVES):
            points.append(("results", index, values[index]))
    return points, values[len(graph.nodes) - 1]


@dataclass(slots=True)
class Harm:
    """The expected harm of a float graph's steps: what ``harm`` needs, made once."""

    graph: Graph
    felt: Felt
    levels: dict[int, int]
    ber: float
    clipped: dict[int, Tensor]
    """(C, 65) of each tensor: mean square that a channel loses where it is clipped, by its range"""
    reach: dict[int, Tensor]
    """(C,) log2 of the smallest tabled range"""
    weights: dict[int, Tensor]
    """(O, I/groups) of each convolution: largest magnitude over the kernel"""


def prepare(graph: Graph, seen: dict[int, Seen], felt: Felt, levels: dict[int, int], ber: float) -> Harm:
    """What ``harm`` needs for a bit error rate ``ber`` at inputs, weights and outputs of each convolution."""
    share = 2.0 ** (torch.arange(_OCTAVES * _FINE + 1) / _FINE - _OCTAVES)
    bins = next(iter(seen.values())).counts.shape[1]
    centres = (torch.arange(bins) + 0.5) / bins
    over = (centres[:, None] - share).clamp(min=0).square()
    clipped, reach = {}, {}
    for index in felt.results:
        largest = seen[index].largest.float()
        # A channel that never says anything still may, one day, on other images.
        largest = largest.clamp(min=max(float(largest.max()) / 256, 1e-12))
        clipped[index] = (seen[index].counts @ over) * seen[index].largest.float().square()[:, None]
        reach[index] = largest.log2() - _OCTAVES
    weights = {i: n.weight.float().abs().amax((2, 3)) for i, n in enumerate(graph.nodes) if isinstance(n, real.Conv)}
    return Harm(graph, felt, levels, ber, clipped, reach, weights)


def harm(model: Harm, steps: dict[int, Tensor], care: float) -> Tensor:
    """Expected square error of the output, a share of its square, for the log2 of all steps: (C,) of each tensor.

    ``care`` weighs clipping: its errors are not independent of one another, so that they add up to more.
    """
    flips = FLIPS * model.ber
    total = torch.zeros(())
    for index, felt in model.felt.results.items():
        node = model.graph.nodes[index]
        square = (2 * steps[index]).exp2()
        each = (ROUNDING + (flips if isinstance(node, real.Conv) else 0)) * square
        each = each + care * _clipped(model, index, steps[index])
        total = total + felt @ each
    for index, felt in model.felt.operands.items():
        node = model.graph.nodes[index]
        assert isinstance(node, real.Conv)
        log_step = steps[node.inputs[0]]
        total = total + flips * (felt @ (2 * log_step).exp2())
        # Weights behind a channel of small steps are small, and their own steps follow the largest in front of an output.
        felt, largest = model.felt.weights[index], model.weights[index]
        out, fan_in = felt.shape
        step = (log_step - log_step.detach().max()).exp2().reshape(node.groups, 1, fan_in)
        largest, felt = (v.reshape(node.groups, out // node.groups, fan_in) for v in (largest, felt))
        each = (largest * step).amax(2).square() * (felt / step.square()).sum(2)
        total = total + (ROUNDING + flips) / 127**2 * each.sum()
    return total


def _clipped(model: Harm, index: int, log_step: Tensor) -> Tensor:
    """(C,) mean squares that channels lose beyond their range; linear between those tabled."""
    table = model.clipped[index]
    place = (log_step + math.log2(model.levels[index]) - model.reach[index]) * _FINE
    place = place.clamp(0, table.shape[1] - 1)
    low = place.detach().floor().long().clamp(max=table.shape[1] - 2)[:, None]
    below, above = table.gather(1, low)[:, 0], table.gather(1, low + 1)[:, 0]
    return below + (above - below) * (place - low[:, 0])
