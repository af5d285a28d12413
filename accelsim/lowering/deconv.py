"""Transposed convolutions as ordinary ones, for accelerators that know no others: which taps, which padding, what goes where.

With t + p = s m + r, an output t of a dimension (stride s, padding p) is ``sum_j x[m - j] w[s j + r]``: for each phase r in
0..s-1 an ordinary convolution of the small input with every s-th tap, turned round, its outputs s apart. Four ways:

- phases: a convolution a phase, of its own taps and outputs alone: every product is needed;
- merged: one convolution with the filters of all phases, which has columns of the array busy where there are few filters;
- split: as in Xu et al. 2019, section 3: every phase has ceil(K/s) taps, of zeros where s does not divide K, and all outputs,
  of which padding cuts some away;
- zero-padded: the input with s - 1 zeros between its pixels, and one convolution. What the others are compared with.

All give the same integers. "auto" takes phases or merged, whichever takes fewer cycles on the modelled array.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from accelsim.int8 import network as net
from accelsim.int8.network import Int8, Shape, Way
from accelsim.timing import Array
from accelsim.timing.array import layer_cycles


class Phase(NamedTuple):
    """One phase of one dimension."""

    picks: tuple[int, ...]
    """Tap behind each place of the filter, -1 where that is 0."""
    front: int
    """Zeros in front of the input; cropped where negative."""
    behind: int
    first: int
    """Place of the first output; negative where it is cut away."""

    @property
    def taps(self) -> int:
        """Places of the filter, from the last one back, that have a tap."""
        return sum(pick >= 0 for pick in self.picks)


class Operand(NamedTuple):
    """What a transposed convolution reads."""

    shape: Shape
    scale: float
    signed: bool


class Geometry(NamedTuple):
    """A transposed convolution in one dimension."""

    kernel: int
    stride: int
    padding: int
    size: int
    out: int


def phases(of: Geometry) -> list[Phase]:
    """The phases with outputs. One without taps has a filter of one 0."""
    found = []
    for r in range(of.stride):
        begin, end = -((r - of.padding) // of.stride), (of.out - 1 + of.padding - r) // of.stride
        if end >= begin:
            found.append(_phase(of, r, max(1, -((r - of.kernel) // of.stride)), begin, end))
    return found


def merged(of: Geometry) -> list[Phase]:
    """The phases with one window for all of them."""
    begin = min(-((r - of.padding) // of.stride) for r in range(of.stride))
    end = (of.out - 1 + of.padding) // of.stride
    return [_phase(of, r, -(-of.kernel // of.stride), begin, end) for r in range(of.stride)]


def split(of: Geometry) -> list[Phase]:
    """The phases as Xu et al. have them: each input pixel reaches all outputs of its window, the whole padded by J - 1."""
    taps = -(-of.kernel // of.stride)
    end = max(of.size + taps - 2, (of.out - 1 + of.padding) // of.stride)
    return [_phase(of, r, taps, 0, end) for r in range(of.stride)]


def _phase(of: Geometry, r: int, places: int, begin: int, end: int) -> Phase:
    """Phase r with a filter of so many places and outputs m from ``begin`` to ``end``."""
    taps = [of.stride * (places - 1 - place) + r for place in range(places)]
    picks = tuple(tap if tap < of.kernel else -1 for tap in taps)
    return Phase(picks, places - 1 - begin, end - (of.size - 1), of.stride * begin + r - of.padding)


def convolutions(layer: net.Conv, operand: Operand, first: int, way: Way) -> list[net.Layer]:
    """The layers that do what a transposed convolution does; the last one is its output.

    ``layer`` holds everything of it: weight (O, I/groups, R, S) in torch's order of taps, stride and padding as torch has
    them, the output's shape. ``first`` is the index of the first layer that is returned. A merged one needs ``groups`` 1: it
    is given phases otherwise.
    """
    if way == "auto":
        ways: tuple[Way, ...] = ("phases", "merged") if layer.groups == 1 else ("phases",)
        found = [_convolutions(layer, operand, first, one) for one in ways]
        return min(found, key=lambda made: _cycles(made, operand.shape, first))
    return _convolutions(layer, operand, first, "phases" if way == "merged" and layer.groups > 1 else way)


def _cycles(layers: list[net.Layer], operand: Shape, first: int) -> int:
    """Modelled cycles of an image on the default array."""
    shapes = {first + place: one.shape for place, one in enumerate(layers)}
    return sum(layer_cycles(one, shapes.get(one.inputs[0], operand), Array()) for one in layers if isinstance(one, net.Conv))


def _convolutions(layer: net.Conv, operand: Operand, first: int, way: Way) -> list[net.Layer]:
    sides = [
        Geometry(k, s, p, size, out)
        for k, s, p, size, out in zip(
            layer.weight.shape[2:], layer.stride, layer.padding, operand.shape[:2], layer.shape[:2], strict=True
        )
    ]
    made = _Made(layer, operand, first)
    match way:
        case "zero-padded":
            made.zero_padded(sides)
        case "merged":
            made.merged(sides)
        case _:
            of = split if way == "split" else phases
            made.each([of(side) for side in sides])
    return made.layers


class _Made:
    """The layers so far."""

    def __init__(self, layer: net.Conv, operand: Operand, first: int) -> None:
        self.layer = layer
        self.operand = operand
        self.first = first
        self.layers: list[net.Layer] = []
        self.windows: dict[tuple[int, ...], int] = {}

    def add(self, layer: net.Layer) -> int:
        self.layers.append(layer)
        return self.first + len(self.layers) - 1

    def each(self, sides: list[list[Phase]]) -> None:
        """A convolution a phase."""
        blocks: list[tuple[int, int, int, int]] = []
        taps: list[tuple[int, int]] = []
        operands: list[int] = []
        for y, x in itertools.product(*sides):
            weight = _picked(self.layer.weight, y, x)
            empty = 0 in (y.taps, x.taps)
            if empty:
                y, x = (phase._replace(front=phase.front - len(phase.picks) + 1) for phase in (y, x))
            index = self.conv(f"phase{len(operands)}", weight, y, x, self.layer, empty=empty)
            blocks.append((len(operands), 0, y.first, x.first))
            taps.append((0, 0) if empty else (y.taps, x.taps))
            operands.append(index)
        self.together(operands, blocks, taps)

    def merged(self, sides: list[Geometry]) -> None:
        """One convolution, a block of filters a phase."""
        out = self.layer.shape[2]
        pairs = [(y, x) for y, x in itertools.product(*map(merged, sides)) if y.first < sides[0].out and x.first < sides[1].out]
        weight = np.concatenate([_picked(self.layer.weight, y, x) for y, x in pairs])
        many = len(pairs)
        all_of_them = replace(
            self.layer,
            bias=np.tile(self.layer.bias, many),
            weight_scale=np.tile(self.layer.weight_scale, many),
            multiplier=np.tile(self.layer.multiplier, many),
            high=np.tile(self.layer.high, many),
        )
        index = self.conv("phases", weight, *pairs[0], all_of_them)
        blocks = [(0, place * out, y.first, x.first) for place, (y, x) in enumerate(pairs)]
        self.together([index], blocks, [(y.taps, x.taps) if y.taps and x.taps else (0, 0) for y, x in pairs])

    def zero_padded(self, sides: list[Geometry]) -> None:
        """Zeros between the pixels, then the whole filter, turned round."""
        layer = self.layer
        # Output padding lies behind everything: as many zeros more.
        sizes = [side.out + 2 * side.padding - side.kernel + 1 for side in sides]
        shape = (sizes[0], sizes[1], self.operand.shape[2])
        spread = net.Interleave(
            name=f"{layer.name}.zeros", inputs=layer.inputs, shape=shape, scale=self.operand.scale,
            signed=self.operand.signed, step=layer.stride, blocks=np.zeros((1, 4), np.int32), taps=np.zeros((0, 2), np.int32),
        )  # fmt: skip
        source = self.add(spread)
        turned = layer.weight[:, :, ::-1, ::-1].copy()
        y, x = (Phase((), side.kernel - 1 - side.padding, side.kernel - 1 - side.padding, 0) for side in sides)
        self.conv("", turned, y, x, layer, source=source, operand=shape)

    def conv(
        self, suffix: str, weight: Int8, y: Phase, x: Phase, like: net.Conv, *, empty: bool = False, source: int | None = None,
        operand: Shape | None = None,
    ) -> int:  # fmt: skip
        """An ordinary convolution on the input padded so; ``empty``: of zeros, for which one channel is enough."""
        h, w, c = self.operand.shape if operand is None else operand
        source = self.layer.inputs[0] if source is None else source
        padding, groups = (max(y.front, 0), max(x.front, 0)), like.groups
        if empty:
            c, groups, weight = 1, 1, np.zeros((len(weight), 1, 1, 1), np.int8)
        if (y.front, x.front) != (y.behind, x.behind) or min(y.front, x.front) < 0 or empty:
            source, padding = self.window(source, (h, w, c), y, x), (0, 0)
        (r, s), name = weight.shape[2:], f"{self.layer.name}.{suffix}" if suffix else self.layer.name
        shape = (h + y.front + y.behind - r + 1, w + x.front + x.behind - s + 1, len(weight))
        made = replace(like, name=name, inputs=(source,), shape=shape, weight=weight, padding=padding, groups=groups)
        return self.add(replace(made, stride=(1, 1)))

    def window(self, source: int, operand: Shape, y: Phase, x: Phase) -> int:
        """The input with zeros around it, or cropped, as a convolution's own padding cannot: once for all that want it so."""
        h, w, c = operand
        key = (y.front, y.behind, x.front, x.behind, c)
        if key not in self.windows:
            self.windows[key] = self.add(
                net.Slice(
                    name=f"{self.layer.name}.window{len(self.windows)}", inputs=(source,), scale=self.operand.scale,
                    signed=self.operand.signed, offset=(-y.front, -x.front, 0),
                    shape=(h + y.front + y.behind, w + x.front + x.behind, c),
                )
            )  # fmt: skip
        return self.windows[key]

    def together(self, operands: list[int], blocks: list[tuple[int, int, int, int]], taps: list[tuple[int, int]]) -> None:
        layer = self.layer
        self.add(
            net.Interleave(
                name=layer.name, inputs=tuple(operands), shape=layer.shape, scale=layer.scale, signed=layer.signed,
                step=layer.stride, blocks=np.array(blocks, np.int32), taps=np.array(taps, np.int32).reshape(-1, 2),
            )
        )  # fmt: skip


def _picked(weight: Int8, y: Phase, x: Phase) -> Int8:
    """The filters of a phase (O, I/groups, places, places) from all taps."""
    padded = np.pad(weight, ((0, 0), (0, 0), (0, 1), (0, 1)))  # the last one is the 0 that -1 picks
    return np.ascontiguousarray(padded[:, :, np.array(y.picks)[:, None], np.array(x.picks)])


def macs(layers: list[net.Layer]) -> int:
    """Multiplications of an image."""
    return sum(one.weight[0].size * math.prod(one.shape) for one in layers if isinstance(one, net.Conv))
