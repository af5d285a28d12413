"""Images on the link: lossless, or lossy where the device itself runs on the decoded pixels (architecture.md, "The link").

Lossless is ``services.codec.core.pixels``: 0.45 of the raw bytes on ImageNet photos, where WebP needs 0.50 at half its speed
(docs/wire.md, "Inputs"). Images that are no photos, flat ones and noise, may go as one zstd frame.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Final, Literal

import numpy as np
import xxhash
from PIL import Image

from accelsim.int8.network import UInt8
from services.codec.core import bodies, pixels
from services.codec.core.bodies import CodecError

# A header that promises more pixels than Pillow likes is refused like any other, not printed and remembered in this process.
warnings.simplefilter("error", Image.DecompressionBombWarning)

_ZSTD: Final = 0
_IMAGES: Final = 1
_PREDICTED: Final = 2
_FLOATS: Final = 3
_FORMATS: Final = ("WEBP", "JPEG")
_ZSTD_LEVEL: Final = 9
_Shape = tuple[int, int, int, int]
_LOSSY: Final[dict[str, dict[str, object]]] = {"JPEG": {"optimize": True}, "WEBP": {}}
"""Options that change the bytes and not the pixels. Huffman tables of its own make a JPEG 3 % smaller and sooner decoded;
progressive order would save 5 % more, and cost the device more time than HSPA needs for those."""


def sample_hash(image: UInt8) -> bytes:
    """16 bytes that name an image (uint8, any shape) by its content, so that it crosses the link once (xxh3-128)."""
    return xxhash.xxh3_128_digest(np.ascontiguousarray(image).data)


def encode(images: UInt8) -> bytes:
    """uint8 images (N, H, W, C) without loss. Raises ValueError on another dtype or number of axes."""
    _check(images)
    if len(images) == 0:
        return b""
    body = bytes((_PREDICTED,)) + pixels.encode(images)
    # Photos lie between, and a second try would cost them most of the speed.
    photos = 3 * len(body) > images.nbytes and 5 * len(body) < 4 * images.nbytes
    return body if photos else min(body, _zstd(images), key=len)


def floats(images: UInt8) -> bytes:
    """uint8 images (N, H, W, C) as the paper sends them: float32 values, pixel / 255, four bytes each (section VI.A)."""
    _check(images)
    return bytes((_FLOATS,)) + (images.astype("<f4") / np.float32(255)).tobytes() if len(images) else b""


def lossy(images: UInt8, quality: int, kind: Literal["JPEG", "WEBP"] = "JPEG") -> tuple[bytes, UInt8]:
    """uint8 images (N, H, W, 1 or 3) at a quality of 1..100: the bytes, and the pixels that decoding them gives.

    The device must run on those pixels, so that both sides of the link see the same. Raises ValueError like ``encode``.
    """
    _check(images)
    if images.shape[3] not in (1, 3) or not 1 <= quality <= 100:
        raise ValueError(f"lossy: needs 1 or 3 channels and a quality of 1..100, got {images.shape[3]} and {quality}")
    if len(images) == 0:
        return b"", images.copy()
    body = pack([_compress(image, kind, quality=quality, **_LOSSY[kind]) for image in images])
    return body, decode(body, len(images), images.shape[1:])


def decode(body: bytes, count: int, shape: Sequence[int]) -> UInt8:
    """``count`` images of ``shape`` (H, W, C), uint8 (count, H, W, C), from what ``encode``, ``floats`` or ``lossy`` wrote.

    Memory is bounded by ``count`` and ``shape``. Raises CodecError on anything else.
    """
    height, width, channels = shape
    if count == 0:
        if body:
            raise CodecError(f"images: {len(body)} bytes for no image")
        return np.empty((0, height, width, channels), np.uint8)
    if not body:
        raise CodecError(f"images: no bytes for {count} images")
    if body[0] not in _DECODERS:
        raise CodecError(f"images: unknown coding {body[0]}")
    return _DECODERS[body[0]](memoryview(body)[1:], (count, height, width, channels))


def _check(images: UInt8) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images: expected uint8 (N, H, W, C), got {images.dtype} of shape {images.shape}")


def _zstd(images: UInt8) -> bytes:
    return bytes((_ZSTD,)) + bodies.compress(np.ascontiguousarray(images).data, _ZSTD_LEVEL)


def _from_zstd(payload: memoryview, shape: _Shape) -> UInt8:
    return np.frombuffer(bodies.decompress(payload, math.prod(shape), "images"), np.uint8).reshape(shape).copy()


def _from_predicted(payload: memoryview, shape: _Shape) -> UInt8:
    images = pixels.decode(payload, shape)
    if images is None:
        raise CodecError(f"images: {len(payload)} bytes do not hold {shape[0]} images of {'x'.join(map(str, shape[1:]))}")
    return images


def _from_floats(payload: memoryview, shape: _Shape) -> UInt8:
    if len(payload) != 4 * math.prod(shape):
        raise CodecError(f"images: {len(payload)} bytes of float32 for shape {shape}, expected {4 * math.prod(shape)}")
    with np.errstate(over="ignore", invalid="ignore"):
        levels = np.frombuffer(payload, "<f4") * np.float32(255)
    if not bool(np.all((levels >= 0) & (levels <= 255))):  # nor is NaN
        raise CodecError("images: float32 values outside 0..1")
    return np.rint(levels).astype(np.uint8).reshape(shape)


def _from_files(payload: memoryview, shape: _Shape) -> UInt8:
    images = np.empty(shape, np.uint8)
    for image, data in zip(images, _unpack(payload, len(images)), strict=True):
        image[...] = _decompress(data, *shape[1:])
    return images


_DECODERS: Final[dict[int, Callable[[memoryview, _Shape], UInt8]]] = {
    _ZSTD: _from_zstd,
    _IMAGES: _from_files,
    _PREDICTED: _from_predicted,
    _FLOATS: _from_floats,
}
"""By the first byte of a body: images of that shape (N, H, W, C) from the rest. CodecError on anything else."""


def pack(files: Sequence[bytes]) -> bytes:
    """Image files as one body, for ``decode``: WebP or JPEG, a file an image."""
    if not files:
        return b""
    lengths = np.array([len(data) for data in files], "<u4")
    return bytes((_IMAGES,)) + lengths.tobytes() + b"".join(files)


def _unpack(payload: memoryview, count: int) -> list[memoryview]:
    if len(payload) < 4 * count:
        raise CodecError(f"images: {len(payload)} bytes cannot hold the lengths of {count} images")
    lengths = np.frombuffer(payload[: 4 * count], "<u4").astype(np.int64)
    ends = 4 * count + np.cumsum(lengths)
    if ends[-1] != len(payload):
        raise CodecError(f"images: lengths sum to {ends[-1]} bytes, the body has {len(payload)}")
    return [payload[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def _compress(image: UInt8, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(buffer, kind, **options)
    return buffer.getvalue()


def _decompress(data: memoryview, height: int, width: int, channels: int) -> UInt8:
    try:
        # Opening reads the header alone; pixels are decoded, and memory taken, only if the size is the network's.
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.size != (width, height) or getattr(image, "n_frames", 1) != 1:
                raise CodecError(f"images: one is {image.size[1]}x{image.size[0]}, expected a still {height}x{width}")
            decoded = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except CodecError:
        raise
    except Exception as error:
        # Pillow raises a dozen kinds of exception on broken files; all mean the same here.
        raise CodecError(f"images: {type(error).__name__}: {error}") from error
    return decoded.reshape(height, width, channels)
