"""Photos without loss: predicted from their neighbours, what is left in Rice codes chosen by how busy the place is.

The scheme of JPEG-LS without its runs and its running statistics, over colours from which green is taken away, as WebP
does: smaller than the maintained lossless codecs that reach 100 MB/s, and faster than most (docs/wire.md, "Inputs", has
the table and the bytes). All images of a body share their Rice parameters, so that tiny images cost no header each.
"""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
import numpy.typing as npt

from accelsim.int8.network import UInt8
from services.codec.core.entropy_kernels import clz, rice_parameter

CONTEXTS: Final = 24
"""Classes of places, by activity."""
_EDGES: Final = (1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 16, 19, 22, 26, 31, 37, 44, 53, 63, 76, 92, 110, 140)
_MOST: Final = 4 * 510
"""The largest activity: four distances of values in -255..255."""
_CONTEXT: Final = np.searchsorted(_EDGES, np.arange(_MOST + 1), "right").astype(np.uint8)
_ESCAPE: Final = 16
"""A quotient from here on is this many zeros and then the folded residual itself in 8 bits."""
_LARGEST: Final = 7
"""The largest Rice parameter: residuals have 8 bits."""
_PADDING: Final = 16
"""Zero bytes behind the bits, so that the reader may look ahead."""

I16 = np.int16
U64 = np.uint64
Int16 = npt.NDArray[np.int16]
Int64 = npt.NDArray[np.int64]


def parameter_bytes(channels: int) -> int:
    """Length of the Rice parameters at the start of a body: a nibble a channel and context."""
    return CONTEXTS * channels // 2


def encode(images: UInt8) -> bytes:
    """uint8 images (N, H, W, C). Takes five times their bytes for the time being, half of that where they are photos."""
    # Arrays that are read-only would be another type to the compiler.
    images = np.require(images, np.uint8, ["C", "W"])
    n, height, width, channels = images.shape
    folded, contexts = np.empty(images.size, np.uint8), np.empty(images.size, np.uint8)
    sums, counts = np.zeros((2, channels, CONTEXTS), np.int64)
    _predict(images, _CONTEXT, folded, contexts, sums, counts)
    parameters = np.empty((channels, CONTEXTS), np.uint8)
    _choose(sums, counts, parameters)
    out = np.empty(3 * images.size + 16, np.uint8)
    used = _write(folded, contexts, n * height, width, parameters, out)
    nibbles = parameters.reshape(-1, 2)
    return (nibbles[:, 0] << 4 | nibbles[:, 1]).tobytes() + out[:used].tobytes()


def decode(body: bytes | memoryview, shape: tuple[int, int, int, int]) -> UInt8 | None:
    """Images of ``shape`` (N, H, W, C), uint8, from what ``encode`` wrote; None for too few or too many bits."""
    n, height, width, channels = shape
    data = np.frombuffer(body, np.uint8)
    head = parameter_bytes(channels)
    # Every sample has a bit at least: no image is made of a few bytes.
    if 8 * (len(data) - head) < n * height * width * channels:
        return None
    parameters = np.stack([data[:head] >> 4, data[:head] & 15], axis=1).reshape(channels, CONTEXTS)
    if parameters.max() > _LARGEST:
        return None
    bits = np.zeros(len(data) - head + _PADDING, np.uint8)
    bits[:-_PADDING] = data[head:]
    images = np.empty(shape, np.uint8)
    # A table from activity to parameter at once: the reader waits for nothing else as long.
    failed = _read(images, np.ascontiguousarray(parameters[:, _CONTEXT]), bits)
    return None if failed else images


@numba.njit(cache=True, inline="always")
def _channel(place: int, channels: int) -> int:
    """Which channel is coded at a place: of three, green comes first, as the others are differences from it."""
    return place if channels != 3 else (1, 0, 2)[place]


@numba.njit(cache=True)
def _predict_row(current: Int16, above: Int16, first: bool, width: int, folded: UInt8, activity: Int16) -> None:
    """Folded residuals and activities of a row. Rows have two values before their first and one after their last.

    All in int16, and nothing depends on the iteration before, so that this is vectorised.
    """
    for x in range(width):
        w, ww = current[x + 1], current[x]
        n = w if first else above[x + 2]
        nw = w if first else above[x + 1]
        ne = w if first else above[x + 3]
        low, high = min(w, n), max(w, n)
        median = min(max(I16(w + n - nw), low), high)
        predicted = I16(I16(I16(3) * median + I16(I16(w + ne) >> I16(1)) + I16(2)) >> I16(2))
        residual = np.int8(current[x + 2] - predicted)
        folded[x] = np.uint8(I16(residual) << 1) ^ np.uint8(residual >> np.int8(7))
        activity[x] = I16(abs(I16(w - nw)) + abs(I16(n - nw)) + abs(I16(n - ne)) + abs(I16(w - ww)))


@numba.njit(cache=True, nogil=True)
def _predict(images: UInt8, context: UInt8, folded: UInt8, contexts: UInt8, sums: Int64, counts: Int64) -> None:
    """Every sample's folded residual and context, in the order of the bits, and their sums a channel and context."""
    n, height, width, channels = images.shape
    rows = np.zeros((2, channels, width + 3), np.int16)
    row_folded, activity = np.empty(width, np.uint8), np.empty(width, np.int16)
    at = 0
    for i in range(n):
        for y in range(height):
            for place in range(channels):
                c = _channel(place, channels)
                current, above = rows[y & 1, c], rows[1 - (y & 1), c]
                if channels == 3 and place > 0:
                    for x in range(width):
                        current[x + 2] = I16(images[i, y, x, c]) - I16(images[i, y, x, 1])
                else:
                    for x in range(width):
                        current[x + 2] = I16(images[i, y, x, c])
                if y == 0:
                    current[0] = current[1] = 0
                else:
                    current[0] = current[1] = above[1] = above[2]
                    above[width + 2] = above[width + 1]
                _predict_row(current, above, y == 0, width, row_folded, activity)
                for x in range(width):
                    which = context[activity[x]]
                    sums[c, which] += row_folded[x]
                    counts[c, which] += 1
                    folded[at], contexts[at] = row_folded[x], which
                    at += 1


@numba.njit(cache=True)
def _choose(sums: Int64, counts: Int64, parameters: UInt8) -> None:
    """The Rice parameter for the mean of each channel and context."""
    for c in range(sums.shape[0]):
        for which in range(CONTEXTS):
            count = counts[c, which]
            parameters[c, which] = min(_LARGEST, rice_parameter(sums[c, which] + count, count))


@numba.njit(cache=True, nogil=True)
def _write(folded: UInt8, contexts: UInt8, rows: int, width: int, parameters: UInt8, out: UInt8) -> int:
    """Writes the bits and gives their bytes; ``out`` has room for 24 bits a sample and 8 bytes."""
    channels = parameters.shape[0]
    bits, held = U64(0), U64(0)
    at = to = 0
    for _ in range(rows):
        for place in range(channels):
            chosen = parameters[_channel(place, channels)]
            for _ in range(width):
                value, k = U64(folded[at]), U64(chosen[contexts[at]])
                at += 1
                quotient = value >> k
                if quotient < U64(_ESCAPE):
                    length = quotient + k + U64(1)
                    # Leading zeros come from the length alone.
                    value = (U64(1) << k) | (value & ((U64(1) << k) - U64(1)))
                else:
                    length = U64(_ESCAPE + 8)
                bits = (bits << length) | value
                held += length
                if held >= U64(32):
                    held -= U64(32)
                    whole = bits >> held
                    out[to] = np.uint8(whole >> U64(24))
                    out[to + 1] = np.uint8(whole >> U64(16))
                    out[to + 2] = np.uint8(whole >> U64(8))
                    out[to + 3] = np.uint8(whole)
                    to += 4
    while held > U64(0):
        left = min(held, U64(8))
        held -= left
        out[to] = np.uint8(((bits >> held) << (U64(8) - left)) & U64(255))
        to += 1
    return to


@numba.njit(cache=True, nogil=True)
def _read(images: UInt8, parameters: UInt8, data: UInt8) -> int:
    """Fills the images; 0, or -1 where the bits do not come to just as many samples.

    ``parameters`` are (channels, activity).
    """
    n, height, width, channels = images.shape
    end = U64(8 * (len(data) - _PADDING))
    rows = np.zeros((2, channels, width + 3), np.int64)
    none = np.zeros(width + 3, np.int64)
    bit = U64(0)
    for i in range(n):
        for y in range(height):
            first = y == 0
            for place in range(channels):
                c = _channel(place, channels)
                current, above, chosen = rows[y & 1, c], rows[1 - (y & 1), c], parameters[c]
                green = rows[y & 1, 1] if channels == 3 and place > 0 else none
                if first:
                    current[0] = current[1] = 0
                else:
                    current[0] = current[1] = above[1] = above[2]
                    above[width + 2] = above[width + 1]
                w = ww = current[1]
                nw, n_ = above[1], above[2]
                for x in range(width):
                    ne = above[x + 3]
                    if first:
                        nw = n_ = ne = w
                    low, high = min(w, n_), max(w, n_)
                    median = min(max(w + n_ - nw, low), high)
                    predicted = (3 * median + ((w + ne) >> 1) + 2) >> 2
                    activity = abs(w - nw) + abs(n_ - nw) + abs(n_ - ne) + abs(w - ww)
                    k = U64(chosen[U64(activity)])
                    if bit >= end:
                        return -1
                    byte, window = bit >> U64(3), U64(0)
                    for ahead in range(8):
                        window = (window << U64(8)) | U64(data[byte + U64(ahead)])
                    window <<= bit & U64(7)
                    quotient = clz(window)
                    if quotient < U64(_ESCAPE):
                        value = (quotient << k) | (((window << (quotient + U64(1))) >> U64(1)) >> (U64(63) - k))
                        bit += quotient + k + U64(1)
                    else:
                        value = (window >> U64(64 - _ESCAPE - 8)) & U64(255)
                        bit += U64(_ESCAPE + 8)
                    residual = np.int64(value >> U64(1)) ^ -np.int64(value & U64(1))
                    base = green[x + 2]
                    pixel = (predicted + residual + base) & 255
                    images[i, y, x, c] = np.uint8(pixel)
                    ww, w, nw, n_ = w, pixel - base, n_, ne
                    current[x + 2] = w
    if bit > end or end - bit > U64(7):
        return -1
    # What is left of the last byte is zero.
    return -int(data[U64(len(data) - _PADDING - 1)] & ((U64(1) << (end - bit)) - U64(1)) != 0)
