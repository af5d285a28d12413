"""What the backward pass does element by element, compiled: gradients are float32, activations the bytes that they are.

Rows are pixels (of N*H*W), their channels lie side by side. A gradient may be a view: ``sn`` and ``sp`` are the floats from
one image, and from one pixel, to the next. Arrays that may be read-only are given by their address, because Numba would
compile everything again for them. ``first`` and ``last`` bound the part of the work that a call does.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from accelsim.engine.kernels.memory import pointer
from accelsim.int8.network import Float32, Int32, UInt8

Int64 = npt.NDArray[np.int64]

CHUNKS = 64
"""Parts of the rows whose sums are taken apart, whatever the number of threads, so that the same rows give the same bits."""


@numba.njit(cache=True, inline="always")
def _floats(address: int, count: int) -> Any:
    return numba.carray(pointer(address), (count,), numba.float32)


@numba.njit(cache=True, inline="always")
def _bytes(address: int, count: int) -> Any:
    return numba.carray(pointer(address), (count,), numba.uint8)


@numba.njit(cache=True, nogil=True)
def edge(rows: int, chunk: int) -> int:
    """The first row of a chunk."""
    return rows * chunk // CHUNKS


@numba.njit(cache=True, nogil=True)
def gate(
    g: int, sn: int, sp: int, out: int, y: int, limits: UInt8, sums: Float32, n: int, pixels: int, first: int, last: int
) -> None:
    """``out = g`` where the byte ``y``, less one and modulo 256, is below the channel's limit, else 0. ``out`` may be ``g``
    itself, where that is no view.

    ``sums`` (CHUNKS, C), zeros before, gets the sums of ``out`` over the rows of chunks ``first`` to ``last - 1``.
    """
    channels, rows = limits.size, n * pixels
    for chunk in range(first, last):
        total = sums[chunk]
        for row in range(edge(rows, chunk), edge(rows, chunk + 1)):
            image = row // pixels
            values = _floats(g + 4 * (image * sn + (row - image * pixels) * sp), channels)
            seen = _bytes(y + row * channels, channels)
            if out == g:
                # Said apart: the compiler may only use vectors where arrays do not overlap, or are one.
                for c in range(channels):
                    value = values[c] if np.uint8(seen[c] - np.uint8(1)) < limits[c] else np.float32(0)
                    values[c] = value
                    total[c] += value
            else:
                passed = _floats(out + 4 * row * channels, channels)
                for c in range(channels):
                    value = values[c] if np.uint8(seen[c] - np.uint8(1)) < limits[c] else np.float32(0)
                    passed[c] = value
                    total[c] += value


@numba.njit(cache=True, nogil=True)
def column_sums(g: int, sn: int, sp: int, sums: Float32, n: int, pixels: int, first: int, last: int) -> None:
    """The sums of ``gate`` where nothing stops a gradient."""
    channels, rows = sums.shape[1], n * pixels
    for chunk in range(first, last):
        total = sums[chunk]
        for row in range(edge(rows, chunk), edge(rows, chunk + 1)):
            image = row // pixels
            values = _floats(g + 4 * (image * sn + (row - image * pixels) * sp), channels)
            for c in range(channels):
                total[c] += values[c]


@numba.njit(cache=True, nogil=True)
def widen(x: int, signed: bool, out: int, first: int, last: int) -> None:
    """The integers x as float32."""
    # Indices that start at 0 are what becomes vector instructions.
    seen, wide = _bytes(x + first, last - first), _floats(out + 4 * first, last - first)
    if signed:
        for i in range(last - first):
            wide[i] = np.float32(np.int8(seen[i]))
    else:
        for i in range(last - first):
            wide[i] = np.float32(seen[i])


@numba.njit(cache=True, nogil=True)
def move_channels(g: int, sn: int, sp: int, source: Int32, out: int, moved: int, pixels: int, first: int, last: int) -> None:
    """``out[row, c] = g[row, source[c]]``, 0 where source is -1, in rows from ``first`` on; g has ``moved`` channels."""
    for row in range(first, last):
        image = row // pixels
        values = _floats(g + 4 * (image * sn + (row - image * pixels) * sp), moved)
        to = _floats(out + 4 * row * source.size, source.size)
        for c in range(source.size):
            to[c] = values[source[c]] if source[c] >= 0 else np.float32(0)


@numba.njit(cache=True, nogil=True)
def max_pool(g: int, sn: int, sp: int, x: int, flip: int, window: Int64, out: int, first: int, last: int) -> None:
    """A max pool's gradient, images ``first`` to ``last - 1``: to the first of the largest bytes, each xor ``flip``.

    ``window``: H, W, C of the operand, H, W of the output, then kernel, stride, padding and dilation, two each.
    """
    h, w, channels, oh, ow = window[0], window[1], window[2], window[3], window[4]
    best, at = np.empty(channels, np.uint8), np.empty(channels, np.int32)
    for n in range(first, last):
        below = _floats(out + 4 * n * h * w * channels, h * w * channels)
        below[:] = np.float32(0)
        for i in range(oh):
            top, left = i * window[7] - window[9], 0
            for j in range(ow):
                left = j * window[8] - window[10]
                best[:] = np.uint8(0)
                at[:] = -1
                for r in range(window[5]):
                    row = top + r * window[11]
                    if row < 0 or row >= h:
                        continue
                    for s in range(window[6]):
                        column = left + s * window[12]
                        if column < 0 or column >= w:
                            continue
                        seen = _bytes(x + ((n * h + row) * w + column) * channels, channels)
                        place = np.int32(row * w + column)
                        for c in range(channels):
                            value = seen[c] ^ np.uint8(flip)
                            larger = (value > best[c]) | (at[c] < 0)
                            best[c] = value if larger else best[c]
                            at[c] = place if larger else at[c]
                values = _floats(g + 4 * (n * sn + (i * ow + j) * sp), channels)
                for r in range(window[5]):
                    row = top + r * window[11]
                    if row < 0 or row >= h:
                        continue
                    for s in range(window[6]):
                        column = left + s * window[12]
                        if column < 0 or column >= w:
                            continue
                        place = np.int32(row * w + column)
                        to = _floats(out + 4 * ((n * h + row) * w + column) * channels, channels)
                        for c in range(channels):
                            to[c] += values[c] if at[c] == place else np.float32(0)
