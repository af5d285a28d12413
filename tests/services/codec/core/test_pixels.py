"""The photo coder against itself, against a slow one written from docs/wire.md, and against hostile bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.codec.core import pixels

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))


def picture(shape: tuple[int, int, int, int], kind: str, seed: int) -> np.ndarray:
    """Images of one kind: a flat one, noise, the two ends of uint8 in turn, or something smooth."""
    generator = np.random.default_rng(seed)
    if kind == "flat":
        return np.full(shape, generator.integers(256), np.uint8)
    if kind == "noise":
        return generator.integers(0, 256, shape, np.uint8)
    if kind == "ends":
        return (255 * generator.integers(0, 2, shape)).astype(np.uint8)
    y, x = np.mgrid[0 : shape[1], 0 : shape[2]]
    smooth = 128 + 100 * np.sin(x / 5 + seed) * np.cos(y / 4)
    return np.clip(smooth[None, :, :, None] + generator.normal(0, 3, shape), 0, 255).astype(np.uint8)


def slowly(images: np.ndarray) -> bytes:
    """What ``encode`` writes, as docs/wire.md says it, one sample at a time."""
    _, height, width, channels = images.shape
    order = (1, 0, 2) if channels == 3 else tuple(range(channels))
    edges = (1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 16, 19, 22, 26, 31, 37, 44, 53, 63, 76, 92, 110, 140)
    coded: list[tuple[int, int, int]] = []
    for image in images.astype(int):
        planes = [image[:, :, c] - (image[:, :, 1] if channels == 3 and c != 1 else 0) for c in range(channels)]
        for y in range(height):
            for c in order:
                p = planes[c]
                for x in range(width):
                    w = p[y, x - 1] if x else p[y - 1, 0] if y else 0
                    ww = p[y, x - 2] if x > 1 else p[y - 1, 0] if y else 0
                    north = p[y - 1] if y else np.full(width, w)
                    above, before, behind = north[x], north[max(x - 1, 0)], north[min(x + 1, width - 1)]
                    median = sorted((w, above, w + above - before))[1]
                    residual = (p[y, x] - ((3 * median + (w + behind) // 2 + 2) // 4) + 128) % 256 - 128
                    activity = abs(w - before) + abs(above - before) + abs(above - behind) + abs(w - ww)
                    context = sum(activity >= edge for edge in edges)
                    coded.append((c, context, 2 * residual if residual >= 0 else -2 * residual - 1))
    parameters = np.zeros((channels, 24), int)
    for c in range(channels):
        for context in range(24):
            values = [value for plane, place, value in coded if (plane, place) == (c, context)]
            k = 0
            while k < 7 and values and len(values) << (k + 17) < (2 * sum(values) + len(values)) * 31537:
                k += 1
            parameters[c, context] = k
    bits = "".join(f"{k:04b}" for k in parameters.reshape(-1))
    for c, context, value in coded:
        k = int(parameters[c, context])
        quotient = value >> k
        rest = f"{value & (1 << k) - 1:0{k}b}" if k else ""
        bits += "0" * quotient + "1" + rest if quotient < 16 else "0" * 16 + f"{value:08b}"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from(["flat", "noise", "ends", "smooth"]), st.integers(0, 99))
def test_is_what_the_slow_one_writes_and_comes_back(shape: tuple[int, int, int, int], kind: str, seed: int) -> None:
    images = picture(shape, kind, seed)
    body = pixels.encode(images)
    assert body == slowly(images)
    again = pixels.decode(body, shape)
    assert again is not None
    assert np.array_equal(again, images)


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.binary(min_size=1, max_size=9), st.integers(0, 99))
def test_any_images_come_back(shape: tuple[int, int, int, int], pattern: bytes, seed: int) -> None:
    """Repeats of any bytes, with some of them replaced by others."""
    images = np.resize(np.frombuffer(pattern, np.uint8), shape)
    generator = np.random.default_rng(seed)
    images = np.where(generator.random(shape) < 0.1, generator.integers(0, 256, shape), images).astype(np.uint8)
    images.flags.writeable = seed % 2 == 0
    body = pixels.encode(images)
    assert len(body) <= pixels.parameter_bytes(shape[3]) + 3 * images.size
    again = pixels.decode(body, shape)
    assert again is not None
    assert np.array_equal(again, images)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_hostile_bytes_are_images_or_refused(data: st.DataObject) -> None:
    shape = (2, 7, 6, 3)
    body = bytearray(pixels.encode(picture(shape, data.draw(st.sampled_from(["noise", "smooth"])), 1)))
    for _ in range(data.draw(st.integers(0, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.sampled_from([0, 1, 128, 255]))
    images = pixels.decode(bytes(body[: data.draw(st.integers(0, len(body)))]), shape)
    assert images is None or images.shape == shape


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_a_part_or_more_than_all_is_refused(cut: int) -> None:
    images = picture((2, 20, 20, 3), "smooth", 3)
    body = pixels.encode(images)
    assert pixels.decode(body[:-cut], images.shape) is None
    assert pixels.decode(body + bytes(cut), images.shape) is None
    assert pixels.decode(b"", images.shape) is None


def test_bits_behind_the_last_sample_are_refused() -> None:
    for seed in range(9):
        images = picture((1, 3, 3, 1), "smooth", seed)
        body = bytearray(pixels.encode(images))
        for bit in range(8):
            body[-1] ^= 1 << bit
            again = pixels.decode(bytes(body), images.shape)
            assert again is None or not np.array_equal(again, images)
            body[-1] ^= 1 << bit


def test_a_rice_parameter_beyond_seven_is_refused() -> None:
    images = picture((1, 8, 8, 1), "smooth", 0)
    body = bytearray(pixels.encode(images))
    for nibble in (0x80, 0x08):
        assert pixels.decode(bytes([body[0] | nibble]) + bytes(body[1:]), images.shape) is None


def test_few_bytes_make_no_memory() -> None:
    """A sample has a bit at least, so a shape that a body cannot fill is refused before anything is allocated."""
    assert pixels.decode(bytes(1000), (1, 1 << 20, 1 << 20, 3)) is None


def test_photos_get_smaller_as_the_noise_in_them_lets_them() -> None:
    """Noise of sigma 3 has 3.63 bits; neighbours as noisy cost half a bit more, the codes a tenth, the picture hardly any."""
    y, x, c = np.mgrid[0:128, 0:128, 0:1]
    noise = np.random.default_rng(0).normal(0, 3, (2, 128, 128, 1))
    images = np.clip(128 + 60 * np.sin(x / 19 + c) * np.cos(y / 17) + noise, 0, 255).astype(np.uint8)
    bits = 8 * len(pixels.encode(images)) / images.size
    assert 0.5 * math.log2(2 * math.pi * math.e * 9) < bits < 4.3
