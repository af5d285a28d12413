"""One column of the array as the test vectors see it: what it answers with given faults, and which faults explain answers.

Columns do not know of one another. All test vectors of the scans have at most two rows with an input: one sets the *rail* on
which the sum goes down, 0 or (by a product at row 0) -1, and row i adds a product to it. So with ``before[i]`` the sum
that reaches row i on a rail, and ``behind[i]`` the masks of all latches from row i on::

    answer[i] = behind[i](before[i] + x * held[i])

which is why an answer takes a few operations and not a walk down the column. A latch is ``(s & keep) | force``.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


class Column(NamedTuple):
    """Faults of a column, int64 (R,) each: masks of the weight's 8 bits and of the sum's 32, as signed integers."""

    weight_keep: Int64
    weight_force: Int64
    sum_keep: Int64
    sum_force: Int64


def sound(rows: int) -> Column:
    """A column without faults."""
    full, none = np.full(rows, -1, np.int64), np.zeros(rows, np.int64)
    return Column(full.copy(), none.copy(), full.copy(), none.copy())


class Scan(NamedTuple):
    """How a test vector for each row was made and read. The same for all columns but for ``bias``."""

    rail: int
    """Input of row 0 beside that of row i: 0 for the rail at 0."""
    weight: int
    """Loaded everywhere."""
    x: int
    """Input of row i."""
    shift: int
    """What is read is ``(sum + bias) * 2**-shift``, rounded and clamped to int8."""


RAIL, WEIGHT, X, SECOND, SHIFT, BIAS, RELATIVE = range(7)
"""Fields of a scan as a row of numbers. ``RELATIVE``: the bias is without the column's answer to no input."""


@numba.njit(cache=True, nogil=True)
def _wrapped(value: Any) -> Any:
    return np.int64(np.int32(value & 0xFFFFFFFF))


@numba.njit(cache=True, nogil=True)
def _held(loaded: Any, keep: Any, force: Any) -> Any:
    return np.int64(np.int8(((loaded & keep) | force) & 0xFF))


@numba.njit(cache=True, nogil=True)
def _read(value: Any, shift: Any) -> Any:
    """As the accelerator requantises: float32 of the sum, times a power of two, half to even."""
    scaled = np.rint(np.float64(np.float32(value)) / np.float64(1 << shift))
    return np.int64(min(max(scaled, -128.0), 127.0))


@numba.njit(cache=True, nogil=True)
def zero_rail(sum_keep: Int64, sum_force: Int64, start: int) -> int:
    """What leaves a column where ``start`` is what row 0 adds, and nobody else anything."""
    s = start
    for i in range(len(sum_keep)):
        s = _wrapped((s & sum_keep[i]) | sum_force[i])
    return s


@numba.njit(cache=True, nogil=True)
def answers(column: Column, scans: Int64, out: Int64) -> None:
    """Readings (scans, R) of a column; a scan is a row of (rail, weight, x, second, shift, bias, relative)."""
    weight_keep, weight_force, keep, force = column
    rows = len(keep)
    behind_keep, behind_force = np.empty(rows, np.int64), np.empty(rows, np.int64)
    k, f = np.int64(-1), np.int64(0)
    for i in range(rows - 1, -1, -1):
        f = (force[i] & k) | f
        k = keep[i] & k
        behind_keep[i], behind_force[i] = k, f
    zero = zero_rail(keep, force, 0)
    before = np.empty(rows, np.int64)
    rail, loaded = np.int64(-999), np.int64(-999)
    for scan in range(len(scans)):
        if scans[scan, RAIL] != rail or (rail != 0 and scans[scan, WEIGHT] != loaded):
            rail, loaded = scans[scan, RAIL], scans[scan, WEIGHT]
            s = np.int64(0)
            for i in range(rows):
                before[i] = s
                if i == 0:
                    s = rail * _held(loaded, weight_keep[0], weight_force[0])
                s = _wrapped((s & keep[i]) | force[i])
        x, bias = scans[scan, X], scans[scan, BIAS]
        if scans[scan, RELATIVE]:
            bias -= zero
        second = scans[scan, SECOND]
        for i in range(rows):
            streamed = x + (rail if i == 0 else 0)
            s = before[i] + streamed * _held(scans[scan, WEIGHT], weight_keep[i], weight_force[i])
            last = i
            if second != 0 and i + 1 < rows:
                s = _wrapped((s & keep[i]) | force[i])
                last = i + 1
                s += second * _held(scans[scan, WEIGHT], weight_keep[last], weight_force[last])
            s = (_wrapped(s) & behind_keep[last]) | behind_force[last]
            out[scan, i] = _read(_wrapped(s + bias), scans[scan, SHIFT])


@numba.njit(cache=True, nogil=True)
def sums(column: Column, rail: int, weight: int, x: int, out: Int64) -> None:
    """What leaves a column for the test vector of each row, without bias: int64 (R,), as ``answers`` reads it."""
    weight_keep, weight_force, keep, force = column
    k, f = np.int64(-1), np.int64(0)
    s = np.int64(0)
    for i in range(len(keep)):
        out[i] = _wrapped(s + (x + (rail if i == 0 else 0)) * _held(weight, weight_keep[i], weight_force[i]))
        if i == 0:
            s = rail * _held(weight, weight_keep[0], weight_force[0])
        s = _wrapped((s & keep[i]) | force[i])
    for i in range(len(keep) - 1, -1, -1):
        f = (force[i] & k) | f
        k = keep[i] & k
        out[i] = _wrapped((out[i] & k) | f)


PATH_SHIFTS: Final = (0, 11, 22)
"""How each walk is read: together they tell one wrong bit of 32 from another."""


class Seen(NamedTuple):
    """What was measured of a column, int64 all."""

    scans: Int64
    """(scans, 7)"""
    readings: Int64
    """(scans, R)"""
    zero: int
    """What leaves it where there is no input."""
    minus: Int64
    """What leaves it where row 0, 1, ... alone adds -1: as many as were measured."""
    walks: Int64
    """(walks, R): weights loaded for a walk down the column, every row having the input 1."""
    walked: Int64
    """(walks, 4): bias, and what was read at each of PATH_SHIFTS."""


_WEIGHT: Final = 4
"""What a wrong bit of ``zero`` or ``minus`` weighs beside a wrong reading."""


@numba.njit(cache=True, nogil=True)
def _ones(value: int) -> int:
    count = 0
    for bit in range(32):
        count += (value >> bit) & 1
    return count


@numba.njit(cache=True, nogil=True)
def walk(column: Column, weights: Int64, first: int, state: int) -> int:
    """What leaves a column with these weights (R,) loaded and 1 as the input of every row, from a sum before row ``first``."""
    weight_keep, weight_force, keep, force = column
    s = np.int64(state)
    for i in range(first, len(keep)):
        s += _held(weights[i], weight_keep[i], weight_force[i])
        s = (s & keep[i]) | force[i]
    return _wrapped(s)


@numba.njit(cache=True, nogil=True)
def _unlike(sum_: int, walked: Int64) -> int:
    """Readings of a walk that such a sum does not give."""
    count, off = 0, _wrapped(sum_ + walked[0])
    for place in range(len(PATH_SHIFTS)):
        count += _read(off, PATH_SHIFTS[place]) != walked[1 + place]
    return count


@numba.njit(cache=True, nogil=True)
def misfit(column: Column, seen: Seen, out: Int64) -> int:
    """How much of what was seen a column's faults do not explain. ``out`` (scans, R) becomes the readings that they give."""
    count = 0
    for number in range(len(seen[4])):
        count += _unlike(walk(column, seen[4][number], 0, 0), seen[5][number])
    return count + _beside_walks(column, seen, out)


@numba.njit(cache=True, nogil=True)
def _beside_walks(column: Column, seen: Seen, out: Int64) -> int:
    """The part of ``misfit`` that is not of walks."""
    scans, readings, zero, minus, _, _ = seen
    weight_keep, weight_force, keep, force = column
    answers(column, scans, out)
    count = _WEIGHT * _ones(zero_rail(keep, force, 0) ^ zero)
    for start in range(len(minus)):
        s = np.int64(0)
        for i in range(len(keep)):
            if i == start:
                s = _wrapped(s + _held(-1, weight_keep[i], weight_force[i]))
            s = _wrapped((s & keep[i]) | force[i])
        count += _WEIGHT * _ones(s ^ minus[start])
    for scan in range(len(scans)):
        for i in range(len(keep)):
            count += out[scan, i] != readings[scan, i]
    return count


@numba.njit(cache=True, nogil=True)
def _walk_misfit(column: Column, seen: Seen, first: int, states: Int64, least: int) -> int:
    """The part of ``misfit`` that is of walks, or ``least`` once it is that much; ``states`` as of ``_states``, good up to
    row ``first``."""
    count = 0
    for number in range(len(seen[4])):
        count += _unlike(walk(column, seen[4][number], first, states[first, number]), seen[5][number])
        if count >= least:
            return least
    return count


@numba.njit(cache=True, nogil=True)
def _states(column: Column, walks: Int64) -> Int64:
    """The sum before each row in each walk, int64 (R, walks)."""
    weight_keep, weight_force, keep, force = column
    found = np.zeros((len(keep), len(walks)), np.int64)
    for number in range(len(walks)):
        s = np.int64(0)
        for i in range(len(keep)):
            found[i, number] = s
            s = _wrapped(((s + _held(walks[number, i], weight_keep[i], weight_force[i])) & keep[i]) | force[i])
    return found


@numba.njit(cache=True, nogil=True)
def stick(column: Column, row: int, bit: int, value: int) -> int:
    """Has a latch's bit stuck at 0 or 1, or free (2); returns how it was."""
    keep, force = column[2], column[3]
    mask = np.int64(np.int32((np.int64(1) << bit) & 0xFFFFFFFF))
    was = 2 if keep[row] & mask else (1 if force[row] & mask else 0)
    keep[row] = keep[row] | mask if value == 2 else keep[row] & ~mask
    force[row] = force[row] | mask if value == 1 else force[row] & ~mask
    return was


@numba.njit(cache=True, nogil=True)
def _best_latch(
    column: Column, seen: Seen, rows: Int64, bits: Int64, freed: tuple[int, int], goal: int, out: Int64
) -> tuple[Any, Any, Any, Any]:
    """The stuck (or freed, 2) bit of a latch that leaves the least, below ``goal``: (misfit, row, bit, value), or row -1.

    Beside it the bit at ``freed`` (row, bit) is freed where that row is not -1. Walks are looked at first, from the changed
    row on: few changes leave less of them than the best so far.
    """
    best: Any = np.int64(goal)
    at: Any = np.int64(-1)
    of: Any = np.int64(-1)
    to: Any = np.int64(-1)
    origin, out_of = freed
    was = stick(column, origin, out_of, 2) if origin >= 0 else 2
    states = _states(column, seen[4])
    for bit in bits:
        for row in rows:
            for value in range(2 if origin >= 0 else 3):
                before = stick(column, row, bit, value)
                if before != value:
                    found = _walk_misfit(column, seen, row, states, best)
                    if found < best:
                        found += _beside_walks(column, seen, out)
                    if found < best:
                        best, at, of, to = found, row, bit, value
                stick(column, row, bit, before)
    if origin >= 0:
        stick(column, origin, out_of, was)
    return best, at, of, to


@numba.njit(cache=True, nogil=True)
def _best_register(column: Column, seen: Seen, rows: Int64, options: Int64, goal: int, out: Int64) -> tuple[Any, Any, Any]:
    """The weight register that leaves the least, likewise: (misfit, row, option). ``options`` are (keep, force)."""
    weight_keep, weight_force = column[0], column[1]
    best: Any = np.int64(goal)
    at: Any = np.int64(-1)
    of: Any = np.int64(-1)
    states = _states(column, seen[4])
    for row in rows:
        kept, forced = weight_keep[row], weight_force[row]
        for option in range(len(options)):
            if options[option, 0] == kept and options[option, 1] == forced:
                continue
            weight_keep[row], weight_force[row] = options[option, 0], options[option, 1]
            found = _walk_misfit(column, seen, row, states, best)
            if found < best:
                found += _beside_walks(column, seen, out)
            if found < best:
                best, at, of = found, row, option
        weight_keep[row], weight_force[row] = kept, forced
    return best, at, of


def registers() -> Int64:
    """The weight registers that are tried: sound, a bit stuck at 0 or 1, and bypassed; (18, 2) int64 of (keep, force)."""
    one = [(~(1 << bit), value << bit) for bit in range(8) for value in (0, 1)]
    return np.array([(-1, 0), *one, (0, 0)], np.int64)


def explain(seen: Seen, start: Column, *, least: int = 1, steps: int = 64) -> tuple[Column, int]:
    """The faults that explain what was seen of a column as far as single steps lead, and how much they leave over.

    A step is the one latch bit or weight register that explains most, or, where none does, a latch bit in place of another.
    It begins with ``start``, whose arrays change; a step explains ``least`` or more.
    """
    column, options = start, registers()
    out = np.empty_like(seen.readings)
    # A bit that leaves the column at 1 on the rail at 0, or at 0 on the one at -1, is stuck somewhere; no other one is.
    stuck = seen.zero
    for minus in seen.minus.tolist():
        # Many such bits: the row that was to add -1 did not.
        stuck |= ~minus if (~minus & 0xFFFFFFFF).bit_count() <= 16 else 0
    bits = np.array([bit for bit in range(32) if stuck >> bit & 1], np.int64)
    left = misfit(column, seen, out)
    for _ in range(steps):
        if left < least:
            break
        goal = left - least + 1
        off = (seen.readings != out).any(axis=0)
        near = off.copy()
        near[1:] |= off[:-1]
        near[:-1] |= off[1:]
        everywhere = np.arange(len(off))
        latch = _best_latch(column, seen, np.flatnonzero(near), bits, (-1, 0), goal, out)
        register = _best_register(column, seen, np.flatnonzero(off), options, min(goal, latch[0]), out)
        if register[1] >= 0:
            left, row, option = register
            column.weight_keep[row], column.weight_force[row] = options[option]
        else:
            step, freed = latch, (-1, 0)
            if step[1] < 0:
                step = _best_latch(column, seen, everywhere, bits, freed, goal, out)
            if step[1] < 0:
                for one in stuck_bits(column):
                    other = _best_latch(column, seen, everywhere, bits, one, step[0], out)
                    if other[1] >= 0:
                        step, freed = other, one
            if step[1] < 0:
                break
            left, row, bit, value = step
            if freed[0] >= 0:
                stick(column, *freed, 2)
            stick(column, row, bit, value)
        misfit(column, seen, out)
    left = _pruned(column, seen, left, out, least)
    return column, left


def stuck_bits(column: Column) -> list[tuple[int, int]]:
    """(row, bit) of the stuck bits of latches."""
    free = column.sum_keep & 0xFFFFFFFF
    return [
        (row, bit) for row in np.flatnonzero(free != 0xFFFFFFFF).tolist() for bit in range(32) if not int(free[row]) >> bit & 1
    ]


def _pruned(column: Column, seen: Seen, left: int, out: Int64, least: int) -> int:
    """Takes out what explains less than ``least``: a bit that may as well be free is not called stuck. Returns what is left."""
    for row, bit in stuck_bits(column):
        was = stick(column, row, bit, 2)
        found = int(misfit(column, seen, out))
        if found >= left + least:
            stick(column, row, bit, was)
        else:
            left = found
    for row in np.flatnonzero((column.weight_keep & 0xFF != 0xFF) | (column.weight_force != 0)).tolist():
        was = column.weight_keep[row], column.weight_force[row]
        column.weight_keep[row], column.weight_force[row] = -1, 0
        found = int(misfit(column, seen, out))
        if found >= left + least:
            column.weight_keep[row], column.weight_force[row] = was
        else:
            left = found
    return left
