"""Whether a network can be run: what is written, read, lowered or received is checked to the last operand."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, assert_never

import numpy as np

from accelsim.int8.network import (
    INPUT,
    INT8_MAX,
    INT8_MIN,
    UINT8_MAX,
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
    Shape,
    Slice,
    Table,
    multiplier,
    operand_multiplier,
)

MAX_LAYERS = 1 << 14
_MAX_ELEMENTS = 1 << 28
MOST_STEPS = 1 << 22
"""Largest sum of a Resample's weights over rows and columns: times 255 it is an int32"""


class NetworkError(ValueError):
    """A network, or a file that should hold one, does not agree with itself; the text names layer and field."""


class _Operand(NamedTuple):
    shape: Shape
    scale: float
    signed: bool


def validate(network: Network) -> None:
    """Checks that a network can be run: operands, shapes, dtypes, ranges, scales, and multipliers that follow from them.

    Raises NetworkError, which names the layer and the field.
    """
    with np.errstate(all="ignore"):  # a hostile scale may overflow on its way to being refused
        _validate(network)


def _validate(network: Network) -> None:
    _require(0 < len(network.layers) <= MAX_LAYERS, f"a network has 1 to {MAX_LAYERS} layers")
    _check_shape("input_shape", network.input_shape)
    _check_scale("input_scale", network.input_scale)
    _check_array("input_table", network.input_table, np.int8, (network.input_shape[2], 256))
    seen: set[str] = set()
    for index, layer in enumerate(network.layers):
        _require(
            isinstance(layer, typing.get_args(Layer)),
            f"layer {index}: {type(layer).__name__} is no layer type, "
            f"expected one of {', '.join(kind.__name__ for kind in typing.get_args(Layer))}",
        )
        where = f"layer {index} ({layer.name[:80]})"
        _require(0 < len(layer.name) <= 512, f"{where}: a name has 1 to 512 characters")
        _require(layer.name not in seen, f"{where}: the name occurs twice")
        seen.add(layer.name)
        _check_shape(f"{where}: shape", layer.shape)
        _check_scale(f"{where}: scale", layer.scale)
        for operand in layer.inputs:
            _require(
                INPUT <= operand < index,
                f"{where}: operand {operand} is not an earlier layer (or {INPUT} for the network's input)",
            )
        _check_layer(layer, [_operand(network, i) for i in layer.inputs], where)


def _operand(network: Network, index: int) -> _Operand:
    return _Operand(network.shape_of(index), network.scale_of(index), network.dtype_of(index) == np.int8)


def _check_layer(layer: Layer, operands: list[_Operand], where: str) -> None:
    match layer:
        case Conv():
            _check_conv(layer, operands, where)
        case Add():
            _check_add(layer, operands, where)
        case Concat():
            _check_concat(layer, operands, where)
        case MaxPool():
            _check_max(layer, operands, where)
        case MeanPool():
            _check_mean(layer, operands, where)
        case Table():
            _check_table(layer, operands, where)
        case Channels():
            _check_channels(layer, operands, where)
        case Flatten():
            _check_flatten(layer, operands, where)
        case Mul():
            _check_mul(layer, operands, where)
        case Slice():
            _check_slice(layer, operands, where)
        case Interleave():
            _check_interleave(layer, operands, where)
        case Resample():
            _check_resample(layer, operands, where)
        case _:
            assert_never(layer)


def _check_conv(layer: Conv, operands: list[_Operand], where: str) -> None:
    operand = _one(operands, where)
    h, w, c = operand.shape
    out = layer.shape[2]
    _require(
        layer.weight.ndim == 4 and 0 < layer.groups <= c and c % layer.groups == 0 and out % layer.groups == 0,
        f"{where}: weight of shape {layer.weight.shape} in {layer.groups} groups on {c} channels",
    )
    kernel = (layer.weight.shape[2], layer.weight.shape[3])
    _check_array(f"{where}: weight", layer.weight, np.int8, (out, c // layer.groups, *kernel))
    _check_array(f"{where}: bias", layer.bias, np.int32, (out,))
    _check_array(f"{where}: high", layer.high, np.int32, (out,))
    for high in (layer.high.min(), layer.high.max()):
        _check_bounds(layer, int(high), where)
    _check_array(f"{where}: weight_scale", layer.weight_scale, np.float32, (out,))
    _check_array(f"{where}: multiplier", layer.multiplier, np.float32, (out,))
    _require(
        bool((np.isfinite(layer.weight_scale) & (layer.weight_scale > 0)).all()),
        f"{where}: weight_scale must be finite and positive",
    )
    _require(
        bool(np.array_equal(layer.multiplier, multiplier(operand.scale, layer.weight_scale, layer.scale))),
        f"{where}: multiplier does not follow from the scales",
    )
    _require(
        bool((np.isfinite(layer.multiplier) & (layer.multiplier > 0)).all()),
        f"{where}: multiplier must be finite and positive",
    )
    windows = _check_windows(kernel, layer.stride, layer.padding, layer.dilation, where)
    expected = tuple(_positions(*p) for p in zip((h, w), windows, layer.stride, layer.padding, strict=True))
    _require(
        layer.shape[:2] == expected, f"{where}: shape {layer.shape}, but the convolution of {operand.shape} gives {expected}"
    )
    # Faults may turn any operand into its largest, and the accumulator must still hold the sum.
    largest = 128 if operand.signed else UINT8_MAX
    reach = int(np.abs(layer.bias.astype(np.int64)).max()) + largest * 128 * (c // layer.groups) * kernel[0] * kernel[1]
    _require(reach < 1 << 31, f"{where}: the sum can reach {reach}, beyond an int32 accumulator")


def _check_add(layer: Add, operands: list[_Operand], where: str) -> None:
    shapes = _some(operands, where)
    _check_bounds(layer, layer.high, where)
    _require(all(s == layer.shape for s in shapes), f"{where}: operands {shapes} do not add up to {layer.shape}")
    _check_multipliers(layer.multipliers, [operand_multiplier(o.scale, layer.scale) for o in operands], where)


def _check_concat(layer: Concat, operands: list[_Operand], where: str) -> None:
    shapes = _some(operands, where)
    _check_bounds(layer, layer.high, where)
    h, w, _ = shapes[0]
    _require(
        all(s[:2] == (h, w) for s in shapes) and layer.shape == (h, w, sum(s[2] for s in shapes)),
        f"{where}: operands {shapes} side by side do not give {layer.shape}",
    )
    _check_multipliers(layer.multipliers, [operand_multiplier(o.scale, layer.scale) for o in operands], where)


def _check_max(layer: MaxPool, operands: list[_Operand], where: str) -> None:
    operand = _one(operands, where)

    def partial(size: int, stride: int, padding: int, got: int, whole: int) -> bool:
        # ceil_mode adds at most one window, which must start inside of the operand or its left padding.
        return got == whole + 1 and (got - 1) * stride < size + padding

    _check_pool(layer, operand.shape, layer.dilation, partial, where)
    _check_moved(layer, operand, where)


def _check_mean(layer: MeanPool, operands: list[_Operand], where: str) -> None:
    operand = _one(operands, where)
    _check_bounds(layer, layer.high, where)
    _check_pool(layer, operand.shape, (1, 1), lambda *_: False, where)
    count = layer.kernel[0] * layer.kernel[1]
    _require(count <= 1 << 23, f"{where}: a sum of {count} integers can pass an int32")
    _check_multipliers((layer.multiplier,), [operand_multiplier(operand.scale, layer.scale, count)], where)


def _check_table(layer: Table, operands: list[_Operand], where: str) -> None:
    shape = _one(operands, where).shape
    _require(layer.shape == shape, f"{where}: shape {layer.shape} of a table, its operand has {shape}")
    size = (256,) if layer.table.ndim == 1 else (shape[2], 256)
    _check_array(f"{where}: table", layer.table, np.int8 if layer.signed else np.uint8, size)
    _check_array(f"{where}: slope", layer.slope, np.float32, size)
    _require(bool(np.isfinite(layer.slope).all()), f"{where}: slope is not finite")


def _check_channels(layer: Channels, operands: list[_Operand], where: str) -> None:
    operand = _one(operands, where)
    h, w, c = operand.shape
    _check_array(f"{where}: order", layer.order, np.int32, (layer.shape[2],))
    _require(layer.shape[:2] == (h, w), f"{where}: shape {layer.shape} moves pixels of {operand.shape}")
    order = np.sort(layer.order)
    _require(
        bool(order[0] >= 0 and order[-1] < c and (np.diff(order) > 0).all()),
        f"{where}: order must name distinct channels below {c}",
    )
    _check_moved(layer, operand, where)


def _check_flatten(layer: Flatten, operands: list[_Operand], where: str) -> None:
    operand = _one(operands, where)
    flat = (1, 1, math.prod(operand.shape))
    _require(layer.shape == flat, f"{where}: {operand.shape} does not flatten to {layer.shape}")
    _check_moved(layer, operand, where)


def _check_mul(layer: Mul, operands: list[_Operand], where: str) -> None:
    _require(len(operands) == 2, f"{where}: {len(operands)} operands, expected 2")
    a, b = operands
    _check_bounds(layer, layer.high, where)
    _require(
        layer.shape == a.shape and b.shape in (a.shape, (1, 1, a.shape[2])),
        f"{where}: {a.shape} by {b.shape} does not give {layer.shape}",
    )
    factor = float(multiplier(a.scale, np.array([b.scale], np.float32), layer.scale)[0])
    _check_multipliers((layer.multiplier,), [factor], where)


def _check_slice(layer: Slice, operands: list[_Operand], where: str) -> None:
    operand = _one(operands, where)
    _require(
        min(layer.step) > 0 and max(layer.step) < 1 << 16 and max(map(abs, layer.offset)) < 1 << 16,
        f"{where}: offset {layer.offset} or step {layer.step} out of range",
    )
    _check_moved(layer, operand, where)


def _check_interleave(layer: Interleave, operands: list[_Operand], where: str) -> None:
    _some(operands, where)
    count = len(layer.blocks) if layer.blocks.ndim == 2 else 0
    _check_array(f"{where}: blocks", layer.blocks, np.int32, (count, 4))
    _require(0 < count <= 4096, f"{where}: {count} blocks, expected 1 to 4096")
    _check_array(f"{where}: taps", layer.taps, np.int32, (count if len(layer.taps) else 0, 2))
    _require(min(layer.step) > 0 and max(layer.step) < 1 << 12, f"{where}: step {layer.step} out of range")
    _require(bool((layer.taps >= 0).all() and (layer.taps < 1 << 16).all()), f"{where}: taps out of range")
    for operand in operands:
        _check_moved(layer, operand, where)
    seen: set[tuple[int, int]] = set()
    for block, (number, channel, row, column) in enumerate(layer.blocks.tolist()):
        _require(0 <= number < len(operands), f"{where}: block {block} is of operand {number} of {len(operands)}")
        _require(
            0 <= channel <= operands[number].shape[2] - layer.shape[2] and max(abs(row), abs(column)) < 1 << 20,
            f"{where}: block {block} starts at channel {channel}, row {row}, column {column}",
        )
        phase = (row % layer.step[0], column % layer.step[1])
        _require(phase not in seen, f"{where}: block {block} lies where an earlier one does")
        seen.add(phase)


def _check_resample(layer: Resample, operands: list[_Operand], where: str) -> None:
    operand = _one(operands, where)
    _check_moved(layer, operand, where)
    _require(layer.shape[2] == operand.shape[2], f"{where}: {layer.shape[2]} channels, the operand has {operand.shape[2]}")
    total = 1
    for what, size, inside, places, weights in (
        ("row", layer.shape[0], operand.shape[0], layer.rows, layer.row_weights),
        ("column", layer.shape[1], operand.shape[1], layer.columns, layer.column_weights),
    ):
        count = places.shape[1] if places.ndim == 2 else 0
        _require(0 < count <= 64, f"{where}: {count} {what}s a pixel, expected 1 to 64")
        _check_array(f"{where}: {what}s", places, np.int32, (size, count))
        _check_array(f"{where}: {what}_weights", weights, np.int32, (size, count))
        _require(bool(((places >= 0) & (places < inside)).all()), f"{where}: {what}s must be below {inside}")
        sums = weights.sum(axis=1, dtype=np.int64)
        _require(
            bool((weights >= 0).all() and sums[0] > 0 and (sums == sums[0]).all() and sums[0] <= MOST_STEPS),
            f"{where}: {what}_weights must be 0 or more, with one sum of 1 to {MOST_STEPS}",
        )
        total *= int(sums[0])
    _require(total <= MOST_STEPS, f"{where}: a mean in steps of 1/{total}, expected at most 1/{MOST_STEPS}")
    _check_multipliers((layer.multiplier,), [operand_multiplier(1.0, 1.0, total)], where)


def _one(operands: list[_Operand], where: str) -> _Operand:
    _require(len(operands) == 1, f"{where}: {len(operands)} operands, expected 1")
    return operands[0]


def _some(operands: list[_Operand], where: str) -> list[Shape]:
    """Shapes of the operands of a layer that takes any number of them."""
    _require(1 <= len(operands) <= 1024, f"{where}: {len(operands)} operands, expected 1 to 1024")
    return [operand.shape for operand in operands]


def _check_pool(
    layer: MaxPool | MeanPool,
    operand: Shape,
    dilation: tuple[int, int],
    partial: Callable[[int, int, int, int, int], bool],
    where: str,
) -> None:
    h, w, c = operand
    _require(min(layer.kernel) > 0 and max(layer.kernel) < 1 << 16, f"{where}: kernel {layer.kernel} out of range")
    windows = _check_windows(layer.kernel, layer.stride, layer.padding, dilation, where)
    _require(layer.shape[2] == c, f"{where}: {layer.shape[2]} channels, the operand has {c}")
    for size, got, k, window, s, p in zip(
        (h, w), layer.shape[:2], layer.kernel, windows, layer.stride, layer.padding, strict=True
    ):
        whole = _positions(size, window, s, p)
        _require(2 * p <= k, f"{where}: padding {p} is more than half of the kernel {k}")
        _require(
            got == whole or partial(size, s, p, got, whole),
            f"{where}: shape {layer.shape} from {operand}, expected {whole} positions",
        )


def _check_windows(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], where: str
) -> tuple[int, ...]:
    """How far the windows reach on each side."""
    for name, values, low in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        _require(all(low <= v < 1 << 16 for v in values), f"{where}: {name} {values} out of range, expected at least {low}")
    windows = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    _require(all(0 < v < 1 << 20 for v in windows), f"{where}: kernel out of range")
    return windows


def _positions(size: int, window: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - window) // stride + 1


def _check_multipliers(got: Sequence[float], expected: Sequence[float], where: str) -> None:
    _require(
        tuple(got) == tuple(expected),
        f"{where}: multipliers {tuple(got[:4])} do not follow from the scales, which give {tuple(expected[:4])}",
    )
    _require(all(math.isfinite(m) and m > 0 for m in got), f"{where}: multipliers must be finite and positive")


def _check_moved(layer: Layer, operand: _Operand, where: str) -> None:
    """A layer that moves integers leaves them what they are."""
    _require(
        layer.signed == operand.signed,
        f"{where}: {layer.dtype} integers from an operand that has {'int8' if operand.signed else 'uint8'} ones",
    )
    _require(layer.scale == operand.scale, f"{where}: scale {layer.scale} is not the operand's {operand.scale}")


def _check_bounds(layer: Conv | Add | Concat | MeanPool | Mul, high: int, where: str) -> None:
    least, most = (INT8_MIN, INT8_MAX) if layer.signed else (0, UINT8_MAX)
    _require(
        least <= layer.low <= high <= most,
        f"{where}: low {layer.low} and high {high} are not bounds of a{'n int8' if layer.signed else ' uint8'}",
    )


def _check_shape(where: str, shape: Shape) -> None:
    _require(
        len(shape) == 3 and all(0 < v < 1 << 20 for v in shape) and math.prod(shape) <= _MAX_ELEMENTS,
        f"{where}: {shape} is not (H, W, C) of at most {_MAX_ELEMENTS} elements",
    )


def _check_scale(where: str, scale: float) -> None:
    _require(
        math.isfinite(scale) and scale > 0 and abs(scale) < 3e38 and float(np.float32(scale)) == scale,
        f"{where}: {scale} is not a positive float32",
    )


def _check_array(where: str, array: np.ndarray[Any, Any], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    # NumPy's names of types cost more than the check, so they are only made for an error.
    if array.dtype != dtype or array.shape != shape:
        raise NetworkError(f"{where}: {array.dtype} of shape {array.shape}, expected {np.dtype(dtype)} of shape {shape}")


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise NetworkError(text)
