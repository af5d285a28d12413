"""Image files as a network takes them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps

from accelsim.datasets.dataset import DataError
from accelsim.int8.network import Shape, UInt8

_BITS_PER_SAMPLE: Final = 258
_PHOTOMETRIC: Final = 262
_WHITE_IS_ZERO: Final = 0
"""Of TIFF's tags."""


def suffixes() -> frozenset[str]:
    """Those of all formats that Pillow reads, as ``.png``."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN)


def picture(file: Path, shape: Shape) -> tuple[UInt8, int]:
    """The image, scaled so that it covers (H, W) and cropped around its centre, and how many frames the file holds.

    Grey for one channel, else RGB; of several frames the first. The camera's orientation is applied, what is transparent
    is white, and 16 bits are scaled to 8. Raises DataError that names the file.
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
                image.load()
                plain = _opaque(ImageOps.exif_transpose(_eight_bits(file, image)))
        fitted = ImageOps.fit(plain.convert("L" if channels == 1 else "RGB"), (width, height))
    except DataError:
        raise
    except Exception as error:  # what Pillow's formats raise on a broken file is not one kind
        raise DataError(f"{file}: cannot be read as an image: {error}") from error
    return np.asarray(fitted, np.uint8).reshape(shape), frames


def _eight_bits(file: Path, image: Image.Image) -> Image.Image:
    """Deeper grey scaled to 8 bits, where Pillow itself would cut it off at 255; anything else as it is.

    Pillow scales deeper colours itself, and it gives PNG's and PGM's 16 bits as ``I`` in some versions.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise DataError(f"{file}: its pixels are {kind} numbers of no known range; convert it to 8 or 16 bits")
    bits = tags.get(_BITS_PER_SAMPLE, (16,))
    top = (1 << int(bits[0] if isinstance(bits, tuple) else bits)) - 1
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > top:
        raise DataError(f"{file}: its pixels are {values.min()} to {values.max()}, outside 0 to {top}; convert it to 8 bits")
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = top - values
    scaled = Image.fromarray(((values * 255 + top // 2) // top).astype(np.uint8))
    # The orientation lies in what the file says beside its pixels.
    scaled.info["exif"] = image.getexif().tobytes()
    return scaled


def _opaque(image: Image.Image) -> Image.Image:
    """The image on white, where a part of it is transparent: what lies hidden there was never seen."""
    if not image.has_transparency_data:
        return image
    shown = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
