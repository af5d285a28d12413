"""The entropy coder: there and back on errors as flips make them, against its bound, and against hostile bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.codec.core import entropy, entropy_kernels


def errors(shape: tuple[int, int, int, int], weights: int, inputs: int, outputs: int, seed: int = 0) -> np.ndarray:
    """Increments as flips of weights (a channel), inputs (3x3 pixels, all channels) and outputs (one element) make them."""
    generator = np.random.default_rng(seed)
    n, h, w, c = shape
    result = np.zeros(shape, np.int16)
    for _ in range(weights):
        size = 2.0 ** generator.uniform(-5, 4) * generator.choice([-1, 1])
        result[..., generator.integers(c)] += np.rint(size * np.abs(generator.normal(size=(n, h, w)))).astype(np.int16)
    for _ in range(inputs):
        i, y, x = generator.integers(n), generator.integers(h), generator.integers(w)
        patch = result[i, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        patch += np.rint(2.0 ** generator.uniform(-4, 4) * generator.normal(size=patch.shape)).astype(np.int16)
    for _ in range(outputs):
        at = tuple(int(generator.integers(size)) for size in shape)
        result[at] += 2 ** generator.integers(8) * generator.choice([-1, 1])
    return np.clip(result, -128, 127).astype(np.int8)


SHAPES = [(2, 14, 14, 64), (16, 7, 7, 96), (16, 1, 1, 100), (1, 5, 3, 7), (3, 9, 4, 1), (1, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flips", [(0, 0, 0), (1, 1, 1), (5, 20, 30), (60, 200, 200)])
def test_round_trip(shape: tuple[int, int, int, int], flips: tuple[int, int, int]) -> None:
    increments = errors(shape, *flips)
    vote = np.random.default_rng(1).integers(-128, 128, shape, dtype=np.int8)
    body = entropy.encode(vote + increments, vote, 2 * vote.size + 64)
    assert body is not None
    rebuilt = entropy.decode(body, vote)
    assert rebuilt is not None
    assert np.array_equal(rebuilt, vote + increments)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_increments_come_back(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 6)) for _ in range(4))
    size = math.prod(shape)
    dense = data.draw(st.booleans())
    values = st.integers(-128, 127) if dense else st.sampled_from([0, 0, 0, 0, 0, 1, -1, -128, 127])
    actual = np.array(data.draw(st.lists(values, min_size=size, max_size=size)), np.int8).reshape(shape)
    body = entropy.encode(actual, np.zeros(shape, np.int8), 8 * size + 64)
    assert body is not None
    rebuilt = entropy.decode(body, np.zeros(shape, np.int8))
    assert rebuilt is not None
    assert np.array_equal(rebuilt, actual)


def test_all_errors_of_one_line_are_below_the_bound() -> None:
    for flips in ((20, 0, 0), (0, 100, 0), (6, 60, 40)):
        increments = errors((16, 28, 28, 128), *flips)
        body = entropy.encode(increments, np.zeros_like(increments), increments.size)
        assert body is not None
        assert len(body) < entropy.bound(increments)


def test_bound_is_the_entropy_that_the_design_names() -> None:
    increments = errors((2, 6, 5, 4), 1, 3, 2)
    bits = 0.0
    for image in range(2):
        for channel in range(4):
            share = np.count_nonzero(increments[image, :, :, channel]) / 30
            bits += sum(-30 * p * math.log2(p) for p in (share, 1 - share) if p > 0)
    _, times = np.unique(increments[increments != 0], return_counts=True)
    bits += sum(-times * np.log2(times / times.sum()))
    assert entropy.bound(increments) == pytest.approx(bits / 8)
    assert entropy.bound(np.zeros((1, 2, 2, 2), np.int8)) == 0


def test_nothing_to_say_costs_a_byte() -> None:
    same = np.zeros((16, 56, 56, 64), np.int8)
    assert entropy.encode(same, same, 100) == b"\xc0"


def test_too_large_is_none_and_never_written_past() -> None:
    actual = np.random.default_rng(0).integers(-128, 128, (2, 8, 8, 16), dtype=np.int8)
    whole = entropy.encode(actual, np.zeros_like(actual), 10 * actual.size)
    assert whole is not None
    for limit in (0, 1, 10, 100, 513, 600, 1000, len(whole) - 1):
        assert entropy.encode(actual, np.zeros_like(actual), limit) is None
    assert entropy.encode(actual, np.zeros_like(actual), len(whole)) == whole


def test_rice_parameter_is_near_the_best() -> None:
    generator = np.random.default_rng(0)
    for share in (0.4, 0.1, 0.01, 0.0003):
        gaps = np.diff(np.flatnonzero(generator.random(300_000) < share)) - 1
        cost = [int((gaps >> k).sum()) + len(gaps) * (k + 1) for k in range(20)]
        assert cost[entropy_kernels.rice_parameter(300_000, len(gaps))] <= 1.03 * min(cost)


BODIES = [
    entropy.encode(errors((2, 7, 7, 12), *flips), np.zeros((2, 7, 7, 12), np.int8), 10_000) for flips in ((1, 2, 3), (9, 9, 9))
]


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_hostile_bytes_decode_or_are_refused(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        body = bytearray(data.draw(st.binary(max_size=200)))
    else:
        body = bytearray(data.draw(st.sampled_from(BODIES)))
        for _ in range(data.draw(st.integers(0, 5))):
            body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        body = body[: data.draw(st.integers(0, len(body)))]
    guarded = np.full(3 * 2 * 7 * 7 * 12, 77, np.int8)
    rebuilt = entropy.decode(bytes(body), guarded[1176:2352].reshape(2, 7, 7, 12))
    assert rebuilt is None or rebuilt.shape == (2, 7, 7, 12)
    assert (guarded == 77).all()
