"""Layers that are not MAC layers. x, a, b and y are addresses of bytes, NHWC; y is written from its start.

Loops go over views from index 0 on: those become vector instructions, sums of indices do not, and neither do slices that are
assigned.

The numbers in an operand are int8 where its ``zero`` is 128, uint8 where it is 0 (``accelsim.engine.packing.zero``). Bounds
are those of the output's dtype, so that the low byte of an integer within them is the output's.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from accelsim.engine.kernels.memory import number, pointer, rint


@njit(nogil=True, cache=True)
def round_floats(acc, multiplier, low, high, y):  # type: ignore[no-untyped-def]
    """y = clamp(rint(acc * multiplier[c]), low, high[c]): acc float32 (pixels, C), high float32 (C,), y bytes as int8."""
    for p in range(acc.shape[0]):
        for c in range(acc.shape[1]):
            value = rint(acc[p, c] * multiplier[c])
            y[p, c] = np.int8(np.int32(min(max(value, np.float32(low)), high[c])))


@njit(nogil=True, cache=True)
def add(a, za, ma, b, zb, mb, low, high, y, count):  # type: ignore[no-untyped-def]
    """y = clamp(int(rint(a * ma)) + int(rint(b * mb)), low, high) over ``count`` elements."""
    xa, xb, out = carray(pointer(a), count, np.int8), carray(pointer(b), count, np.int8), carray(pointer(y), count, np.int8)
    for i in range(count):
        value = np.int32(rint(np.float32(number(xa[i], za)) * ma)) + np.int32(rint(np.float32(number(xb[i], zb)) * mb))
        out[i] = np.int8(min(max(value, np.int32(low)), np.int32(high)))


@njit(nogil=True, cache=True)
def scale(x, zero, multiplier, low, high, same, y, pixels, c, stride, offset):  # type: ignore[no-untyped-def]
    """One operand of a concat: y[p * stride + offset + j] = clamp(rint(x[p * c + j] * multiplier), low, high).

    ``same``: the bytes stay as they are.
    """
    source, out = carray(pointer(x), pixels * c, np.int8), carray(pointer(y), pixels * stride, np.int8)
    for p in range(pixels):
        line, to = source[p * c : (p + 1) * c], out[p * stride + offset : p * stride + offset + c]
        if same:
            for j in range(c):
                to[j] = line[j]
            continue
        for j in range(c):
            value = rint(np.float32(number(line[j], zero)) * multiplier)
            to[j] = np.int8(np.int32(min(max(value, np.float32(low)), np.float32(high))))


@njit(nogil=True, cache=True)
def multiply(a, za, b, zb, multiplier, low, high, y, images, pixels, c, broadcast):  # type: ignore[no-untyped-def]
    """y = clamp(rint(a * b * multiplier), low, high); ``broadcast``: b has one pixel an image."""
    count = images * pixels * c
    xa, out = carray(pointer(a), count, np.int8), carray(pointer(y), count, np.int8)
    xb = carray(pointer(b), images * c if broadcast else count, np.int8)
    for p in range(images * pixels):
        at = p // pixels * c if broadcast else p * c
        left, right, to = xa[p * c : (p + 1) * c], xb[at : at + c], out[p * c : (p + 1) * c]
        for j in range(c):
            value = rint(np.float32(number(left[j], za) * number(right[j], zb)) * multiplier)
            to[j] = np.int8(np.int32(min(max(value, np.float32(low)), np.float32(high))))


@njit(nogil=True, cache=True)
def max_pool(x, zero, window, y, n):  # type: ignore[no-untyped-def]
    """Largest value of each window, of n images."""
    h, w, c, oh, ow, _, r, s, sy, sx, py, px, dy, dx = window
    source, out = carray(pointer(x), n * h * w * c, np.uint8), carray(pointer(y), n * oh * ow * c, np.uint8)
    # Xored with zero, bytes compare as the numbers do.
    # Down the columns first: long runs for the vector unit, and r + s comparisons instead of r * s.
    column, mask = np.empty(w * c, np.uint8), np.uint8(zero)
    for row in range(n * oh):
        image = row // oh
        top = (row - image * oh) * sy - py
        column[:] = np.uint8(0)
        for ry in range(r):
            iy = top + ry * dy
            if iy >= 0 and iy < h:
                line = source[(image * h + iy) * w * c : (image * h + iy + 1) * w * c]
                for i in range(w * c):
                    column[i] = max(column[i], line[i] ^ mask)
        for ox in range(ow):
            to = out[(row * ow + ox) * c : (row * ow + ox + 1) * c]
            to[:] = np.uint8(0)
            for rx in range(s):
                ix = ox * sx - px + rx * dx
                if ix >= 0 and ix < w:
                    place = column[ix * c : (ix + 1) * c]
                    for i in range(c):
                        to[i] = max(to[i], place[i])
            for i in range(c):
                to[i] ^= mask


@njit(nogil=True, cache=True)
def mean_pool(x, zero, window, multiplier, low, high, y, n):  # type: ignore[no-untyped-def]
    """clamp(rint(sum of the window * multiplier), low, high) of n images; padding counts as zeros."""
    h, w, c, oh, ow, _, r, s, sy, sx, py, px, _, _ = window
    source, out = carray(pointer(x), n * h * w * c, np.int8), carray(pointer(y), n * oh * ow * c, np.int8)
    total = np.empty(c, np.int32)
    for p in range(n * oh * ow):
        oy, ox, image = (p // ow) % oh, p % ow, p // (ow * oh)
        total[:] = np.int32(0)
        for iy in range(max(0, oy * sy - py), min(h, oy * sy - py + r)):
            for ix in range(max(0, ox * sx - px), min(w, ox * sx - px + s)):
                place = source[((image * h + iy) * w + ix) * c : ((image * h + iy) * w + ix + 1) * c]
                for i in range(c):
                    total[i] += number(place[i], zero)
        for i in range(c):
            value = rint(np.float32(total[i]) * multiplier)
            out[p * c + i] = np.int8(np.int32(min(max(value, np.float32(low)), np.float32(high))))


@njit(nogil=True, cache=True)
def look_up(x, zero, tables, y, count):  # type: ignore[no-untyped-def]
    """y = tables[0, x + zero], or by a table a channel where there are more; tables: bytes as int8."""
    source, out = carray(pointer(x), count, np.int8), carray(pointer(y), count, np.int8)
    channels = len(tables)
    if channels == 1:
        table = tables[0]
        for i in range(count):
            out[i] = table[np.int64(np.uint8(source[i]) ^ np.uint8(zero))]
        return
    for first in range(0, count, channels):
        for c in range(channels):
            out[first + c] = tables[c, np.int64(np.uint8(source[first + c]) ^ np.uint8(zero))]


@njit(nogil=True, cache=True)
def move_channels(x, order, y, pixels, c):  # type: ignore[no-untyped-def]
    """y[p, i] = x[p, order[i]]; x has ``c`` channels."""
    o = len(order)
    source, out = carray(pointer(x), pixels * c, np.int8), carray(pointer(y), pixels * o, np.int8)
    for p in range(pixels):
        for i in range(o):
            out[p * o + i] = source[p * c + order[i]]
