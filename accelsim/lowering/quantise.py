"""From the float graph to the int8 network: which scale each tensor gets, and which integers the weights become.

Activations: one scale a tensor, chosen on real images to lose least. Weights: one scale an output channel, chosen
alike. Networks with depthwise layers are equalised first. Biases take up what rounding the weights adds to
the mean of each channel. No randomness: the same images give the same network.
"""

from __future__ import annotations

from collections.abc import Sequence

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
"""Calibration images that decide between the exponents."""


@torch.no_grad()
def quantise(graph: Graph, images: UInt8, mean: Sequence[float], std: Sequence[float], name: str) -> Network:
    """The int8 network of a float graph, calibrated on uint8 images (N, H, W, C).

    Equalisation rewrites the graph's weights in place. Raises ValueError, which names the node, where the float graph
    gives values that are not finite.
    """
    scale, table = input_table(mean, std)
    x = normalise(images, mean, std).contiguous(memory_format=torch.channels_last)  # a third faster
    seen = watch(graph, x)
    if any(isinstance(node, real.Conv) and node.weight.shape[1] == 1 < node.groups for node in graph.nodes):
        equalise(graph, seen)
        seen = watch(graph, x)
    trial = x[np.linspace(0, len(x) - 1, min(len(x), _TRIAL)).astype(np.int64)]
    candidates = [tie(graph, activation_scales(graph, seen, norm), scale) for norm in NORMS]
    weights: dict[int, Weight] = {}
    biases: dict[int, Tensor] = {}
    for index, node in enumerate(graph.nodes):
        if isinstance(node, real.Conv):
            source = node.inputs[0]
            weights[index] = quantise_weight(node, min(scales[source] for scales in candidates))
            biases[index] = correct_bias(node, weights[index], seen[source].mean)
    choices = [Choice(scales, weights, biases) for scales in candidates]
    exact = [_output(graph, batch) for batch in torch.split(trial, BATCH)]
    best = min(choices, key=lambda choice: _lost(graph, choice, trial, exact))
    layers = tuple(emit(graph, index, best) for index in range(len(graph.nodes)))
    return Network(name=name, input_shape=graph.input_shape, input_scale=scale, input_table=table, layers=layers)


def _output(graph: Graph, batch: Tensor) -> Tensor:
    *_, (_, y) = graph.run(batch)
    return y


def _lost(graph: Graph, choice: Choice, x: Tensor, exact: list[Tensor]) -> float:
    """Square error of the output with everything rounded, summed over images (N, C, H, W); ``exact`` by batch."""
    last = graph.last_use()
    lost = 0.0
    for batch, want in zip(torch.split(x, BATCH), exact, strict=True):
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
        lost += float((values[len(graph.nodes) - 1] - want).square().sum(dtype=torch.float64))
    return lost
