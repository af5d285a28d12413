"""The float graph between a torch module and the int8 network: the same layers, in real numbers.

``accelsim.lowering.trace`` writes it, ``accelsim.lowering.quantise`` runs it to choose the scales. Activations are torch
float32 tensors (N, C, H, W); ``INPUT`` (-1) is the normalised image. Every node clamps its result to [low, high], which is
where ReLU and ReLU6 go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from accelsim.int8.network import INPUT, Int32, Shape
from accelsim.lowering.origins import Origin

Function = Callable[[Tensor], Tensor]


@dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """One operation. ``shape`` is (H, W, C) of the result for one image."""

    name: str
    inputs: list[int]
    shape: Shape
    low: float = -math.inf
    high: float = math.inf


@dataclass(slots=True, kw_only=True, eq=False)
class Conv(Node):
    """Convolution or linear. ``weight`` (O, I/groups, R, S) and ``bias`` (O,) are float64."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    origins: frozenset[Origin] = frozenset()
    """The module's parameters that ``weight`` and ``bias`` come from."""
    gain: Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.float64))
    """(O,) or (1,) float64, what the layer's results are scaled up by; a finite ``high`` is scaled up with them."""


@dataclass(slots=True, kw_only=True, eq=False)
class Deconv(Conv):
    """Transposed convolution: input pixel (i, j) adds its products to output (i * stride + r - padding, ...) for each tap.

    ``weight`` is (O, I/groups, R, S) like a convolution's, taps in torch's order; ``shape`` has the output padding.
    """


@dataclass(slots=True, kw_only=True, eq=False)
class Affine(Node):
    """``x * factor + shift``, each (C,) float64: batch norm before it is folded."""

    factor: Tensor
    shift: Tensor
    origins: frozenset[Origin] = frozenset()


@dataclass(slots=True, kw_only=True, eq=False)
class Clamp(Node):
    """ReLU and its like, before they are folded into the bounds of the layer in front."""


@dataclass(slots=True, kw_only=True, eq=False)
class Add(Node):
    """Sum of the operands."""


@dataclass(slots=True, kw_only=True, eq=False)
class Mul(Node):
    """Product of two operands, the second of the same shape or (1, 1, C)."""


@dataclass(slots=True, kw_only=True, eq=False)
class Concat(Node):
    """Operands side by side in C."""


@dataclass(slots=True, kw_only=True, eq=False)
class MaxPool(Node):
    """Largest value of each window."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool


@dataclass(slots=True, kw_only=True, eq=False)
class MeanPool(Node):
    """Mean of each window; padding counts as zeros."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)


@dataclass(slots=True, kw_only=True, eq=False)
class Pointwise(Node):
    """A function of each element alone, or one a channel; becomes a table, or one a channel.

    It is asked for (N, C, H, W), and for (N, 1, 1, 1) by who wants every channel's values at the same arguments.
    """

    function: Function


@dataclass(slots=True, kw_only=True, eq=False)
class Channels(Node):
    """``y[:, i] = x[:, order[i]]``."""

    order: list[int]


@dataclass(slots=True, kw_only=True, eq=False)
class Slice(Node):
    """Strided window with zeros outside of the operand; ``offset`` is (H, W, C) as in ``network.Slice``."""

    offset: tuple[int, int, int]
    step: tuple[int, int] = (1, 1)


@dataclass(slots=True, kw_only=True, eq=False)
class Interleave(Node):
    """Blocks (channel, row, column) of the operand's channels, put together as in ``network.Interleave``."""

    step: tuple[int, int]
    blocks: tuple[tuple[int, int, int], ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Resample(Node):
    """Weighted means of rows (H, A) and columns (W, B), int32, as in ``network.Resample``."""

    rows: Int32
    row_weights: Int32
    columns: Int32
    column_weights: Int32

    @property
    def blends(self) -> bool:
        """Whether a pixel may be of several, so that a ReLU behind is not one in front."""
        return bool(self.rows.shape[1] > 1 or self.columns.shape[1] > 1)


@dataclass(slots=True, kw_only=True, eq=False)
class Flatten(Node):
    """(N, C, H, W) to (N, C*H*W, 1, 1)."""


MOVES = (MaxPool, Channels, Slice, Flatten, Interleave, Resample)
"""Nodes that hand on their operand's values, so that they keep its scale, and that a ReLU may pass unless they blend."""


@dataclass(slots=True)
class Graph:
    """Nodes in topological order; the last one is the output."""

    input_shape: Shape
    nodes: list[Node] = field(default_factory=list)

    def shape_of(self, index: int) -> Shape:
        """(H, W, C) of a node's result, or of the input for INPUT."""
        return self.input_shape if index == INPUT else self.nodes[index].shape

    def consumers(self) -> dict[int, list[int]]:
        """Which nodes read each node's result."""
        table: dict[int, list[int]] = {i: [] for i in range(INPUT, len(self.nodes))}
        for index, node in enumerate(self.nodes):
            for operand in node.inputs:
                table[operand].append(index)
        return table

    def last_use(self) -> dict[int, int]:
        """Index of the last node that reads each result, so that its memory can be freed behind it."""
        return {operand: index for index, node in enumerate(self.nodes) for operand in node.inputs}

    def run(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(index, result) of each node for images (N, C, H, W) float32, keeping no more than is still needed."""
        last = self.last_use()
        values = {INPUT: x}
        for index, node in enumerate(self.nodes):
            values[index] = clamp(node, apply(node, [values[i] for i in node.inputs]))
            for operand in set(node.inputs):
                if last[operand] == index:
                    del values[operand]
            yield index, values[index]


def clamp(node: Node, y: Tensor) -> Tensor:
    """The node's bounds, applied to its result."""
    if node.low == -math.inf and node.high == math.inf:
        return y
    if isinstance(node, Conv) and node.high < math.inf:
        y = torch.minimum(y, (node.high * node.gain).float()[:, None, None])
        return y if node.low == -math.inf else y.clamp(node.low)
    return y.clamp(node.low if node.low > -math.inf else None, node.high if node.high < math.inf else None)


def apply(node: Node, xs: list[Tensor]) -> Tensor:
    """The node's operation on operands (N, C, H, W) float32, before its bounds."""
    x = xs[0]
    match node:
        case Conv():
            return convolve(node, x, node.weight.float(), node.bias.float())
        case Affine():
            return x * node.factor.float()[:, None, None] + node.shift.float()[:, None, None]
        case Clamp():
            return x
        case Add():
            return torch.stack(xs).sum(0) if len(xs) > 2 else xs[0] + xs[-1]
        case Mul():
            return x * xs[1]
        case Concat():
            return torch.cat(xs, 1)
        case MaxPool():
            return F.max_pool2d(x, node.kernel, node.stride, node.padding, node.dilation, node.ceil_mode)
        case MeanPool():
            return F.avg_pool2d(x, node.kernel, node.stride, node.padding)
        case Pointwise():
            return node.function(x)
        case Channels():
            return x[:, node.order]
        case Slice():
            return _window(node, x)
        case Flatten():
            return x.flatten(1)[:, :, None, None]
        case Interleave():
            return _interleave(node, x)
        case Resample():
            return _resample(node, x)
    raise TypeError(f"{node.name}: {type(node).__name__} has no float operation")


def convolve(node: Conv, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The node's convolution with other weights than its own, e.g. quantised ones."""
    if isinstance(node, Deconv):
        return _deconvolve(node, x, weight, bias)
    return F.conv2d(x, weight, bias, node.stride, node.padding, node.dilation, node.groups)


def _deconvolve(node: Deconv, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out, fan_in, *kernel = weight.shape
    grouped = weight.reshape(node.groups, out // node.groups, fan_in, *kernel).transpose(1, 2)
    weight = grouped.reshape(node.groups * fan_in, out // node.groups, *kernel)
    extra = [
        n - ((size - 1) * s - 2 * p + k)
        for n, size, s, p, k in zip(node.shape[:2], x.shape[2:], node.stride, node.padding, kernel, strict=True)
    ]
    return F.conv_transpose2d(x, weight, bias, node.stride, node.padding, extra, node.groups)


def _interleave(node: Interleave, x: Tensor) -> Tensor:
    h, w, c = node.shape
    y = x.new_zeros(x.shape[0], c, h, w)
    for channel, row, column in node.blocks:
        to, of = [], []
        for first, size, inside, step in zip((row, column), x.shape[2:], (h, w), node.step, strict=True):
            places = range(max(0, -(first // step)), min(size, (inside - 1 - first) // step + 1))
            of.append(slice(places.start, max(places.start, places.stop)))
            to.append(slice(first + places.start * step, first + places.stop * step, step) if len(places) else slice(0, 0))
        y[:, :, to[0], to[1]] = x[:, channel : channel + c, of[0], of[1]]
    return y


def _resample(node: Resample, x: Tensor) -> Tensor:
    sides = ((2, node.rows, node.row_weights), (3, node.columns, node.column_weights))
    for axis, places, weights in sides:
        form = [1, 1, 1, 1]
        form[axis] = len(places)
        shares = torch.from_numpy((weights / weights[0].sum()).astype(np.float32))
        parts = [
            x.index_select(axis, torch.from_numpy(of.astype(np.int64))) * by.reshape(form)
            for of, by in zip(places.T, shares.T, strict=True)
        ]
        x = sum(parts[1:], parts[0])
    return x


def _window(node: Slice, x: Tensor) -> Tensor:
    sizes = x.shape[2], x.shape[3], x.shape[1]
    steps = (*node.step, 1)
    y = x.new_zeros(x.shape[0], node.shape[2], node.shape[0], node.shape[1])
    where = [
        [i for i in range(n) if 0 <= o + i * s < size]
        for n, o, s, size in zip(node.shape, node.offset, steps, sizes, strict=True)
    ]
    if all(where):
        target = [slice(w[0], w[-1] + 1) for w in where]
        source = [slice(o + w[0] * s, o + w[-1] * s + 1, s) for w, o, s in zip(where, node.offset, steps, strict=True)]
        y[:, target[2], target[0], target[1]] = x[:, source[2], source[0], source[1]]
    return y


def reachable(old: Graph, output: int) -> Graph:
    """The nodes that the output depends on, in order, the output last."""
    wanted = {output}
    for index in range(output, -1, -1):
        if index in wanted:
            wanted.update(old.nodes[index].inputs)
    place = {INPUT: INPUT} | {index: i for i, index in enumerate(sorted(wanted - {INPUT}))}
    for index in wanted - {INPUT}:
        old.nodes[index].inputs = [place[i] for i in old.nodes[index].inputs]
    return Graph(old.input_shape, [old.nodes[index] for index in sorted(wanted - {INPUT})])
