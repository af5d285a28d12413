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

import numpy as np
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
_LN2 = math.log(2)
_OCTAVES, _FINE = 8, 8
"""Clipping is tabled for ranges from 2^-8 of a channel's largest value up to it, 8 an octave."""


@dataclass(slots=True)
class Felt:
    """How strongly the output feels each tensor: mean over images of squared derivatives, summed over all outputs.

    Outputs are weighted so that each image's output, as far as it differs from the mean image's, has length 1.
    """

    results: dict[int, Tensor]
    """(C,) of the input and of each node, by its index: summed over pixels"""
    operands: dict[int, Tensor]
    """(C,) of what each convolution reads, as far as that convolution hands it on"""
    weights: dict[int, Tensor]
    """(O, I/groups) of each convolution: summed over the kernel"""


def feel(graph: Graph, x: Tensor, draws: int = 1) -> Felt:
    """Derivatives of the float graph on images (N, C, H, W), along random directions of the output: no labels."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        outputs = torch.cat([output(graph, batch) for batch in torch.split(x, 16)])
    lengths = lengths_of(outputs)
    felt = Felt({}, {}, {})
    for batch, length in zip(torch.split(x, _BATCH), torch.split(lengths, _BATCH), strict=True):
        points, result = _forward(graph, batch)
        for draw in range(draws):
            signs = torch.randint(0, 2, result.shape, generator=generator) * 2.0 - 1
            direction = signs / length[:, None, None, None]
            slopes = torch.autograd.grad(result, [p for _, _, p in points], direction, retain_graph=draw + 1 < draws)
            for (kind, index, _), slope in zip(points, slopes, strict=True):
                square = slope.square().sum((2, 3) if kind == "weights" else (0, 2, 3)) / (len(x) * draws)
                table: dict[int, Tensor] = getattr(felt, kind)
                table[index] = table[index] + square if index in table else square
    return felt


def lengths_of(outputs: Tensor) -> Tensor:
    """By how much each image's output, of (N, C, H, W), differs from the mean image's, (N,)."""
    lengths: Tensor = (outputs - outputs.mean(0)).flatten(1).norm(dim=1)
    # Of images that are all alike the outputs differ by no more than float32 rounds.
    rounding = max(1e-6 * float(outputs.flatten(1).norm(dim=1).mean()), 1e-12)
    return lengths.clamp(min=max(float(lengths.mean()) * 1e-3 + 1e-20, rounding))


def output(graph: Graph, batch: Tensor) -> Tensor:
    """The float graph's output (N, C, H, W) for images (N, C, H, W)."""
    *_, (_, y) = graph.run(batch)
    return y


@torch.enable_grad()
def _forward(graph: Graph, batch: Tensor) -> tuple[list[tuple[str, int, Tensor]], Tensor]:
    """(kind, node, tensor) of everything that errors enter, and the output."""
    values = {INPUT: batch.clone().requires_grad_()}
    points: list[tuple[str, int, Tensor]] = [("results", INPUT, values[INPUT])]
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
    """The expected harm of a float graph's steps: what ``harm`` needs, made once. All channels stand in one row."""

    places: dict[int, slice]
    """Where each tensor's channels are, the input's first"""
    squares: Tensor
    """(channels,) harm of a step of 1, by rounding and by flips"""
    felt: Tensor
    """(channels,) harm of each square that is lost by clipping"""
    clipped: Tensor
    """(channels, 65) mean square that a channel loses where it is clipped, by its range"""
    first: Tensor
    """(channels,) log2 of the step whose range is the smallest tabled one"""
    weights: list[Read]


@dataclass(slots=True)
class Read:
    """The weights of one convolution."""

    source: slice
    """Where the channels are that it reads"""
    largest: Tensor
    """(groups, O/groups, I/groups), largest magnitude over the kernel"""
    felt: Tensor
    """The same shape: harm of an error of 1 in all its weights"""
    level: tuple[float, Tensor] | None = None
    """``_of_weights`` where all channels that it reads have one step, as they have without gains; made when first asked for"""


def prepare(
    graph: Graph, seen: dict[int, Seen], felt: Felt, levels: dict[int, int], ber: float, further: dict[int, float]
) -> Harm:
    """What ``harm`` needs for a bit error rate ``ber`` at inputs, weights and outputs of each convolution.

    ``further`` is how many times the harm of small errors flips in a tensor do (``flips``).
    """
    flips = FLIPS * ber
    ends = np.cumsum([0, *(graph.shape_of(i)[2] for i in range(INPUT, len(graph.nodes)))]).tolist()
    places = {index: slice(*ends[index + 1 : index + 3]) for index in range(INPUT, len(graph.nodes))}
    squares, results, first = torch.zeros(3, ends[-1])
    clipped = torch.zeros(ends[-1], _OCTAVES * _FINE + 1)
    share = 2.0 ** (torch.arange(_OCTAVES * _FINE + 1) / _FINE - _OCTAVES)
    bins = seen[INPUT].counts.shape[1]
    over = ((torch.arange(bins) + 0.5)[:, None] / bins - share).clamp(min=0).square()
    for index, slopes in felt.results.items():
        if index == INPUT and not ber:
            continue  # its steps are given
        place, largest = places[index], seen[index].largest.float()
        results[place] = slopes
        squares[place] += slopes * ROUNDING
        if index != INPUT and isinstance(graph.nodes[index], real.Conv):
            squares[place] += slopes * flips * further.get(index, 1.0)
        clipped[place] = (seen[index].counts @ over) * largest.square()[:, None]
        # A channel that never says anything may do so on other images.
        first[place] = largest.clamp(min=max(float(largest.max()) / 256, 1e-12)).log2() - _OCTAVES - math.log2(levels[index])
    reads = []
    for index, slopes in felt.operands.items():
        node = graph.nodes[index]
        assert isinstance(node, real.Conv)
        squares[places[node.inputs[0]]] += slopes * flips * further.get(node.inputs[0], 1.0)
        shape = node.groups, -1, node.weight.shape[1]
        largest = node.weight.float().abs().amax((2, 3)).reshape(shape)
        reads.append(Read(places[node.inputs[0]], largest, felt.weights[index].reshape(shape) * (ROUNDING + flips) / 127**2))
    return Harm(places, squares, results, clipped, first, reads)


def harm(model: Harm, steps: Tensor, care: float) -> tuple[float, Tensor]:
    """Expected square error of the output, a share of its square, for the log2 of all steps (channels,); and its slope there.

    ``care`` weighs clipping: its errors are not independent of one another, so that they add up to more.
    """
    square = (2 * steps).exp2() * model.squares
    slope = 2 * _LN2 * square
    # What clipping loses is linear between the ranges that are tabled.
    end = model.clipped.shape[1] - 1
    place = (steps - model.first) * _FINE
    inside = (place > 0) & (place < end)
    place = place.clamp(0, end)
    low = place.long().clamp(max=end - 1)[:, None]
    below, above = model.clipped.gather(1, low)[:, 0], model.clipped.gather(1, low + 1)[:, 0]
    lost = care * model.felt * (below + (above - below) * (place - low[:, 0]))
    slope += care * model.felt * (above - below) * _FINE * inside
    total = float(square.sum() + lost.sum())
    for read in model.weights:
        own = steps[read.source]
        ahead = own - own.max()
        if ahead.any():
            lost_here, slope_here = _of_weights(read, ahead)
        else:
            if read.level is None:
                read.level = _of_weights(read, ahead)
            lost_here, slope_here = read.level
        total += lost_here
        slope[read.source] += slope_here
    return total, slope


def _of_weights(read: Read, ahead: Tensor) -> tuple[float, Tensor]:
    """Harm of rounding a convolution's weights, and its slope by the steps that it reads: ``ahead`` of the largest, in log2."""
    # Weights behind a channel of small steps are small, and the steps of all follow the largest in front of an output.
    step = ahead.exp2().reshape(len(read.largest), 1, -1)
    largest, which = (read.largest * step).max(2)
    square, inverse = largest.square(), step[:, 0].square().reciprocal()
    each = square * (read.felt @ inverse[:, :, None])[:, :, 0]
    back = (square[:, None] @ read.felt)[:, 0] * inverse
    return float(each.sum()), 2 * _LN2 * (torch.zeros_like(back).scatter_add_(1, which, each) - back).flatten()
