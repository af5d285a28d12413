"""Flips made ready for the kernels, and put into accumulators and outputs."""

from __future__ import annotations

import numpy as np
from numba import njit

from accelsim.engine.kernels.memory import byte_at, put


@njit(nogil=True, cache=True)
def lower_bound(positions, first, last, value):  # type: ignore[no-untyped-def]
    """First index in first..last-1 whose position is >= value, else last."""
    while first < last:
        middle = (first + last) >> 1
        if positions[middle] < value:
            first = middle + 1
        else:
            last = middle
    return first


@njit(nogil=True, cache=True)
def weight_deltas(weight, positions, outs, columns, deltas, starts, groups):  # type: ignore[no-untyped-def]
    """What each weight flip adds: (output channel in its group, column k = (r*S + s)*I + i, delta), in order.

    weight (O, I, R, S) int8; positions sorted. ``starts`` (groups + 1) receives where each group's flips begin.
    Flips of one byte follow one another, so each delta is taken from the byte as the earlier ones left it.
    """
    o, i, r, s = weight.shape
    flat = weight.reshape(-1)
    byte, at = np.uint8(0), np.int64(-1)
    per_group = o // groups
    group = 0
    starts[0] = 0
    for f in range(len(positions)):
        element = positions[f] >> 3
        if element != at:
            at = element
            byte = np.uint8(flat[element])
        flipped = np.uint8(byte ^ np.uint8(1 << (positions[f] & 7)))
        deltas[f] = np.int32(np.int8(flipped)) - np.int32(np.int8(byte))
        byte = flipped
        out = element // (i * r * s)
        rest = element - out * (i * r * s)
        channel = rest // (r * s)
        columns[f] = (rest - channel * (r * s)) * i + channel
        while group < out // per_group:
            group += 1
            starts[group] = f
        outs[f] = out - (out // per_group) * per_group
    while group < groups:
        group += 1
        starts[group] = len(positions)


@njit(nogil=True, cache=True)
def patch_weights(packed, start, zero, outs, columns, deltas, starts):  # type: ignore[no-untyped-def]
    """Add weight flips to packed weights (G, blocks, quads, 16, 4) int8 and start values (G, 16*blocks) int32."""
    for g in range(packed.shape[0]):
        for f in range(starts[g], starts[g + 1]):
            o, k = outs[f], columns[f]
            packed[g, o >> 4, k >> 2, o & 15, k & 3] += np.int8(deltas[f])
            start[g, o] -= zero * deltas[f]


@njit(nogil=True, cache=True)
def weight_quads(outs, columns, deltas, starts, zero, quads, at, block_at, start):  # type: ignore[no-untyped-def]
    """Weight flips as ``vnni.add_quads`` takes them; returns how many quads.

    quads: int8 (2 * flips, 16, 4), zeros; at: int64 (2 * flips,), byte offset of each quad's columns; block_at: int64
    (G, blocks + 1), where each block's quads begin; start: int32 (G, 16*blocks), zeros, -zero * each channel's sum.
    """
    groups, blocks = block_at.shape[0], block_at.shape[1] - 1
    n = 0
    for g in range(groups):
        f = starts[g]
        for block in range(blocks):
            block_at[g, block] = n
            while f < starts[g + 1] and outs[f] >> 4 == block:
                delta = deltas[f]
                start[g, outs[f]] -= zero * delta
                # Bit 7 of a negative weight adds 128, which is one too many for an int8.
                while delta != 0:
                    part = min(delta, 127)
                    quads[n, outs[f] & 15, columns[f] & 3] = np.int8(part)
                    at[n] = columns[f] & ~3
                    delta -= part
                    n += 1
                f += 1
        block_at[g, blocks] = n
    return n


@njit(nogil=True, cache=True)
def locate(positions, width, c, shift, row_at, columns, channels):  # type: ignore[no-untyped-def]
    """Where input flips lie, so that no tile divides: row_at[i] is the first flip of image row i, plus ``shift``.

    ``width`` is W; columns and channels int32, a flip each; row_at int64 (N*H + 1).
    """
    # 32 bits because they divide faster; the engine takes no larger activations.
    row, across, depth = 0, np.uint32(width), np.uint32(c)
    for f in range(len(positions)):
        element = np.uint32(positions[f] >> 3)
        pixel = np.uint32(element // depth)
        y = np.uint32(pixel // across)
        while row <= y:
            row_at[row] = f + shift
            row += 1
        columns[f] = pixel - y * across
        channels[f] = element - pixel * depth
    while row < len(row_at):
        row_at[row] = len(positions) + shift
        row += 1


@njit(nogil=True, cache=True)
def flip_accumulators(o, per_group, group, first, last, positions, f0, f1, acc, stride):  # type: ignore[no-untyped-def]
    """Flip accumulator bits of output pixels first..last-1 at ``positions[f0:f1]``, which are of all o channels.

    ``acc`` holds the ``per_group`` channels of one group, ``stride`` a pixel.
    """
    f = lower_bound(positions, f0, f1, first * o * 32)
    while f < f1 and positions[f] < last * o * 32:
        element = positions[f] >> 5
        pixel = element // o
        channel = element - pixel * o - group * per_group
        if channel >= 0 and channel < per_group:
            acc[(pixel - first) * stride + channel] ^= np.int32(np.uint32(1) << np.uint32(positions[f] & 31))
        f += 1


@njit(nogil=True, cache=True)
def flip_outputs(first, last, positions, f0, f1, y):  # type: ignore[no-untyped-def]
    """Flip bits of output elements first..last-1 in place, at ``positions[f0:f1]``; y is the address of the output."""
    f = lower_bound(positions, f0, f1, first * 8)
    while f < f1 and positions[f] < last * 8:
        element = positions[f] >> 3
        put(y, element, np.int8(np.uint8(byte_at(y, element)) ^ np.uint8(1 << (positions[f] & 7))))
        f += 1
