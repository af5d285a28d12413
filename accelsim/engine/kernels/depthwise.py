"""Depthwise convolutions with as many outputs as inputs, of several replicas at once, an output row at a time."""

from __future__ import annotations

import numpy as np
from numba import njit

from accelsim.engine import vnni
from accelsim.engine.kernels.flips import flip_accumulators, flip_outputs


@njit(nogil=True, cache=True)
def depthwise(execution, first_pixel, last_pixel):  # type: ignore[no-untyped-def]
    """Output pixels first_pixel..last_pixel-1 (of N*OH*OW), which are whole rows, of an ``Execution`` with ``Taps``."""
    mac, x, struck, flips, ys = execution
    h, w, c, oh, ow, _, r, s, sy, sx, py, px, dy, dx = mac.window
    stride = mac.weight.shape[1]
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
        flipped[replica] = mac.weight
        for f in range(flips.replica_at[replica], flips.replica_at[replica + 1]):
            tap, channel = flips.taps[f], flips.channels[f]
            flipped[replica, tap, channel] = (flipped[replica, tap, channel] + flips.deltas[f]) & 0xFFFF
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
                mac.weight.ctypes.data + j * 4,
                stride * 4,
                mac.start.ctypes.data + j * 4,
                clean.ctypes.data + j * 4,
                stride * 4,
                pixels,
            )
        for replica in range(len(ys)):
            acc = clean
            if replica + 1 < len(ys):
                acc = spare
                vnni.copy(acc.ctypes.data, clean.ctypes.data, ow * stride * 4)
            # Weights first, on the true inputs; then the inputs meet the flipped weights.
            for f in range(flips.replica_at[replica], flips.replica_at[replica + 1]):
                channel = flips.channels[f]
                source = at[flips.taps[f]] + channel
                for p in range(ow):
                    acc[p * stride + channel] += np.int32(rows[source + p * sx * c]) * flips.deltas[f]
            if struck.rows[replica, -1] > struck.rows[replica, 0]:
                _flip_inputs(mac, struck, replica, image, top, wide, rows, flipped[replica], acc, stride)
            first = row * ow
            if struck.accumulator_at[replica + 1] > struck.accumulator_at[replica]:
                flip_accumulators(mac, struck, replica, 0, first, first + ow, acc, stride)
            for p in range(ow):
                vnni.requantise(
                    acc.ctypes.data + p * stride * 4,
                    mac.multiplier.ctypes.data,
                    mac.low,
                    mac.high,
                    ys[replica] + (first + p) * c,
                    c,
                )
            if struck.output_at[replica + 1] > struck.output_at[replica]:
                flip_outputs(mac, struck, replica, first, first + ow, ys[replica])


@njit(nogil=True, cache=True)
def _flip_inputs(mac, struck, replica, image, top, wide, rows, weight, acc, stride):  # type: ignore[no-untyped-def]
    """Add ``dx * w`` of each input flip that reaches one output row."""
    h, _, c, _, ow, _, r, s, _, sx, _, px, dy, dx = mac.window
    row_at = struck.rows[replica]
    for ry in range(r):
        iy = top + ry * dy
        if iy < 0 or iy >= h:
            continue
        value, previous = np.uint8(0), np.int64(-1)
        for f in range(row_at[image * h + iy], row_at[image * h + iy + 1]):
            channel, column = struck.channels[f], struck.columns[f]
            at = ry * wide + (px + column) * c + channel
            # Flips of one byte follow one another.
            if at != previous:
                value, previous = np.uint8(rows[at]), at
            after = np.uint8(value ^ np.uint8(1 << (struck.inputs[f] & 7)))
            delta = np.int32(np.int8(after)) - np.int32(np.int8(value))
            value = after
            for rx in range(s):
                t = column + px - rx * dx
                if t < 0 or t >= ow * sx or (sx > 1 and t % sx != 0):
                    continue
                ox = t // sx if sx > 1 else t
                acc[ox * stride + channel] += delta * np.int32(np.int16(weight[ry * s + rx, channel]))
