"""A layer's outputs there and back, and what hostile bytes come to."""

from __future__ import annotations

import lz4.block
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from services.codec.core import codings, entropy, layers
from services.codec.core.bodies import CodecError
from services.scheme import Codec

SHAPE = (2, 5, 7, 6)
BYTES = np.dtype(np.int8)


def outputs(density: float, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    vote = generator.integers(-128, 128, shape, dtype=np.int8)
    hit = generator.random(shape) < density
    return np.where(hit, generator.integers(-128, 128, shape, dtype=np.int8), vote), vote


@pytest.mark.parametrize("density", [0.0, 0.001, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("codec", ["direct", "golden", "chained"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_round_trip(codec: Codec, density: float, dtype: type) -> None:
    actual, vote = (array.view(dtype) for array in outputs(density))
    for reference in (vote, None):
        rebuilt = layers.decode(layers.encode(actual, reference, codec), reference, SHAPE, np.dtype(dtype))
        assert rebuilt.dtype == dtype
        assert np.array_equal(rebuilt, actual)


def test_int8_against_uint8_is_refused() -> None:
    actual, vote = outputs(0.1)
    with pytest.raises(ValueError, match="both must be bytes and alike"):
        layers.encode(actual, vote.view(np.uint8), "chained")
    body = layers.encode(actual, vote, "golden")
    with pytest.raises(ValueError, match="expected uint8"):
        layers.decode(body, vote, SHAPE, np.dtype(np.uint8))


def test_direct_is_the_outputs_as_they_are() -> None:
    actual, vote = outputs(0.01)
    assert layers.encode(actual, vote, "direct") == bytes([codings.TABLE["raw"].tag]) + actual.tobytes()


@pytest.mark.parametrize("density", [0.0, 0.001, 0.01, 0.05, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("flat", [False, True])
def test_chained_takes_the_smallest(density: float, flat: bool) -> None:
    actual, vote = outputs(density, shape=(4, 14, 14, 32))
    if flat:  # outputs that zstd alone makes nothing of, which increments cannot beat
        actual = np.full_like(actual, 7)
    increments = np.subtract(actual, vote)
    entropy_coded = entropy.encode(actual, vote, 8 * actual.size)
    assert entropy_coded is not None
    sizes = [
        len(entropy_coded),
        len(zstandard.ZstdCompressor(level=3).compress(increments.data)),
        len(lz4.block.compress(increments.data, store_size=False)),
        len(zstandard.ZstdCompressor(level=3).compress(actual.data)),
        actual.size,
    ]
    assert len(layers.encode(actual, vote, "chained")) == 1 + min(sizes)


def test_golden_is_lz4_of_increments_that_wrap_around() -> None:
    actual, vote = np.full((1, 1, 1, 3), -128, np.int8), np.full((1, 1, 1, 3), 127, np.int8)
    body = layers.encode(actual, vote, "golden")
    assert lz4.block.decompress(body[1:], uncompressed_size=3) == b"\x01\x01\x01"
    assert np.array_equal(layers.decode(body, vote, (1, 1, 1, 3), BYTES), actual)


def test_a_wrong_prediction_shifts_just_those_elements() -> None:
    actual, vote = outputs(0.02)
    prediction = vote.copy()
    prediction[0, 0, 0, 0] ^= 3
    rebuilt = layers.decode(layers.encode(actual, vote, "chained"), prediction, SHAPE, BYTES)
    assert np.argwhere(rebuilt != actual).tolist() == [[0, 0, 0, 0]]


def test_increments_without_a_prediction_are_refused() -> None:
    actual, vote = outputs(0.01)
    with pytest.raises(CodecError, match="prediction"):
        layers.decode(layers.encode(actual, vote, "chained"), None, SHAPE, BYTES)


@pytest.mark.parametrize("codec", ["direct", "golden"])
def test_wrong_shape_is_refused(codec: Codec) -> None:
    # Entropy-coded increments may happen to make sense for another shape; there the digest tells.
    actual, vote = outputs(0.01)
    body = layers.encode(actual, vote, codec)
    with pytest.raises(CodecError):
        layers.decode(body, np.zeros((3, 5, 7, 6), np.int8), (3, 5, 7, 6), BYTES)


def test_bombs_are_refused_before_memory_is_taken() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    for tag in (codings.TABLE["zstd"].tag, codings.TABLE["increments, zstd"].tag):
        with pytest.raises(CodecError, match="declares"):
            layers.decode(bytes([tag]) + bomb, np.zeros(SHAPE, np.int8), SHAPE, BYTES)
    bomb = lz4.block.compress(bytes(1 << 24), store_size=False)
    with pytest.raises(CodecError, match="LZ4"):
        layers.decode(bytes([codings.TABLE["increments, LZ4"].tag]) + bomb, np.zeros(SHAPE, np.int8), SHAPE, BYTES)


BODIES = [
    layers.encode(*outputs(density), codec) for density in (0.0, 0.01, 0.3, 1.0) for codec in ("direct", "golden", "chained")
]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_hostile_bytes_decode_or_are_refused(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        body = bytes([data.draw(st.integers(0, 8))]) + data.draw(st.binary(max_size=300))
    else:
        body = bytearray(data.draw(st.sampled_from(BODIES)))
        for _ in range(data.draw(st.integers(0, 4))):
            body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        body = bytes(body[: data.draw(st.integers(0, len(body)))])
    try:
        rebuilt = layers.decode(body, np.zeros(SHAPE, np.int8), SHAPE, BYTES)
    except CodecError:
        return
    assert rebuilt.shape == SHAPE
    assert rebuilt.dtype == np.int8


def test_digest_sees_every_byte() -> None:
    actual, _ = outputs(0.0)
    other = actual.copy()
    other[-1, -1, -1, -1] ^= 1
    assert layers.digest(actual) == layers.digest(np.asfortranarray(actual))
    assert layers.digest(actual) != layers.digest(other)
