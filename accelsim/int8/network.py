"""The int8 network: a plain list of layers, and nothing that runs them (architecture.md, "Arithmetic").

Every activation is one byte an element in NHWC order, shape ``(N, H, W, C)``; a vector is ``(N, 1, 1, C)``. A real value
is ``scale * integer``, no zero point. The integers of a layer that is ``signed`` are int8; where no value is negative,
as behind a ReLU, they may be uint8: half the step, and no sign bit that a fault could set. A layer names its operands by
their index in ``Network.layers``; ``INPUT`` (-1) is the quantised image, int8. The last layer is the network's output.

The arithmetic of each layer type is given in its docstring and is a specification: every path of
``accelsim.engine`` must give these integers. ``rint`` rounds half to even, ``f32`` is IEEE binary32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

INPUT = -1
INT8_MIN, INT8_MAX = -128, 127
UINT8_MAX = 255

Activations = Literal["auto", "signed"]
"""Which activations are uint8: those that cannot be negative, or none."""
Way = Literal["auto", "phases", "merged", "split", "zero-padded"]
"""How a transposed convolution runs as ordinary ones (``accelsim.lowering.deconv``)."""
Shape = tuple[int, int, int]
"""(H, W, C) of one image's activation."""

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Activation = npt.NDArray[np.int8 | np.uint8]
"""Integers of an activation: int8, or uint8 where its layer is not signed."""
Byte = np.dtype[np.int8 | np.uint8]
"""Their type."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Node:
    name: str
    """Name of the node in the traced module, e.g. ``features.3.squeeze``; unique."""
    inputs: tuple[int, ...]
    """Indices of the operands; INPUT is the network's input."""
    shape: Shape
    scale: float
    """Real value of one step of the output, a float32 value."""
    signed: bool = True
    """Whether the output is int8; else it is uint8, and ``low`` is 0 or more."""

    @property
    def dtype(self) -> Byte:
        """Of the output."""
        return np.dtype(np.int8) if self.signed else np.dtype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Conv(_Node):
    """A MAC layer (convolution, grouped, depthwise; linear is a 1x1 one on a 1x1 image); the accelerator runs it.

    ``acc = sum(x * weight) + bias`` in exact int32, then ``y = clamp(rint(f32(acc) * multiplier[c]), low, high[c])``.
    Padding is zeros. A ReLU or ReLU6 behind the layer is ``low`` and ``high``; the latter has a bound a channel because
    channels may be scaled against one another.
    """

    weight: Int8
    """(O, I/groups, R, S)"""
    bias: Int32
    """(O,), in steps of ``input scale * weight_scale[c]``"""
    weight_scale: Float32
    """(O,)"""
    multiplier: Float32
    """(O,), ``f32(f64(input scale) * f64(weight_scale[c]) / f64(scale))``"""
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    low: int = INT8_MIN
    high: Int32 = field(default_factory=lambda: np.array(INT8_MAX, np.int32))
    """(O,); one number is taken for every channel"""

    def __post_init__(self) -> None:
        if np.ndim(self.high) == 0:
            object.__setattr__(self, "high", np.full(np.shape(self.weight)[:1], self.high, np.int32))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Add(_Node):
    """``clamp(sum_i int(rint(f32(x_i) * multipliers[i])), low, high)``, the sum in int32."""

    multipliers: tuple[float, ...]
    low: int = INT8_MIN
    high: int = INT8_MAX


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Concat(_Node):
    """Operands side by side in C, each ``clamp(rint(f32(x_i) * multipliers[i]), low, high)``."""

    multipliers: tuple[float, ...]
    low: int = INT8_MIN
    high: int = INT8_MAX


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MaxPool(_Node):
    """Largest integer of each window; padding never wins. ``shape`` already reflects ceil_mode. Signed as its operand."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MeanPool(_Node):
    """``clamp(rint(f32(sum of the window in int32) * multiplier), low, high)``; zeros as padding, and they count.

    Global and adaptive pooling (where the window is the same everywhere) are this with the right kernel.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    multiplier: float
    low: int = INT8_MIN
    high: int = INT8_MAX


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Table(_Node):
    """Any pointwise function: ``y = table[x + 128]`` of an int8, ``table[x]`` of a uint8; or one a channel."""

    table: Activation
    """(256,) of the output's dtype, or (C, 256)"""
    slope: Float32
    """As ``table``: derivative of the real function at each entry of the table, for the replayed backward pass."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Channels(_Node):
    """Moves channels: ``y[..., i] = x[..., order[i]]``; a shuffle, a split or a slice. ``order`` holds no channel twice.

    Signed as its operand, as ``Flatten`` and ``Slice`` are.
    """

    order: Int32


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Flatten(_Node):
    """(N, H, W, C) to (N, 1, 1, C*H*W) in torch's order, C slowest."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Mul(_Node):
    """``clamp(rint(f32(a * b) * multiplier), low, high)``, the product in int32: the gate of a squeeze-and-excite block.

    Two operands; ``b`` has ``a``'s shape or is ``(N, 1, 1, C)`` and then counts for every pixel.
    """

    multiplier: float
    """``f32(f64(scale of a) * f64(scale of b) / f64(scale))``"""
    low: int = INT8_MIN
    high: int = INT8_MAX


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Slice(_Node):
    """A strided window, zero where it reaches past its operand; the scale is the operand's.

    ``y[:, h, w, c] = x[:, offset[0] + h * step[0], offset[1] + w * step[1], offset[2] + c]``. This is the option-A
    shortcut of the CIFAR ResNets (every second pixel, zeros for the new channels), a crop, and padding that the layer
    behind cannot do itself.
    """

    offset: tuple[int, int, int]
    """(H, W, C) of the first output in the operand; negative where zeros come first."""
    step: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Interleave(_Node):
    """Puts images into one: each block to every ``step``-th row and column, zero where there is none.

    ``y[:, row + i * step[0], column + j * step[1], :] = x[:, i, j, channel : channel + C]`` of operand x for each block
    (operand, channel, row, column) and all (i, j) whose place is inside. This is depth-to-space, an image made larger by
    repetition, zeros between pixels, and how the phases of a transposed convolution come together.
    """

    step: tuple[int, int]
    blocks: Int32
    """(B, 4): number of the operand, its first channel, row and column of its first pixel. No two of a row and a column that
    are the same modulo ``step``."""
    taps: Int32
    """(B, 2): rows and columns of weights, counted from the last, that each block's MAC layer has of one transposed
    convolution; the others are and stay 0, and the blocks have one bias. (0, 2) where the layer only moves."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Resample(_Node):
    """Every pixel a weighted mean of some of its operand's: another size, or padding with what is inside.

    ``y[:, i, j, c] = rint(f32(sum_ab row_weights[i, a] * column_weights[j, b] * x[:, rows[i, a], columns[j, b], c]) *
    multiplier)``, the sum in int32. Weights are not negative, and those of every row have one sum, as those of every column,
    so that no mean leaves the range of what it is of; scale and sign are the operand's. One row and one column a pixel move
    integers as they are. Weights are constants of a size, not parameters: they are never trained and cannot fail.
    """

    rows: Int32
    """(H, A), at most 64 of them"""
    row_weights: Int32
    """(H, A), 0 or more"""
    columns: Int32
    """(W, B)"""
    column_weights: Int32
    """(W, B)"""
    multiplier: float
    """``f32(1 / (sum of a row's weights * sum of a column's))``"""

    @property
    def moves(self) -> bool:
        """Whether every pixel is one of the operand's."""
        return bool(self.rows.shape[1] == 1 and self.columns.shape[1] == 1)


Exact = Add | Concat | MaxPool | MeanPool | Table | Channels | Flatten | Mul | Slice | Interleave | Resample
"""Layers that the device's general-purpose processor runs: they cannot fail."""

Layer = Conv | Exact
"""Every layer type. A new one goes here, and mypy lists the backends (``match`` with ``assert_never``) that lack it."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Network:
    """An int8 network and how a uint8 image becomes its input."""

    name: str
    input_shape: Shape
    input_scale: float
    input_table: Int8
    """(C, 256): int8 input for each value of a uint8 pixel, a channel a row. Normalisation is folded in here, so
    that both sides of the link turn the same pixels into the same integers."""
    layers: tuple[Layer, ...]

    def convs(self) -> Iterator[tuple[int, Conv]]:
        """(index, layer) of each MAC layer, in order: these run on the accelerator and can fail."""
        return ((i, layer) for i, layer in enumerate(self.layers) if isinstance(layer, Conv))

    def scale_of(self, index: int) -> float:
        """Scale of a layer's output, or of the network's input for INPUT."""
        return self.input_scale if index == INPUT else self.layers[index].scale

    def dtype_of(self, index: int) -> Byte:
        """int8 or uint8: of a layer's output, or of the network's input for INPUT."""
        return np.dtype(np.int8) if index == INPUT else self.layers[index].dtype

    def shape_of(self, index: int) -> Shape:
        """(H, W, C) of a layer's output, or of the network's input for INPUT."""
        return self.input_shape if index == INPUT else self.layers[index].shape

    def quantize_images(self, images: UInt8) -> Int8:
        """uint8 images (N, H, W, C) to the network's int8 input, the same shape.

        Raises ValueError if the dtype or the shape is not the network's.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.input_shape:
            raise ValueError(
                f"images: expected uint8 of shape (N, {', '.join(map(str, self.input_shape))}), "
                f"got {images.dtype} of shape {images.shape}"
            )
        quantised = np.empty(images.shape, np.int8)
        for c, table in enumerate(self.input_table):
            quantised[..., c] = table.take(images[..., c])
        return quantised


def multiplier(input_scale: float, weight_scale: Float32, output_scale: float) -> Float32:
    """The float32 factor of a MAC layer's requantisation, the same on every machine.

    >>> multiplier(0.5, np.array([0.25], np.float32), 2.0)
    array([0.0625], dtype=float32)
    """
    factor = np.float64(input_scale) * weight_scale.astype(np.float64) / np.float64(output_scale)
    return factor.astype(np.float32)


def operand_multiplier(input_scale: float, output_scale: float, count: int = 1) -> float:
    """The float32 factor of an operand of an add or a concat, or of a mean over ``count`` values."""
    return float(np.float32(np.float64(input_scale) / np.float64(output_scale) / count))
