"""A model update on the link: what changed against the version that was sent before (architecture.md, "The link").

Between two steps of training most int8 weights stay and the others move by one, so a layer's weights go as entropy-coded
increments, a filter a row (``core.entropy``). Biases and scales go as increments of their 32-bit patterns, folded
so that small ones of either sign are small numbers, by zstd. Everything else of the graph must be equal.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

from accelsim.int8 import storage
from accelsim.int8.network import Conv, Int8, Layer, Network
from services.codec.core import bodies, entropy
from services.codec.core.bodies import CodecError

WHOLE: Final = 0
DELTA: Final = 1

_TRAINED: Final = ("weight", "bias", "weight_scale", "multiplier")
_LEVEL: Final = 9
_WHOLE_LIMIT: Final = 1 << 28
"""Bytes of a whole network: ten ResNet-50, a quarter of the memory of a device (architecture.md, "The link")."""


class OtherGraph(ValueError):
    """A network that is no later version of another, so that no delta leads from the one to the other."""


def encode(base: Network | None, new: Network) -> bytes:
    """The bytes that turn ``base`` into ``new``, or the whole of ``new`` where base is None.

    Raises OtherGraph naming the layer where the two differ in more than weights, biases and scales; send that whole.
    """
    if base is None:
        return bytes((WHOLE,)) + bodies.compress(storage.to_bytes(new), _LEVEL)
    _require_same_graph(base, new)
    pairs = [(a, b) for (_, a), (_, b) in zip(base.convs(), new.convs(), strict=True)]
    steps = [getattr(b, name).view(np.int32) - getattr(a, name).view(np.int32) for a, b in pairs for name in _TRAINED[1:]]
    step = np.concatenate(steps)
    # The four bytes of each word apart: the high ones are nearly always zero.
    planes = np.ascontiguousarray(((step << 1) ^ (step >> 31)).astype("<i4").view(np.uint8).reshape(-1, 4).T)
    parts = [bodies.compress(planes.data, _LEVEL)]
    for a, b in pairs:
        increments = entropy.encode(_filters(b), _filters(a), 4 * a.weight.size + 64)
        assert increments is not None  # no coding of n increments takes four bytes each
        parts.append(increments)
    lengths = np.array([len(part) for part in parts], "<u4")
    return bytes((DELTA,)) + lengths.tobytes() + b"".join(parts)


def decode(base: Network | None, body: bytes) -> Network:
    """The network that ``encode`` was given as ``new``. Memory is bounded by ``base``, or by 256 MiB for a whole network.

    Raises CodecError on anything that no encoder writes, or on a delta where there is no base.
    """
    if not body:
        raise CodecError("model body: empty")
    payload = memoryview(body)[1:]
    if body[0] == WHOLE:
        declared = bodies.declared(payload, "model body")
        if declared > _WHOLE_LIMIT:
            raise CodecError(f"model body: declares {declared} bytes, at most {_WHOLE_LIMIT} are taken")
        try:
            return storage.from_bytes(bodies.decompress(payload, declared, "model body"))
        except ValueError as error:
            raise CodecError(f"model body: {error}") from error
    if body[0] != DELTA:
        raise CodecError(f"model body: unknown coding {body[0]}")
    if base is None:
        raise CodecError("model body: is a delta, and there is no version; ask for the whole model")
    convs = list(base.convs())
    parts = _unpack(payload, 1 + len(convs))
    n_words = sum(getattr(layer, name).size for _, layer in convs for name in _TRAINED[1:])
    planes = np.frombuffer(bodies.decompress(parts[0], 4 * n_words, "model body"), np.uint8).reshape(4, n_words)
    folded = np.ascontiguousarray(planes.T).view("<u4")[:, 0]
    words = (folded >> 1) ^ (0 - (folded & 1))
    layers: list[Layer] = list(base.layers)
    at = 0

    def advance(old: npt.NDArray[Any]) -> npt.NDArray[Any]:
        nonlocal at
        at += old.size
        moved: npt.NDArray[Any] = (old.view(np.uint32) + words[at - old.size : at]).view(old.dtype)
        return moved

    for (index, layer), part in zip(convs, parts[1:], strict=True):
        weight = entropy.decode(part, _filters(layer))
        if weight is None:
            raise CodecError(f"model body: layer {layer.name!r}: {len(part)} bytes are no increments of its weights")
        new = dataclasses.replace(
            layer,
            weight=weight.reshape(layer.weight.shape),
            bias=advance(layer.bias),
            weight_scale=advance(layer.weight_scale),
            multiplier=advance(layer.multiplier),
        )
        for scale in (new.weight_scale, new.multiplier):
            if not (np.isfinite(scale).all() and (scale >= 0).all()):
                raise CodecError(f"model body: layer {layer.name!r}: a scale is negative or not a finite number")
        layers[index] = new
    return dataclasses.replace(base, layers=tuple(layers))


def digest(network: Network) -> int:
    """xxh3-64 of the network as stored, by which the receiver of a delta knows that it rebuilt the same."""
    return xxhash.xxh3_64_intdigest(storage.canonical(network))


def _require_same_graph(base: Network, new: Network) -> None:
    before, after = ((of.name, of.input_shape, of.input_scale, len(of.layers)) for of in (base, new))
    if before != after:
        raise OtherGraph(f"model {new.name!r} is no later version of {base.name!r}: name, inputs or number of layers differ")
    if not np.array_equal(base.input_table, new.input_table):
        raise OtherGraph(f"model {new.name!r}: the input table changed; send the model whole")
    for a, b in zip(base.layers, new.layers, strict=True):
        if type(a) is not type(b) or not all(_same(a, b, field.name) for field in dataclasses.fields(a)):
            raise OtherGraph(f"model {new.name!r}: layer {b.name!r} changed in more than weights; send the model whole")


def _same(a: Layer, b: Layer, name: str) -> bool:
    x, y = getattr(a, name), getattr(b, name)
    if isinstance(a, Conv) and name in _TRAINED:
        return bool(x.shape == y.shape and x.dtype == y.dtype)
    return np.array_equal(x, y) if isinstance(x, np.ndarray) else bool(x == y)


def _filters(layer: Conv) -> Int8:
    """The weights as the entropy coder takes them, a filter a row."""
    return layer.weight.reshape(len(layer.weight), 1, 1, -1)


def _unpack(payload: memoryview, count: int) -> list[memoryview]:
    if len(payload) < 4 * count:
        raise CodecError(f"model body: {len(payload)} bytes cannot hold the lengths of {count} parts")
    lengths = np.frombuffer(payload[: 4 * count], "<u4").astype(np.int64)
    ends = 4 * count + np.cumsum(lengths)
    if ends[-1] != len(payload):
        raise CodecError(f"model body: parts of {ends[-1]} bytes in all, the body has {len(payload)}")
    return [payload[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
