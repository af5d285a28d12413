"""A network as one C99 header: weights as arrays and a function that runs an image, exactly, with no library but libm.

Made to be read and to be right on any processor; a vendor's kernels are faster, and this is what they can be held against.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from accelsim.export.c_parts import PARTS, PROLOGUE
from accelsim.int8 import storage
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
from accelsim.int8.walk import last_uses, walk

_ALIGNED = 16
_TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "int32": "int32_t", "float32": "float"}


def c_header(network: Network) -> str:
    """The text of the header. Its function is ``NAME_run(pixels, outputs)``: uint8 pixels (H, W, C) of one image to the
    network's integers (H, W, C), which times ``NAME_SCALE`` are real numbers; NAME is the network's, as C allows it."""
    name = identifier(network.name)
    size = {index: int(np.prod(network.shape_of(index))) for index in range(INPUT, len(network.layers))}
    places, total = plan(network, size)
    memory = f"{name}_memory"

    def at(index: int) -> str:
        return f"{memory} + {places[index]}"

    arrays = [_array(f"{name}_input_table", network.input_table)]
    calls = [
        f"for (i = 0; i < {size[INPUT]}; i++)\n"
        f"        ({at(INPUT)})[i] = (uint8_t){name}_input_table[i % {network.input_shape[2]} * 256 + pixels[i]];"
    ]
    used: set[str] = set()
    for index, layer, operands in walk(network, {i: i for i in range(INPUT, len(network.layers))}, keep=True):
        kind = type(layer).__name__
        used.add(kind)
        made, arguments = _arguments(f"{name}_{index}", layer)
        arrays += made
        x = f"{at(operands[0])}, {_shape(network, operands[0])}"
        if isinstance(layer, Add | Concat | Mul | Interleave):
            pointers = ", ".join(at(i) for i in operands)
            shapes = ", ".join(_shape(network, i)[len("(r2f_shape)") :] for i in operands)
            x = f"(const uint8_t *const[]){{{pointers}}}, (const r2f_shape[]){{{shapes}}}, {len(operands)}"
        call = f"r2f_{kind.lower()}({x}, {at(index)}, {_shape(network, index)}{''.join(f', {a}' for a in arguments)});"
        calls.append(f"{call} /* {_comment(layer.name)} */")
    last = len(network.layers) - 1
    byte = _TYPES[network.layers[last].dtype.name]
    upper = name.upper()
    h, w, c = network.input_shape
    oh, ow, oc = network.layers[last].shape
    lines = [
        f"/* {_comment(network.name)}: an int8 network. sha256 of what it was made from: {storage.digest(network)}",
        f" * {name}_run(pixels, outputs) runs one image; its integers are exact on any processor with IEEE 754 floats.",
        " * C99; include it in one file, link with -lm. It is not reentrant: activations lie in one static buffer. */",
        f"#ifndef {upper}_H\n#define {upper}_H",
        PROLOGUE,
        f"enum {{ {upper}_INPUT_H = {h}, {upper}_INPUT_W = {w}, {upper}_INPUT_C = {c}, {upper}_INPUTS = {size[INPUT]} }};",
        f"enum {{ {upper}_OUTPUT_H = {oh}, {upper}_OUTPUT_W = {ow}, {upper}_OUTPUT_C = {oc} }};",
        f"enum {{ {upper}_OUTPUTS = {size[last]} }};",
        f"/* Real value of one step of an output. */\n#define {upper}_SCALE {_float(network.layers[last].scale)}",
        *(PARTS[kind] for kind in PARTS if kind in used),
        *arrays,
        f"static uint8_t {memory}[{total}];",
        f"/* pixels: {h}x{w}x{c}, channels fastest; outputs: {oh}x{ow}x{oc}, likewise. */",
        f"static inline void {name}_run(const uint8_t *pixels, {byte} *outputs)\n{{\n    int i;",
        *(f"    {call}" for call in calls),
        f"    memcpy(outputs, {at(last)}, {size[last]});\n}}",
        "#endif\n",
    ]
    return "\n".join(lines)


def identifier(name: str) -> str:
    """A network's name as C allows it."""
    found = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower() or "network"
    return f"n_{found}" if found[0].isdigit() else found


def plan(network: Network, size: dict[int, int]) -> tuple[dict[int, int], int]:
    """Where in one buffer each activation lies, and bytes of the buffer: first fit; dropped behind its last reader."""
    last = last_uses(network)
    places: dict[int, int] = {}
    held: dict[int, int] = {}
    total = 1
    for index in range(INPUT, len(network.layers)):
        taken = sorted((places[i], places[i] + held[i]) for i in held)
        place = 0
        for start, end in taken:
            if place + size[index] <= start:
                break
            place = max(place, -(-end // _ALIGNED) * _ALIGNED)
        places[index], held[index] = place, size[index]
        total = max(total, place + size[index])
        for operand in [i for i in held if last.get(i, len(network.layers)) <= index]:
            del held[operand]
    return places, total


def _arguments(name: str, layer: Layer) -> tuple[list[str], list[object]]:
    """The arrays of a layer, and what its function takes beside operands and result."""
    match layer:
        case Conv():
            arrays: dict[str, npt.NDArray[Any]] = {"weight": layer.weight, "bias": layer.bias, "multiplier": layer.multiplier}
            arrays["high"] = layer.high.astype(np.int16)
            window = (*layer.weight.shape[2:], *layer.stride, *layer.padding, *layer.dilation)
            numbers: tuple[int, ...] = (layer.low, *window, layer.groups)
        case Add() | Concat():
            arrays = {"multiplier": np.array(layer.multipliers, np.float32)}
            numbers = (layer.low, layer.high)
        case Mul():
            return [], [_float(layer.multiplier), layer.low, layer.high]
        case MaxPool():
            return [], [*layer.kernel, *layer.stride, *layer.padding, *layer.dilation]
        case MeanPool():
            return [], [*layer.kernel, *layer.stride, *layer.padding, _float(layer.multiplier), layer.low, layer.high]
        case Table():
            arrays, numbers = {"table": layer.table.view(np.uint8)}, (layer.table.size // 256,)
        case Channels():
            arrays, numbers = {"order": layer.order}, ()
        case Flatten():
            return [], []
        case Slice():
            return [], [*layer.offset, *layer.step]
        case Interleave():
            return [_array(f"{name}_blocks", layer.blocks)], [f"{name}_blocks", len(layer.blocks), *layer.step]
        case Resample():
            arrays = {"rows": layer.rows, "row_weights": layer.row_weights}
            arrays |= {"columns": layer.columns, "column_weights": layer.column_weights}
            made = [_array(f"{name}_{key}", array) for key, array in arrays.items()]
            counts = (layer.rows.shape[1], layer.columns.shape[1])
            return made, [*(f"{name}_{key}" for key in arrays), *counts, _float(layer.multiplier)]
        case _:
            assert_never(layer)
    return [_array(f"{name}_{key}", array) for key, array in arrays.items()], [*(f"{name}_{key}" for key in arrays), *numbers]


def _array(name: str, array: npt.NDArray[np.generic]) -> str:
    flat = np.ascontiguousarray(array).reshape(-1)
    values: Iterable[str] = map(_float, flat) if flat.dtype == np.float32 else map(str, flat.tolist())
    body = ",".join(values)
    # Compilers read lines of any length; people and tools do not.
    wrapped = re.sub(r"(.{100,}?,)", r"\1\n", body)
    return f"static const {_TYPES[flat.dtype.name]} {name}[{len(flat)}] = {{\n{wrapped}\n}};"


def _float(value: float) -> str:
    return f"{float(value).hex()}f"


def _shape(network: Network, index: int) -> str:
    h, w, c = network.shape_of(index)
    return f"(r2f_shape){{{h}, {w}, {c}, {int(network.dtype_of(index) == np.int8)}}}"


def _comment(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text).replace("*/", "* /").replace("/*", "/ *").replace("\\", "/")
