"""Convolutions, grouped or not, of several replicas at once.

A tile's accumulators stay in cache: fault-free ones once, then for each replica the sparse corrections
``acc(x + dx, w + dw) = acc + dx * w + (x + dx) * dw``, requantisation, and the fault-free ones again.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from accelsim.engine import vnni
from accelsim.engine.kernels.flips import flip_accumulators, flip_outputs

_LOGGED = 4096
"""Input bytes of a tile that are put back one by one; where more were flipped, the tile is gathered again."""


@njit(nogil=True, cache=True)
def conv(execution, first_pixel, last_pixel):  # type: ignore[no-untyped-def]
    """Output pixels first_pixel..last_pixel-1 (of N*OH*OW) of a plain ``Execution`` with ``Quads``, tile by tile."""
    # Taken apart at once: each use of an array of a tuple, in a loop or as an argument, would count references.
    mac, x, struck, quads, ys = execution
    window, groups, zero, shift, low, tile, weight, start, multipliers, highs = mac
    inputs, rows, columns, channels, accumulators, accumulator_at, outputs, output_at = struck
    values, at, block_at, shifts = quads
    multiplier, high = multipliers.ctypes.data, highs.ctypes.data
    blocks, depth = weight.shape[1], weight.shape[2]
    _, _, _, _, _, o, _, _, _, _, _, _, _, _ = window
    per_group = o // groups
    width, stride = 4 * depth, 16 * blocks
    # copy_xor writes whole 64-byte blocks.
    a = np.empty(tile * width + 64, np.uint8)
    clean = np.empty(tile * stride, np.int32)
    spare = np.empty(tile * stride if len(ys) > 1 else 0, np.int32)
    log, old = np.empty(_LOGGED, np.int64), np.empty(_LOGGED, np.uint8)
    for first in range(first_pixel, last_pixel, tile):
        last = min(last_pixel, first + tile)
        pixels = last - first
        for g in range(groups):
            _gather(x, window, groups, zero, g, first, last, a, width)
            if len(ys) == 1 and len(inputs):
                # One replica has its flips in the operands.
                _flip_inputs(
                    window, groups, weight, inputs, rows[0], columns, channels, g, first, last, a, False, clean, log[:0], old
                )
            _multiply(a, weight, start, g, clean, pixels)
            for r in range(len(ys)):
                acc = clean
                if r + 1 < len(ys):
                    acc = spare
                    vnni.copy(acc.ctypes.data, clean.ctypes.data, pixels * stride * 4)
                if len(ys) > 1:
                    done = 0
                    if rows[r, -1] > rows[r, 0]:
                        done = _flip_inputs(
                            window, groups, weight, inputs, rows[r], columns, channels, g, first, last, a, True, acc, log, old
                        )
                    for block in range(blocks):
                        f0, f1 = block_at[r, g, block], block_at[r, g, block + 1]
                        if f1 > f0:
                            for p in range(0, pixels, vnni.CORRECTED_ROWS):
                                vnni.add_quads(
                                    a.ctypes.data + p * width,
                                    width,
                                    at.ctypes.data + f0 * 8,
                                    values.ctypes.data + f0 * 64,
                                    f1 - f0,
                                    shifts.ctypes.data + ((r * groups + g) * blocks + block) * 64,
                                    acc.ctypes.data + p * stride * 4 + block * 64,
                                    stride * 4,
                                )
                    if done > len(log):
                        _gather(x, window, groups, zero, g, first, last, a, width)
                    else:
                        for f in range(done - 1, -1, -1):
                            a[log[f]] = old[f]
                f0, f1 = accumulator_at[r], accumulator_at[r + 1]
                if f1 > f0:
                    flip_accumulators(o, per_group, g, first, last, accumulators, f0, f1, acc, stride)
                for p in range(pixels):
                    vnni.requantise(
                        acc.ctypes.data + p * stride * 4,
                        multiplier + g * stride * 4,
                        low,
                        high + g * stride,
                        shift,
                        ys[r] + (first + p) * o + g * per_group,
                        per_group,
                    )
        for r in range(len(ys)):
            f0, f1 = output_at[r], output_at[r + 1]
            if f1 > f0:
                flip_outputs(first * o, last * o, outputs, f0, f1, ys[r])


@njit(nogil=True, cache=True)
def _gather(x, window, groups, zero, group, first, last, a, width):  # type: ignore[no-untyped-def]
    """Rows of ``a``: operands of output pixels first..last-1, column k = (r*S + s)*I + i, xored with ``zero`` to be uint8."""
    h, w, c, oh, ow, _, r, s, sy, sx, py, px, dy, dx = window
    i = c // groups
    to = a.ctypes.data
    if r == 1 and s == 1 and i == c and width == c and sy == 1 and sx == 1 and py == 0 and px == 0:
        vnni.copy_xor(to, x + first * c, (last - first) * c, zero)
        return
    for p in range(first, last):
        row = (p - first) * width
        oy = (p // ow) % oh
        ox = p % ow
        image = p // (ow * oh)
        ix0 = ox * sx - px
        for ry in range(r):
            iy = oy * sy - py + ry * dy
            at = row + ry * s * i
            if iy < 0 or iy >= h:
                for k in range(at, at + s * i):
                    a[k] = zero
            elif i == c and dx == 1:
                # One stretch of the row, with padding before and behind it.
                before = max(0, -ix0)
                behind = max(0, ix0 + s - w)
                for k in range(at, at + min(before, s) * i):
                    a[k] = zero
                if before + behind < s:
                    source = x + ((image * h + iy) * w + ix0 + before) * c
                    vnni.copy_xor(to + at + before * i, source, (s - before - behind) * i, zero)
                for k in range(at + (s - min(behind, s)) * i, at + s * i):
                    a[k] = zero
            else:
                for rx in range(s):
                    ix = ix0 + rx * dx
                    if ix < 0 or ix >= w:
                        for k in range(at + rx * i, at + (rx + 1) * i):
                            a[k] = zero
                    else:
                        source = x + ((image * h + iy) * w + ix) * c + group * i
                        vnni.copy_xor(to + at + rx * i, source, i, zero)


@njit(nogil=True, cache=True)
def _flip_inputs(  # type: ignore[no-untyped-def]
    window, groups, weight, inputs, row_at, columns, channels, group, first, last, a, correct, acc, log, old
):
    """Flip the input bits that tile ``a`` holds. With ``correct``, add each one's ``dx * w`` to ``acc`` as well.

    log and old receive the place and the former value of each byte, as far as they reach; returns how many there were.
    """
    h, _, c, oh, ow, _, r, s, sy, sx, py, px, dy, dx = window
    i = c // groups
    blocks, quads = weight.shape[1], weight.shape[2]
    width = 4 * quads
    done = 0
    p = first
    while p < last:
        # The tile's pixels in one output row.
        row = p // ow
        ox0 = p - row * ow
        ox1 = min(ow, ox0 + last - p)
        image = row // oh
        for ry in range(r):
            iy = (row - image * oh) * sy - py + ry * dy
            if iy < 0 or iy >= h:
                continue
            for f in range(row_at[image * h + iy], row_at[image * h + iy + 1]):
                channel = channels[f] - group * i
                if channel < 0 or channel >= i:
                    continue
                bit = np.uint8(1 << (inputs[f] & 7))
                for rx in range(s):
                    t = columns[f] + px - rx * dx
                    if t < ox0 * sx or t >= ox1 * sx or (sx > 1 and t % sx != 0):
                        continue
                    q = p - first + (t // sx if sx > 1 else t) - ox0
                    k = (ry * s + rx) * i + channel
                    at = q * width + k
                    before = a[at]
                    after = before ^ bit
                    a[at] = after
                    if done < len(log):
                        log[done] = at
                        old[done] = before
                    done += 1
                    if correct:
                        vnni.add_scaled(
                            acc.ctypes.data + q * blocks * 64,
                            weight.ctypes.data + (group * blocks * quads + (k >> 2)) * 64,
                            quads * 64,
                            24 - 8 * (k & 3),
                            np.int64(after) - np.int64(before),
                            blocks,
                        )
        p += ox1 - ox0
    return done


@njit(nogil=True, cache=True)
def _multiply(a, weight, start, group, acc, pixels):  # type: ignore[no-untyped-def]
    """acc = start + a @ w for one group; rows past ``pixels`` up to the next block are scratch."""
    blocks, quads = weight.shape[1], weight.shape[2]
    width, step, stride = 4 * quads, quads * 64, 64 * blocks
    w0 = weight.ctypes.data + group * blocks * step
    s0 = start.ctypes.data + group * stride
    to = acc.ctypes.data
    at = a.ctypes.data
    j = 0
    while j < blocks:
        left = blocks - j
        w, s, c = w0 + j * step, s0 + j * 64, to + j * 64
        if left >= 4:
            for p in range(0, pixels, 6):
                vnni.multiply_6x4(at + p * width, width, w, step, s, c + p * stride, stride, quads)
            j += 4
        elif left == 3:
            for p in range(0, pixels, 8):
                vnni.multiply_8x3(at + p * width, width, w, step, s, c + p * stride, stride, quads)
            j += 3
        elif left == 2:
            for p in range(0, pixels, 12):
                vnni.multiply_12x2(at + p * width, width, w, step, s, c + p * stride, stride, quads)
            j += 2
        else:
            for p in range(0, pixels, 24):
                vnni.multiply_24x1(at + p * width, width, w, step, s, c + p * stride, stride, quads)
            j += 1
