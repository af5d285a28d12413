"""Transposed convolutions of the zoo's generative networks on the modelled array: cycles, energy, whether all ways agree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from accelsim import zoo
from accelsim.engine import Engine
from accelsim.engine.reference import requantise
from accelsim.int8 import network as net
from accelsim.int8.network import INPUT, Activation, Int8, Network, Shape, UInt8, Way
from accelsim.lowering import fold, lower_ways, trace
from accelsim.lowering import graph as real
from accelsim.lowering.deconv import Operand, convolutions, mac_layers, macs
from accelsim.timing import Array, layer_cycles, layer_macs
from accelsim.timing.energy import Prices, layer_energy, total, traffic_on_chip
from accelsim.zoo.generative import GENERATIVE, INPUTS

WAYS: Final[tuple[Way, ...]] = ("zero-padded", "split", "phases", "merged")
BATCHES: Final = (1, 16)
WEIGHTS: Final = {"dcgan_faces": "dcgan_faces64.safetensors", "waifu2x": "waifu2x_photo_up2x.safetensors"}
"""Files of real weights in the folder of real data; the other networks have random ones."""


class Timed(msgspec.Struct, kw_only=True, frozen=True):
    """A network, to be timed: no weights are needed."""

    network: str
    width: int | None = None
    """Of its narrowest layer; None is the network's own."""


class Cost(msgspec.Struct, kw_only=True, frozen=True):
    """What a layer takes in one way, for a batch."""

    way: Way
    batch: int
    cycles: int
    picojoules: float
    dram: float
    """Of them, for DRAM."""
    dram_bytes: int
    buffer_bytes: int
    filling: int
    """Of the cycles, those in which a tile is loaded and the array fills and drains."""
    idle_rows: float
    """Of the other cycles, those of rows without a weight, over all rows: taps do not fill them."""
    idle_columns: float
    """The same of columns: too few filters. Cycles = filling + idle_rows + idle_columns + multiplications / (R * C)."""


class Timing(msgspec.Struct, kw_only=True, frozen=True):
    """A transposed convolution that makes its image larger."""

    name: str
    shape: tuple[int, int, int, int, int, int]
    """Channels in and out, kernel, stride, height and width of the input."""
    macs: dict[str, int]
    """Multiplications of an image, by way."""
    costs: list[Cost]


class Found(msgspec.Struct, kw_only=True, frozen=True):
    """A network, timed."""

    layers: list[Timing]
    rest_cycles: dict[str, int]
    """Of all other MAC layers, by batch; a projection of a latent vector, a transposed convolution too, runs the best way."""
    rest_picojoules: dict[str, float]
    rest_macs: int
    parameters: int


def timed(cell: Timed, shared: Path) -> Found:
    """Cycles and energy of a network on ``Array()`` and at ``Prices()``."""
    module = _module(cell.network, cell.width)
    graph = fold(trace(module, INPUTS[cell.network]))
    layers, rest = [], []
    for node in graph.nodes:
        if not isinstance(node, real.Conv):
            continue
        operand = graph.shape_of(node.inputs[0])
        conv = _blank(node)
        if not isinstance(node, real.Deconv):
            rest.append([(conv, operand)])
        elif max(node.stride) > 1:
            layers.append(_timing(node, conv, operand))
        else:
            rest.append(list(mac_layers(convolutions(conv, Operand(operand, 1.0, True), 0, "auto"), operand, 0)))
    others = [pair for pairs in rest for pair in pairs]
    return Found(
        layers=layers,
        rest_cycles={str(batch): sum(layer_cycles(one, s, Array(), stream=batch) for one, s in others) for batch in BATCHES},
        rest_picojoules={
            str(batch): total(layer_energy(one, s, Array(), Prices(), batch=batch) for one, s in others).picojoules
            for batch in BATCHES
        },
        rest_macs=sum(layer_macs(one) for one, _ in others),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )


def _module(network: str, width: int | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (GENERATIVE[network]() if width is None else GENERATIVE[network](width=width)).eval()


@torch.no_grad()
def _spread(module: nn.Module) -> None:
    """Random weights as He et al. 2015 have them: with torch's own activations fade, and zeros agree with zeros."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            taps = part.in_channels * math.prod(part.kernel_size)
            if isinstance(part, nn.ConvTranspose2d):
                taps //= math.prod(part.stride)
            part.weight.normal_(0, math.sqrt(2 / taps), generator=generator)


def _blank(node: real.Conv) -> net.Conv:
    """The node's layer with weights of zero, whose shapes alone count."""
    out = node.weight.shape[0]
    ones = np.ones(out, np.float32)
    return net.Conv(
        name=node.name, inputs=(INPUT,), shape=node.shape, scale=1.0, weight=np.zeros(tuple(node.weight.shape), np.int8),
        bias=np.zeros(out, np.int32), weight_scale=ones, multiplier=ones, stride=node.stride, padding=node.padding,
        dilation=node.dilation, groups=node.groups,
    )  # fmt: skip


def _timing(node: real.Conv, conv: net.Conv, operand: Shape) -> Timing:
    made = {way: convolutions(conv, Operand(operand, 1.0, True), 0, way) for way in WAYS}
    out, fan_in, kernel, _ = conv.weight.shape
    costs = []
    for way, layers in made.items():
        convs = list(mac_layers(layers, operand, 0))
        costs += [_cost(way, convs, batch) for batch in BATCHES]
    return Timing(
        name=node.name,
        shape=(fan_in * conv.groups, out, kernel, conv.stride[0], operand[0], operand[1]),
        macs={way: macs(layers) for way, layers in made.items()},
        costs=costs,
    )


def _cost(way: Way, convs: list[tuple[net.Conv, Shape]], batch: int) -> Cost:
    array = Array()
    spent = total(layer_energy(one, shape, array, Prices(), batch=batch) for one, shape in convs)
    moved = [traffic_on_chip(one, shape, array, batch=batch) for one, shape in convs]
    filling, rows, columns = 0, 0.0, 0.0
    for one, _ in convs:
        taps, filters = one.weight[0].size, one.weight.shape[0] // one.groups
        across, down = -(-taps // array.rows) * array.rows, -(-filters // array.columns) * array.columns
        pixels = batch * math.prod(one.shape[:2]) * one.groups
        tiles = (across // array.rows) * (down // array.columns)
        filling += (2 * array.rows + array.columns - 2) * tiles * one.groups
        rows += pixels * tiles * (1 - taps / across)
        columns += pixels * tiles * (taps / across) * (1 - filters / down)
    return Cost(
        way=way,
        batch=batch,
        cycles=sum(layer_cycles(one, shape, array, stream=batch) for one, shape in convs),
        picojoules=spent.picojoules,
        dram=spent.dram,
        dram_bytes=sum(one.dram for one in moved),
        buffer_bytes=sum(one.buffer_reads + one.buffer_writes for one in moved),
        filling=filling,
        idle_rows=rows,
        idle_columns=columns,
    )


class Checked(msgspec.Struct, kw_only=True, frozen=True):
    """A network, to be run in all ways."""

    network: str
    width: int | None = None
    shape: Shape | None = None
    """Of its input; None is the network's own."""
    weights: str | None = None


class Agreement(msgspec.Struct, kw_only=True, frozen=True):
    """Whether all ways gave the same integers."""

    layers: int
    """Transposed convolutions that were held against the scatter."""
    outputs: int
    """Integers of the network's output."""
    distinct: int
    """Different ones among them: a network that says nothing agrees with anything."""
    wrong: list[str]
    """What differed: the way and the layer."""


def reads(cell: Checked) -> tuple[str, ...]:
    """The files that a check reads."""
    return () if cell.weights is None else (f"weights/{cell.weights}",)


def checked(cell: Checked, shared: Path) -> Agreement:
    """Runs a network in all ways on one image, and each transposed convolution as a scatter in float64, which is exact here."""
    module = _module(cell.network, cell.width)
    if cell.weights is None:
        _spread(module)
    else:
        zoo.load_weights(module, shared / "weights" / cell.weights)
    shape = cell.shape or INPUTS[cell.network]
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    grey = ((0.5,) * shape[2], (0.5,) * shape[2])
    networks = dict(zip(WAYS, lower_ways(module, images, *grey, cell.network, WAYS, activations="signed"), strict=True))
    return agreement(networks, images[:1])


def agreement(networks: dict[Way, Network], images: UInt8) -> Agreement:
    """Whether these networks, one a way, give the same integers for uint8 images (N, H, W, C) in every layer that they share,
    and transposed convolutions those of the scatter."""
    x = networks["zero-padded"].quantize_images(images)
    outputs = {way: dict(_named(network, x)) for way, network in networks.items()}
    base = outputs["zero-padded"]
    wrong = []
    for way, found in outputs.items():
        wrong += [f"{way}: {name}" for name, y in found.items() if name in base and not np.array_equal(y, base[name])]
    count = 0
    for layer, want in _scattered(networks["zero-padded"], x):
        count += 1
        wrong += [f"{way}: {layer} and the scatter" for way, found in outputs.items() if not np.array_equal(found[layer], want)]
    last = base[networks["zero-padded"].layers[-1].name]
    return Agreement(layers=count, outputs=last.size, distinct=len(np.unique(last)), wrong=wrong)


def _named(network: Network, x: Int8) -> Iterator[tuple[str, Activation]]:
    return ((layer.name, y) for layer, y in zip(network.layers, Engine(network).run(x), strict=True))


def _scattered(network: Network, x: Int8) -> Iterator[tuple[str, Activation]]:
    """(name, output by the definition) of each transposed convolution of a zero-padded network."""
    outputs = Engine(network).run(x)
    for spread, conv in zip(network.layers, network.layers[1:], strict=False):
        if isinstance(spread, net.Interleave) and isinstance(conv, net.Conv) and spread.name == f"{conv.name}.zeros":
            source = spread.inputs[0]
            operand: Activation = x if source == INPUT else outputs[source]
            yield conv.name, scatter(conv, operand, spread.step)


def scatter(conv: net.Conv, x: Activation, stride: tuple[int, int]) -> Activation:
    """Output (N, H, W, O) of a transposed convolution: each pixel of x (N, H, W, I) adds its products to all that it reaches.

    ``conv`` is the ordinary convolution of the input with zeros between its pixels, its filter turned round.
    Sums stay below 2**53, so float64 is exact.
    """
    h, w, out = conv.shape
    rows, columns = conv.weight.shape[2:]
    front = rows - 1 - conv.padding[0], columns - 1 - conv.padding[1]
    whole = (max(h, (x.shape[1] - 1) * stride[0] + rows) + rows, max(w, (x.shape[2] - 1) * stride[1] + columns) + columns)
    acc: npt.NDArray[np.float64] = np.zeros((len(x), *whole, out))
    pixels = x.astype(np.float64)
    for r in range(rows):
        for s in range(columns):
            tap = conv.weight[:, :, rows - 1 - r, columns - 1 - s].astype(np.float64).T
            acc[:, r : r + stride[0] * x.shape[1] : stride[0], s : s + stride[1] * x.shape[2] : stride[1]] += pixels @ tap
    cut = acc[:, front[0] : front[0] + h, front[1] : front[1] + w] + conv.bias
    return requantise(conv, cut.astype(np.int32))
