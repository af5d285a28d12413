"""Images mirrored and moved a little, as a pure function of a seed: device and server make the same of the same pixels."""

from __future__ import annotations

import numpy as np
import xxhash

from accelsim.int8.network import UInt8
from services.scheme import View


def seen(images: UInt8, view: View | None) -> UInt8:
    """What the network runs on: the images (N, H, W, C) in a view, or as they are where there is none.

    Each is mirrored left to right or not, then moved; what moves in repeats the edge. Image i is decided by ``h``, the
    xxh3-64 of the view's seed and i as two little-endian uint64: mirrored where the view flips and h's lowest bit is set; moved
    down by ``(h >> 1) % 2^31 % (2 shift + 1) - shift`` and right by ``(h >> 32) % (2 shift + 1) - shift`` pixels.
    Raises ValueError for an array of another kind.
    """
    if view is None:
        return images
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"view: expected uint8 images (N, H, W, C), got {images.dtype} of shape {images.shape}")
    shift = view.shift
    made = np.empty_like(images, order="C")
    height, width = images.shape[1:3]
    for i, image in enumerate(images):
        h = xxhash.xxh3_64_intdigest(view.seed.to_bytes(8, "little") + i.to_bytes(8, "little"))
        shown = image[:, ::-1] if view.flip and h & 1 else image
        down = (h >> 1) % 2**31 % (2 * shift + 1) - shift
        right = (h >> 32) % (2 * shift + 1) - shift
        rows = np.clip(np.arange(height) - down, 0, height - 1)
        columns = np.clip(np.arange(width) - right, 0, width - 1)
        made[i] = shown[rows[:, None], columns]
    return made
