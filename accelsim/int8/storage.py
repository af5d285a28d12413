"""Networks as safetensors files: tensors beside a JSON graph, and nothing that a file could make us execute.

The graph (layer types, operands, shapes, scales) is one JSON text in the file's metadata, the integers are tensors
named ``<layer index>.<field>``. The same network gives the same bytes in every process, so the sha256 of the bytes
names the network (``digest``). What is read is checked to the last operand before anyone computes with it: a file
comes over a link (architecture.md, "Arithmetic" and "The link").
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import typing
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from accelsim.files import write_whole
from accelsim.int8.checks import MAX_LAYERS, NetworkError, validate
from accelsim.int8.network import INT8_MAX, INT8_MIN, Layer, Network, Shape

__all__ = ["FORMAT", "NetworkError", "canonical", "digest", "from_bytes", "load", "save", "to_bytes", "validate"]

FORMAT = "r2f-int8-network/2"
_FIRST = "r2f-int8-network/1"
"""As before there were uint8 activations; read, never written."""
_KEY = "r2f"
_TYPES: dict[str, type[Layer]] = {kind.__name__: kind for kind in typing.get_args(Layer)}
_MAX_GRAPH_BYTES = 1 << 24
_DTYPES = {"I8": np.int8, "U8": np.uint8, "I32": np.int32, "F32": np.float32}


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
    return canonical(network)


def canonical(network: Network) -> bytes:
    """``to_bytes`` of a network that is known to be consistent: nothing is checked."""
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
        if graph["format"] == _FIRST:
            layers = [_from_first(index, plain, tensors) for index, plain in enumerate(layers)]
    except KeyError as error:
        raise NetworkError(f"the graph has no field {error}") from None
    if len(layers) > MAX_LAYERS:
        raise NetworkError(f"the graph has {len(layers)} layers, more than {MAX_LAYERS}")
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


def _from_first(index: int, plain: dict[str, Any], tensors: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """A layer of the first version, where every activation is signed and a MAC layer has one ``high`` for all channels."""
    if plain.get("type") == "Conv" and "high" in plain:
        high = _convert(plain["high"], Annotated[int, msgspec.Meta(ge=INT8_MIN, le=INT8_MAX)], f"layer {index}: field high")
        tensors[f"{index}.high"] = np.array(high, np.int32)
        plain = {name: value for name, value in plain.items() if name != "high"}
    return {**plain, "signed": True}


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
    if graph.get("format") not in (FORMAT, _FIRST):
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
    values: dict[str, Any] = {}
    for name, hint, is_array in _fields(kind.__name__):
        if is_array:
            values[name] = _take(tensors, f"{index}.{name}")
        elif name in plain:
            values[name] = _convert(plain.pop(name), hint, f"{where}: field {name}")
        else:
            raise NetworkError(f"{where}: field {name} is missing")
    if plain:
        raise NetworkError(f"{where}: unknown fields {', '.join(map(str, plain))}")
    return kind(**values)


@cache
def _fields(type_name: str) -> list[tuple[str, Any, bool]]:
    """Name and type of each field of a layer, and whether it is an array; Python takes longer to say than a layer to read."""
    kind = _TYPES[type_name]
    hints = typing.get_type_hints(kind)
    return [(field.name, hints[field.name], _is_array(hints[field.name])) for field in dataclasses.fields(kind)]


def _is_array(hint: Any) -> bool:
    """Whether a field is an array: ``npt.NDArray`` of something, ``np.ndarray`` itself or, from NumPy 2.5 on, an alias."""
    origin = typing.get_origin(hint)
    return np.ndarray in (origin, *(typing.get_origin(getattr(h, "__value__", None)) for h in (hint, origin)))
