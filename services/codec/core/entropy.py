"""Increments coded close to, and mostly below, the entropy of their places and values (architecture.md, "The link").

Computing errors come in lines. A flipped weight changes one channel at many pixels of all images, a flipped input many
channels at a few pixels, a flipped output one element. So an (N, H, W, C) tensor is seen as a matrix of N*H*W rows
(pixels) by C columns (channels), and its increments are written line by line: first the rows that are denser than their
columns are, then what is left, column by column. A line is

- its distance from the line before (Rice) and the number of its increments (Elias gamma);
- the gaps between them (Rice, the parameter follows from the number; of a line more than half full, the zeros' gaps);
- whether all have one sign, and their magnitudes less one (Rice with a stated parameter, or nothing where all are one).

Lines of one or two increments have a sign and an Elias gamma code for each. ``bound`` is what the design measures by:
the entropy of a density an image and channel, plus the order-0 entropy of the values, without any side information.
"""

from __future__ import annotations

import numpy as np

from accelsim.int8.network import Int8
from services.codec.core import entropy_kernels


def encode(actual: Int8, vote: Int8, limit: int) -> bytes | None:
    """The increments ``actual - vote`` of two int8 (N, H, W, C) arrays; None if they take more than ``limit`` bytes."""
    channels = actual.shape[-1]
    a, b = np.ascontiguousarray(actual).reshape(-1), np.ascontiguousarray(vote).reshape(-1)
    whole = a.size - a.size % 8
    words_a, words_b = a[:whole].view(np.uint64), b[:whole].view(np.uint64)
    count = entropy_kernels.count_differences(words_a, words_b) + int(np.count_nonzero(a[whole:] != b[whole:]))
    if count > 8 * limit:
        return None  # not even a bit each: looking at so many would only cost memory
    rows, places, values = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int8)
    entropy_kernels.differences(words_a, words_b, a, b, channels, rows, places, values)
    buffer = np.empty(min(limit, 16 * count + 64) + 64, np.uint8)
    used = entropy_kernels.encode(rows, places, values, a.size // max(1, channels), channels, buffer)
    return None if used < 0 or used > limit else buffer[:used].tobytes()


def decode(body: bytes | memoryview, prediction: Int8) -> Int8 | None:
    """``prediction`` plus the increments in ``body``: int8 of its shape; None for anything that no encoder writes."""
    out = np.array(prediction, np.int8, order="C")
    data = np.zeros(len(body) + 16, np.uint8)
    data[:-16] = np.frombuffer(body, np.uint8)
    channels = out.shape[-1]
    failed = entropy_kernels.decode(data, out.size // max(1, channels), channels, out.reshape(-1))
    return None if failed else out


def bound(increments: Int8) -> float:
    """Bytes of the design's bound for int8 increments (N, H, W, C): a density an (image, channel), order-0 values."""
    n, h, w, c = increments.shape
    nonzero = increments.reshape(n, h * w, c) != 0
    share = nonzero.mean(axis=1, dtype=np.float64)
    share = share[(share > 0) & (share < 1)]
    places = -h * w * float((share * np.log2(share) + (1 - share) * np.log2(1 - share)).sum())
    times = np.bincount(increments[increments != 0].view(np.uint8), minlength=256).astype(np.float64)
    times = times[times > 0]
    return float(places - (times * np.log2(times / times.sum())).sum()) / 8
