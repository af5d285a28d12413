"""From the float graph to the int8 network: which scale each tensor gets, and which integers the weights become.

Activations: one scale a tensor and one gain a channel, chosen together so that rounding, clipping and the flips of a stated
bit error rate harm the output least (``harm``). Weights: one scale an output channel, chosen alike. Biases take up what
rounding the weights adds to the mean of each channel. No randomness: the same images give the same network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accelsim.datasets import spread
from accelsim.int8.network import INPUT, Network, UInt8, Way
from accelsim.lowering import graph as real
from accelsim.lowering.answer import place
from accelsim.lowering.balance import Balanced, balance, widest
from accelsim.lowering.emit import Choice, emit
from accelsim.lowering.equalise import equalise, join
from accelsim.lowering.flips import further
from accelsim.lowering.graph import Graph
from accelsim.lowering.harm import Felt, feel, output, prepare
from accelsim.lowering.pixels import input_scale, input_table, normalise
from accelsim.lowering.ranges import BATCH, Seen, watch
from accelsim.lowering.rehearse import rehearse
from accelsim.lowering.signs import levels, unsigned
from accelsim.lowering.tie import tie
from accelsim.lowering.weights import Weight, correct_bias, quantise_weight
from accelsim.threads import one_thread

_TRIAL = 32
"""Calibration images that feel for the derivatives, and that decide between the candidates"""
_VECTORS = 4096
"""Of a classifier's outputs on those, or of its pixels', decide where they lie"""
_CARES = (0.25, 1.0, 4.0, 16.0)
"""How much clipping counts, see ``harm``. Which is best depends on the network and the bit error rate, so each is tried."""
_CALM_CARES = (1.0, 4.0, 16.0)
"""The same without faults, where each is tried with gains and without: deep networks that make much of small errors
mislead the derivatives by which gains are chosen."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What a network is quantised for."""

    unsigned: bool = True
    """Tensors that cannot be negative are uint8."""
    gains: bool = True
    """Channels are scaled against one another."""
    ber: float = 0.0
    """Bit error rate at inputs, weights and outputs of each convolution"""
    classifier: bool = False
    """Of the outputs, or of those of each pixel, only the order has to stay."""


def plain(graph: Graph) -> Aim:
    """The paper's way: all int8, no thought of flips, channels as they are unless there are depthwise layers."""
    depthwise = any(isinstance(node, real.Conv) and node.weight.shape[1] == 1 < node.groups for node in graph.nodes)
    return Aim(unsigned=False, gains=depthwise)


def quantise(
    graph: Graph, images: UInt8, mean: Sequence[float], std: Sequence[float], name: str, aim: Aim, way: Way = "auto"
) -> Network:
    """The int8 network of a float graph, calibrated on uint8 images (N, H, W, C).
    ``way``: how its transposed convolutions run.

    Raises ValueError, which names the node, where the float graph gives values that are not finite.
    """
    return chosen(choose(graph, images, mean, std, aim), mean, std, name, way)


def chosen(choice: Choice, mean: Sequence[float], std: Sequence[float], name: str, way: Way) -> Network:
    """The int8 network of these scales and integers."""
    return Network(
        name=name,
        input_shape=choice.graph.input_shape,
        input_scale=choice.scales[INPUT],
        input_table=input_table(mean, std, choice.image.numpy()),
        layers=emit(choice, way),
    )


@one_thread()
@torch.no_grad()
def choose(graph: Graph, images: UInt8, mean: Sequence[float], std: Sequence[float], aim: Aim) -> Choice:
    """Scales and integers for a float graph, calibrated on uint8 images (N, H, W, C).

    Made on one thread, so that they are the same on machines with fewer cores and with more.
    Raises ValueError, which names the node, where the float graph gives values that are not finite.
    """
    x = normalise(images, mean, std).contiguous(memory_format=torch.channels_last)  # a third faster
    trial = x[_trial(len(x))]
    without_sign = unsigned(graph) if aim.unsigned else frozenset[int]()
    tensors = levels(graph, without_sign)
    seen = watch(graph, x)
    felt = feel(graph, trial)
    image = aim.ber > 0  # Flips of the image do as much harm as any; without them there is nothing to gain.
    widths, joined, tied = widest(seen, tensors, input_scale(mean, std)), join(graph, image=image), tie(graph, without_sign)
    model = prepare(graph, seen, felt, tensors, aim.ber, {})
    if aim.ber:
        first = balance(model, widths, joined, tied, 1.0, gains=aim.gains, image=image)
        steps = {index: first.scales[index] / gain for index, gain in first.gains.items()}
        model = prepare(graph, seen, felt, tensors, aim.ber, further(graph, trial, felt, steps, tensors, aim.ber))
    judges = _judges(x) if aim.unsigned and not aim.ber else trial
    exact = [output(graph, batch) for batch in torch.split(judges, BATCH)]
    best, least = None, math.inf
    for care, gains in _candidates(aim):
        balanced = balance(model, widths, joined, tied, care, gains=gains, image=image)
        choice = _choice(graph, tensors, seen, felt, balanced, aim.ber)
        lost = _lost(list(rehearse(choice, judges, aim.ber)), exact)
        if best is None or lost < least:
            best, least = choice, lost
    assert best is not None
    if aim.classifier and aim.unsigned and aim.ber:
        _place_answers(best, exact, aim.ber)
    return best


def _trial(count: int) -> npt.NDArray[np.int64]:
    """Those of ``count`` images, evenly over all, that feel for the derivatives."""
    return np.linspace(0, count - 1, min(count, _TRIAL)).astype(np.int64)


def _judges(x: Tensor) -> Tensor:
    """As many of the others of images (N, C, H, W), which favour no candidate; the same ones where too few are left."""
    others = np.setdiff1d(np.arange(len(x)), _trial(len(x)))
    return x[others[_trial(len(others))]] if len(others) >= _TRIAL // 2 else x[_trial(len(x))]


def _candidates(aim: Aim) -> list[tuple[float, bool]]:
    """(care, gains) of all that is tried; the paper's way has no choice of gains."""
    if aim.ber or not aim.unsigned:
        return [(care, aim.gains) for care in _CARES]
    return [(care, gains) for gains in sorted({aim.gains, False}, reverse=True) for care in _CALM_CARES]


def _choice(graph: Graph, tensors: dict[int, int], seen: dict[int, Seen], felt: Felt, balanced: Balanced, ber: float) -> Choice:
    """Integers for gains and scales."""
    graph = equalise(graph, balanced.gains)
    weights: dict[int, Weight] = {}
    biases: dict[int, Tensor] = {}
    for index, node in enumerate(graph.nodes):
        if isinstance(node, real.Conv):
            source = node.inputs[0]
            gain = balanced.gains[source].float().reshape(node.groups, 1, -1)
            slopes = felt.weights[index]
            slopes = (slopes.reshape(node.groups, -1, slopes.shape[1]) * gain.square()).reshape(slopes.shape)
            weights[index] = quantise_weight(node, balanced.scales[source], slopes, ber)
            biases[index] = correct_bias(node, weights[index], seen[source].mean * balanced.gains[source])
    return Choice(graph, tensors, balanced.scales, weights, biases, balanced.scales[INPUT] / balanced.gains[INPUT])


def _place_answers(choice: Choice, outputs: list[Tensor], ber: float) -> None:
    """Moves a classifier's outputs to where flips change few answers, if its last layer is one that can."""
    last = len(choice.graph.nodes) - 1
    node = choice.graph.nodes[last]
    if not isinstance(node, real.Conv) or (node.low, node.high) != (-math.inf, math.inf):
        return
    vectors = torch.cat(outputs).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    placing = place(vectors[spread(_VECTORS, len(vectors))], ber)
    choice.levels, choice.scales = {**choice.levels, last: 255}, {**choice.scales, last: placing.scale}
    choice.biases = {**choice.biases, last: choice.biases[last] + placing.shift}


def _lost(rounded: list[Tensor], exact: list[Tensor]) -> float:
    """Mean over images of an output's square error over the square of how it differs from the mean image's output."""
    y, want = (torch.cat(batches).flatten(1).double() for batches in (rounded, exact))
    length = (want - want.mean(0)).square().sum(1) if len(want) > 1 else want.square().sum(1)
    return float(((y - want).square().sum(1) / length.clamp(min=max(1e-6 * float(length.mean()), 1e-24))).mean())
