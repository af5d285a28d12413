"""Networks as safetensors files: tensors beside a JSON graph, and nothing that a file could make us execute.

The graph (layer types, operands, shapes, scales) is one JSON text in the file's metadata, the integers are tensors
named ``<layer index>.<field>``. The same network gives the same bytes in every process, so the sha256 of the bytes
names the network (``digest``). What is read is checked to the last operand before anyone computes with it: a file
comes over a link (architecture.md, "Arithmetic" and "The link").
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import types
import typing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from accelsim.files import write_whole
from accelsim.int8.network import (
    INPUT,
    INT8_MAX,
    INT8_MIN,
    Add,
    Channels,
    Concat,
    Conv,
    Flatten,
    Int8,
    Layer,
    MaxPool,
    MeanPool,
    Mul,
    Network,
    Shape,
    Slice,
    Table,
    multiplier,
    operand_multiplier,
)

FORMAT = "r2f-int8-network/1"
_KEY = "r2f"
_TYPES: dict[str, type[Layer]] = {
    cls.__name__: cls for cls in (Conv, Add, Concat, MaxPool, MeanPool, Table, Channels, Flatten, Mul, Slice)
}
_MAX_LAYERS = 1 << 14
_MAX_GRAPH_BYTES = 1 << 24
_MAX_ELEMENTS = 1 << 28
_DTYPES = {"I8": np.int8, "I32": np.int32, "F32": np.float32}


class NetworkError(ValueError):
    """A network, or a file that should hold one, does not agree with itself; the text names layer and field."""


def save(network: Network, path: str | os.PathLike[str]) -> None:
    """Writes the network to ``path``: whole or not at all, so that a reader never sees half a file.

    Raises NetworkError if the network is inconsistent, OSError if the file cannot be written.
    """
    write_whole(path, to_bytes(network))


def load(path: str | os.PathLike[str]) -> Network:
    """Reads a network that ``save`` wrote. Raises NetworkError, which names the file, or OSError."""
    body = Path(path).read_bytes()
    try:
        return from_bytes(body)
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from error


def digest(network: Network) -> str:
    """sha256, in hex, of the network's bytes: equal for equal networks, whoever made them."""
    return hashlib.sha256(to_bytes(network)).hexdigest()


def to_bytes(network: Network) -> bytes:
    """The network as the bytes of a safetensors file, the same bytes for the same network in every process.

    Raises NetworkError if the network is inconsistent: what is written can be read.
    """
    validate(network)
    tensors: dict[str, np.ndarray[Any, Any]] = {"input_table": network.input_table}
    layers = []
    for index, layer in enumerate(network.layers):
        plain: dict[str, Any] = {"type": type(layer).__name__}
        for field in dataclasses.fields(layer):
            value = getattr(layer, field.name)
            if isinstance(value, np.ndarray):
                tensors[f"{index}.{field.name}"] = value
            else:
                plain[field.name] = value
        layers.append(plain)
    graph = {
        "format": FORMAT,
        "name": network.name,
        "input_shape": network.input_shape,
        "input_scale": network.input_scale,
        "layers": layers,
    }
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    # One metadata key only: the library keeps metadata in a hash map, and two keys could come out in either order.
    body: bytes = safetensors.numpy.save(tensors, metadata={_KEY: msgspec.json.encode(graph).decode()})
    return body


def from_bytes(body: bytes | bytearray | memoryview) -> Network:
    """The network in the bytes of a safetensors file, checked; its arrays are read-only.

    Raises NetworkError for anything but a consistent network: a file that is cut off, foreign or hostile.
    """
    body = bytes(body)
    graph = _graph(body)
    try:
        tensors = {name: _array(name, entry) for name, entry in safetensors.deserialize(body)}  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise NetworkError(f"not a safetensors file: {error}") from error
    try:
        layers = _convert(graph.pop("layers"), list[dict[str, Any]], "layers")
        header = _convert({k: graph[k] for k in graph if k != "format"}, _Header, "graph")
    except KeyError as error:
        raise NetworkError(f"the graph has no field {error}") from None
    if len(layers) > _MAX_LAYERS:
        raise NetworkError(f"the graph has {len(layers)} layers, more than {_MAX_LAYERS}")
    built = tuple(_layer(index, plain, tensors) for index, plain in enumerate(layers))
    network = Network(
        name=header.name,
        input_shape=header.input_shape,
        input_scale=header.input_scale,
        input_table=_take(tensors, "input_table"),
        layers=built,
    )
    if tensors:
        raise NetworkError(f"tensors that no layer owns: {', '.join(sorted(tensors)[:5])}")
    validate(network)
    return network


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    input_shape: Shape
    input_scale: float


def _graph(body: bytes) -> dict[str, Any]:
    """The JSON graph in the file's metadata. The library that reads the tensors does not hand it out from bytes."""
    if len(body) < 8 or (length := int.from_bytes(body[:8], "little")) > len(body) - 8:
        raise NetworkError(f"not a safetensors file: {len(body)} bytes, its header is cut off")
    if length > _MAX_GRAPH_BYTES:
        raise NetworkError(f"the header has {length} bytes, more than {_MAX_GRAPH_BYTES}")
    try:
        metadata = msgspec.json.decode(body[8 : 8 + length], type=dict[str, msgspec.Raw]).get("__metadata__")
        text = {} if metadata is None else msgspec.json.decode(metadata, type=dict[str, str])
        graph = msgspec.json.decode(text.get(_KEY, "{}"), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NetworkError(f"not a network: the header does not parse: {error}") from error
    if graph.get("format") != FORMAT:
        raise NetworkError(
            f"not an int8 network: expected the format {FORMAT!r}, found {graph.get('format')!r}; "
            "float weights go through accelsim.zoo.load_weights and accelsim.lowering.lower"
        )
    return graph


def _array(name: str, entry: dict[str, Any]) -> np.ndarray[Any, Any]:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise NetworkError(f"tensor {name}: dtype {entry['dtype']}, expected one of {', '.join(_DTYPES)}")
    return np.frombuffer(bytes(entry["data"]), dtype).reshape(entry["shape"])


def _take(tensors: dict[str, np.ndarray[Any, Any]], name: str) -> np.ndarray[Any, Any]:
    if name not in tensors:
        raise NetworkError(f"tensor {name} is missing")
    return tensors.pop(name)


def _convert(value: Any, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise NetworkError(f"{where}: {error}") from error


def _layer(index: int, plain: dict[str, Any], tensors: dict[str, np.ndarray[Any, Any]]) -> Layer:
    kind = _TYPES.get(str(plain.pop("type", None)))
    where = f"layer {index} ({str(plain.get('name'))[:80]})"
    if kind is None:
        raise NetworkError(f"{where}: unknown type, expected one of {', '.join(_TYPES)}")
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        if _is_array(hint):
            values[name] = _take(tensors, f"{index}.{name}")
        elif name in plain:
            values[name] = _convert(plain.pop(name), hint, f"{where}: field {name}")
        else:
            raise NetworkError(f"{where}: field {name} is missing")
    if plain:
        raise NetworkError(f"{where}: unknown fields {', '.join(map(str, plain))}")
    return kind(**values)


def _hints(kind: type[Layer]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _is_array(hint: Any) -> bool:
    return isinstance(hint, types.GenericAlias | typing._GenericAlias) and typing.get_origin(hint) is np.ndarray  # type: ignore[attr-defined]


def validate(network: Network) -> None:
    """Checks that a network can be run: operands, shapes, dtypes, ranges, scales, and multipliers that follow from them.

    Raises NetworkError, which names the layer and the field.
    """
    with np.errstate(all="ignore"):  # a hostile scale may overflow on its way to being refused
        _validate(network)


def _validate(network: Network) -> None:
    _require(0 < len(network.layers) <= _MAX_LAYERS, f"a network has 1 to {_MAX_LAYERS} layers")
    _check_shape("input_shape", network.input_shape)
    _check_scale("input_scale", network.input_scale)
    _check_array("input_table", network.input_table, np.int8, (network.input_shape[2], 256))
    seen: set[str] = set()
    for index, layer in enumerate(network.layers):
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
        if isinstance(layer, Conv | Add | Concat | MeanPool | Mul):
            _require(
                INT8_MIN <= layer.low <= layer.high <= INT8_MAX,
                f"{where}: low {layer.low} and high {layer.high} are not bounds of an int8",
            )
        operands = 2 if isinstance(layer, Mul) else None if isinstance(layer, Add | Concat) else 1
        _require(
            len(layer.inputs) == operands if operands else 1 <= len(layer.inputs) <= 1024,
            f"{where}: {len(layer.inputs)} operands, expected {operands or '1 to 1024'}",
        )
        _check_layer(network, layer, where)


def _check_layer(network: Network, layer: Layer, where: str) -> None:
    shapes = [network.shape_of(i) for i in layer.inputs]
    scales = [network.scale_of(i) for i in layer.inputs]
    h, w, c = shapes[0]
    match layer:
        case Conv():
            _check_conv(layer, shapes[0], scales[0], where)
        case Add():
            _require(all(s == layer.shape for s in shapes), f"{where}: operands {shapes} do not add up to {layer.shape}")
            _check_multipliers(layer.multipliers, scales, layer.scale, where)
        case Concat():
            stacked = (h, w, sum(s[2] for s in shapes))
            _require(
                all(s[:2] == (h, w) for s in shapes) and layer.shape == stacked,
                f"{where}: operands {shapes} side by side do not give {layer.shape}",
            )
            _check_multipliers(layer.multipliers, scales, layer.scale, where)
        case MaxPool() | MeanPool():
            _check_pool(layer, shapes[0], scales[0], where)
        case Table():
            _require(layer.shape == shapes[0], f"{where}: shape {layer.shape} of a table, its operand has {shapes[0]}")
            _check_array(f"{where}: table", layer.table, np.int8, (256,))
            _check_array(f"{where}: slope", layer.slope, np.float32, (256,))
            _require(bool(np.isfinite(layer.slope).all()), f"{where}: slope is not finite")
        case Channels():
            _check_array(f"{where}: order", layer.order, np.int32, (layer.shape[2],))
            _require(layer.shape[:2] == (h, w), f"{where}: shape {layer.shape} moves pixels of {shapes[0]}")
            order = np.sort(layer.order)
            _require(
                bool(order[0] >= 0 and order[-1] < c and (np.diff(order) > 0).all()),
                f"{where}: order must name distinct channels below {c}",
            )
            _require(layer.scale == scales[0], f"{where}: scale {layer.scale} is not the operand's {scales[0]}")
        case Flatten():
            _require(layer.shape == (1, 1, h * w * c), f"{where}: {shapes[0]} does not flatten to {layer.shape}")
            _require(layer.scale == scales[0], f"{where}: scale {layer.scale} is not the operand's {scales[0]}")
        case Mul():
            _require(
                layer.shape == shapes[0] and shapes[1] in (shapes[0], (1, 1, c)),
                f"{where}: {shapes[0]} by {shapes[1]} does not give {layer.shape}",
            )
            factor = float(multiplier(scales[0], np.array([scales[1]], np.float32), layer.scale)[0])
            _check_multipliers((layer.multiplier,), None, factor, where)
        case Slice():
            _require(
                min(layer.step) > 0 and max(layer.step) < 1 << 16 and max(map(abs, layer.offset)) < 1 << 16,
                f"{where}: offset {layer.offset} or step {layer.step} out of range",
            )
            _require(layer.scale == scales[0], f"{where}: scale {layer.scale} is not the operand's {scales[0]}")


def _check_conv(layer: Conv, operand: Shape, scale: float, where: str) -> None:
    h, w, c = operand
    out = layer.shape[2]
    _require(
        layer.weight.ndim == 4 and 0 < layer.groups <= c and c % layer.groups == 0 and out % layer.groups == 0,
        f"{where}: weight of shape {layer.weight.shape} in {layer.groups} groups on {c} channels",
    )
    kernel = (layer.weight.shape[2], layer.weight.shape[3])
    _check_array(f"{where}: weight", layer.weight, np.int8, (out, c // layer.groups, *kernel))
    _check_array(f"{where}: bias", layer.bias, np.int32, (out,))
    _check_array(f"{where}: weight_scale", layer.weight_scale, np.float32, (out,))
    _check_array(f"{where}: multiplier", layer.multiplier, np.float32, (out,))
    _require(
        bool((np.isfinite(layer.weight_scale) & (layer.weight_scale > 0)).all()),
        f"{where}: weight_scale must be finite and positive",
    )
    _require(
        bool(np.array_equal(layer.multiplier, multiplier(scale, layer.weight_scale, layer.scale))),
        f"{where}: multiplier does not follow from the scales",
    )
    _require(
        bool((np.isfinite(layer.multiplier) & (layer.multiplier > 0)).all()),
        f"{where}: multiplier must be finite and positive",
    )
    windows = tuple(d * (k - 1) + 1 for k, d in zip(kernel, layer.dilation, strict=True))
    _check_window(windows, layer.stride, layer.padding, layer.dilation, where)
    expected = tuple(_positions(*p) for p in zip((h, w), windows, layer.stride, layer.padding, strict=True))
    _require(layer.shape[:2] == expected, f"{where}: shape {layer.shape}, but the convolution of {operand} gives {expected}")
    # Faults may turn any operand into -128, and the accumulator must still hold the sum.
    reach = int(np.abs(layer.bias.astype(np.int64)).max()) + 128 * 128 * (c // layer.groups) * kernel[0] * kernel[1]
    _require(reach < 1 << 31, f"{where}: the sum can reach {reach}, beyond an int32 accumulator")


def _check_pool(layer: MaxPool | MeanPool, operand: Shape, scale: float, where: str) -> None:
    h, w, c = operand
    dilation = layer.dilation if isinstance(layer, MaxPool) else (1, 1)
    _require(min(layer.kernel) > 0 and max(layer.kernel) < 1 << 16, f"{where}: kernel {layer.kernel} out of range")
    windows = tuple(d * (k - 1) + 1 for k, d in zip(layer.kernel, dilation, strict=True))
    _check_window(windows, layer.stride, layer.padding, dilation, where)
    _require(layer.shape[2] == c, f"{where}: {layer.shape[2]} channels, the operand has {c}")
    for size, got, k, window, s, p in zip(
        (h, w), layer.shape[:2], layer.kernel, windows, layer.stride, layer.padding, strict=True
    ):
        whole = _positions(size, window, s, p)
        _require(2 * p <= k, f"{where}: padding {p} is more than half of the kernel {k}")
        # ceil_mode adds at most one window, which must start inside of the operand or its left padding.
        partial = isinstance(layer, MaxPool) and got == whole + 1 and (got - 1) * s < size + p
        _require(got == whole or partial, f"{where}: shape {layer.shape} from {operand}, expected {whole} positions")
    if isinstance(layer, MaxPool):
        _require(layer.scale == scale, f"{where}: scale {layer.scale} is not the operand's {scale}")
    else:
        count = layer.kernel[0] * layer.kernel[1]
        _require(count <= 1 << 23, f"{where}: a sum of {count} int8 can pass an int32")
        _check_multipliers((layer.multiplier,), None, operand_multiplier(scale, layer.scale, count), where)


def _check_window(
    windows: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], where: str
) -> None:
    for name, values, low in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        _require(all(low <= v < 1 << 16 for v in values), f"{where}: {name} {values} out of range, expected at least {low}")
    _require(all(0 < v < 1 << 20 for v in windows), f"{where}: kernel out of range")


def _positions(size: int, window: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - window) // stride + 1


def _check_multipliers(got: tuple[float, ...], scales: list[float] | None, target: float, where: str) -> None:
    """``target`` is the output's scale, or the one multiplier itself where ``scales`` is None."""
    expected = (target,) if scales is None else tuple(operand_multiplier(s, target) for s in scales)
    _require(got == expected, f"{where}: multipliers {got[:4]} do not follow from the scales, which give {expected[:4]}")
    _require(all(math.isfinite(m) and m > 0 for m in got), f"{where}: multipliers must be finite and positive")


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


def _check_array(where: str, array: np.ndarray[Any, Any] | Int8, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    _require(
        array.dtype == dtype and array.shape == shape,
        f"{where}: {array.dtype} of shape {array.shape}, expected {np.dtype(dtype)} of shape {shape}",
    )


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise NetworkError(text)
