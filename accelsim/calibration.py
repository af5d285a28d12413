"""From the float graph to the int8 network: which scale each tensor gets, and which integers the weights become.

Activations: one scale a tensor, chosen to lose least in the mean square on real images. Weights: one scale an output
channel, chosen alike. Biases: shifted so that every channel keeps the mean it had in float (bias correction, Nagel et
al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2), measured on the
images and with the layers in front already quantised. No randomness: the same images give the same network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from accelsim import graph as real
from accelsim import network as net
from accelsim.graph import MOVES, Graph
from accelsim.network import INPUT, Float32, Int8, Network, UInt8

_BATCH = 16
_BINS = 4096
_SAMPLES_AN_IMAGE = 8192
_CLIPS = torch.linspace(0.30, 1.0, 71, dtype=torch.float64)
"""Candidates for the clipping range of an activation, as shares of the largest value seen."""
_WEIGHT_CLIPS = torch.linspace(0.80, 1.0, 11)
_CORRECTION_BYTES = 64 << 20
"""Largest activation of the bias correction's batch: bounds its memory, and so the number of its images."""
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

    Raises ValueError, which names the node, where the float graph gives values that are not finite.
    """
    scale, table = input_table(mean, std)
    scales = _tie(graph, _activation_scales(graph, normalise(images, mean, std)), scale)
    scales[INPUT] = scale
    weights = {
        index: _quantize_weight(node, scales[node.inputs[0]])
        for index, node in enumerate(graph.nodes)
        if isinstance(node, real.Conv)
    }
    largest = max(math.prod(graph.shape_of(i)) for i in range(INPUT, len(graph.nodes))) * 4
    count = max(1, min(len(images), _CORRECTION_BYTES // largest))
    chosen = images[np.linspace(0, len(images) - 1, count).astype(np.int64)]
    biases = _correct_biases(graph, normalise(chosen, mean, std), table[:, :], scales, weights, chosen)
    layers = tuple(_emit(graph, index, scales, weights, biases) for index in range(len(graph.nodes)))
    return Network(name=name, input_shape=graph.input_shape, input_scale=scale, input_table=table, layers=layers)


@dataclass(slots=True)
class _Seen:
    largest: float
    sample: list[Tensor]


def _activation_scales(graph: Graph, x: Tensor) -> dict[int, float]:
    seen = {i: _Seen(0.0, []) for i in range(len(graph.nodes))}
    for batch in torch.split(x, _BATCH):
        for index, y in graph.run(batch):
            node = graph.nodes[index]
            if isinstance(node, MOVES):
                continue
            magnitude = y.abs().flatten()
            largest = float(magnitude.max())
            if not math.isfinite(largest):
                raise ValueError(f"{node.name}: the float module gives {largest} on the calibration images")
            seen[index].largest = max(seen[index].largest, largest)
            # An odd step so that the sample walks through all columns and channels.
            step = max(1, magnitude.numel() // (len(batch) * _SAMPLES_AN_IMAGE)) | 1
            seen[index].sample.append(magnitude[::step])
    return {
        index: _scale(one, clip=index != len(graph.nodes) - 1)
        for index, one in seen.items()
        if not isinstance(graph.nodes[index], MOVES)
    }


def _scale(seen: _Seen, clip: bool) -> float:
    """The scale of least mean square error; the network's output is not clipped, since its largest values decide."""
    if seen.largest == 0:
        return 1.0
    if not clip:
        return float(np.float32(seen.largest / 127))
    counts = torch.histc(torch.cat(seen.sample), _BINS, 0, seen.largest).double()
    centres = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (seen.largest / _BINS)
    step = _CLIPS[:, None] * (seen.largest / 127)
    error = (centres - step * (centres / step).round().clamp(max=127)).square() @ counts
    return float(np.float32(_CLIPS[int(error.argmin())] * seen.largest / 127))


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


def _correct_biases(
    graph: Graph, x: Tensor, table: Int8, scales: dict[int, float], weights: dict[int, _Weight], images: UInt8
) -> dict[int, Tensor]:
    """The bias (O,) float64 of each convolution that gives every channel its float mean back.

    The float graph and the quantised one run side by side on the same images, so that the difference is the
    quantisation's and not the sample's.
    """
    integers = np.stack([table[c][images[..., c]] for c in range(images.shape[3])], axis=1)
    last = graph.last_use()
    exact = {INPUT: x}
    rough = {INPUT: torch.from_numpy(integers).float() * scales[INPUT]}
    biases: dict[int, Tensor] = {}
    for index, node in enumerate(graph.nodes):
        y = real.apply(node, [exact[i] for i in node.inputs])
        operands = [rough[i] for i in node.inputs]
        if isinstance(node, real.Conv):
            z = real.convolve(node, operands[0], weights[index].real(), node.bias.float())
            error = y.double().mean((0, 2, 3)) - z.double().mean((0, 2, 3))
            biases[index] = node.bias + error
            z += error.float()[:, None, None]
        else:
            z = real.apply(node, operands)
        exact[index] = real.clamp(node, y)
        low, high = _bounds(node, scales[index])
        rough[index] = (z / scales[index]).round_().clamp_(low, high) * scales[index]
        for operand in set(node.inputs):
            if last[operand] == index:
                del exact[operand], rough[operand]
    return biases


def _bounds(node: real.Node, scale: float) -> tuple[int, int]:
    """The node's bounds in steps of its result. Signed results use all of [-128, 127]."""
    low = -128 if node.low == -math.inf else max(-128, round(node.low / scale))
    high = 127 if node.high == math.inf else min(127, round(node.high / scale))
    return min(low, 127), max(high, -128)


def _emit(
    graph: Graph, index: int, scales: dict[int, float], weights: dict[int, _Weight], biases: dict[int, Tensor]
) -> net.Layer:
    node = graph.nodes[index]
    operands = [scales[i] for i in node.inputs]
    scale = scales[index]
    low, high = _bounds(node, scale)
    name, inputs, shape = node.name, tuple(node.inputs), node.shape
    match node:
        case real.Conv():
            weight = weights[index]
            steps = biases[index].numpy() / (np.float64(operands[0]) * weight.scale.astype(np.float64))
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
