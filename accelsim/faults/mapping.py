"""Saliency-driven mapping: channels in such an order that the least important weights land on faulty elements.

SalvageDNN (Hanif and Shafique, "SalvageDNN: salvaging deep neural network accelerators with permanent faults through
saliency-driven fault-aware mapping", Phil. Trans. R. Soc. A 2020). Filter n of a layer lies in column ``n % C``, and the
weights that read channel c of its operand in rows that follow from c, so to order a layer's filters moves weights between
columns there, and between rows in the layers that read them. The network is the same function to the bit on a healthy array,
since int32 sums do not depend on their order, and takes no more time anywhere.

A *wire* is all channels, of several activations, that have to move together: the operands and the output of a residual sum,
the two sides of a pool, the pixels of one channel behind a flatten. Wires that go through the same activations may change
places. For one such class of wires, all others in their places, what is lost is a sum over (wire, place), so the best order
is a linear assignment (``scipy.optimize.linear_sum_assignment``); class after class until nothing gets better. Where a layer
reads and writes one class it is none, and the assignment is a guess. Each step lowers what is lost, or is not taken. Where
that ends depends on where it began: it is a local optimum.

A network's input and output, and what a grouped convolution reads and writes, stay as they are. A depthwise layer's channels
all lie in column 0, wherever they are, so it carries an order through and gains nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple, assert_never

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from accelsim.faults.permanent import FaultMap
from accelsim.faults.pruning import Bool, faulty, kept
from accelsim.int8.network import (
    INPUT,
    Add,
    Channels,
    Concat,
    Conv,
    Flatten,
    Interleave,
    Layer,
    MaxPool,
    MeanPool,
    Mul,
    Network,
    Resample,
    Slice,
    Table,
)

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Saliency = Mapping[int, npt.NDArray[np.floating]]
"""Index of each MAC layer: what it costs to lose each weight (O, I/groups, R, S), 0 or more, in one unit for all layers."""
Order = dict[int, Int64]
"""Index of each activation, INPUT's too: (C,) which channel of the given network is in each place."""

SWEEPS: Final = 8
"""Passes over all classes at most; two or three were enough wherever it was tried."""


Node = tuple[int, int]
"""A channel: (activation, number)."""


class Wires(NamedTuple):
    """Wires that may change places. ``places[activation]`` (wires, channels a wire) are their channels; those of one
    column play one part."""

    places: dict[int, Int64]

    @property
    def size(self) -> int:
        """Of the wires."""
        return len(next(iter(self.places.values())))


def magnitude(network: Network) -> dict[int, npt.NDArray[np.float64]]:
    """The plainest saliency, which needs no images: a weight's magnitude in real units, squared, as a share of its layer's.

    Magnitudes of different layers say nothing against one another; shares do, roughly. ``r2f.reduce.damage`` measures better.
    """
    found = {}
    for index, layer in network.convs():
        squares = np.square(layer.weight * layer.weight_scale[:, None, None, None].astype(np.float64))
        found[index] = squares / max(float(squares.sum()), np.finfo(np.float64).tiny)
    return found


def lost(network: Network, faults: FaultMap, saliency: Saliency) -> float:
    """Sum of the saliency of the weights that FAP drops."""
    return float(sum(saliency[index][~sound].sum(dtype=np.float64) for index, sound in kept(network, faults).items()))


def mapped(network: Network, faults: FaultMap, saliency: Saliency) -> tuple[Network, Order]:
    """The same function with its channels in an order that loses less saliency on this chip, and that order.

    Raises ValueError where a layer has no saliency, or one of another shape.
    """
    for index, layer in network.convs():
        if index not in saliency or saliency[index].shape != layer.weight.shape:
            raise ValueError(f"layer {index} ({layer.name}): no saliency of shape {layer.weight.shape} is given for it")
    bad = faulty(faults)
    order = {index: np.arange(network.shape_of(index)[2]) for index in range(INPUT, len(network.layers))}
    if not bad.any():
        return network, order
    given = wires(network)
    for _ in range(SWEEPS):
        better = [_improve(network, order, each, saliency, bad) for each in given]
        if not any(better):
            break
    return ordered(network, order), order


def ordered(network: Network, order: Order) -> Network:
    """The network with its channels in an order that ``mapped`` gave."""
    return replace(network, layers=tuple(_ordered(index, layer, order) for index, layer in enumerate(network.layers)))


def _ordered(index: int, layer: Layer, order: Order) -> Layer:
    if not isinstance(layer, Conv):
        return layer
    filters = order[index]
    weight = layer.weight[filters]
    if layer.groups == 1:
        weight = weight[:, order[layer.inputs[0]]]
    return replace(
        layer,
        weight=np.ascontiguousarray(weight),
        bias=layer.bias[filters],
        weight_scale=layer.weight_scale[filters],
        multiplier=layer.multiplier[filters],
        high=layer.high[filters],
    )


def _improve(network: Network, order: Order, group: Wires, saliency: Saliency, bad: Bool) -> bool:
    """Puts one class of wires into its best places, all others staying; whether that is better than before."""
    cost = np.zeros((group.size, group.size))  # by (present place of a wire, place where it might go)
    both = False
    for index, layer in network.convs():
        if layer.groups > 1:
            continue
        source = layer.inputs[0]
        if index in group.places or source in group.places:
            present = saliency[index][order[index]][:, order[source]].astype(np.float64)
        if index in group.places:
            cost += _gathered(_as_filters(present, bad), group.places[index])
        if source in group.places:
            cost += _gathered(_as_operands(present, bad), group.places[source])
        both |= index in group.places and source in group.places
    _, place = linear_sum_assignment(cost)
    gained = float(np.trace(cost)) - float(cost[np.arange(group.size), place].sum())
    if gained <= 1e-12 * float(cost.max()):
        return False
    before = {activation: order[activation] for activation in group.places}
    least = _taken(network, order, saliency, bad) if both else 0.0
    for activation, channels in group.places.items():
        moved = order[activation].copy()
        moved[channels[place]] = order[activation][channels]
        order[activation] = moved
    if both and _taken(network, order, saliency, bad) >= least:
        # A layer reads and writes these wires: what it loses is no sum over (wire, place), and the guess was none.
        order.update(before)
        return False
    return True


def _taken(network: Network, order: Order, saliency: Saliency, bad: Bool) -> float:
    """Of the saliency what lies on faulty elements in an order, of layers that are not grouped."""
    total = 0.0
    for index, layer in network.convs():
        if layer.groups == 1:
            present = saliency[index][order[index]][:, order[layer.inputs[0]]].astype(np.float64)
            total += float(np.trace(_as_filters(present, bad)))
    return total


def _gathered(cost: Float64, channels: Int64) -> Float64:
    """A cost by (channel, channel) as one by (wire, wire): ``channels`` (wires, channels a wire) go to the other's in order."""
    return np.asarray(cost[channels[:, None, :], channels[None, :, :]].sum(axis=2))


def _as_filters(saliency: Float64, bad: Bool) -> Float64:
    """What is lost of each filter in each filter's place: (O, O). ``saliency`` is (O, I, R, S), in its present places."""
    count = len(saliency)
    down = saliency.transpose(0, 2, 3, 1).reshape(count, -1)
    rows = bad[np.arange(down.shape[1]) % len(bad)].astype(np.float64)
    return np.asarray((down @ rows)[:, np.arange(count) % bad.shape[1]])


def _as_operands(saliency: Float64, bad: Bool) -> Float64:
    """What is lost of the weights that read each channel in each channel's place: (I, I)."""
    filters, depth, height, width = saliency.shape
    columns = bad[:, np.arange(filters) % bad.shape[1]].astype(np.float64)
    found = np.zeros((depth, depth))
    for tap in range(height * width):
        of_tap = saliency[:, :, tap // width, tap % width]
        found += (columns[(tap * depth + np.arange(depth)) % len(bad)] @ of_tap).T
    return found


def wires(network: Network) -> list[Wires]:
    """The classes of wires that may change places among themselves, of two wires at least."""
    nodes = [(index, c) for index in range(INPUT, len(network.layers)) for c in range(network.shape_of(index)[2])]
    joined = _Joined({node: place for place, node in enumerate(nodes)}, len(nodes))
    known: dict[tuple[int, ...], int] = {}
    role = {node: known.setdefault((INPUT, node[1]), len(known)) for node in nodes if node[0] == INPUT}
    """What a channel is of its wire, whichever wire it is: by which layers it came, from which operand, as which pixel."""
    for index, layer in enumerate(network.layers):
        for channel, (part, sources) in enumerate(_sources(network, layer)):
            if not sources and isinstance(layer, Conv) and layer.groups > 1:
                joined.fix((index, channel))
            for source in sources:
                joined.tie((index, channel), source)
            way = (index, part, *(role[source] for source in sources))
            role[index, channel] = known.setdefault(way, len(known))
        if isinstance(layer, Conv) and layer.groups > 1 and not _is_depthwise(layer):
            joined.fix(*((layer.inputs[0], c) for c in range(network.shape_of(layer.inputs[0])[2])))
    joined.fix(*(node for node in nodes if node[0] in (INPUT, len(network.layers) - 1)))
    alike: dict[tuple[tuple[int, int], ...], list[list[Node]]] = defaultdict(list)
    for wire in joined.wires(nodes):
        wire.sort(key=lambda node: (node[0], role[node]))
        parts = tuple((node[0], role[node]) for node in wire)
        # Channels that play one part, as of a sum of x and x shuffled: which of them is which of another wire's is not known.
        if len(set(parts)) == len(parts):
            alike[parts].append(wire)
    return [_class(group) for group in alike.values() if len(group) > 1]


def _class(group: list[list[Node]]) -> Wires:
    places: dict[int, list[list[int]]] = {index: [[] for _ in group] for index, _ in group[0]}
    for number, wire in enumerate(group):
        for index, channel in wire:
            places[index][number].append(channel)
    return Wires({index: np.array(channels) for index, channels in places.items()})


def _sources(network: Network, layer: Layer) -> list[tuple[int, tuple[Node, ...]]]:
    """Of each output channel: the channels that move with it, and a number that tells parts of one wire apart."""
    source, count = layer.inputs[0], layer.shape[2]
    height, width, depth = network.shape_of(source)
    match layer:
        case Conv():
            return [(0, ((source, c),) if _is_depthwise(layer) else ()) for c in range(count)]
        case Add() | Mul():
            return [(0, tuple((operand, c) for operand in layer.inputs)) for c in range(count)]
        case Table() | MaxPool() | MeanPool() | Resample():
            return [(0, ((source, c),)) for c in range(count)]
        case Concat():
            sizes = [network.shape_of(operand)[2] for operand in layer.inputs]
            return [(part, ((layer.inputs[part], c),)) for part, size in enumerate(sizes) for c in range(size)]
        case Channels():
            return [(0, ((source, int(of)),)) for of in layer.order]
        case Slice():
            shifted = (layer.offset[2] + c for c in range(count))
            return [(1, ((source, c),)) if 0 <= c < depth else (0, ()) for c in shifted]
        case Interleave():
            blocks = layer.blocks.tolist()
            return [(0, tuple((layer.inputs[of], first + c) for of, first, _, _ in blocks)) for c in range(count)]
        case Flatten():
            return [(pixel, ((source, c),)) for c in range(depth) for pixel in range(height * width)]
        case _:
            assert_never(layer)


def _is_depthwise(layer: Conv) -> bool:
    return layer.groups > 1 and layer.groups == layer.weight.shape[0] and layer.weight.shape[1] == 1


class _Joined:
    """Disjoint sets of nodes, one of them of those that keep their places."""

    def __init__(self, place: Mapping[Node, int], fixed: int) -> None:
        self.place = place
        self.fixed = fixed
        self.parent = list(range(fixed + 1))

    def of(self, at: int) -> int:
        while self.parent[at] != at:
            self.parent[at] = self.parent[self.parent[at]]
            at = self.parent[at]
        return at

    def tie(self, one: Node, other: Node) -> None:
        self.parent[self.of(self.place[one])] = self.of(self.place[other])

    def fix(self, *nodes: Node) -> None:
        for node in nodes:
            self.parent[self.of(self.place[node])] = self.of(self.fixed)

    def wires(self, nodes: list[Node]) -> list[list[Node]]:
        """The sets without the fixed one, in the order of their first nodes."""
        found: dict[int, list[Node]] = defaultdict(list)
        for node in nodes:
            found[self.of(self.place[node])].append(node)
        found.pop(self.of(self.fixed), None)
        return list(found.values())
