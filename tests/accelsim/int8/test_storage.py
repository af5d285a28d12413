"""Networks as bytes: the same ones each time, and nothing inconsistent gets in or out."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim.engine.warming import every_layer
from accelsim.int8.network import (
    INPUT,
    Activations,
    Add,
    Channels,
    Concat,
    Conv,
    Flatten,
    Interleave,
    MaxPool,
    MeanPool,
    Mul,
    Network,
    Resample,
    Slice,
    Table,
)
from accelsim.int8.storage import NetworkError, digest, from_bytes, load, save, to_bytes, validate
from accelsim.lowering import lower
from accelsim.zoo import build


def _network(name: str = "digits_cnn") -> Network:
    import torch

    torch.manual_seed(3)
    rng = np.random.default_rng(5)
    size = (8, 8, 1) if name == "digits_cnn" else (32, 32, 3)
    images = rng.integers(0, 256, (4, *size), dtype=np.uint8)
    # The one has int8 activations alone, the other uint8 ones too.
    activations: Activations = "signed" if name == "digits_cnn" else "auto"
    return lower(build(name), images, (0.5,) * size[2], (0.25,) * size[2], name, activations=activations)


@pytest.fixture(scope="module")
def network() -> Network:
    return _network()


@pytest.fixture(scope="module")
def shuffle() -> Network:
    return _network("shufflenet_v2_x0_5")


def _same(a: Network, b: Network) -> bool:
    def equal(x: Any, y: Any) -> bool:
        if isinstance(x, np.ndarray):
            return x.dtype == y.dtype and np.array_equal(x, y)
        return bool(x == y)

    pairs = [(a, b), *zip(a.layers, b.layers, strict=True)]
    return all(
        type(x) is type(y)
        and all(equal(getattr(x, f.name), getattr(y, f.name)) for f in dataclasses.fields(x) if f.name != "layers")
        for x, y in pairs
    )


def test_round_trip_keeps_everything(network: Network, shuffle: Network, tmp_path: Path) -> None:
    for one in (network, shuffle):
        assert _same(from_bytes(to_bytes(one)), one)
    save(network, tmp_path / "n.safetensors")
    assert _same(load(tmp_path / "n.safetensors"), network)
    assert [p.name for p in tmp_path.iterdir()] == ["n.safetensors"]


def test_bytes_are_the_same_in_every_process(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    save(network, path)
    program = "import sys; from accelsim.int8.storage import *; print(digest(load(sys.argv[1])))"
    others = {
        subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])},
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert others == {digest(network)}


def test_digest_follows_every_weight(network: Network) -> None:
    index, layer = next(network.convs())
    weight = layer.weight.copy()
    weight.flat[0] ^= 1
    assert digest(_with(network, index, weight=weight)) != digest(network)


def _with(network: Network, index: int, **changes: Any) -> Network:
    layers = list(network.layers)
    layers[index] = dataclasses.replace(layers[index], **changes)
    return dataclasses.replace(network, layers=tuple(layers))


def _first(network: Network, kind: type) -> int:
    return next(i for i, layer in enumerate(network.layers) if isinstance(layer, kind))


CHANGES: dict[str, tuple[type, Callable[[Any], dict[str, Any]], str]] = {
    "operand later": (Conv, lambda v: {"inputs": (999,)}, "operand 999"),
    "operand itself": (Conv, lambda v: {"inputs": (-2,)}, "operand -2"),
    "two operands": (Conv, lambda v: {"inputs": (-1, -1)}, "2 operands"),
    "shape": (Conv, lambda v: {"shape": (1, 1, v.shape[2])}, "shape"),
    "shape of zero": (Conv, lambda v: {"shape": (0, 8, 16)}, "shape"),
    "scale": (Conv, lambda v: {"scale": v.scale * 2}, "multiplier"),
    "scale below zero": (Conv, lambda v: {"scale": -v.scale}, "scale"),
    "scale not a number": (Conv, lambda v: {"scale": math.nan}, "scale"),
    "scale too large": (Conv, lambda v: {"scale": 1e300}, "scale"),
    "scale not float32": (Conv, lambda v: {"scale": 0.1}, "scale"),
    "weight dtype": (Conv, lambda v: {"weight": v.weight.astype(np.int32)}, "weight: int32"),
    "weight shape": (Conv, lambda v: {"weight": v.weight[:5]}, "expected"),
    "bias dtype": (Conv, lambda v: {"bias": v.bias.astype(np.int64)}, "bias"),
    "bias overflows": (Conv, lambda v: {"bias": np.full_like(v.bias, 2**31 - 1)}, "beyond an int32"),
    "multiplier": (Conv, lambda v: {"multiplier": np.nextafter(v.multiplier, np.float32(1))}, "multiplier"),
    "weight scale": (Conv, lambda v: {"weight_scale": v.weight_scale * np.float32(np.nan)}, "weight_scale"),
    "stride": (Conv, lambda v: {"stride": (0, 1)}, "stride"),
    "padding": (Conv, lambda v: {"padding": (-1, 1)}, "padding"),
    "groups": (Conv, lambda v: {"groups": 3}, "groups"),
    "bounds": (Conv, lambda v: {"low": 5, "high": 4}, "bounds"),
    "bounds beyond int8": (Conv, lambda v: {"high": 128}, "bounds"),
    "pool scale": (MaxPool, lambda v: {"scale": v.scale * 2}, "scale"),
    "pool padding": (MaxPool, lambda v: {"padding": (2, 2)}, "padding"),
    "pool shape": (MaxPool, lambda v: {"shape": (9, 9, v.shape[2])}, "positions"),
    "name twice": (MaxPool, lambda v: {"name": "stem"}, "twice"),
}
SHUFFLE_CHANGES: dict[str, tuple[type, Callable[[Any], dict[str, Any]], str]] = {
    "order twice": (Channels, lambda v: {"order": np.zeros_like(v.order)}, "distinct"),
    "order beyond": (Channels, lambda v: {"order": v.order + np.int32(999)}, "distinct"),
    "concat multiplier": (Concat, lambda v: {"multipliers": (1.0, 0.123)}, "multipliers"),
    "concat shape": (Concat, lambda v: {"shape": (*v.shape[:2], v.shape[2] + 1)}, "side by side"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_an_inconsistent_network_is_refused_by_name(network: Network, case: str) -> None:
    kind, change, text = CHANGES[case]
    index = _first(network, kind)
    bad = _with(network, index, **change(network.layers[index]))
    for attempt in (validate, to_bytes, digest):
        with pytest.raises(NetworkError, match=rf"layer {index} .*{text}"):
            attempt(bad)


@pytest.mark.parametrize("case", SHUFFLE_CHANGES)
def test_an_inconsistent_shuffle_is_refused_by_name(shuffle: Network, case: str) -> None:
    kind, change, text = SHUFFLE_CHANGES[case]
    index = _first(shuffle, kind)
    with pytest.raises(NetworkError, match=rf"layer {index} .*{text}"):
        validate(_with(shuffle, index, **change(shuffle.layers[index])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm:
    """A layer type that nothing here knows."""

    name: str = "norm"
    inputs: tuple[int, ...] = (0,)
    shape: tuple[int, int, int] = (8, 8, 16)
    scale: float = 1.0


def test_a_layer_of_an_unknown_type_is_refused_by_name(network: Network) -> None:
    bad = dataclasses.replace(network, layers=(network.layers[0], Norm(scale=network.layers[0].scale)))  # type: ignore[arg-type]
    for attempt in (validate, to_bytes, digest):
        with pytest.raises(NetworkError, match=r"layer 1: Norm is no layer type, expected one of Conv, Add, .*, Slice"):
            attempt(bad)


@pytest.mark.parametrize(
    "change", [{"inputs": ()}, {"inputs": (INPUT, INPUT, INPUT)}, {"scale": 0.0}, {"shape": (1, 0, 1)}, {"name": ""}]
)
@pytest.mark.parametrize("index", range(10))
def test_every_layer_type_is_held_to_operands_shape_scale_and_name(index: int, change: dict[str, Any]) -> None:
    whole = every_layer()
    validate(whole)
    takes_many = isinstance(whole.layers[index], Add | Concat) and change.get("inputs")
    with pytest.raises(NetworkError, match="multipliers|side by side" if takes_many else rf"layer {index} "):
        validate(_with(whole, index, **change))


@pytest.mark.parametrize("kind", [Conv, Add, Concat, MeanPool, Mul])
@pytest.mark.parametrize("bounds", [{"low": 1, "high": 0}, {"low": -129}, {"high": 128}])
def test_bounds_of_every_layer_that_has_them_are_those_of_an_int8(kind: type, bounds: dict[str, int]) -> None:
    whole = every_layer()
    with pytest.raises(NetworkError, match="are not bounds of an int8"):
        validate(_with(whole, _first(whole, kind), **bounds))


@pytest.mark.parametrize("kind", [Conv, Add, Concat, MeanPool, Mul])
@pytest.mark.parametrize("bounds", [{"low": -1, "high": 200}, {"low": 5, "high": 4}, {"low": 0, "high": 256}])
def test_bounds_of_unsigned_layers_are_those_of_a_uint8(kind: type, bounds: dict[str, int]) -> None:
    whole = every_layer()
    index = _first(whole, kind)
    bounds["low"] = bounds.get("low", 0)
    with pytest.raises(NetworkError, match="are not bounds of a uint8"):
        validate(_with(whole, index, signed=False, **bounds))


@pytest.mark.parametrize("kind", [MaxPool, Channels, Flatten, Slice])
def test_layers_that_move_integers_have_their_operands_sign(kind: type) -> None:
    whole = every_layer()
    with pytest.raises(NetworkError, match="uint8 integers from an operand that has int8 ones"):
        validate(_with(whole, _first(whole, kind), signed=False))


def test_a_table_has_its_layers_dtype() -> None:
    whole = every_layer()
    with pytest.raises(NetworkError, match=r"table: int8 of shape \(256,\), expected uint8"):
        validate(_with(whole, _first(whole, Table), signed=False))


def test_a_high_bound_a_channel_is_kept_and_checked(network: Network) -> None:
    first = network.layers[0]
    assert isinstance(first, Conv)
    high = np.arange(len(first.weight), dtype=np.int32) + 40
    changed = _with(network, 0, high=high)
    again = from_bytes(to_bytes(changed)).layers[0]
    assert isinstance(again, Conv)
    assert np.array_equal(again.high, high)
    with pytest.raises(NetworkError, match="high: int32 of shape"):
        validate(_with(network, 0, high=high[1:]))
    with pytest.raises(NetworkError, match="high 128 are not bounds"):
        validate(_with(network, 0, high=np.where(high == 41, 128, high).astype(np.int32)))


def test_the_first_version_is_read(network: Network) -> None:
    """As it was written before there were uint8 activations: no ``signed``, and one number as a MAC layer's ``high``."""
    graph, rest = _split(to_bytes(network))
    described = json.loads(graph["__metadata__"]["r2f"])
    described["format"] = "r2f-int8-network/1"
    removed = {}
    for index, layer in enumerate(described["layers"]):
        del layer["signed"]
        if layer["type"] == "Conv":
            layer["high"] = 127
            removed[f"{index}.high"] = graph.pop(f"{index}.high")
    # What is left moves together.
    keep = sorted((entry for name, entry in graph.items() if name != "__metadata__"), key=lambda e: e["data_offsets"][0])
    body = b""
    for entry in keep:
        first, last = entry["data_offsets"]
        entry["data_offsets"] = [len(body), len(body) + last - first]
        body += rest[first:last]
    graph["__metadata__"]["r2f"] = json.dumps(described)
    assert removed
    old = _join(graph, body)
    assert _same(from_bytes(old), network)
    described["layers"][0]["high"] = 1 << 40
    graph["__metadata__"]["r2f"] = json.dumps(described)
    with pytest.raises(NetworkError, match="layer 0: field high"):
        from_bytes(_join(graph, body))


def test_flatten_and_slice_are_checked(network: Network) -> None:
    index = _first(network, Flatten)
    with pytest.raises(NetworkError, match="flatten"):
        validate(_with(network, index, shape=(1, 1, 7)))
    x = network.layers[0]
    bad = Slice(name="s", inputs=(0,), shape=(4, 4, 16), scale=x.scale, offset=(0, 0, 0), step=(0, 2))
    with pytest.raises(NetworkError, match="step"):
        validate(dataclasses.replace(network, layers=(x, bad)))


def _resample(**fields: Any) -> Network:
    rows, ones = np.array([[0, 1], [1, 0]], np.int32), np.array([[1, 3], [2, 2]], np.int32)
    plain = {"rows": rows, "row_weights": ones, "columns": rows, "column_weights": ones, "multiplier": 1 / 16}
    layer = Resample(name="r", inputs=(-1,), scale=1.0, **{"shape": (2, 2, 1)} | plain | fields)  # type: ignore[arg-type]
    table = np.zeros((1, 256), np.int8)
    return Network(name="n", input_shape=(2, 2, 1), input_scale=1.0, input_table=table, layers=(layer,))


def test_a_resampling_is_kept() -> None:
    assert _same(from_bytes(to_bytes(_resample())), _resample())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"shape": (2, 2, 2)}, "2 channels, the operand has 1"),
        ({"scale": 2.0}, "scale 2.0 is not the operand's"),
        ({"shape": (3, 2, 1)}, r"rows: int32 of shape \(2, 2\), expected int32 of shape \(3, 2\)"),
        ({"rows": np.array([[0, 2], [1, 0]], np.int32)}, "rows must be below 2"),
        ({"columns": np.array([[0, -1], [1, 0]], np.int32)}, "columns must be below 2"),
        ({"rows": np.zeros((2, 0), np.int32)}, "0 rows a pixel"),
        ({"rows": np.zeros((2, 65), np.int32)}, "65 rows a pixel"),
        ({"rows": np.zeros(2, np.int32)}, "0 rows a pixel"),
        ({"row_weights": np.array([[1, 3], [2, 1]], np.int32)}, "with one sum"),
        ({"row_weights": np.array([[-1, 5], [2, 2]], np.int32)}, "0 or more"),
        ({"row_weights": np.array([[0, 0], [0, 0]], np.int32)}, "one sum of 1"),
        ({"row_weights": np.full((2, 2), 2**31 - 1, np.int32)}, "one sum of 1"),
        ({"row_weights": np.full((2, 2), 1 << 20, np.int32)}, "in steps of 1/8388608"),
        ({"multiplier": 0.5}, "do not follow"),
    ],
)
def test_a_resampling_is_checked(fields: dict[str, Any], text: str) -> None:
    if "scale" in fields:
        whole = _resample()
        changed = dataclasses.replace(whole, layers=(dataclasses.replace(whole.layers[0], **fields),))
    else:
        changed = _resample(**fields)
    with pytest.raises(NetworkError, match=text):
        validate(changed)


def _interleave(**fields: Any) -> Network:
    blocks = np.array([[0, 0, 0, 0], [0, 2, 1, -1]], np.int32)
    plain = {"step": (2, 2), "blocks": blocks, "taps": np.array([[1, 2], [0, 0]], np.int32), "inputs": (-1,), "scale": 1.0}
    layer = Interleave(name="i", **{"shape": (4, 4, 2)} | plain | fields)  # type: ignore[arg-type]
    table = np.zeros((4, 256), np.int8)
    return Network(name="n", input_shape=(2, 2, 4), input_scale=1.0, input_table=table, layers=(layer,))


def test_an_interleaving_is_kept() -> None:
    assert _same(from_bytes(to_bytes(_interleave())), _interleave())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"blocks": np.array([[0, 0, 0, 0], [0, 2, 2, -2]], np.int32)}, "block 1 lies where an earlier one does"),
        ({"blocks": np.array([[0, 0, 0, 0], [0, 3, 1, -1]], np.int32)}, "block 1 starts at channel 3"),
        ({"blocks": np.array([[0, -1, 0, 0], [0, 2, 1, 1]], np.int32)}, "block 0 starts at channel -1"),
        ({"blocks": np.array([[0, 0, 1 << 20, 0], [0, 2, 1, 1]], np.int32)}, "row 1048576"),
        ({"blocks": np.array([[1, 0, 0, 0], [0, 2, 1, 1]], np.int32)}, "block 0 is of operand 1 of 1"),
        ({"blocks": np.zeros((0, 4), np.int32)}, "0 blocks, expected 1 to 4096"),
        ({"blocks": np.zeros(4, np.int32)}, r"blocks: int32 of shape \(4,\)"),
        ({"blocks": np.zeros((2, 4), np.int64)}, "blocks: int64"),
        ({"taps": np.zeros((1, 2), np.int32)}, r"expected int32 of shape \(2, 2\)"),
        ({"taps": np.full((2, 2), -1, np.int32)}, "taps out of range"),
        ({"step": (0, 2)}, "step"),
        ({"scale": 2.0}, "scale 2.0 is not the operand's"),
        ({"signed": False}, "uint8 integers from an operand that has int8"),
        ({"inputs": ()}, "0 operands, expected 1 to 1024"),
    ],
)
def test_an_interleaving_is_checked(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(NetworkError, match=text):
        validate(_interleave(**fields))


def test_tables_a_channel_are_checked() -> None:
    whole = every_layer()
    index = _first(whole, Table)
    channels = whole.layers[index].shape[2]
    tables, slopes = np.zeros((channels, 256), np.int8), np.zeros((channels, 256), np.float32)
    assert _same(from_bytes(to_bytes(kept := _with(whole, index, table=tables, slope=slopes))), kept)
    with pytest.raises(NetworkError, match="table: int8 of shape"):
        validate(_with(whole, index, table=tables[1:], slope=slopes))
    with pytest.raises(NetworkError, match="slope: float32 of shape"):
        validate(_with(whole, index, table=tables))


def _split(body: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", body[:8])[0]
    return json.loads(body[8 : 8 + length]), body[8 + length :]


def _join(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _graph_change(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def apply(header: dict[str, Any]) -> None:
        graph = json.loads(header["__metadata__"]["r2f"])
        change(graph)
        header["__metadata__"]["r2f"] = json.dumps(graph)

    return apply


HEADERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "no metadata": lambda h: h.pop("__metadata__"),
    "metadata is a list": lambda h: h.update({"__metadata__": []}),
    "tensor beyond the file": lambda h: h["0.bias"].update({"data_offsets": [0, 1 << 40]}),
    "tensor of a huge shape": lambda h: h["0.bias"].update({"shape": [1 << 40, 1 << 40]}),
    "tensor of another dtype": lambda h: h["0.bias"].update({"dtype": "F64"}),
    "tensor missing": lambda h: h.update({"other": h.pop("0.bias")}),
    "format": _graph_change(lambda g: g.update({"format": "other/1"})),
    "no layers": _graph_change(lambda g: g.update({"layers": []})),
    "layers missing": _graph_change(lambda g: g.pop("layers")),
    "layers not a list": _graph_change(lambda g: g.update({"layers": {"0": 1}})),
    "twenty thousand layers": _graph_change(lambda g: g.update({"layers": g["layers"][:1] * 20_000})),
    "layer type": _graph_change(lambda g: g["layers"][0].update({"type": "os.system"})),
    "layer type missing": _graph_change(lambda g: g["layers"][0].pop("type")),
    "field missing": _graph_change(lambda g: g["layers"][0].pop("stride")),
    "field unknown": _graph_change(lambda g: g["layers"][0].update({"hook": "x"})),
    "field of another type": _graph_change(lambda g: g["layers"][0].update({"stride": "1"})),
    "field of another length": _graph_change(lambda g: g["layers"][0].update({"stride": [1, 1, 1]})),
    "huge number": _graph_change(lambda g: g["layers"][0].update({"groups": 10**400})),
    "huge shape": _graph_change(lambda g: g["layers"][0].update({"shape": [1 << 19, 1 << 19, 1 << 19]})),
    "scale": _graph_change(lambda g: g.update({"input_scale": -1.0})),
    "unknown in the graph": _graph_change(lambda g: g.update({"more": 1})),
    "input shape": _graph_change(lambda g: g.update({"input_shape": [8, 8, 3]})),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_hostile_header_is_one_clear_error(network: Network, case: str) -> None:
    header, data = _split(to_bytes(network))
    HEADERS[case](header)
    with pytest.raises(NetworkError):
        from_bytes(_join(header, data))


def test_deeply_nested_headers_end(network: Network) -> None:
    header, data = _split(to_bytes(network))
    header["__metadata__"]["r2f"] = "[" * 100_000 + "]" * 100_000
    with pytest.raises(NetworkError):
        from_bytes(_join(header, data))


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1), place=st.floats(0, 1), value=st.integers(0, 255))
def test_damaged_bytes_never_pass_unnoticed(network: Network, cut: float, place: float, value: int) -> None:
    """Cut off: an error. One byte changed: an error, or another valid network with another digest."""
    body = to_bytes(network)
    with pytest.raises(NetworkError):
        from_bytes(body[: int(cut * (len(body) - 1))])
    changed = bytearray(body)
    at = int(place * (len(body) - 1))
    if changed[at] == value:
        return
    changed[at] = value
    try:
        read = from_bytes(changed)
    except NetworkError:
        return
    assert digest(read) != digest(network) or to_bytes(read) == body


def test_load_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(NetworkError, match=r"n\.safetensors"):
        load(path)


def test_arrays_read_are_not_writable(network: Network) -> None:
    layer = next(from_bytes(to_bytes(network)).convs())[1]
    with pytest.raises(ValueError, match="read-only"):
        layer.weight[0] = 0
