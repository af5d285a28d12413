"""One layer's outputs as bytes on the link, and back (architecture.md, "The link").

The first byte names the coding, so the decoder needs no configuration. Codings 0 and 1 carry the outputs themselves,
the others increments: ``actual - vote`` modulo 256, to which the receiver adds its own prediction.
"""

from __future__ import annotations

import math
from typing import Final

import lz4.block
import numpy as np
import xxhash
import zstandard

from accelsim.int8.network import Int8
from services.codec.core import entropy
from services.scheme import Codec

RAW: Final = 0
ZSTD: Final = 1
INCREMENT_LZ4: Final = 2
INCREMENT_ZSTD: Final = 3
INCREMENT_ENTROPY: Final = 4

_LEVEL: Final = 3
_SPARSE_SHIFT: Final = 3


class CodecError(ValueError):
    """Bytes that are not what an encoder writes; nothing of them was used."""


def digest(array: Int8) -> int:
    """xxh3-64 of the array's NHWC bytes: by it the receiver knows that it rebuilt just what the device computed."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(array).view(np.uint8).data)


def encode(actual: Int8, vote: Int8 | None, codec: Codec) -> bytes:
    """A layer's actual outputs, int8 (N, H, W, C), as a self-describing body.

    ``vote`` is the prediction that the receiver will make too, of the same shape; None sends the outputs themselves.
    ``direct`` sends them as they are (the paper's DRM), ``golden`` sends increments by LZ4 (the paper's APRM),
    ``chained`` takes the smallest of what there is. Raises ValueError where a dtype or shape differs.
    """
    if actual.dtype != np.int8 or (vote is not None and (vote.dtype != np.int8 or vote.shape != actual.shape)):
        got = "none" if vote is None else f"{vote.dtype} of shape {vote.shape}"
        raise ValueError(f"encode: actual is {actual.dtype} of {actual.shape}, vote {got}; both must be int8 and alike")
    actual = np.ascontiguousarray(actual)
    if codec == "direct" or (codec == "golden" and vote is None):
        return bytes((RAW,)) + actual.tobytes()
    if vote is None:
        return _smallest_direct(actual)
    if codec == "golden":
        return _lz4(np.subtract(actual, vote))
    payload = entropy.encode(actual, vote, actual.size)
    # Where errors are this sparse neither was ever smaller, and looking would cost more than coding.
    if payload is not None and len(payload) <= actual.size >> _SPARSE_SHIFT:
        return bytes((INCREMENT_ENTROPY,)) + payload
    increments = np.subtract(actual, vote)
    bodies = [_zstd(INCREMENT_ZSTD, increments), _lz4(increments)]
    if payload is not None:
        bodies.append(bytes((INCREMENT_ENTROPY,)) + payload)
    body = min(bodies, key=len)
    # Increments that compress worse than 4:1 are hardly sparse: only then can the outputs themselves be smaller.
    return body if 4 * len(body) < actual.size else min(body, _smallest_direct(actual), key=len)


def _zstd(tag: int, data: Int8) -> bytes:
    return bytes((tag,)) + zstandard.ZstdCompressor(level=_LEVEL).compress(data.data)


def _lz4(increments: Int8) -> bytes:
    payload: bytes = lz4.block.compress(increments.data, store_size=False)
    return bytes((INCREMENT_LZ4,)) + payload


def _smallest_direct(actual: Int8) -> bytes:
    body = _zstd(ZSTD, actual)
    return body if len(body) <= actual.size else bytes((RAW,)) + actual.tobytes()


def decode(body: bytes, prediction: Int8 | None, shape: tuple[int, ...]) -> Int8:
    """The outputs, int8 of ``shape``, that ``encode`` was given, as far as ``prediction`` equals its vote.

    Memory is bounded by ``shape``, whatever the body says. Raises CodecError on anything that no encoder writes.
    """
    if not body:
        raise CodecError("layer body: empty")
    tag, payload, size = body[0], memoryview(body)[1:], math.prod(shape)
    if tag == RAW:
        if len(payload) != size:
            raise CodecError(f"layer body: {len(payload)} raw bytes for shape {shape}, expected {size}")
        return np.frombuffer(payload, np.int8).reshape(shape).copy()
    if tag == ZSTD:
        return _unzstd(payload, size).reshape(shape)
    if prediction is None:
        raise CodecError(f"layer body: coding {tag} needs a prediction to add to, and there is none")
    if prediction.dtype != np.int8 or prediction.shape != shape:
        raise ValueError(f"decode: prediction is {prediction.dtype} of {prediction.shape}, expected int8 of {shape}")
    if tag == INCREMENT_ENTROPY:
        rebuilt = entropy.decode(payload, prediction)
        if rebuilt is None:
            raise CodecError(f"entropy-coded body: {len(payload)} bytes are not increments for shape {shape}")
        return rebuilt
    if tag == INCREMENT_LZ4:
        increments = _unlz4(payload, size)
    elif tag == INCREMENT_ZSTD:
        increments = _unzstd(payload, size)
    else:
        raise CodecError(f"layer body: unknown coding {tag}")
    return np.add(prediction, increments.reshape(shape))


def needs_prediction(body: bytes) -> bool:
    """Whether ``decode`` of this body adds to a prediction. Raises CodecError for an empty body."""
    if not body:
        raise CodecError("layer body: empty")
    return body[0] not in (RAW, ZSTD)


def _unzstd(payload: memoryview, size: int) -> Int8:
    try:
        frame = zstandard.get_frame_parameters(payload)
        # The frame's own claim is what the library would allocate, so it is checked first.
        if frame.content_size != size:
            raise CodecError(f"zstd body: declares {frame.content_size} bytes, expected {size}")
        data = zstandard.ZstdDecompressor().decompress(payload, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"zstd body: {error}") from error
    if len(data) != size:
        raise CodecError(f"zstd body: {len(data)} bytes, expected {size}")
    return np.frombuffer(data, np.int8).copy()


def _unlz4(payload: memoryview, size: int) -> Int8:
    try:
        data = lz4.block.decompress(payload, uncompressed_size=size)
    except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
        raise CodecError(f"LZ4 body: {error}") from error
    if len(data) != size:
        raise CodecError(f"LZ4 body: {len(data)} bytes, expected {size}")
    return np.frombuffer(data, np.int8)
