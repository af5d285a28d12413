"""From the float graph to the int8 network: which scale each tensor gets, and which integers the weights become.

Activations: one scale a tensor, chosen on real images to lose least. Weights: one scale an output channel, chosen
alike. Networks with depthwise layers are equalised first: small channels are scaled up to use the tensor's steps, and
the weights behind them down, which leaves the float function as it is. Biases take up what rounding the weights adds to
the mean of each channel. Equalisation and bias correction follow Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction", ICCV 2019, sections 4.1 and 4.2, with the activations measured instead of derived
from batch norm. No randomness: the same images give the same network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from accelsim.int8 import network as net
from accelsim.int8.network import INPUT, Float32, Int8, Network, UInt8
from accelsim.lowering import graph as real
from accelsim.lowering.graph import MOVES, Graph

IntArray = npt.NDArray[np.int64]

_BATCH = 16
_BINS = 4096
_SAMPLES_AN_IMAGE = 8192
_CLIPS = torch.linspace(0.10, 1.0, 91, dtype=torch.float64)
"""Candidates for the clipping range of an activation, as shares of the largest value seen."""
_NORMS = (1.5, 2.0, 3.0)
"""Exponents of the error that the range search minimises; below the square, rare large values count less. Which is
best depends on the network (docs/networks.md), so each is tried on some of the images."""
_TRIAL = 32
"""Calibration images that decide between the exponents."""
_WEIGHT_CLIPS = torch.linspace(0.80, 1.0, 6)
_DENSE, _DEPTHWISE = 0.5, 1.0
"""How far a channel is scaled up, as an exponent of the room that it has. Dense layers behind it pay with coarser
weights, so half way; in a depthwise layer each channel has weight steps of its own, so all the way."""
_LARGEST_GAIN = 16.0
_FREE = math.sqrt(2.0)
"""Scales this close are made equal at a concat: rounding twice costs as much noise as a step this much wider."""


def input_table(mean: Sequence[float], std: Sequence[float]) -> tuple[float, Int8]:
    """(input scale, table (C, 256)) of ``(pixel / 255 - mean) / std`` for each channel, without clipping."""
    pixels = np.arange(256, dtype=np.float64) / 255
    value = (pixels[None, :] - np.asarray(mean, np.float64)[:, None]) / np.asarray(std, np.float64)[:, None]
    scale = float(np.float32(np.abs(value).max() / 127))
    return scale, np.clip(np.rint(value / scale), -128, 127).astype(np.int8)


def normalise(images: UInt8, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 images (N, H, W, C) to float32 (N, C, H, W), as the float module takes them."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(list(mean))[:, None, None]) / torch.tensor(list(std))[:, None, None]


@torch.no_grad()
def quantize(graph: Graph, images: UInt8, mean: Sequence[float], std: Sequence[float], name: str) -> Network:
    """The int8 network of a float graph, calibrated on uint8 images (N, H, W, C).

    Equalisation rewrites the graph's weights in place. Raises ValueError, which names the node, where the float graph
    gives values that are not finite.
    """
    scale, table = input_table(mean, std)
    x = normalise(images, mean, std)
    seen = _watch(graph, x)
    if any(isinstance(node, real.Conv) and node.weight.shape[1] == 1 < node.groups for node in graph.nodes):
        equalise(graph, seen)
        seen = _watch(graph, x)
    trial = x[np.linspace(0, len(x) - 1, min(len(x), _TRIAL)).astype(np.int64)]
    candidates = [_tie(graph, _activation_scales(graph, seen, norm), scale) for norm in _NORMS]
    weights: dict[int, _Weight] = {}
    biases: dict[int, Tensor] = {}
    for index, node in enumerate(graph.nodes):
        if isinstance(node, real.Conv):
            source = node.inputs[0]
            weights[index] = _quantize_weight(node, min(scales[source] for scales in candidates))
            biases[index] = _correct_bias(node, weights[index], seen[source].mean)
    choices = [_Choice(scales, weights, biases) for scales in candidates]
    exact = [_output(graph, batch) for batch in torch.split(trial, _BATCH)]
    best = min(choices, key=lambda choice: _lost(graph, choice, trial, exact))
    layers = tuple(_emit(graph, index, best) for index in range(len(graph.nodes)))
    return Network(name=name, input_shape=graph.input_shape, input_scale=scale, input_table=table, layers=layers)


@dataclass(slots=True)
class _Choice:
    """Everything that the int8 network adds to the float graph, by node."""

    scales: dict[int, float]
    weights: dict[int, _Weight]
    biases: dict[int, Tensor]
    """(O,) float64"""


def _output(graph: Graph, batch: Tensor) -> Tensor:
    *_, (_, y) = graph.run(batch)
    return y


def _lost(graph: Graph, choice: _Choice, x: Tensor, exact: list[Tensor]) -> float:
    """Square error of the output with everything rounded, summed over images (N, C, H, W); ``exact`` by batch."""
    last = graph.last_use()
    lost = 0.0
    for batch, want in zip(torch.split(x, _BATCH), exact, strict=True):
        values = {INPUT: (batch / choice.scales[INPUT]).round() * choice.scales[INPUT]}
        for index, node in enumerate(graph.nodes):
            operands = [values[i] for i in node.inputs]
            if isinstance(node, real.Conv):
                y = real.convolve(node, operands[0], choice.weights[index].real(), choice.biases[index].float())
            else:
                y = real.apply(node, operands)
            scale = choice.scales[index]
            values[index] = (y / scale).round_().clamp_(*_bounds(node, scale)) * scale
            for operand in set(node.inputs):
                if last[operand] == index:
                    del values[operand]
        lost += float((values[len(graph.nodes) - 1] - want).square().sum(dtype=torch.float64))
    return lost


@dataclass(slots=True)
class _Seen:
    """What calibration keeps of one tensor."""

    largest: Tensor
    """(C,) float64, largest magnitude of each channel"""
    mean: Tensor
    """(C,) float64"""
    counts: Tensor
    """(4096,) float64, histogram of a sample of the magnitudes, from 0 to the largest"""


def _watch(graph: Graph, x: Tensor) -> dict[int, _Seen]:
    """Runs the float graph on images (N, C, H, W) and keeps the ranges of every tensor."""
    largest: dict[int, Tensor] = {}
    mean: dict[int, Tensor] = {}
    samples: dict[int, list[Tensor]] = {}
    for batch in torch.split(x, _BATCH):
        share = len(batch) / len(x)
        for index, y in _with_input(graph, batch):
            magnitude = y.abs()
            peak = magnitude.amax((0, 2, 3)).double()
            if not bool(torch.isfinite(peak).all()):
                where = "the input" if index == INPUT else graph.nodes[index].name
                raise ValueError(f"{where}: the float module gives {float(peak.max())} on the calibration images")
            # An odd step so that the sample walks through all columns and channels.
            step = max(1, magnitude.numel() // (len(batch) * _SAMPLES_AN_IMAGE)) | 1
            samples.setdefault(index, []).append(magnitude.flatten()[::step].clone())
            largest[index] = torch.maximum(largest.get(index, peak), peak)
            mean[index] = mean.get(index, torch.zeros_like(peak)) + y.mean((0, 2, 3)).double() * share
    return {
        index: _Seen(peak, mean[index], torch.histc(torch.cat(samples[index]), _BINS, 0, float(peak.max())).double())
        for index, peak in largest.items()
    }


def _with_input(graph: Graph, batch: Tensor) -> Iterator[tuple[int, Tensor]]:
    yield INPUT, batch
    yield from graph.run(batch)


def _activation_scales(graph: Graph, seen: dict[int, _Seen], norm: float) -> dict[int, float]:
    """The scale of each node that does not just hand on its operand's."""
    last = len(graph.nodes) - 1
    return {
        index: _scale(seen[index], norm, clip=index != last)
        for index, node in enumerate(graph.nodes)
        if not isinstance(node, MOVES)
    }


def _scale(seen: _Seen, norm: float, clip: bool) -> float:
    """The scale of least error; the network's output is not clipped, since its largest values decide."""
    largest = float(seen.largest.max())
    if largest == 0:
        return 1.0
    if not clip:
        return float(np.float32(largest / 127))
    centres = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (largest / _BINS)
    step = _CLIPS[:, None] * (largest / 127)
    error = (centres - step * (centres / step).round().clamp(max=127)).abs().pow(norm) @ seen.counts
    return float(np.float32(_CLIPS[int(error.argmin())] * largest / 127))


def equalise(graph: Graph, seen: dict[int, _Seen]) -> None:
    """Scales channels up, and the weights that read them down, so that each makes use of its tensor's steps.

    A channel keeps its factor through everything that only adds, moves, pools or concatenates it, so the factor is
    chosen for whole sets of channels. Channels that reach the image, the output, a table or a product stay as they
    are, and so does one that a ReLU6 cuts off. Changes the convolutions' weights in place; the float function stays.
    """
    nodes = graph.nodes
    start = dict(zip(range(INPUT, len(nodes)), _starts(graph), strict=True))
    total = start[len(nodes) - 1] + nodes[-1].shape[2]

    def channels(index: int) -> IntArray:
        return np.arange(start[index], start[index] + graph.shape_of(index)[2])

    parent = np.arange(total)
    fixed = np.zeros(total, bool)
    fixed[channels(INPUT)] = fixed[channels(len(nodes) - 1)] = True
    room = np.full(total, _LARGEST_GAIN)
    exponent = np.full(total, _DEPTHWISE)
    for index, node in enumerate(nodes):
        own, operands = channels(index), [channels(i) for i in node.inputs]
        match node:
            case real.MaxPool() | real.MeanPool():
                _join(parent, own, operands[0])
            case real.Add():
                for operand in operands:
                    _join(parent, own, operand)
            case real.Concat():
                _join(parent, own, np.concatenate(operands))
            case real.Channels():
                _join(parent, own, operands[0][node.order])
            case real.Slice():
                source = np.arange(len(own)) + node.offset[2]
                inside = (source >= 0) & (source < len(operands[0]))
                _join(parent, own[inside], operands[0][source[inside]])
            case real.Conv():
                if node.weight.shape[1] > 1 or node.groups == 1:
                    exponent[operands[0]] = _DENSE
            case _:
                fixed[np.concatenate([own, *operands])] = True
        if node.low not in (0, -math.inf) or node.high <= 0:
            fixed[own] = True
        largest = np.maximum(seen[index].largest.numpy(), 1e-30)
        reach = np.full(len(own), 127 * _scale(seen[index], _NORMS[0], clip=True))
        room[own] = np.where(largest > 1e-30, np.minimum(reach, node.high) / largest, 1.0)
    root = np.array([_find(parent, i) for i in range(total)])
    least, power, held = np.full(total, _LARGEST_GAIN), np.full(total, np.inf), np.zeros(total, bool)
    np.minimum.at(least, root, room)
    np.minimum.at(power, root, exponent)
    np.logical_or.at(held, root, fixed)
    gain = np.where(held[root], 1.0, np.maximum(least[root], 1.0) ** power[root])
    for index, node in enumerate(nodes):
        if isinstance(node, real.Conv):
            own_gain = torch.from_numpy(gain[channels(index)])
            out, fan_in = node.weight.shape[:2]
            before = torch.from_numpy(gain[channels(node.inputs[0])]).reshape(node.groups, 1, fan_in)
            before = before.expand(node.groups, out // node.groups, fan_in).reshape(out, fan_in)
            node.weight = node.weight * (own_gain[:, None] / before)[:, :, None, None]
            node.bias = node.bias * own_gain


def _starts(graph: Graph) -> list[int]:
    """Where each tensor's channels begin in a list of all channels, the input first."""
    widths = [graph.shape_of(i)[2] for i in range(INPUT, len(graph.nodes))]
    return [0, *np.cumsum(widths[:-1]).tolist()]


def _find(parent: IntArray, place: int) -> int:
    while parent[place] != place:
        parent[place] = parent[parent[place]]
        place = int(parent[place])
    return place


def _join(parent: IntArray, left: IntArray, right: IntArray) -> None:
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        first, second = sorted((_find(parent, a), _find(parent, b)))
        parent[second] = first


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


def _tie(graph: Graph, own: dict[int, float], input_scale: float) -> dict[int, float]:
    """Makes operands share their concat's or sum's scale where that loses nothing, then fills in the moved ones.

    An operand that only a concat reads will be rounded to the concat's steps anyway; one that only a sum reads too, if
    its range fits. Operands with other readers (ShuffleNet's untouched half) join where the scales are close.
    """
    readers = _readers(graph)
    scales = dict(own)
    group = {index: [index] for index in own}
    for index, node in enumerate(graph.nodes):
        if not isinstance(node, real.Concat):
            continue
        for root in {_root(graph, i) for i in node.inputs} - {INPUT}:
            if readers[root] == {index} or group[root] is group[index]:
                continue
            together = group[root] + group[index]
            if max(own[i] for i in together) <= _FREE * min(own[i] for i in together):
                for i in together:
                    group[i] = together
    for index in own:
        scales[index] = max(own[i] for i in group[index])
    # Backwards, so that a concat within a concat takes the outer one's scale first.
    for index in reversed(range(len(graph.nodes))):
        node = graph.nodes[index]
        if isinstance(node, real.Concat | real.Add):
            for root in {_root(graph, i) for i in node.inputs} - {INPUT}:
                fits = isinstance(node, real.Concat) or scales[root] < scales[index]
                if readers[root] == {index} and fits:
                    scales[root] = scales[index]
    scales[INPUT] = input_scale
    return {index: scales[_root(graph, index)] for index in range(INPUT, len(graph.nodes))}


@dataclass(slots=True)
class _Weight:
    integers: Tensor
    """(O, I/groups, R, S) float32, whole numbers of [-127, 127]"""
    scale: Float32

    def real(self) -> Tensor:
        return self.integers * torch.from_numpy(self.scale)[:, None, None, None]


def _quantize_weight(node: real.Conv, input_scale: float) -> _Weight:
    """Integers and scales; ``input_scale`` is the smallest that the layer's operand may get."""
    weight = node.weight.float()
    flat = weight.flatten(1)
    largest = flat.abs().amax(1)
    # A channel of zeros still needs steps in which its bias is an int32 with room to spare.
    smallest = (node.bias.abs().float() / (input_scale * 2**24)).clamp(min=1e-12)
    best = (largest / 127).clamp(min=smallest)
    error = torch.full_like(largest, math.inf)
    for clip in _WEIGHT_CLIPS:
        step = (largest * clip / 127).clamp(min=smallest)
        lost = (flat - step[:, None] * (flat / step[:, None]).round().clamp(-127, 127)).square().sum(1)
        best = torch.where(lost < error, step, best)
        error = torch.minimum(lost, error)
    integers = (weight / best[:, None, None, None]).round().clamp(-127, 127)
    return _Weight(integers, best.numpy().astype(np.float32))


def _correct_bias(node: real.Conv, weight: _Weight, mean: Tensor) -> Tensor:
    """The bias (O,) float64 that takes up the mean error of the rounded weights, for operands of that mean (C,)."""
    error = (node.weight - weight.real().double()).sum((2, 3))
    out, fan_in = error.shape
    operand = mean.reshape(node.groups, 1, fan_in)
    return node.bias + (error.reshape(node.groups, out // node.groups, fan_in) * operand).sum(2).reshape(out)


def _bounds(node: real.Node, scale: float) -> tuple[int, int]:
    """The node's bounds in steps of its result. Signed results use all of [-128, 127]."""
    low = -128 if node.low == -math.inf else max(-128, round(node.low / scale))
    high = 127 if node.high == math.inf else min(127, round(node.high / scale))
    return min(low, 127), max(high, -128)


def _emit(graph: Graph, index: int, choice: _Choice) -> net.Layer:
    scales = choice.scales
    node = graph.nodes[index]
    operands = [scales[i] for i in node.inputs]
    scale = scales[index]
    low, high = _bounds(node, scale)
    name, inputs, shape = node.name, tuple(node.inputs), node.shape
    match node:
        case real.Conv():
            weight = choice.weights[index]
            steps = choice.biases[index].numpy() / (np.float64(operands[0]) * weight.scale.astype(np.float64))
            return net.Conv(
                name=name, inputs=inputs, shape=shape, scale=scale, low=low, high=high,
                weight=np.ascontiguousarray(weight.integers.numpy().astype(np.int8)),
                bias=np.clip(np.rint(steps), -(2**30), 2**30).astype(np.int32),
                weight_scale=weight.scale,
                multiplier=net.multiplier(operands[0], weight.scale, scale),
                stride=node.stride, padding=node.padding, dilation=node.dilation, groups=node.groups,
            )  # fmt: skip
        case real.Add() | real.Concat():
            kind = net.Add if isinstance(node, real.Add) else net.Concat
            multipliers = tuple(net.operand_multiplier(s, scale) for s in operands)
            return kind(name=name, inputs=inputs, shape=shape, scale=scale, multipliers=multipliers, low=low, high=high)
        case real.Mul():
            factor = float(net.multiplier(operands[0], np.array([operands[1]], np.float32), scale)[0])
            return net.Mul(name=name, inputs=inputs, shape=shape, scale=scale, multiplier=factor, low=low, high=high)
        case real.MaxPool():
            return net.MaxPool(
                name=name, inputs=inputs, shape=shape, scale=scale,
                kernel=node.kernel, stride=node.stride, padding=node.padding, dilation=node.dilation,
            )  # fmt: skip
        case real.MeanPool():
            return net.MeanPool(
                name=name, inputs=inputs, shape=shape, scale=scale, low=low, high=high,
                kernel=node.kernel, stride=node.stride, padding=node.padding,
                multiplier=net.operand_multiplier(operands[0], scale, node.kernel[0] * node.kernel[1]),
            )  # fmt: skip
        case real.Pointwise():
            table, slope = _table(node, operands[0], scale, low, high)
            return net.Table(name=name, inputs=inputs, shape=shape, scale=scale, table=table, slope=slope)
        case real.Channels():
            order = np.array(node.order, np.int32)
            return net.Channels(name=name, inputs=inputs, shape=shape, scale=scale, order=order)
        case real.Slice():
            return net.Slice(name=name, inputs=inputs, shape=shape, scale=scale, offset=node.offset, step=node.step)
        case real.Flatten():
            return net.Flatten(name=name, inputs=inputs, shape=shape, scale=scale)
    raise TypeError(f"{name}: {type(node).__name__} was not folded into another layer")


def _table(node: real.Pointwise, operand: float, scale: float, low: int, high: int) -> tuple[Int8, Float32]:
    """The function at all 256 inputs, in steps of the output, and its derivative there."""
    with torch.enable_grad():
        x = (torch.arange(-128, 128, dtype=torch.float64) * operand).requires_grad_()
        y = real.clamp(node, node.function(x))
        (slope,) = torch.autograd.grad(y.sum(), x)
    steps = (y.detach() / scale).nan_to_num().round().clamp(low, high)
    return steps.numpy().astype(np.int8), slope.nan_to_num(0, 0, 0).numpy().astype(np.float32)
