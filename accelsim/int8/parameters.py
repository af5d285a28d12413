"""Between the int8 network and its float32 parameters: Table I's convertInt2Float and convertFloat2Int.

The activation scales of a network never change here, so what the calibration found stays true; only weights, biases
and, where a channel outgrows its range, that channel's weight scale do. Every operation is elementwise IEEE, so the
same parameters give the same network on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from accelsim.int8.network import UINT8_MAX, Conv, Float32, Int8, Int32, Layer, Network, multiplier

Parameters = dict[int, tuple[Float32, Float32]]
"""Index of each MAC layer: its weight (O, I/groups, R, S) and its bias (O,), both float32 in real units."""

WEIGHT_MAX = 127
"""Weights are symmetric: -128 is never written, so that negating a channel can never overflow it."""
_BLOCK = 1 << 16
"""Weights that are rounded at once."""


def dequantize(network: Network) -> Parameters:
    """Float32 weights and biases of each MAC layer (Table I, convertInt2Float).

    ``quantize(network, dequantize(network))`` gives back the same integers, as long as no weight is -128 and no bias
    passes 2^22 steps (near which float32 runs out of digits).
    """
    return {
        index: (
            layer.weight.astype(np.float32) * layer.weight_scale[:, None, None, None],
            (layer.bias * _bias_step(network, layer, layer.weight_scale)).astype(np.float32),
        )
        for index, layer in network.convs()
    }


def quantize(network: Network, parameters: Mapping[int, tuple[Float32, Float32]]) -> Network:
    """The network with these parameters rounded to int8 and int32 (Table I, convertFloat2Int).

    A channel keeps its weight scale, so that an update that moves few weights changes few bytes on the link, unless a
    weight of it lies beyond 127.5 steps: then the channel's largest weight becomes 127. Biases round to their step and
    are clamped so that no accumulator can pass int32.

    Raises ValueError if a layer's parameters are missing, misshaped or not finite; the message names the layer.
    """
    layers: list[Layer] = list(network.layers)
    for index, layer in network.convs():
        weight, bias = _checked(index, layer, parameters)
        rounded, scale = _rounded(index, layer, weight)
        layers[index] = replace(
            layer,
            weight=rounded,
            bias=_rounded_bias(bias, _bias_step(network, layer, scale), weight[0].size * _product(network, layer)),
            weight_scale=scale,
            multiplier=multiplier(network.scale_of(layer.inputs[0]), scale, layer.scale),
        )
    return replace(network, layers=tuple(layers))


def _checked(index: int, layer: Conv, parameters: Mapping[int, tuple[Float32, Float32]]) -> tuple[Float32, Float32]:
    """A layer's parameters; whether its weights are finite is left to ``_rounded``, which reads them anyway."""
    if index not in parameters:
        raise ValueError(f"layer {index} ({layer.name}): no parameters given for it")
    for what, array, shape in zip(("weight", "bias"), parameters[index], (layer.weight.shape, layer.bias.shape), strict=True):
        if array.dtype != np.float32 or array.shape != shape:
            raise ValueError(
                f"layer {index} ({layer.name}): {what} is {array.dtype} of shape {array.shape}, "
                f"expected float32 of shape {shape}"
            )
    _require_finite(index, layer, "bias", parameters[index][1])
    return parameters[index]


def _require_finite(index: int, layer: Conv, what: str, array: Float32) -> None:
    if not np.isfinite(array).all():
        raise ValueError(f"layer {index} ({layer.name}): {what} holds values that are not finite")


def _rounded(index: int, layer: Conv, weight: Float32) -> tuple[Int8, Float32]:
    """The weights in steps, and the weight scales (O,) under which every channel fits: the present ones, save for channels
    that outgrew them.

    Some channels at a time, so that what lies between the passes over them stays in the processor's cache.
    """
    rows = weight.reshape(len(weight), -1)
    steps, scale = np.empty(rows.shape, np.int8), layer.weight_scale.copy()
    at_once = max(1, _BLOCK // rows.shape[1])
    for first in range(0, len(rows), at_once):
        block = slice(first, first + at_once)
        part = rows[block]
        # Without a copy; and either is NaN where one weight is.
        largest: Float32 = np.maximum(part.max(axis=1), -part.min(axis=1))
        _require_finite(index, layer, "weight", largest)
        outgrown = largest > scale[block] * np.float32(WEIGHT_MAX + 0.5)
        scale[block] = np.where(outgrown, largest / np.float32(WEIGHT_MAX), scale[block])
        real = part / scale[block, None]
        np.rint(real, out=real)
        np.clip(real, -WEIGHT_MAX, WEIGHT_MAX, out=real)
        steps[block] = real
    return steps.reshape(weight.shape), scale


def _bias_step(network: Network, layer: Conv, weight_scale: Float32) -> npt.NDArray[np.float64]:
    """Real value (O,) of one step of the accumulator."""
    return np.float64(network.scale_of(layer.inputs[0])) * weight_scale.astype(np.float64)


def _product(network: Network, layer: Conv) -> int:
    """Largest magnitude of one product of operand and weight, faults included."""
    return 128 * (128 if network.dtype_of(layer.inputs[0]) == np.int8 else UINT8_MAX)


def _rounded_bias(bias: Float32, step: npt.NDArray[np.float64], reach: int) -> Int32:
    limit = max(2**31 - 1 - reach, 0)
    return np.clip(np.rint(bias / step), -limit, limit).astype(np.int32)
