"""Image files as a network takes them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from accelsim.datasets.dataset import DataError
from accelsim.int8.network import Shape, UInt8

_FULL: Final = 0xFFFF
"""White where 16 bits count."""
_BITS_PER_SAMPLE: Final = 258
_PHOTOMETRIC: Final = 262
_WHITE_IS_ZERO: Final = 0
_MAX_SAMPLE_VALUE: Final = 281
"""Of TIFF's tags."""


class Picture(NamedTuple):
    """An image file as a network takes it."""

    pixels: UInt8
    """(H, W, C)"""
    frames: int
    """How many images the file holds; this is the first."""
    peak: int | None
    """Largest value in a file of 16 bits that does not say how many of them count; of colours the largest that it can be."""


def suffixes() -> frozenset[str]:
    """Those of all formats that Pillow reads, as ``.png``."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN)


def picture(file: Path, shape: Shape) -> Picture:
    """The image, scaled so that it covers (H, W) and cropped around its centre, and how many frames the file holds.

    Grey for one channel, else RGB; of several frames the first. The camera's orientation is applied, what is transparent
    is white, and 16 bits are scaled to 8, or fewer where PNG's sBIT or TIFF's MaxSampleValue says so. Raises DataError that
    names the file.
    """
    height, width, channels = shape
    if channels not in (1, 3):
        raise DataError(f"{file}: a network with {channels} input channels cannot take image files; use npz")
    try:
        with warnings.catch_warnings():
            # A large photo is no attack here (what is beyond reason is an error of its own), nor an old format a fault.
            for kind in (Image.DecompressionBombWarning, DeprecationWarning):
                warnings.simplefilter("ignore", kind)
            with Image.open(file) as image:
                frames = getattr(image, "n_frames", 1)
                deep = any(";16" in str(tile[3][0] if isinstance(tile[3], tuple) else tile[3]) for tile in image.tile)
                image.load()
                eight, peak = _eight_bits(file, image, deep)
                plain = _opaque(ImageOps.exif_transpose(eight))
        fitted = ImageOps.fit(plain.convert("L" if channels == 1 else "RGB"), (width, height))
    except DataError:
        raise
    except Exception as error:  # what Pillow's formats raise on a broken file is not one kind
        raise DataError(f"{file}: cannot be read as an image: {error}") from error
    return Picture(np.asarray(fitted, np.uint8).reshape(shape), frames, peak)


def _eight_bits(file: Path, image: Image.Image, deep: bool) -> tuple[Image.Image, int | None]:
    """Deeper grey scaled to 8 bits, where Pillow itself would cut it off at 255; anything else as it is. And ``Picture.peak``.

    Pillow scales deeper colours itself, and it gives PNG's and PGM's 16 bits as ``I`` in some versions. PGM and JPEG 2000 say
    how deep they are, and Pillow makes 16 bits of that.
    """
    says_nothing = image.format in ("PNG", "TIFF")
    if not image.mode.startswith(("I", "F")):
        if not (deep and says_nothing):
            return image, None
        return image, max(int(np.asarray(band).max()) for band in _colours(image)) << 8 | 255
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise DataError(f"{file}: its pixels are {kind} numbers of no known range; convert it to 8 or 16 bits")
    bits = tags.get(_BITS_PER_SAMPLE, (16,))
    top = (1 << int(bits[0] if isinstance(bits, tuple) else bits)) - 1
    values = np.asarray(image).astype(np.int64)
    peak: int | None = int(values.max()) if says_nothing and top == _FULL else None
    if peak is not None and (said := _said_top(file, image, values)) is not None:
        top, peak = said, None
    if values.min() < 0 or values.max() > top:
        raise DataError(f"{file}: its pixels are {values.min()} to {values.max()}, outside 0 to {top}; convert it to 8 bits")
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = top - values
    scaled = Image.fromarray(((values * 255 + top // 2) // top).astype(np.uint8))
    # The orientation lies in what the file says beside its pixels.
    scaled.info["exif"] = image.getexif().tobytes()
    return scaled, peak


def _said_top(file: Path, image: Image.Image, values: npt.NDArray[np.int64]) -> int | None:
    """What white is in a file of 16 bits, as the file says it; None where it does not."""
    if image.format == "TIFF":
        tag = getattr(image, "tag_v2", {}).get(_MAX_SAMPLE_VALUE)
        largest = int(tag[0] if isinstance(tag, tuple) else tag or 0)
        # Some writers put an image's own largest value there, which says nothing of the others: a depth is 2^n - 1.
        return largest if 255 <= largest <= _FULL and largest & (largest + 1) == 0 else None
    bits = significant_bits(file)
    if bits is None:
        return None
    top = (1 << bits) - 1
    return top if values.max() <= top and not _stretched(values, bits) else _FULL


def _stretched(values: npt.NDArray[np.int64], bits: int) -> bool:
    """Whether so many bits were made 16, as the PNG specification (section 12.4) wants it: shifted up, or scaled."""
    top = (1 << bits) - 1
    shifted = values >> (16 - bits) << (16 - bits)
    scaled = ((values * top + _FULL // 2) // _FULL * _FULL + top // 2) // top
    return bool((values == shifted).all() or (values == scaled).all())


def significant_bits(file: Path) -> int | None:
    """Bits of a grey PNG that count, by its sBIT chunk; None where it has none. Raises DataError where that is nonsense."""
    with file.open("rb") as png:
        png.seek(8)
        while len(head := png.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"sBIT":
                bits = (png.read(1) or b"\0")[0]
                if not (1 <= length <= 4 and 1 <= bits <= 16):
                    raise DataError(
                        f"{file}: its sBIT chunk says {bits} of 16 bits in {length} bytes; expected 1 to 16; remove it"
                    )
                return bits
            png.seek(length + 4, 1)  # and the checksum
    return None


def _colours(image: Image.Image) -> list[Image.Image]:
    """The bands of an image that are no transparency."""
    return [band for name, band in zip(image.getbands(), image.split(), strict=True) if name not in ("A", "a")]


def _opaque(image: Image.Image) -> Image.Image:
    """The image on white, where a part of it is transparent: what lies hidden there was never seen."""
    if not image.has_transparency_data:
        return image
    shown = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
