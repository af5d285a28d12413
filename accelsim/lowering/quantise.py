"""From the float graph to the int8 network: which scale each tensor gets, and which integers the weights become.

Activations: one scale a tensor, chosen on real images to lose least. Weights: one scale an output channel, chosen
alike. Networks with depthwise layers are equalised first. Biases take up what rounding the weights adds to
the mean of each channel. No randomness: the same images give the same network.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from accelsim.int8.network import INPUT, Network, UInt8
from accelsim.lowering import graph as real
from accelsim.lowering.emit import Choice, bounds, emit
from accelsim.lowering.equalise import equalise
from accelsim.lowering.graph import Graph
from accelsim.lowering.pixels import input_table, normalise
from accelsim.lowering.ranges import BATCH, NORMS, activation_scales, watch
from accelsim.lowering.tie import tie
from accelsim.lowering.weights import Weight, correct_bias, quantise_weight

_TRIAL = 32
"""Calibration images that decide between the candidates"""
_POOR = 10**-1.6
"""Share of the output's energy above which the error is worth a longer search: 16 dB. Networks with trained weights that
were tried lose less."""
_HEADROOMS = (1.0, 1.5)


@torch.no_grad()
def quantise(graph: Graph, images: UInt8, mean: Sequence[float], std: Sequence[float], name: str) -> Network:
    """The int8 network of a float graph, calibrated on uint8 images (N, H, W, C).

    Raises ValueError, which names the node, where the float graph gives values that are not finite.
    """
    scale, table = input_table(mean, std)
    x = normalise(images, mean, std).contiguous(memory_format=torch.channels_last)  # a third faster
    trial = x[np.linspace(0, len(x) - 1, min(len(x), _TRIAL)).astype(np.int64)]
    depthwise = any(isinstance(node, real.Conv) and node.weight.shape[1] == 1 < node.groups for node in graph.nodes)
    choices = _choices(graph, x, scale, [Way(depthwise, norm, 1.0) for norm in NORMS])
    exact = _float(graph, trial)
    lost = [_lost(_rounded(choice, trial), exact) for choice in choices]
    best = choices[lost.index(min(lost))]
    if min(lost) > _POOR * sum(float(y.square().sum(dtype=torch.float64)) for y in exact) and len(x) > 1:
        best = _search(graph, x, scale, depthwise)
    layers = tuple(emit(index, best) for index in range(len(graph.nodes)))
    return Network(name=name, input_shape=graph.input_shape, input_scale=scale, input_table=table, layers=layers)


@dataclass(frozen=True, slots=True)
class Way:
    """How the scales of the activations are found."""

    equalised: bool
    norm: float | None
    """Exponent of the error that decides on clipping; None clips nothing"""
    headroom: float
    """Factor on every range"""


def _choices(graph: Graph, x: Tensor, input_scale: float, ways: list[Way]) -> list[Choice]:
    """A choice for each way, with ranges of images (N, C, H, W); all are equalised, or none."""
    seen = watch(graph, x)
    if ways[0].equalised:
        graph = copy.deepcopy(graph)
        equalise(graph, seen)
        seen = watch(graph, x)
    tied = [tie(graph, activation_scales(graph, seen, way.norm, way.headroom), input_scale) for way in ways]
    weights: dict[int, Weight] = {}
    biases: dict[int, Tensor] = {}
    for index, node in enumerate(graph.nodes):
        if isinstance(node, real.Conv):
            source = node.inputs[0]
            weights[index] = quantise_weight(node, min(scales[source] for scales in tied))
            biases[index] = correct_bias(node, weights[index], seen[source].mean)
    return [Choice(graph, scales, weights, biases) for scales in tied]


def _search(graph: Graph, x: Tensor, input_scale: float, depthwise: bool) -> Choice:
    """The best of more ways, for a network whose output feels every rounding.

    Such networks answer a few images in a hundred with outputs ten times as large, so a way must prove itself on images that
    its ranges do not come from: each half of the images is measured with the ranges of the other. Each image counts alike.
    """
    ways = {
        equalised: [Way(equalised, norm, headroom) for norm in (*NORMS, None) for headroom in _HEADROOMS]
        for equalised in ((True,) if depthwise else (False, True))
    }
    lost: dict[Way, float] = defaultdict(float)
    halves = x[::2], x[1::2]
    for seen, held_out in (halves, halves[::-1]):
        exact = _float(graph, held_out)
        for group in ways.values():
            for way, choice in zip(group, _choices(graph, seen, input_scale, group), strict=True):
                lost[way] += _lost_of_each(_rounded(choice, held_out), exact) * len(held_out)
    best = min(lost, key=lambda way: lost[way])
    return _choices(graph, x, input_scale, [best])[0]


def _float(graph: Graph, x: Tensor) -> list[Tensor]:
    """The float outputs for images (N, C, H, W), by batch."""
    return [_output(graph, batch) for batch in torch.split(x, BATCH)]


def _output(graph: Graph, batch: Tensor) -> Tensor:
    *_, (_, y) = graph.run(batch)
    return y


def _lost(rounded: list[Tensor], exact: list[Tensor]) -> float:
    """Square error of outputs, by batch."""
    return sum(float((y - want).square().sum(dtype=torch.float64)) for y, want in zip(rounded, exact, strict=True))


def _lost_of_each(rounded: list[Tensor], exact: list[Tensor]) -> float:
    """Mean over images of the square error in how an output differs from the mean image's, over the square of how it does."""
    y, want = (torch.cat(batches).flatten(1).double() for batches in (rounded, exact))
    y, want = y - y.mean(0), want - want.mean(0)
    return float(((y - want).square().sum(1) / want.square().sum(1).clamp(min=1e-24)).mean())


def _rounded(choice: Choice, x: Tensor) -> list[Tensor]:
    """The outputs for images (N, C, H, W) with everything rounded, by batch."""
    graph = choice.graph
    last = graph.last_use()
    outputs = []
    for batch in torch.split(x, BATCH):
        values = {INPUT: (batch / choice.scales[INPUT]).round() * choice.scales[INPUT]}
        for index, node in enumerate(graph.nodes):
            operands = [values[i] for i in node.inputs]
            if isinstance(node, real.Conv):
                y = real.convolve(node, operands[0], choice.weights[index].real(), choice.biases[index].float())
            else:
                y = real.apply(node, operands)
            scale = choice.scales[index]
            values[index] = (y / scale).round_().clamp_(*bounds(node, scale)) * scale
            for operand in set(node.inputs):
                if last[operand] == index:
                    del values[operand]
        outputs.append(values[len(graph.nodes) - 1])
    return outputs
