"""Depthwise convolutions with as many outputs as inputs, of several replicas at once, an output row at a time."""

from __future__ import annotations

import numpy as np
from numba import njit

from accelsim.engine import vnni
from accelsim.engine.kernels.flips import flip_accumulators, flip_outputs
from accelsim.engine.kernels.memory import number


@njit(nogil=True, cache=True)
def depthwise(execution, first_pixel, last_pixel):  # type: ignore[no-untyped-def]
    """Output pixels first_pixel..last_pixel-1 (of N*OH*OW), which are whole rows, of a plain ``Execution`` with ``Taps``."""
    # Taken apart at once: each use of an array of a tuple, in a loop or as an argument, would count references.
    mac, x, struck, flips, ys = execution
    window, _, zero, shift, low, _, weight, starts, multipliers, highs = mac
    inputs, row_at, input_columns, input_channels, accumulators, accumulator_at, outputs, output_at = struck
    channels, taps, deltas, replica_at = flips
    start, multiplier, high = starts.ctypes.data, multipliers.ctypes.data, highs.ctypes.data
    h, w, c, oh, ow, _, r, s, sy, sx, py, px, dy, dx = window
    stride = weight.shape[1]
    block = vnni.DEPTHWISE_PIXELS
    pixels = (ow + block - 1) // block * block
    # The R input rows with their padding, as wide as the last block of pixels reads.
    wide = max(w + 2 * px, (pixels - 1) * sx + (s - 1) * dx + 1) * c + 64
    rows = np.zeros(r * wide, np.int8)
    at = np.empty(r * s, np.int64)
    for ry in range(r):
        for rx in range(s):
            at[ry * s + rx] = ry * wide + rx * dx * c
    flipped = np.empty((len(ys), r * s, stride), np.int32)
    for replica in range(len(ys)):
        flipped[replica] = weight
        for f in range(replica_at[replica], replica_at[replica + 1]):
            tap, channel = taps[f], channels[f]
            flipped[replica, tap, channel] = (flipped[replica, tap, channel] + deltas[f]) & 0xFFFF
    clean = np.empty(pixels * stride, np.int32)
    spare = np.empty(pixels * stride if len(ys) > 1 else 0, np.int32)
    for row in range(first_pixel // ow, last_pixel // ow):
        image = row // oh
        top = (row - image * oh) * sy - py
        for ry in range(r):
            iy = top + ry * dy
            to = ry * wide + px * c
            if iy < 0 or iy >= h:
                rows[to : to + w * c] = 0
            else:
                vnni.copy(rows.ctypes.data + to, x + (image * h + iy) * w * c, w * c)
        for j in range(0, stride, 16):
            vnni.depthwise(
                rows.ctypes.data + j,
                sx * c,
                at.ctypes.data,
                r * s,
                weight.ctypes.data + j * 4,
                stride * 4,
                start + j * 4,
                clean.ctypes.data + j * 4,
                stride * 4,
                pixels,
                zero,
            )
        for replica in range(len(ys)):
            acc = clean
            if replica + 1 < len(ys):
                acc = spare
                vnni.copy(acc.ctypes.data, clean.ctypes.data, ow * stride * 4)
            # Weights first, on the true inputs; then the inputs meet the flipped weights.
            for f in range(replica_at[replica], replica_at[replica + 1]):
                channel = channels[f]
                source = at[taps[f]] + channel
                for p in range(ow):
                    acc[p * stride + channel] += number(rows[source + p * sx * c], zero) * deltas[f]
            if row_at[replica, -1] > row_at[replica, 0]:
                _flip_inputs(
                    window, inputs, row_at[replica], input_columns, input_channels, image, top, wide, rows,
                    flipped[replica], acc, stride, zero,
                )  # fmt: skip
            first = row * ow
            f0, f1 = accumulator_at[replica], accumulator_at[replica + 1]
            if f1 > f0:
                flip_accumulators(c, c, 0, first, first + ow, accumulators, f0, f1, acc, stride)
            for p in range(ow):
                vnni.requantise(
                    acc.ctypes.data + p * stride * 4,
                    multiplier,
                    low,
                    high,
                    shift,
                    ys[replica] + (first + p) * c,
                    c,
                )
            f0, f1 = output_at[replica], output_at[replica + 1]
            if f1 > f0:
                flip_outputs(first * c, (first + ow) * c, outputs, f0, f1, ys[replica])


@njit(nogil=True, cache=True)
def _flip_inputs(  # type: ignore[no-untyped-def]
    window, inputs, row_at, columns, channels, image, top, wide, rows, weight, acc, stride, zero
):
    """Add ``dx * w`` of each input flip that reaches one output row."""
    h, _, c, _, ow, _, r, s, _, sx, _, px, dy, dx = window
    for ry in range(r):
        iy = top + ry * dy
        if iy < 0 or iy >= h:
            continue
        value, previous = np.uint8(0), np.int64(-1)
        for f in range(row_at[image * h + iy], row_at[image * h + iy + 1]):
            channel, column = channels[f], columns[f]
            at = ry * wide + (px + column) * c + channel
            # Flips of one byte follow one another.
            if at != previous:
                value, previous = np.uint8(rows[at]), at
            after = np.uint8(value ^ np.uint8(1 << (inputs[f] & 7)))
            delta = number(after, zero) - number(value, zero)
            value = after
            for rx in range(s):
                t = column + px - rx * dx
                if t < 0 or t >= ow * sx or (sx > 1 and t % sx != 0):
                    continue
                ox = t // sx if sx > 1 else t
                acc[ox * stride + channel] += delta * np.int32(np.int16(weight[ry * s + rx, channel]))
