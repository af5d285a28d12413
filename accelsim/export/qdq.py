"""A network as ONNX with QuantizeLinear and DequantizeLinear around float operators, the form that compilers for devices take.

Integers may differ by a step from ours where a compiler sums or rounds in another order: an Add here rounds once, ours each
operand. Weights, scales and bounds are the same. Beside a layer that only moves integers there is nothing to be rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np
from onnx import TensorProto, helper

from accelsim.accelerators.onnx_models import Model
from accelsim.int8.network import (
    INPUT,
    INT8_MAX,
    INT8_MIN,
    UINT8_MAX,
    Add,
    Byte,
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
from accelsim.int8.places import pool_ends
from accelsim.int8.walk import walk

_Bounded = Conv | Add | Concat | MeanPool | Mul


@dataclass(frozen=True, slots=True)
class _Value:
    """An activation: its integers, and the real numbers behind a DequantizeLinear."""

    integers: str
    real: str


def qdq_model(network: Network) -> bytes:
    """The network as ONNX: ``input`` float32 (N, C, H, W), normalised pixels, to ``output`` float32 (N, C, H, W).

    Normalised as in training: ``(pixel / 255 - mean) / std`` a channel.
    """
    model = Model(network)
    h, w, c = network.input_shape
    dtype = network.dtype_of(INPUT)
    values = {INPUT: _quantised(model, "input", network.input_scale, dtype)}
    for index, layer, operands in walk(network, values, keep=True):
        values[index] = _layer(model, network, layer, operands)
    model.nodes.append(helper.make_node("Identity", [values[len(network.layers) - 1].real], ["output"]))
    oh, ow, oc = network.layers[-1].shape
    taken = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", c, h, w])
    return model.finish([taken], [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", oc, oh, ow])])


def _quantised(model: Model, real: str, scale: float, dtype: Byte) -> _Value:
    inputs = [real, model.scale(scale), model.zero(dtype)]
    return _dequantised(model, model.add("QuantizeLinear", inputs), scale, dtype)


def _dequantised(model: Model, integers: str, scale: float, dtype: Byte) -> _Value:
    return _Value(integers, model.add("DequantizeLinear", [integers, model.scale(scale), model.zero(dtype)]))


def _layer(model: Model, network: Network, layer: Layer, operands: list[_Value]) -> _Value:
    reals = [one.real for one in operands]
    scales = [network.scale_of(i) for i in layer.inputs]
    shapes = [network.shape_of(i) for i in layer.inputs]
    match layer:
        case Conv():
            y = _conv(model, layer, reals[0], scales[0])
        case Add():
            y = model.add("Sum", reals) if len(reals) > 1 else reals[0]
        case Concat():
            y = model.add("Concat", reals, axis=1)
        case MeanPool():
            y = model.add(
                "AveragePool", reals, kernel_shape=layer.kernel, strides=layer.stride, count_include_pad=1,
                pads=[*layer.padding, *layer.padding],
            )  # fmt: skip
        case Mul():
            y = model.add("Mul", reals)
        case MaxPool():
            y = model.add(
                "MaxPool", reals, kernel_shape=layer.kernel, strides=layer.stride, dilations=layer.dilation,
                pads=[*layer.padding, *pool_ends(layer, shapes[0])],
            )  # fmt: skip
            return _quantised(model, y, layer.scale, layer.dtype)
        case Table() | Channels() | Flatten() | Slice() | Interleave() | Resample():
            dtypes = [network.dtype_of(i) for i in layer.inputs]
            integers = [one.integers for one in operands]
            return _dequantised(model, model.layer(layer, integers, scales, shapes, dtypes, True), layer.scale, layer.dtype)
        case _:
            assert_never(layer)
    return _quantised(model, _bounded(model, y, layer), layer.scale, layer.dtype)


def _conv(model: Model, layer: Conv, x: str, scale: float) -> str:
    channels = model.constant(np.zeros(len(layer.bias)), np.int8)
    weight_scale = model.scale(layer.weight_scale)
    weight = model.add("DequantizeLinear", [model.constant(layer.weight, np.int8), weight_scale, channels], axis=0)
    steps = model.scale(np.float32(scale) * layer.weight_scale)
    zeros = model.constant(np.zeros(len(layer.bias)), np.int32)
    bias = model.add("DequantizeLinear", [model.constant(layer.bias, np.int32), steps, zeros], axis=0)
    return model.add(
        "Conv", [x, weight, bias], kernel_shape=layer.weight.shape[2:], strides=layer.stride, dilations=layer.dilation,
        group=layer.groups, pads=[*layer.padding, *layer.padding],
    )  # fmt: skip


def _bounded(model: Model, y: str, layer: _Bounded) -> str:
    """y within the layer's bounds, where they are narrower than those of its bytes."""
    least, most = (INT8_MIN, INT8_MAX) if layer.signed else (0, UINT8_MAX)
    high = np.unique(layer.high)
    if len(high) > 1:
        limits = np.reshape(layer.high, (1, -1, 1, 1)).astype(np.float32) * np.float32(layer.scale)
        y = model.add("Min", [y, model.scale(limits)])
        high = np.array([most])  # whatever is left is within the bytes
    if layer.low == 0 and high[0] >= most:
        return model.add("Relu", [y])
    if (layer.low, high[0]) == (least, most):
        return y
    bounds = [model.scale(float(np.float32(bound) * np.float32(layer.scale))) for bound in (layer.low, high[0])]
    return model.add("Clip", [y, *bounds])
