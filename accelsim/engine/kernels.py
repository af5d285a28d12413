"""Compiled loops: MAC layers with their faults, a tile of output pixels at a time, and the other layers (section 4).

The MAC kernels need AVX-512 VNNI (``accelsim.engine.vnni``); the rest runs anywhere. Everything is exact integer arithmetic
except the one float32 multiply of each requantisation, so no fast-math. All kernels release the GIL; ``accelsim.engine``
gives each thread a range of tiles or rows.

A tile's accumulators stay in cache: golden ones once, then for each replica the sparse corrections
``acc(x + dx, w + dw) = acc + dx * w + (x + dx) * dw``, requantisation, and the original again.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from accelsim.engine import vnni

_LOGGED = 4096
"""Input bytes of a tile that are put back one by one; where more were flipped, the tile is gathered again."""

# Fields of a layer's geometry, an int64 array.
N, H, W, C, OH, OW, O, R, S, SY, SX, PY, PX, DY, DX, G, LOW, HIGH, TILE = range(19)  # noqa: E741


@intrinsic
def _at(typingctx, address, index):  # type: ignore[no-untyped-def]
    """int8 at an address: inputs may be read-only arrays, which Numba would compile everything again for."""

    def generate(context, builder, _, values):  # type: ignore[no-untyped-def]
        return builder.load(builder.inttoptr(builder.add(*values), ir.IntType(8).as_pointer()))

    return types.int8(types.int64, types.int64), generate


@intrinsic
def _put(typingctx, address, index, value):  # type: ignore[no-untyped-def]
    """Write an int8 to an address."""

    def generate(context, builder, _, values):  # type: ignore[no-untyped-def]
        address, index, value = values
        builder.store(value, builder.inttoptr(builder.add(address, index), ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int8), generate


@intrinsic
def _pointer(typingctx, address):  # type: ignore[no-untyped-def]
    def generate(context, builder, _, values):  # type: ignore[no-untyped-def]
        return builder.inttoptr(values[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def _rint(typingctx, value):  # type: ignore[no-untyped-def]
    """float32 to the nearest integer, half to even, as a vector instruction."""

    def generate(context, builder, _, values):  # type: ignore[no-untyped-def]
        kind = ir.FloatType()
        module = builder.module
        name = "llvm.nearbyint.f32"
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(kind, [kind]), name)
        return builder.call(function, values)

    return types.float32(types.float32), generate


@njit(nogil=True, cache=True)
def _lower_bound(positions, first, last, value):  # type: ignore[no-untyped-def]
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
def patch_weights(packed, start, outs, columns, deltas, starts):  # type: ignore[no-untyped-def]
    """Add weight flips to packed weights (G, blocks, quads, 16, 4) int8 and start values (G, 16*blocks) int32."""
    for g in range(packed.shape[0]):
        for f in range(starts[g], starts[g + 1]):
            o, k = outs[f], columns[f]
            packed[g, o >> 4, k >> 2, o & 15, k & 3] += np.int8(deltas[f])
            start[g, o] -= 128 * deltas[f]


@njit(nogil=True, cache=True)
def weight_quads(outs, columns, deltas, starts, quads, at, block_at, start):  # type: ignore[no-untyped-def]
    """Weight flips as ``vnni.add_quads`` takes them; returns how many quads.

    quads: int8 (2 * flips, 16, 4), zeros; at: int64 (2 * flips,), byte offset of each quad's columns; block_at: int64
    (G, blocks + 1), where each block's quads begin; start: int32 (G, 16*blocks), zeros, -128 * each channel's sum.
    """
    groups, blocks = block_at.shape[0], block_at.shape[1] - 1
    n = 0
    for g in range(groups):
        f = starts[g]
        for block in range(blocks):
            block_at[g, block] = n
            while f < starts[g + 1] and outs[f] >> 4 == block:
                delta = deltas[f]
                start[g, outs[f]] -= 128 * delta
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
def _gather(x, geometry, group, first, last, a, quads):  # type: ignore[no-untyped-def]
    """Rows of ``a``: the uint8 (int8 + 128) operands of output pixels first..last-1, column k = (r*S + s)*I + i."""
    h, w, c = geometry[H], geometry[W], geometry[C]
    oh, ow, r, s = geometry[OH], geometry[OW], geometry[R], geometry[S]
    sy, sx, py, px, dy, dx = geometry[SY], geometry[SX], geometry[PY], geometry[PX], geometry[DY], geometry[DX]
    i = c // geometry[G]
    width = 4 * quads
    to = a.ctypes.data
    if r == 1 and s == 1 and i == c and width == c and sy == 1 and sx == 1 and py == 0 and px == 0:
        vnni.copy_unsigned(to, x + first * c, (last - first) * c)
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
                    a[k] = 128
            elif i == c and dx == 1:
                # One stretch of the row, with padding before and behind it.
                before = max(0, -ix0)
                behind = max(0, ix0 + s - w)
                for k in range(at, at + min(before, s) * i):
                    a[k] = 128
                if before + behind < s:
                    source = x + ((image * h + iy) * w + ix0 + before) * c
                    vnni.copy_unsigned(to + at + before * i, source, (s - before - behind) * i)
                for k in range(at + (s - min(behind, s)) * i, at + s * i):
                    a[k] = 128
            else:
                for rx in range(s):
                    ix = ix0 + rx * dx
                    if ix < 0 or ix >= w:
                        for k in range(at + rx * i, at + (rx + 1) * i):
                            a[k] = 128
                    else:
                        source = x + ((image * h + iy) * w + ix) * c + group * i
                        vnni.copy_unsigned(to + at + rx * i, source, i)


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
def _flip_inputs(  # type: ignore[no-untyped-def]
    geometry, group, first, last, positions, row_at, columns, channels, a, quads, correct, acc, blocks, packed, log, old
):
    """Flip the input bits that tile ``a`` holds. With ``correct``, add each one's ``dx * w`` to ``acc`` as well.

    log and old receive the place and the former value of each byte, as far as they reach; returns how many there were.
    """
    h, c = geometry[H], geometry[C]
    oh, ow, r, s = geometry[OH], geometry[OW], geometry[R], geometry[S]
    sy, sx, py, px, dy, dx = geometry[SY], geometry[SX], geometry[PY], geometry[PX], geometry[DY], geometry[DX]
    i = c // geometry[G]
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
                bit = np.uint8(1 << (positions[f] & 7))
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
                            packed.ctypes.data + (group * blocks * quads + (k >> 2)) * 64,
                            quads * 64,
                            24 - 8 * (k & 3),
                            np.int64(after) - np.int64(before),
                            blocks,
                        )
        p += ox1 - ox0
    return done


@njit(nogil=True, cache=True)
def _flip_accumulators(geometry, group, first, last, positions, f0, f1, acc, stride):  # type: ignore[no-untyped-def]
    """Flip accumulator bits of output pixels first..last-1; ``acc`` holds one group's channels, ``stride`` a pixel."""
    o = geometry[O]
    per_group = o // geometry[G]
    f = _lower_bound(positions, f0, f1, first * o * 32)
    while f < f1 and positions[f] < last * o * 32:
        element = positions[f] >> 5
        pixel = element // o
        channel = element - pixel * o - group * per_group
        if channel >= 0 and channel < per_group:
            acc[(pixel - first) * stride + channel] ^= np.int32(np.uint32(1) << np.uint32(positions[f] & 31))
        f += 1


@njit(nogil=True, cache=True)
def _flip_outputs(first, last, positions, f0, f1, y):  # type: ignore[no-untyped-def]
    """Flip bits of output elements first..last-1 in place."""
    f = _lower_bound(positions, f0, f1, first * 8)
    while f < f1 and positions[f] < last * 8:
        element = positions[f] >> 3
        _put(y, element, np.int8(np.uint8(_at(y, element)) ^ np.uint8(1 << (positions[f] & 7))))
        f += 1


@njit(nogil=True, cache=True)
def conv(  # type: ignore[no-untyped-def]
    x,
    geometry,
    packed,
    start,
    multiplier,
    dense,
    inputs,
    row_at,
    flip_columns,
    flip_channels,
    changes,
    quad_at,
    block_at,
    shifts,
    accumulators,
    accumulator_at,
    outputs,
    output_at,
    ys,
    first_pixel,
    last_pixel,
):
    """Output pixels first_pixel..last_pixel-1 (of N*OH*OW) of a convolution, for each replica, tile by tile.

    x: address of the int8 input (N, H, W, C). packed: int8 (G, blocks, quads, 16, 4). start: int32 (G, 16*blocks), the
    bias less 128 * sum(w). multiplier: float32 (G, 16*blocks). ys: int64 addresses of the replicas' outputs.
    inputs: all replicas' input flips, found by ``locate``: row_at (replicas, N*H + 1). accumulators, outputs: theirs are
    ``accumulators[accumulator_at[r]:accumulator_at[r + 1]]`` and so on. changes, quad_at,
    block_at (replicas, G, blocks + 1), shifts (replicas, G, 16*blocks): weight flips from ``weight_quads``. ``dense``:
    one replica; its weight flips are in ``packed`` and ``start`` already.
    """
    groups, blocks, quads = packed.shape[0], packed.shape[1], packed.shape[2]
    o, tile = geometry[O], geometry[TILE]
    per_group = o // groups
    width, stride = 4 * quads, 16 * blocks
    # copy_unsigned writes whole 64-byte blocks.
    a = np.empty(tile * width + 64, np.uint8)
    golden = np.empty(tile * stride, np.int32)
    spare = np.empty(tile * stride if len(ys) > 1 else 0, np.int32)
    log, old = np.empty(_LOGGED, np.int64), np.empty(_LOGGED, np.uint8)
    for first in range(first_pixel, last_pixel, tile):
        last = min(last_pixel, first + tile)
        pixels = last - first
        for g in range(groups):
            _gather(x, geometry, g, first, last, a, quads)
            if dense and len(inputs):
                _flip_inputs(
                    geometry, g, first, last, inputs, row_at[0], flip_columns, flip_channels, a, quads, False, golden,
                    blocks, packed, log[:0], old,
                )  # fmt: skip
            _multiply(a, width, packed, g, start, golden, pixels)
            for r in range(len(ys)):
                acc = golden
                if r + 1 < len(ys):
                    acc = spare
                    vnni.copy(acc.ctypes.data, golden.ctypes.data, pixels * stride * 4)
                if not dense:
                    done = 0
                    if row_at[r, -1] > row_at[r, 0]:
                        done = _flip_inputs(
                            geometry, g, first, last, inputs, row_at[r], flip_columns, flip_channels, a, quads, True, acc,
                            blocks, packed, log, old,
                        )  # fmt: skip
                    for block in range(blocks):
                        f0, f1 = block_at[r, g, block], block_at[r, g, block + 1]
                        if f1 > f0:
                            for p in range(0, pixels, vnni.CORRECTED_ROWS):
                                vnni.add_quads(
                                    a.ctypes.data + p * width,
                                    width,
                                    quad_at.ctypes.data + f0 * 8,
                                    changes.ctypes.data + f0 * 64,
                                    f1 - f0,
                                    shifts.ctypes.data + ((r * groups + g) * blocks + block) * 64,
                                    acc.ctypes.data + p * stride * 4 + block * 64,
                                    stride * 4,
                                )
                    if done > len(log):
                        _gather(x, geometry, g, first, last, a, quads)
                    else:
                        for f in range(done - 1, -1, -1):
                            a[log[f]] = old[f]
                if accumulator_at[r + 1] > accumulator_at[r]:
                    _flip_accumulators(
                        geometry, g, first, last, accumulators, accumulator_at[r], accumulator_at[r + 1], acc, stride
                    )
                for p in range(pixels):
                    vnni.requantise(
                        acc.ctypes.data + p * stride * 4,
                        multiplier.ctypes.data + g * stride * 4,
                        geometry[LOW],
                        geometry[HIGH],
                        ys[r] + (first + p) * o + g * per_group,
                        per_group,
                    )
        for r in range(len(ys)):
            if output_at[r + 1] > output_at[r]:
                _flip_outputs(first * o, last * o, outputs, output_at[r], output_at[r + 1], ys[r])


@njit(nogil=True, cache=True)
def _multiply(a, width, packed, group, start, acc, pixels):  # type: ignore[no-untyped-def]
    """acc = start + a @ w for one group; rows past ``pixels`` up to the next block are scratch."""
    blocks, quads = packed.shape[1], packed.shape[2]
    step = quads * 64
    stride = 64 * blocks
    w0 = packed.ctypes.data + group * blocks * step
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


@njit(nogil=True, cache=True)
def depthwise(  # type: ignore[no-untyped-def]
    x,
    geometry,
    weight,
    start,
    multiplier,
    inputs,
    row_at,
    flip_columns,
    flip_channels,
    outs,
    columns,
    deltas,
    weight_at,
    accumulators,
    accumulator_at,
    outputs,
    output_at,
    ys,
    first_pixel,
    last_pixel,
):
    """Output pixels first_pixel..last_pixel-1, which are whole rows, of a depthwise convolution with as many outputs as inputs.

    weight: int32 (R*S, 16*blocks), each int8 weight modulo 2^16. start: int32 (16*blocks), the bias. Otherwise as ``conv``;
    ``outs`` are channels, ``columns`` r*S + s, ``weight_at`` (replicas + 1).
    """
    h, w, c = geometry[H], geometry[W], geometry[C]
    oh, ow, r, s = geometry[OH], geometry[OW], geometry[R], geometry[S]
    sy, sx, py, px, dy, dx = geometry[SY], geometry[SX], geometry[PY], geometry[PX], geometry[DY], geometry[DX]
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
        for f in range(weight_at[replica], weight_at[replica + 1]):
            flipped[replica, columns[f], outs[f]] = (flipped[replica, columns[f], outs[f]] + deltas[f]) & 0xFFFF
    golden = np.empty(pixels * stride, np.int32)
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
                start.ctypes.data + j * 4,
                golden.ctypes.data + j * 4,
                stride * 4,
                pixels,
            )
        for replica in range(len(ys)):
            acc = golden
            if replica + 1 < len(ys):
                acc = spare
                vnni.copy(acc.ctypes.data, golden.ctypes.data, ow * stride * 4)
            # Weights first, on the true inputs; then the inputs meet the flipped weights.
            for f in range(weight_at[replica], weight_at[replica + 1]):
                source = at[columns[f]] + outs[f]
                for p in range(ow):
                    acc[p * stride + outs[f]] += np.int32(rows[source + p * sx * c]) * deltas[f]
            if row_at[replica, -1] > row_at[replica, 0]:
                _flip_depthwise_inputs(
                    geometry, image, top, wide, rows, flipped[replica], inputs, row_at[replica], flip_columns,
                    flip_channels, acc, stride,
                )  # fmt: skip
            first = row * ow
            if accumulator_at[replica + 1] > accumulator_at[replica]:
                # Channels are the group's own index here, so one group holds them all.
                _flip_all_accumulators(
                    c, first, first + ow, accumulators, accumulator_at[replica], accumulator_at[replica + 1], acc, stride
                )
            for p in range(ow):
                vnni.requantise(
                    acc.ctypes.data + p * stride * 4,
                    multiplier.ctypes.data,
                    geometry[LOW],
                    geometry[HIGH],
                    ys[replica] + (first + p) * c,
                    c,
                )
            if output_at[replica + 1] > output_at[replica]:
                _flip_outputs(first * c, (first + ow) * c, outputs, output_at[replica], output_at[replica + 1], ys[replica])


@njit(nogil=True, cache=True)
def _flip_all_accumulators(o, first, last, positions, f0, f1, acc, stride):  # type: ignore[no-untyped-def]
    f = _lower_bound(positions, f0, f1, first * o * 32)
    while f < f1 and positions[f] < last * o * 32:
        element = positions[f] >> 5
        pixel = element // o
        acc[(pixel - first) * stride + element - pixel * o] ^= np.int32(np.uint32(1) << np.uint32(positions[f] & 31))
        f += 1


@njit(nogil=True, cache=True)
def _flip_depthwise_inputs(  # type: ignore[no-untyped-def]
    geometry, image, top, wide, rows, weight, positions, row_at, columns, channels, acc, stride
):
    """Add ``dx * w`` of each input flip that reaches one output row."""
    h, c, ow = geometry[H], geometry[C], geometry[OW]
    r, s, sx, px, dy, dx = geometry[R], geometry[S], geometry[SX], geometry[PX], geometry[DY], geometry[DX]
    for ry in range(r):
        iy = top + ry * dy
        if iy < 0 or iy >= h:
            continue
        value, previous = np.uint8(0), np.int64(-1)
        for f in range(row_at[image * h + iy], row_at[image * h + iy + 1]):
            channel = channels[f]
            at = ry * wide + (px + columns[f]) * c + channel
            # Flips of one byte follow one another.
            if at != previous:
                value, previous = np.uint8(rows[at]), at
            after = np.uint8(value ^ np.uint8(1 << (positions[f] & 7)))
            delta = np.int32(np.int8(after)) - np.int32(np.int8(value))
            value = after
            for rx in range(s):
                t = columns[f] + px - rx * dx
                if t < 0 or t >= ow * sx or (sx > 1 and t % sx != 0):
                    continue
                ox = t // sx if sx > 1 else t
                acc[ox * stride + channel] += delta * np.int32(np.int16(weight[ry * s + rx, channel]))


# ---- layers that are not MAC layers. x and y are addresses of int8 arrays, NHWC; y is written from its start.


@njit(nogil=True, cache=True)
def round_floats(acc, multiplier, low, high, y):  # type: ignore[no-untyped-def]
    """y = clamp(rint(acc * multiplier[c]), low, high): accumulators float32 (pixels, C), y int8 (pixels, C)."""
    for p in range(acc.shape[0]):
        for c in range(acc.shape[1]):
            value = _rint(acc[p, c] * multiplier[c])
            y[p, c] = np.int8(np.int32(min(max(value, np.float32(low)), np.float32(high))))


@njit(nogil=True, cache=True)
def add(a, b, ma, mb, low, high, y, count):  # type: ignore[no-untyped-def]
    """y = clamp(int(rint(a * ma)) + int(rint(b * mb)), low, high) over ``count`` elements."""
    xa, xb, out = carray(_pointer(a), count, np.int8), carray(_pointer(b), count, np.int8), carray(_pointer(y), count, np.int8)
    for i in range(count):
        value = np.int32(_rint(np.float32(xa[i]) * ma)) + np.int32(_rint(np.float32(xb[i]) * mb))
        out[i] = np.int8(min(max(value, np.int32(low)), np.int32(high)))


@njit(nogil=True, cache=True)
def scale(x, multiplier, low, high, y, pixels, c, stride, offset):  # type: ignore[no-untyped-def]
    """One operand of a concat: y[p * stride + offset + j] = clamp(rint(x[p * c + j] * multiplier), low, high)."""
    source, out = carray(_pointer(x), pixels * c, np.int8), carray(_pointer(y), pixels * stride, np.int8)
    same = multiplier == np.float32(1) and low == -128 and high == 127
    for p in range(pixels):
        to = p * stride + offset
        if same:
            out[to : to + c] = source[p * c : (p + 1) * c]
            continue
        for j in range(c):
            value = _rint(np.float32(source[p * c + j]) * multiplier)
            out[to + j] = np.int8(np.int32(min(max(value, np.float32(low)), np.float32(high))))


@njit(nogil=True, cache=True)
def multiply(a, b, multiplier, low, high, y, images, pixels, c, broadcast):  # type: ignore[no-untyped-def]
    """y = clamp(rint(a * b * multiplier), low, high); ``broadcast``: b has one pixel an image."""
    count = images * pixels * c
    xa, out = carray(_pointer(a), count, np.int8), carray(_pointer(y), count, np.int8)
    xb = carray(_pointer(b), images * c if broadcast else count, np.int8)
    for p in range(images * pixels):
        at = p // pixels * c if broadcast else p * c
        for j in range(c):
            value = _rint(np.float32(np.int32(xa[p * c + j]) * np.int32(xb[at + j])) * multiplier)
            out[p * c + j] = np.int8(np.int32(min(max(value, np.float32(low)), np.float32(high))))


@njit(nogil=True, cache=True)
def max_pool(x, geometry, y):  # type: ignore[no-untyped-def]
    """Largest value of each window; ``geometry`` as for ``conv``."""
    n, h, w, c, oh, ow = geometry[N], geometry[H], geometry[W], geometry[C], geometry[OH], geometry[OW]
    r, s, sy, sx, py, px = geometry[R], geometry[S], geometry[SY], geometry[SX], geometry[PY], geometry[PX]
    dy, dx = geometry[DY], geometry[DX]
    source, out = carray(_pointer(x), n * h * w * c, np.int8), carray(_pointer(y), n * oh * ow * c, np.int8)
    # Down the columns first: long runs for the vector unit, and r + s comparisons instead of r * s.
    column = np.empty(w * c, np.int8)
    for row in range(n * oh):
        image = row // oh
        top = (row - image * oh) * sy - py
        column[:] = np.int8(-128)
        for ry in range(r):
            iy = top + ry * dy
            if iy >= 0 and iy < h:
                line = source[(image * h + iy) * w * c : (image * h + iy + 1) * w * c]
                for i in range(w * c):
                    column[i] = max(column[i], line[i])
        for ox in range(ow):
            to = out[(row * ow + ox) * c : (row * ow + ox + 1) * c]
            to[:] = np.int8(-128)
            for rx in range(s):
                ix = ox * sx - px + rx * dx
                if ix >= 0 and ix < w:
                    place = column[ix * c : (ix + 1) * c]
                    for i in range(c):
                        to[i] = max(to[i], place[i])


@njit(nogil=True, cache=True)
def mean_pool(x, geometry, multiplier, y):  # type: ignore[no-untyped-def]
    """clamp(rint(sum of the window * multiplier), low, high); padding counts as zeros."""
    n, h, w, c, oh, ow = geometry[N], geometry[H], geometry[W], geometry[C], geometry[OH], geometry[OW]
    r, s, sy, sx, py, px = geometry[R], geometry[S], geometry[SY], geometry[SX], geometry[PY], geometry[PX]
    low, high = np.float32(geometry[LOW]), np.float32(geometry[HIGH])
    source, out = carray(_pointer(x), n * h * w * c, np.int8), carray(_pointer(y), n * oh * ow * c, np.int8)
    total = np.empty(c, np.int32)
    for p in range(n * oh * ow):
        oy, ox, image = (p // ow) % oh, p % ow, p // (ow * oh)
        total[:] = np.int32(0)
        for iy in range(max(0, oy * sy - py), min(h, oy * sy - py + r)):
            for ix in range(max(0, ox * sx - px), min(w, ox * sx - px + s)):
                place = source[((image * h + iy) * w + ix) * c : ((image * h + iy) * w + ix + 1) * c]
                for i in range(c):
                    total[i] += np.int32(place[i])
        for i in range(c):
            value = _rint(np.float32(total[i]) * multiplier)
            out[p * c + i] = np.int8(np.int32(min(max(value, low), high)))


@njit(nogil=True, cache=True)
def look_up(x, table, y, count):  # type: ignore[no-untyped-def]
    """y = table[x + 128]."""
    source, out = carray(_pointer(x), count, np.int8), carray(_pointer(y), count, np.int8)
    for i in range(count):
        out[i] = table[np.int64(source[i]) + 128]


@njit(nogil=True, cache=True)
def move_channels(x, order, y, pixels, c):  # type: ignore[no-untyped-def]
    """y[p, i] = x[p, order[i]]; x has ``c`` channels."""
    o = len(order)
    source, out = carray(_pointer(x), pixels * c, np.int8), carray(_pointer(y), pixels * o, np.int8)
    for p in range(pixels):
        for i in range(o):
            out[p * o + i] = source[p * c + order[i]]


@njit(nogil=True, cache=True)
def elements(x, geometry, weight, bias, multiplier, positions, y):  # type: ignore[no-untyped-def]
    """Golden outputs of a MAC layer at flat NHWC output positions, by direct dot products.

    weight (O, I, R, S) int8, bias (O,) int32, multiplier (O,) float32, y int8.
    """
    h, w, c, oh, ow = geometry[H], geometry[W], geometry[C], geometry[OH], geometry[OW]
    r, s, sy, sx, py, px = geometry[R], geometry[S], geometry[SY], geometry[SX], geometry[PY], geometry[PX]
    dy, dx, o = geometry[DY], geometry[DX], geometry[O]
    i = weight.shape[1]
    source = carray(_pointer(x), geometry[N] * h * w * c, np.int8)
    for f in range(len(positions)):
        pixel = positions[f] // o
        channel = positions[f] - pixel * o
        group = channel // (o // (c // i))
        oy, ox, image = (pixel // ow) % oh, pixel % ow, pixel // (ow * oh)
        total = np.int64(bias[channel])
        for ry in range(r):
            iy = oy * sy - py + ry * dy
            if iy < 0 or iy >= h:
                continue
            for rx in range(s):
                ix = ox * sx - px + rx * dx
                if ix < 0 or ix >= w:
                    continue
                at = ((image * h + iy) * w + ix) * c + group * i
                for k in range(i):
                    total += np.int64(source[at + k]) * np.int64(weight[channel, k, ry, rx])
        value = _rint(np.float32(np.int32(total)) * multiplier[channel])
        y[f] = np.int8(np.int32(min(max(value, np.float32(geometry[LOW])), np.float32(geometry[HIGH]))))
