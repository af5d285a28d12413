"""Compiled loops of the entropy coder; ``services.codec.core.entropy`` says what they are for and what the bits mean.

Bits are written most significant first. The writer is (buffer, position, accumulator, bits in it), the reader (buffer,
bit position); both live in local variables so that the compiler keeps them in registers.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir

from accelsim.int8.network import Int8, Int32, UInt8

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

Word = Any
"""An int64 or a uint64; to the type checker anything, as the compiler's integers are not Python's."""
Writer = tuple[int, Word, int]
"""Where the next byte goes (-1 once the buffer is full), the bits that wait, and how many those are."""

ESCAPE: Final = 24
"""A Rice quotient from here on is this many zeros and then the number itself in 32 bits."""


@numba.extending.intrinsic
def clz(typing: Any, value: Any) -> Any:
    """Leading zeros of a uint64."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return numba.types.uint64(numba.types.uint64), build


@numba.extending.intrinsic
def _ctz(typing: Any, value: Any) -> Any:
    """Trailing zeros of a uint64."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return numba.types.uint64(numba.types.uint64), build


@numba.njit(cache=True, inline="always")
def _log2(value: int) -> Word:
    """floor(log2(value)) of a value of 1 or more."""
    return 63 - np.int64(clz(np.uint64(value)))


# ---------------------------------------------------------------------------------------------------- writing


@numba.njit(cache=True)
def _put(buffer: UInt8, at: int, acc: Word, held: int, value: int, count: int) -> Writer:
    """Appends the low ``count`` (at most 56) bits of value. The caller leaves 8 bytes of room."""
    acc = (acc << np.uint64(count)) | np.uint64(value)
    held += count
    while held >= 8:
        held -= 8
        buffer[at] = np.uint8((acc >> np.uint64(held)) & np.uint64(255))
        at += 1
    return at, acc, held


@numba.njit(cache=True)
def _put_rice(buffer: UInt8, at: int, acc: Word, held: int, value: int, k: int) -> Writer:
    quotient = value >> k
    if quotient < ESCAPE:
        # Leading zeros come from the length alone.
        return _put(buffer, at, acc, held, (1 << k) | (value & ((1 << k) - 1)), quotient + 1 + k)
    return _put(buffer, at, acc, held, value, ESCAPE + 32)


@numba.njit(cache=True)
def _put_gamma(buffer: UInt8, at: int, acc: Word, held: int, value: int) -> Writer:
    """Elias gamma of a value of 1 or more, below 2**28."""
    return _put(buffer, at, acc, held, value, 2 * _log2(value) + 1)


@numba.njit(cache=True)
def rice_parameter(span: int, marks: int) -> int:
    """The Rice parameter for the gaps between ``marks`` of ``span`` places that are equally likely everywhere.

    Another bit pays off while (1 - p)**(2**k) is above the golden ratio's inverse, and 1 / -ln(1 - p) is about 1/p - 1/2.
    """
    k = 0
    while marks > 0 and (marks << (k + 17)) < (2 * span - marks) * 31537:
        k += 1
    return k


@numba.njit(cache=True)
def _put_line(buffer: UInt8, at: int, acc: Word, held: int, places: Int32, values: Int8, span: int) -> Writer:
    """Writes a line's sorted places in ``0..span-1`` and its values there. At -1 the buffer is full."""
    count = len(places)
    limit = len(buffer) - 24
    # Of a line that is more than half full the empty places are fewer.
    if 2 * count > span:
        k = rice_parameter(span, span - count)
        before, i = 0, 0
        for place in range(span):
            if i < count and places[i] == place:
                i += 1
                continue
            if at > limit:
                return -1, acc, held
            at, acc, held = _put_rice(buffer, at, acc, held, place - before, k)
            before = place + 1
    else:
        k = rice_parameter(span, count)
        before = 0
        for place in places:
            if at > limit:
                return -1, acc, held
            at, acc, held = _put_rice(buffer, at, acc, held, place - before, k)
            before = place + 1
    if at > limit:
        return -1, acc, held
    if count < 3:
        for value in values:
            at, acc, held = _put(buffer, at, acc, held, int(value < 0), 1)
            at, acc, held = _put_gamma(buffer, at, acc, held, abs(np.int64(value)))
        return at, acc, held
    negative, total = 0, 0
    for value in values:
        negative += value < 0
        total += int(abs(np.int64(value))) - 1
    one_sign = negative == 0 or negative == count
    at, acc, held = _put(buffer, at, acc, held, (2 | int(negative > 0)) if one_sign else 0, 2 if one_sign else 1)
    ones = total == 0
    k = 0 if ones else rice_parameter(total + count, count)
    at, acc, held = _put(buffer, at, acc, held, 0 if ones else k + 1, 3)
    if one_sign and ones:
        return at, acc, held
    for value in values:
        if at > limit:
            return -1, acc, held
        if not one_sign:
            at, acc, held = _put(buffer, at, acc, held, int(value < 0), 1)
        if not ones:
            at, acc, held = _put_rice(buffer, at, acc, held, abs(np.int64(value)) - 1, k)
    return at, acc, held


_LOW: Final = np.uint64(0x7F7F7F7F7F7F7F7F)
_ONES: Final = np.uint64(0x0101010101010101)


@numba.njit(cache=True, inline="always")
def _nonzero_bytes(x: Word) -> Word:
    """The top bit of each byte of a word that is not zero."""
    return (((x & _LOW) + _LOW) | x) & ~_LOW


@numba.njit(cache=True, nogil=True)
def count_differences(a: UInt64, b: UInt64) -> int:
    """How many bytes differ, eight at a time."""
    count = np.uint64(0)
    for i in range(a.size):
        count += ((_nonzero_bytes(a[i] ^ b[i]) >> np.uint64(7)) * _ONES) >> np.uint64(56)
    return int(np.int64(count))


@numba.njit(cache=True, nogil=True)
def differences(
    words_a: UInt64, words_b: UInt64, a: Int8, b: Int8, channels: int, rows: Int32, places: Int32, values: Int8
) -> None:
    """Row, channel and ``a - b`` of each element that differs, in order; a row is a pixel of an image."""
    n, row, start = 0, 0, 0
    for word in range(words_a.size):
        left = _nonzero_bytes(words_a[word] ^ words_b[word])
        while left != 0:
            i = 8 * word + int(np.int64(_ctz(left) >> np.uint64(3)))
            left &= left - np.uint64(1)
            if i - start >= channels:
                row = i // channels
                start = row * channels
            rows[n], places[n], values[n] = row, i - start, a[i] - b[i]
            n += 1
    for i in range(8 * words_a.size, a.size):
        if a[i] != b[i]:
            row = i // channels
            rows[n], places[n], values[n] = row, i - row * channels, a[i] - b[i]
            n += 1


@numba.njit(cache=True, nogil=True)
def encode(rows: Int32, places: Int32, values: Int8, n_rows: int, channels: int, buffer: UInt8) -> int:
    """Writes the increments into ``buffer`` and gives the bytes used, or -1 if they do not fit."""
    n = len(rows)
    per_channel = np.zeros(channels + 1, np.int64)
    for i in range(n):
        per_channel[places[i]] += 1
    cost = np.zeros(channels, np.float64)
    for c in range(channels):
        if per_channel[c]:
            cost[c] = np.log2(n_rows / per_channel[c]) + 1.44
    as_row = np.empty(channels + 1, np.float64)
    for count in range(1, channels + 1):
        as_row[count] = count * (np.log2(channels / count) + 1.44) + 16
    # A row is written as a line of its own where that is cheaper than as part of its columns.
    hot = np.zeros(n, np.bool_)
    n_hot, i = 0, 0
    while i < n:
        end, in_columns = i, 0.0
        while end < n and rows[end] == rows[i]:
            in_columns += cost[places[end]]
            end += 1
        if end - i > 2 and as_row[end - i] < in_columns:
            hot[i:end] = True
            n_hot += 1
        i = end
    limit = len(buffer) - 64
    at, acc, held = 0, np.uint64(0), 0
    at, acc, held = _put_gamma(buffer, at, acc, held, n_hot + 1)
    k_row = rice_parameter(n_rows, n_hot)
    before, i = 0, 0
    while i < n:
        if not hot[i]:
            i += 1
            continue
        end = i
        while end < n and rows[end] == rows[i]:
            end += 1
        if at > limit:
            return -1
        at, acc, held = _put_rice(buffer, at, acc, held, rows[i] - before, k_row)
        before = rows[i] + 1
        at, acc, held = _put_gamma(buffer, at, acc, held, end - i)
        at, acc, held = _put_line(buffer, at, acc, held, places[i:end], values[i:end], channels)
        if at < 0:
            return -1
        i = end
    # The rest sorted by channel; the order of rows within one stays.
    starts = np.zeros(channels + 1, np.int64)
    for i in range(n):
        if not hot[i]:
            starts[places[i] + 1] += 1
    n_columns = 0
    for c in range(channels):
        n_columns += starts[c + 1] > 0
        starts[c + 1] += starts[c]
    fill = starts[:channels].copy()
    column_rows = np.empty(starts[channels], np.int32)
    column_values = np.empty(starts[channels], np.int8)
    for i in range(n):
        if not hot[i]:
            to = fill[places[i]]
            column_rows[to], column_values[to] = rows[i], values[i]
            fill[places[i]] = to + 1
    at, acc, held = _put_gamma(buffer, at, acc, held, n_columns + 1)
    k_column = rice_parameter(channels, n_columns)
    before = 0
    for c in range(channels):
        first, end = starts[c], starts[c + 1]
        if first == end:
            continue
        if at > limit:
            return -1
        at, acc, held = _put_rice(buffer, at, acc, held, c - before, k_column)
        before = c + 1
        at, acc, held = _put_gamma(buffer, at, acc, held, end - first)
        at, acc, held = _put_line(buffer, at, acc, held, column_rows[first:end], column_values[first:end], n_rows)
        if at < 0:
            return -1
    if held:
        at, acc, held = _put(buffer, at, acc, held, 0, 8 - held)
    return at


# ---------------------------------------------------------------------------------------------------- reading


@numba.extending.intrinsic
def _word(typing: Any, address: Any, byte: Any) -> Any:
    """The eight bytes from an address on, the first one highest."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = builder.inttoptr(builder.add(*arguments), ir.IntType(64).as_pointer())
        return builder.bswap(builder.load(at, align=1))

    return numba.types.uint64(numba.types.int64, numba.types.int64), build


@numba.njit(cache=True)
def _window(data: int, bit: int) -> Word:
    """The next 57 bits or more, at the top of a word; ``data`` is the address of bytes that end in 16 of padding."""
    return _word(data, bit >> 3) << np.uint64(bit & 7)


@numba.njit(cache=True)
def _get(data: int, bit: int, count: int) -> Word:
    """``count`` bits, 1 to 32."""
    return np.int64(_window(data, bit) >> np.uint64(64 - count))


@numba.njit(cache=True)
def _get_rice(data: int, bit: int, k: int) -> tuple[Word, Word]:
    """(value, next bit)"""
    window = _window(data, bit)
    quotient = np.int64(clz(window))
    if quotient < ESCAPE:
        whole = np.int64(window >> np.uint64(63 - quotient - k))
        return (quotient << k) | (whole & ((1 << k) - 1)), bit + quotient + 1 + k
    return _get(data, bit + ESCAPE, 32), bit + ESCAPE + 32


@numba.njit(cache=True)
def _get_gamma(data: int, bit: int) -> tuple[Word, Word]:
    """(value, next bit); 0 for one that no encoder writes."""
    window = _window(data, bit)
    zeros = np.int64(clz(window))
    if zeros > 28:
        return 0, bit
    return np.int64(window >> np.uint64(63 - 2 * zeros)), bit + 2 * zeros + 1


@numba.njit(cache=True)
def _get_line(data: int, bit: int, end: int, count: int, span: int, places: Int32, out: Int8, offset: int, stride: int) -> int:
    """Adds a line's values at ``out[offset + stride * place]``; the next bit, or -1 for what no encoder writes."""
    if 2 * count > span:
        k = rice_parameter(span, span - count)
        place, n = 0, 0
        for _ in range(span - count):
            gap, bit = _get_rice(data, bit, k)
            if bit > end or gap > span - 1 - place:
                return -1
            for at in range(place, place + gap):
                places[n] = at
                n += 1
            place += gap + 1
        for at in range(place, span):
            places[n] = at
            n += 1
    else:
        k = rice_parameter(span, count)
        place = 0
        for n in range(count):
            gap, bit = _get_rice(data, bit, k)
            if bit > end or gap > span - 1 - place:
                return -1
            places[n] = place + gap
            place += gap + 1
    if count < 3:
        for n in range(count):
            negative = _get(data, bit, 1)
            magnitude, bit = _get_gamma(data, bit + 1)
            if bit > end or magnitude == 0 or magnitude > 128:
                return -1
            out[offset + stride * places[n]] += -magnitude if negative else magnitude
        return bit
    one_sign = _get(data, bit, 1)
    bit += 1
    negative = 0
    if one_sign:
        negative = _get(data, bit, 1)
        bit += 1
    k = _get(data, bit, 3) - 1
    bit += 3
    for n in range(count):
        if not one_sign:
            negative = _get(data, bit, 1)
            bit += 1
        magnitude = 1
        if k >= 0:
            more, bit = _get_rice(data, bit, k)
            magnitude += more
        if bit > end or magnitude > 128:
            return -1
        out[offset + stride * places[n]] += -magnitude if negative else magnitude
    return bit


@numba.njit(cache=True, nogil=True)
def decode(body: UInt8, n_rows: int, channels: int, out: Int8) -> int:
    """Adds the increments in ``body`` (16 zero bytes at its end) to ``out``; 0, or -1 for what no encoder writes."""
    end = 8 * (len(body) - 16)
    data = body.ctypes.data
    places = np.empty(max(n_rows, channels), np.int32)
    bit = 0
    for rows_first in (True, False):
        lines, span = (n_rows, channels) if rows_first else (channels, n_rows)
        count, bit = _get_gamma(data, bit)
        count -= 1
        if bit > end or count < 0 or count > lines:
            return -1
        k = rice_parameter(lines, count)
        line = 0
        for _ in range(count):
            gap, bit = _get_rice(data, bit, k)
            if bit > end or gap > lines - 1 - line:
                return -1
            line += gap
            marks, bit = _get_gamma(data, bit)
            if bit > end or marks == 0 or marks > span:
                return -1
            if rows_first:
                bit = _get_line(data, bit, end, marks, span, places, out, line * channels, 1)
            else:
                bit = _get_line(data, bit, end, marks, span, places, out, line, channels)
            if bit < 0:
                return -1
            line += 1
    # What is left of the last byte is zeros.
    left = end - bit
    return 0 if 0 <= left < 8 and (left == 0 or _get(data, bit, left) == 0) else -1
