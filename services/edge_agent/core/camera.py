"""A camera that gives JPEG files: the device decodes them, and runs on the pixels that everybody else decodes too."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from accelsim.int8.network import UInt8


def photograph(images: UInt8, quality: int) -> tuple[list[bytes], UInt8]:
    """uint8 images (N, H, W, 1 or 3) as N JPEG files of a quality of 1..100, and the pixels in them, the same shape.

    The files cross the link, the pixels are what the network runs on (architecture.md, "The link"). Raises ValueError for
    another number of channels, which JPEG cannot hold.
    """
    if images.shape[3] not in (1, 3):
        raise ValueError(f"JPEG holds 1 or 3 channels, these images have {images.shape[3]}; set the quality to 0")
    files = [_compress(image, quality) for image in images]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in files])
    return files, pixels.reshape(images.shape)


def _compress(image: UInt8, quality: int) -> bytes:
    buffer = io.BytesIO()
    # Huffman tables of its own change no pixel.
    Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
