"""Int8 networks and their MAC layers as ONNX models of quantised operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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
    Float32,
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
from accelsim.int8.places import dense, pool_ends
from accelsim.int8.walk import walk

_Bounded = Conv | Add | Concat | MeanPool | Mul
_OPSET = 17
_IR = 9
"""Both old enough for any ONNX Runtime that the project allows."""


def layer_model(network: Network, index: int, weight_is_input: bool = False) -> bytes:
    """MAC layer ``index`` as an ONNX model of its own: ``x`` (N, C, H, W) to (N, C, H, W), int8 or uint8.

    With ``weight_is_input`` the model takes its weights (O, I/groups, R, S) int8 at each run, as ``weight``.
    Raises ValueError if the layer is of another type.
    """
    layer = network.layers[index]
    if not isinstance(layer, Conv):
        raise ValueError(f"layer {index} ({layer.name}) is a {type(layer).__name__}; only MAC layers run on their own")
    model = Model(network)
    source = layer.inputs[0]
    inputs = [_value("x", network.shape_of(source), network.dtype_of(source))]
    if weight_is_input:
        inputs.append(helper.make_tensor_value_info("weight", TensorProto.INT8, layer.weight.shape))
    y = model.conv(layer, "x", network.scale_of(source), network.dtype_of(source), "weight" if weight_is_input else None)
    return model.finish(inputs, [_value(y, layer.shape, layer.dtype)])


def network_model(network: Network, every_layer: bool = False, exact: bool = True) -> bytes:
    """The whole network as an int8 ONNX model: ``x`` int8 (N, C, H, W) to its output, or to all layers' outputs.

    With ``exact`` the layers of the general-purpose processor give the network's own integers; else they are ONNX
    Runtime's quantised operators, which are faster and round differently: the peer of the benchmarks.
    """
    model = Model(network)
    names = _body(model, network, {INPUT: "x"}, exact)
    wanted = range(len(network.layers)) if every_layer else [len(network.layers) - 1]
    outputs = []
    for index in wanted:
        # Two layers may share a value (a concat of one operand); an output needs a name of its own.
        name = model.add("Identity", [names[index]])
        outputs.append(_value(name, network.shape_of(index), network.dtype_of(index)))
    return model.finish([_value("x", network.input_shape, network.dtype_of(INPUT))], outputs)


def pixels_model(network: Network) -> bytes:
    """The whole network, to be deployed: ``images`` uint8 (N, H, W, C), as image files are read, to ``outputs`` and ``values``.

    ``outputs`` (N, H, W, C) are the network's integers, the same as every path of the engine gives; ``values`` are the real
    numbers that they stand for, float32. What was done to pixels in training lies in the model's own table.
    """
    model = Model(network, in_steps=True)
    h, w, channels = network.input_shape
    pixels = model.cast("images", TensorProto.INT32)
    if channels > 1:
        pixels = model.add("Add", [pixels, model.constant(256 * np.arange(channels).reshape(1, 1, 1, -1), np.int32)])
    table = model.constant(network.input_table.reshape(-1), np.int8)
    x = model.add("Transpose", [model.add("Gather", [table, pixels], axis=0)], perm=[0, 3, 1, 2])
    y = _body(model, network, {INPUT: x}, exact=True)[len(network.layers) - 1]
    last = network.layers[-1]
    integers = model.add("Transpose", [y], perm=[0, 2, 3, 1])
    values = model.add("Mul", [model.cast(integers, TensorProto.FLOAT), model.scale(last.scale)])
    names = {"outputs": integers, "values": values}
    for name, of in names.items():
        model.nodes.append(helper.make_node("Identity", [of], [name]))
    taken = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", h, w, channels])
    shape = ["N", *last.shape]
    given = [helper.make_tensor_value_info("outputs", _onnx(last.dtype), shape)]
    given.append(helper.make_tensor_value_info("values", TensorProto.FLOAT, shape))
    return model.finish([taken], given)


def _body(model: Model, network: Network, names: dict[int, str], exact: bool) -> dict[int, str]:
    """The network's layers behind its input, which ``names`` has; the names of all of them."""
    for index, layer, operands in walk(network, names, keep=True):
        scales = [network.scale_of(i) for i in layer.inputs]
        shapes = [network.shape_of(i) for i in layer.inputs]
        dtypes = [network.dtype_of(i) for i in layer.inputs]
        names[index] = model.layer(layer, operands, scales, shapes, dtypes, exact)
    return names


class Model:
    """Collects nodes and constants of one ONNX graph; every method returns the name of its result."""

    def __init__(self, network: Network, in_steps: bool = False) -> None:
        self.name = network.name
        self.in_steps = in_steps
        """Say that a step of every activation is 1, and a weight's is the layer's multiplier: ONNX Runtime then multiplies
        by just that, where of real scales it makes a factor of its own, a rounding away from ours."""
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], domain=domain, **attributes))
        return name

    def constant(self, value: Any, dtype: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def scale(self, value: float | Float32) -> str:
        return self.constant(value, np.float32)

    def zero(self, dtype: Byte) -> str:
        return self.constant(0, dtype)

    def bounds(self, y: str, layer: _Bounded) -> str:
        """y, of the layer's dtype, within its bounds."""
        low, high = layer.low, np.unique(layer.high)
        if len(high) > 1:
            # Clip takes one bound, and Min no bytes.
            limits = self.constant(np.reshape(layer.high, (1, -1, 1, 1)), np.int32)
            y = self.cast(self.add("Min", [self.cast(y, TensorProto.INT32), limits]), layer.dtype)
        least, most = (INT8_MIN, INT8_MAX) if layer.signed else (0, UINT8_MAX)
        if (low, high[-1]) == (least, most):
            return y
        return self.add("Clip", [y, self.constant(low, layer.dtype), self.constant(high[-1], layer.dtype)])

    def conv(self, layer: Conv, x: str, scale: float, dtype: Byte, weight: str | None = None) -> str:
        """A MAC layer on x of ``dtype``. ONNX Runtime gives outputs of that dtype only: others are these, moved by 128."""
        moved = 0 if dtype == layer.dtype else 128 if layer.signed else -128
        weight = self.constant(layer.weight, np.int8) if weight is None else weight
        zeros = self.constant(np.zeros(len(layer.bias)), np.int8)
        before, of_weights, behind = scale, layer.weight_scale, layer.scale
        if self.in_steps:
            before, of_weights, behind = 1.0, layer.multiplier, 1.0
        inputs = [x, self.scale(before), self.zero(dtype), weight, self.scale(of_weights), zeros]
        inputs += [self.scale(behind), self.constant(moved, dtype), self.constant(layer.bias, np.int32)]
        y = self.add(
            "QLinearConv", inputs, kernel_shape=layer.weight.shape[2:], strides=layer.stride, dilations=layer.dilation,
            group=layer.groups, pads=[*layer.padding, *layer.padding],
        )  # fmt: skip
        if moved:
            y = self.add("Sub", [self.cast(y, TensorProto.INT32), self.constant(moved, np.int32)])
            y = self.cast(y, layer.dtype)
        return self.bounds(y, layer)

    def layer(
        self,
        layer: Layer,
        operands: list[str],
        scales: list[float],
        shapes: list[tuple[int, int, int]],
        dtypes: list[Byte],
        exact: bool,
    ) -> str:
        # The quantised operators beside QLinearConv have one dtype for operands and result.
        exact = exact or set(dtypes) != {layer.dtype}
        match layer:
            case Conv():
                return self.conv(layer, operands[0], scales[0], dtypes[0])
            case Add():
                return self._add(layer, operands, scales, exact)
            case Concat():
                parts = [
                    x if m == 1 and dtype == layer.dtype else self.requantise(self.cast(x, TensorProto.FLOAT), m, layer)
                    for x, m, dtype in zip(operands, layer.multipliers, dtypes, strict=True)
                ]
                y = self.add("Concat", parts, axis=1) if len(parts) > 1 else parts[0]
                return self.bounds(y, layer)
            case MaxPool():
                return self.add(
                    "MaxPool", operands, kernel_shape=layer.kernel, strides=layer.stride, dilations=layer.dilation,
                    pads=[*layer.padding, *pool_ends(layer, shapes[0])],
                )  # fmt: skip
            case MeanPool():
                return self._mean(layer, operands[0], scales[0], shapes[0], exact)
            case Mul():
                if not exact:
                    sides = [
                        v for x, s in zip(operands, scales, strict=True) for v in (x, self.scale(s), self.zero(layer.dtype))
                    ]
                    y = self.add("QLinearMul", [*sides, self.scale(layer.scale), self.zero(layer.dtype)], "com.microsoft")
                    return self.bounds(y, layer)
                wide = [self.cast(x, TensorProto.INT32) for x in operands]
                product = self.cast(self.add("Mul", wide), TensorProto.FLOAT)
                return self.requantise(product, layer.multiplier, layer)
            case Table():
                zero = 128 if dtypes[0] == np.int8 else 0
                tables = np.arange(0, layer.table.size, 256).reshape(1, -1, 1, 1)
                first = self.constant(zero if layer.table.ndim == 1 else zero + tables, np.int32)
                places = self.add("Add", [self.cast(operands[0], TensorProto.INT32), first])
                return self.add("Gather", [self.constant(layer.table.reshape(-1), layer.dtype), places], axis=0)
            case Channels():
                return self.add("Gather", [operands[0], self.constant(layer.order, np.int64)], axis=1)
            case Flatten():
                return self.add("Reshape", [operands[0], self.constant([0, -1, 1, 1], np.int64)])
            case Slice():
                return self._slice(layer, operands[0], shapes[0])
            case Interleave():
                return self._interleave(layer, operands, shapes)
            case Resample():
                return self._resample(layer, operands[0], shapes[0])
            case _:
                assert_never(layer)

    def cast(self, x: str, kind: int | Byte) -> str:
        return self.add("Cast", [x], to=kind if isinstance(kind, int) else _onnx(kind))

    def rounded(self, x: str, multiplier: float) -> str:
        """``rint(x * multiplier)`` of a float tensor, still float; ONNX rounds half to even as the specification does."""
        return self.add("Round", [self.add("Mul", [x, self.scale(multiplier)])])

    def requantise(self, x: str, multiplier: float, layer: Concat | MeanPool | Mul) -> str:
        clipped = self.add("Clip", [self.rounded(x, multiplier), self.scale(layer.low), self.scale(layer.high)])
        return self.cast(clipped, layer.dtype)

    def _add(self, layer: Add, operands: list[str], scales: list[float], exact: bool) -> str:
        if not exact and len(operands) == 2:
            sides = [v for x, s in zip(operands, scales, strict=True) for v in (x, self.scale(s), self.zero(layer.dtype))]
            y = self.add("QLinearAdd", [*sides, self.scale(layer.scale), self.zero(layer.dtype)], "com.microsoft")
            return self.bounds(y, layer)
        floats = [self.cast(x, TensorProto.FLOAT) for x in operands]
        parts = [x if m == 1.0 else self.rounded(x, m) for x, m in zip(floats, layer.multipliers, strict=True)]
        total = self.add("Sum", parts)
        return self.cast(self.add("Clip", [total, self.scale(layer.low), self.scale(layer.high)]), layer.dtype)

    def _mean(self, layer: MeanPool, x: str, scale: float, shape: tuple[int, int, int], exact: bool) -> str:
        whole = layer.kernel == shape[:2] and layer.padding == (0, 0)
        if whole and not exact:
            inputs = [x, self.scale(scale), self.zero(layer.dtype), self.scale(layer.scale), self.zero(layer.dtype)]
            y = self.add("QLinearGlobalAveragePool", inputs, "com.microsoft", channels_last=0)
            return self.bounds(y, layer)
        wide = self.cast(x, TensorProto.FLOAT)
        if whole:
            total = self.add("ReduceSum", [wide, self.constant([2, 3], np.int64)], keepdims=1)
        else:
            ones = self.constant(np.ones((shape[2], 1, *layer.kernel)), np.float32)
            total = self.add(
                "Conv", [wide, ones], kernel_shape=layer.kernel, strides=layer.stride, group=shape[2],
                pads=[*layer.padding, *layer.padding],
            )  # fmt: skip
        return self.requantise(total, layer.multiplier, layer)

    def _slice(self, layer: Slice, x: str, shape: tuple[int, int, int]) -> str:
        starts, ends, steps, before, after = [], [], [], [], []
        for n, offset, step, size in zip(layer.shape, layer.offset, (*layer.step, 1), shape, strict=True):
            inside = [i for i in range(n) if 0 <= offset + i * step < size]
            if not inside:
                raise ValueError(f"{layer.name}: a slice with nothing of its operand has no ONNX model")
            starts.append(offset + inside[0] * step)
            ends.append(offset + inside[-1] * step + 1)
            steps.append(step)
            before.append(inside[0])
            after.append(n - 1 - inside[-1])
        order = [2, 0, 1]  # (H, W, C) to (C, H, W)
        vectors = [[values[i] for i in order] for values in (starts, ends)]
        y = self.add("Slice", [x, *(self.constant(v, np.int64) for v in (*vectors, [1, 2, 3], [steps[i] for i in order]))])
        if not any(before) and not any(after):
            return y
        pads = [0, *(before[i] for i in order), 0, *(after[i] for i in order)]
        return self.add("Pad", [y, self.constant(pads, np.int64), self.zero(layer.dtype)])

    def _interleave(self, layer: Interleave, operands: list[str], shapes: list[tuple[int, int, int]]) -> str:
        """Every phase on one coarse grid, then rows and columns of the phases side by side, cut to size."""
        h, w, c = layer.shape
        sy, sx = layer.step
        grid = (-(-h // sy), -(-w // sx), c)
        found = {}
        for number, channel, row, column in layer.blocks.tolist():
            window = Slice(
                name=layer.name, inputs=(0,), shape=grid, scale=layer.scale, offset=(-(row // sy), -(column // sx), channel),
                signed=layer.signed,
            )  # fmt: skip
            found[row % sy, column % sx] = self._slice(window, operands[number], shapes[number])
        phases = [(i, j) for i in range(sy) for j in range(sx)]
        if len(found) < len(phases):
            some = self.cast(next(iter(found.values())), TensorProto.INT32)
            nothing = self.cast(self.add("Mul", [some, self.constant(0, np.int32)]), layer.dtype)
            found = dict.fromkeys(phases, nothing) | found
        axes = self.constant([3, 5], np.int64)
        wide = {phase: self.add("Unsqueeze", [found[phase], axes]) for phase in phases}
        rows = [self.add("Concat", [wide[i, j] for j in range(sx)], axis=5) for i in range(sy)]
        y = self.add("Concat", rows, axis=3)
        y = self.add("Reshape", [y, self.constant([0, c, grid[0] * sy, grid[1] * sx], np.int64)])
        ends = [self.constant(v, np.int64) for v in ([0, 0], [h, w], [2, 3])]
        return self.add("Slice", [y, *ends])

    def _resample(self, layer: Resample, x: str, shape: tuple[int, int, int]) -> str:
        if layer.moves:
            for axis, places in ((2, layer.rows), (3, layer.columns)):
                x = self.add("Gather", [x, self.constant(places[:, 0], np.int64)], axis=axis)
            return x
        # In float64 the sums are exact, whatever their order.
        wide = self.cast(x, TensorProto.DOUBLE)
        by_row = self.constant(dense(layer.rows, layer.row_weights, shape[0]), np.float64)
        by_column = self.constant(dense(layer.columns, layer.column_weights, shape[1]).T, np.float64)
        total = self.add("MatMul", [self.add("MatMul", [by_row, wide]), by_column])
        return self.cast(self.rounded(self.cast(total, TensorProto.FLOAT), layer.multiplier), layer.dtype)

    def finish(self, inputs: list[Any], outputs: list[Any]) -> bytes:
        graph = helper.make_graph(self.nodes, self.name, inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
        onnx.checker.check_model(model)
        body: bytes = model.SerializeToString()
        return body


def _value(name: str, shape: tuple[int, int, int], dtype: Byte) -> Any:
    h, w, c = shape
    return helper.make_tensor_value_info(name, _onnx(dtype), ["N", c, h, w])


def _onnx(dtype: Byte) -> int:
    return int(TensorProto.INT8 if dtype == np.int8 else TensorProto.UINT8)
