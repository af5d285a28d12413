"""Images there and back, and what hostile bytes come to."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from services.codec.core import inputs
from services.codec.core.bodies import CodecError

ROOT = Path(__file__).resolve().parents[4]


def photo(count: int, height: int, width: int, channels: int) -> np.ndarray:
    """Smooth with a little noise, as photos are."""
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    smooth = 128 + 90 * np.sin(x / 9 + c) * np.cos(y / 7)
    noise = np.random.default_rng(0).normal(0, 3, (count, height, width, channels))
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "shape", [(3, 64, 48, 3), (2, 32, 32, 3), (5, 8, 8, 1), (2, 40, 40, 1), (2, 9, 5, 4), (0, 8, 8, 3), (1, 1, 1, 3)]
)
def test_lossless_round_trip(shape: tuple[int, int, int, int]) -> None:
    images = photo(*shape)
    body = inputs.encode(images)
    assert np.array_equal(inputs.decode(body, len(images), shape[1:]), images)


def test_floats_are_four_bytes_a_value_and_come_back_as_they_were() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    body = inputs.floats(images)
    assert len(body) == 1 + 4 * images.size
    assert np.array_equal(inputs.decode(body, 1, (16, 16, 1)), images)
    assert inputs.decode(inputs.floats(images[:0]), 0, (16, 16, 1)).shape == (0, 16, 16, 1)
    for wrong in (np.nan, np.inf, -0.1, 1.1):
        forged = body[:5] + np.float32(wrong).tobytes() + body[9:]
        with pytest.raises(CodecError, match="outside"):
            inputs.decode(forged, 1, (16, 16, 1))
    for length in (2, len(body) - 1):
        with pytest.raises(CodecError, match="expected 1024"):
            inputs.decode(body[:length], 1, (16, 16, 1))


def test_lossless_is_smaller_than_webp_and_png() -> None:
    # A real one, made smaller so that little is left of the JPEG that it was.
    whole = load_sample_image("china.jpg")
    half = np.asarray(Image.fromarray(whole).resize((320, 208), Image.Resampling.LANCZOS))
    images = np.stack([half[:96, :96], half[100:196, 100:196], half[40:136, 200:296]])
    for kind, options in (("WEBP", {"lossless": True, "method": 0}), ("PNG", {})):
        files = []
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, kind, **options)
            files.append(buffer.getvalue())
        assert len(inputs.encode(images)) < sum(map(len, files))


def test_flat_images_and_noise_cost_no_more_than_zstd() -> None:
    flat = np.full((2, 64, 64, 3), 77, np.uint8)
    assert len(inputs.encode(flat)) < 100
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert len(inputs.encode(noise)) < noise.nbytes + 100
    for images in (flat, noise):
        assert np.array_equal(inputs.decode(inputs.encode(images), 2, images.shape[1:]), images)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossy_gives_the_pixels_that_the_other_side_will_see(channels: int, kind: str) -> None:
    images = photo(3, 64, 64, channels)
    body, seen = inputs.lossy(images, 90, kind)  # type: ignore[arg-type]
    assert np.array_equal(inputs.decode(body, 3, images.shape[1:]), seen)
    assert len(body) < len(inputs.encode(images))
    assert np.abs(seen.astype(int) - images).mean() < 6


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_is_smaller_than_a_plain_one_of_the_same_pixels(channels: int) -> None:
    images = photo(3, 64, 64, channels)
    body, seen = inputs.lossy(images, 90)
    plain = []
    for image, expected in zip(images, seen, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image if channels == 3 else image[:, :, 0]).save(buffer, "JPEG", quality=90)
        plain.append(buffer.getvalue())
        assert np.array_equal(np.asarray(Image.open(buffer)).reshape(expected.shape), expected)
    assert len(body) < len(inputs.pack(plain))


def test_sample_hash_names_content() -> None:
    images = photo(2, 8, 8, 3)
    assert inputs.sample_hash(images[0]) == inputs.sample_hash(np.asfortranarray(images[0]))
    assert inputs.sample_hash(images[0]) != inputs.sample_hash(images[1])
    assert len(inputs.sample_hash(images[0])) == 16


def test_bomb_is_refused_by_its_header() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(buffer, "WEBP", lossless=True, method=0)
    body = bytes([1]) + len(buffer.getvalue()).to_bytes(4, "little") + buffer.getvalue()
    with pytest.raises(CodecError, match="8000x8000"):
        inputs.decode(body, 1, (64, 64, 3))


def test_hostile_headers_leave_nothing_behind() -> None:
    """Pillow would warn of each, and Python remember each warning; a process of its own, as tests make warnings errors."""
    code = """
import io
from PIL import Image
from services.codec.core import inputs
buffer = io.BytesIO()
Image.new("RGB", (8, 8)).save(buffer, "JPEG")
plain = bytearray(buffer.getvalue())
at = plain.index(bytes([255, 192])) + 5
for width in range(20000, 20020):
    plain[at : at + 4] = (6000).to_bytes(2, "big") + width.to_bytes(2, "big")
    try:
        inputs.decode(inputs.pack([bytes(plain)]), 1, (8, 8, 3))
    except inputs.CodecError as error:
        assert "exceeds limit" in str(error), error
print(set(Image.__dict__.get("__warningregistry__", {})) - {"version"})
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert (process.stderr, process.stdout) == ("", "set()\n")


def test_wrong_count_or_shape_is_refused() -> None:
    images = photo(3, 40, 40, 3)
    body = inputs.encode(images)
    for count, shape in [(2, (40, 40, 3)), (4, (40, 40, 3)), (3, (40, 41, 3)), (0, (40, 40, 3))]:
        with pytest.raises(CodecError):
            inputs.decode(body, count, shape)
    with pytest.raises(CodecError):
        inputs.decode(b"", 1, (40, 40, 3))


BODIES = [
    (inputs.encode(photo(2, 40, 40, 3)), (40, 40, 3)),
    (inputs.encode(photo(2, 8, 8, 1)), (8, 8, 1)),
    (inputs.encode(np.full((2, 9, 9, 3), 5, np.uint8)), (9, 9, 3)),
    (inputs.lossy(photo(2, 24, 24, 1), 80, "WEBP")[0], (24, 24, 1)),
    (inputs.lossy(photo(2, 24, 24, 3), 80)[0], (24, 24, 3)),
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_hostile_bytes_decode_or_are_refused(data: st.DataObject) -> None:
    whole, shape = data.draw(st.sampled_from(BODIES))
    body = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        images = inputs.decode(bytes(body[: data.draw(st.integers(0, len(body)))]), 2, shape)
    except CodecError:
        return
    assert images.shape == (2, *shape)


def test_refuses_what_is_not_images() -> None:
    with pytest.raises(ValueError, match="uint8"):
        inputs.encode(np.zeros((1, 4, 4, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quality"):
        inputs.lossy(photo(1, 8, 8, 3), 0)
