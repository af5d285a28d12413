"""The codings of a layer's body, a row each (docs/wire.md, "A layer"): a new one is a row here and its name in ``Coding``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, get_args

import lz4.block
import numpy as np

from accelsim.int8.network import Int8
from services.codec.core import bodies, entropy
from services.codec.core.bodies import CodecError
from services.scheme import Coding

_LEVEL: Final = 3


class Row(NamedTuple):
    """A coding. Arrays are int8 (N, H, W, C), C-contiguous where encoded."""

    tag: int
    """The first byte of the body."""
    predicted: bool
    """Whether it carries increments, ``actual - reference`` modulo 256, which decoding adds to a prediction."""
    encode: Callable[[Int8, Int8], bytes | None]
    """(actual, reference) to the rest of the body; None where that would be larger than the outputs."""
    decode: Callable[[memoryview, Int8], Int8]
    """(the rest, prediction) to the outputs, in an array of their own. Of a coding that is not predicted only the prediction's
    shape counts. Takes memory by that shape. Raises CodecError on anything that ``encode`` does not write."""


def _raw(actual: Int8, _: Int8) -> bytes:
    return actual.tobytes()


def _from_raw(payload: memoryview, like: Int8) -> Int8:
    if len(payload) != like.size:
        raise CodecError(f"layer body: {len(payload)} raw bytes for shape {like.shape}, expected {like.size}")
    return np.frombuffer(payload, np.int8).reshape(like.shape).copy()


def _zstd(actual: Int8, _: Int8) -> bytes:
    return bodies.compress(actual.data, _LEVEL)


def _from_zstd(payload: memoryview, like: Int8) -> Int8:
    return np.frombuffer(bodies.decompress(payload, like.size, "layer body"), np.int8).reshape(like.shape).copy()


def _entropy(actual: Int8, reference: Int8) -> bytes | None:
    return entropy.encode(actual, reference, actual.size)


def _from_entropy(payload: memoryview, prediction: Int8) -> Int8:
    rebuilt = entropy.decode(payload, prediction)
    if rebuilt is None:
        raise CodecError(f"layer body: {len(payload)} entropy-coded bytes are no increments for shape {prediction.shape}")
    return rebuilt


def _increments_zstd(actual: Int8, reference: Int8) -> bytes:
    return bodies.compress(np.subtract(actual, reference).data, _LEVEL)


def _from_increments_zstd(payload: memoryview, prediction: Int8) -> Int8:
    data = bodies.decompress(payload, prediction.size, "layer body")
    return np.add(prediction, np.frombuffer(data, np.int8).reshape(prediction.shape))


def _increments_lz4(actual: Int8, reference: Int8) -> bytes:
    payload: bytes = lz4.block.compress(np.subtract(actual, reference).data, store_size=False)
    return payload


def _from_increments_lz4(payload: memoryview, prediction: Int8) -> Int8:
    try:
        data = lz4.block.decompress(payload, uncompressed_size=prediction.size)
    except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
        raise CodecError(f"layer body: LZ4: {error}") from error
    if len(data) != prediction.size:
        raise CodecError(f"layer body: {len(data)} bytes from LZ4, expected {prediction.size}")
    return np.add(prediction, np.frombuffer(data, np.int8).reshape(prediction.shape))


TABLE: Final[dict[Coding, Row]] = {
    "raw": Row(0, False, _raw, _from_raw),
    "zstd": Row(1, False, _zstd, _from_zstd),
    "increments, LZ4": Row(2, True, _increments_lz4, _from_increments_lz4),
    "increments, zstd": Row(3, True, _increments_zstd, _from_increments_zstd),
    "increments, entropy": Row(4, True, _entropy, _from_entropy),
}
BY_TAG: Final = {row.tag: row for row in TABLE.values()}

if TABLE.keys() != set(get_args(Coding)) or len(BY_TAG) != len(TABLE):
    raise TypeError("codings: every name in services.scheme.Coding needs a row of its own, with a tag of its own")


def encode(name: Coding, actual: Int8, reference: Int8) -> bytes | None:
    """The whole body in one coding, its tag included; None where that coding is larger than the outputs."""
    row = TABLE[name]
    payload = row.encode(actual, reference)
    return None if payload is None else bytes((row.tag,)) + payload


def row_of(body: bytes) -> Row:
    """The coding of a body. Raises CodecError for an empty body or an unknown one."""
    if not body:
        raise CodecError("layer body: empty")
    if body[0] not in BY_TAG:
        raise CodecError(f"layer body: unknown coding {body[0]}")
    return BY_TAG[body[0]]
