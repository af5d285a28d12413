"""One column of the array under the test vectors: what leaves it with given faults, and which faults explain what left it.

Columns do not know of one another. A trial has a *rail*, weights at every third row that keep the sum at 0 or -1 as it goes
down, and *pulses*: one test vector a pulse, in which row i adds ``x`` times its weight and row i + 1 takes as much away again.
Between the two, latch i alone sees another sum. If it and both weights do what they should, the sum is back on the rail and
what leaves the column is what leaves it without a pulse, **whatever faults the column has elsewhere**. So a pulse tells of
its own place: the difference it leaves is a stuck bit of latch i, or ``x`` times a stuck bit of one of the two weights.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Int8 = npt.NDArray[np.int8]
Int64 = npt.NDArray[np.int64]

STEP: Final = 3
"""Rows from one that moves the rail to the next. The pulses of the rows after those are one *phase*."""
PHASES: Final = (0, 1, 2, 5)
"""Rows ``phase`` modulo 3 move the rail, and row 0, lest a fault there spoil it. The last is for row 0's pulse alone."""
SHIFTS: Final = (0, 8, 16, 24)
"""How what leaves a column is read, ``rint(sum * 2**-shift)`` clamped to int8: together they tell a wrong bit from another."""


class Column(NamedTuple):
    """Faults of a column, int64 (R,) each: masks of the weight's 8 bits and of the sum's 32, as signed integers."""

    weight_keep: Int64
    weight_force: Int64
    sum_keep: Int64
    sum_force: Int64


def sound(rows: int, *columns: int) -> Column:
    """A column without faults, or several: (columns, R)."""
    full, none = np.full((*columns, rows), -1, np.int64), np.zeros((*columns, rows), np.int64)
    return Column(full.copy(), none.copy(), full.copy(), none.copy())


class Trials(NamedTuple):
    """What was done to a column and read of it, T times."""

    weights: Int64
    """(T, R) loaded. Rows that move the rail have the input 1, the others 0 but for a pulse."""
    phases: Int64
    """(T,)"""
    x: Int64
    """(T,): the input of a pulse's first row; its second has ``-x``."""
    ends: Int64
    """(T,): what leaves the column without a pulse."""
    readings: Int8
    """(T, P, 4): what the pulse at row ``3 * pulse + phase + 1`` modulo 3 changes of that, at each of SHIFTS."""


@numba.njit(cache=True, nogil=True)
def moves(row: int, phase: int) -> bool:
    """Whether a row moves the rail."""
    return row % STEP == phase % STEP or (row == 0 and phase < STEP)


@numba.njit(cache=True, nogil=True)
def pulses(rows: int, phase: int) -> tuple[int, int]:
    """First row of the first pulse of a phase, and where they end; every third row has one."""
    if phase >= STEP:
        return 0, min(rows, 1)
    return phase + 1, rows


@numba.njit(cache=True, nogil=True)
def in_register(value: Any) -> Any:
    """A sum as the 32 bits of an accumulator hold it, int64; ``probes.wrapped`` of one value, compiled."""
    return np.int64(np.int32(value & 0xFFFFFFFF))


@numba.njit(cache=True, nogil=True)
def in_weight(loaded: Any, keep: Any, force: Any) -> Any:
    """What a weight register with these masks holds once ``loaded`` was loaded, -128..127."""
    return np.int64(np.int8(((loaded & keep) | force) & 0xFF))


@numba.njit(cache=True, nogil=True)
def requantised(value: Any, shift: Any) -> Any:
    """What is read of a sum, ``2**-shift`` of it: float32 times a power of two, half to even, clamped to int8, as the
    accelerator requantises (docs/architecture.md, "Arithmetic")."""
    scaled = np.rint(np.float64(np.float32(value)) / np.float64(1 << shift))
    return np.int64(min(max(scaled, -128.0), 127.0))


@numba.njit(cache=True, nogil=True)
def read_all(values: Int64) -> Int64:
    """What is read of values (T, n, C) at each of SHIFTS, (T, n, 4, C)."""
    out = np.empty((values.shape[0], values.shape[1], len(SHIFTS), values.shape[2]), np.int64)
    for t in range(values.shape[0]):
        for n in range(values.shape[1]):
            for place in range(len(SHIFTS)):
                for c in range(values.shape[2]):
                    out[t, n, place, c] = requantised(values[t, n, c], SHIFTS[place])
    return out


@numba.njit(cache=True, nogil=True)
def walk(columns: Column, vectors: Int64, weights: Int64) -> Int64:
    """What leaves columns, whose masks are (C, R), of vectors (T, R) and weights (R, C) as loaded: (T, C)."""
    weight_keep, weight_force, keep, force = columns
    out = np.empty((len(vectors), len(keep)), np.int64)
    for c in range(len(keep)):
        for t in range(len(vectors)):
            s = np.int64(0)
            for i in range(len(vectors[t])):
                held = in_weight(weights[i, c], weight_keep[c, i], weight_force[c, i])
                s = (in_register(s + vectors[t, i] * held) & keep[c, i]) | force[c, i]
            out[t, c] = s
    return out


ALL: Final = 1 << 40
"""More than anything that is counted of a column: an ``enough`` that is never reached."""


@numba.njit(cache=True, nogil=True)
def _rail(column: Column, held: Int64, phase: int, before: Int64) -> None:
    """The sum that reaches each row on the rail, (R + 1,), what leaves the column last, and so what each row holds."""
    keep, force = column[2], column[3]
    s = np.int64(0)
    for i in range(len(keep)):
        before[i] = s
        if moves(i, phase):
            s = in_register(s + held[i])
        s = (s & keep[i]) | force[i]
    before[len(keep)] = s


@numba.njit(cache=True, nogil=True)
def misfit(column: Column, trials: Trials, rows: tuple[int, int], sure: bool, enough: int, off: Int64) -> int:
    """Readings that a column's faults do not explain, of the pulses at rows from..to, or ``enough`` once it is that many.

    ``off`` (R,) becomes the wrong readings of the pulse at each row. ``sure``: where a pulse should leave a sum of another sign
    than the rail's, all upper bits differ and unknown faults further down may do anything, so only that it differs counts.
    """
    weight_keep, weight_force, keep, force = column
    weights, phases, xs, _, readings = trials
    size = len(keep)
    held, before = np.empty(size, np.int64), np.empty(size + 1, np.int64)
    start, stop = max(rows[0], 0), min(rows[1] + 1, size)
    off[start:stop] = 0
    count: Any = np.int64(0)
    for trial in range(len(phases)):
        phase, x = phases[trial], xs[trial]
        first, last = pulses(size, phase)
        first, last = max(first, start + (first - start) % STEP), min(last, stop)
        if first >= last:
            continue
        for i in range(size):
            held[i] = in_weight(weights[trial, i], weight_keep[i], weight_force[i])
        _rail(column, held, phase, before)
        for i in range(first, last, STEP):
            s = (in_register(before[i] + x * held[i]) & keep[i]) | force[i]
            j = i + 1
            if j < size:
                s = (in_register(s - x * held[j]) & keep[j]) | force[j]
                j += 1
            pulse = i // STEP
            if sure and (s < 0) != (before[j] < 0):
                if readings[trial, pulse, 0] == 0:
                    count += 1
                    off[i] += 1
                continue
            while j < size and s != before[j]:
                if moves(j, phase):
                    s = in_register(s + held[j])
                s = (s & keep[j]) | force[j]
                j += 1
            left = in_register(s - before[j])
            for place in range(len(SHIFTS)):
                if (0 if left == 0 else requantised(left, SHIFTS[place])) != readings[trial, pulse, place]:
                    count += 1
                    off[i] += 1
        if count >= enough:
            return enough
    return count


@numba.njit(cache=True, nogil=True)
def ends_off(column: Column, trials: Trials) -> int:
    """Wrong bits of what leaves the column without pulses, over all trials."""
    weight_keep, weight_force, keep, _ = column
    weights, phases, _, ends, _ = trials
    size = len(keep)
    held, before = np.empty(size, np.int64), np.empty(size + 1, np.int64)
    count: Any = np.int64(0)
    for trial in range(len(phases)):
        for i in range(size):
            held[i] = in_weight(weights[trial, i], weight_keep[i], weight_force[i])
        _rail(column, held, phases[trial], before)
        wrong = (before[size] ^ ends[trial]) & 0xFFFFFFFF
        while wrong:
            wrong &= wrong - 1
            count += 1
    return count


@numba.njit(cache=True, nogil=True)
def stick(column: Column, row: int, bit: int, value: int) -> int:
    """Has a latch's bit stuck at 0 or 1, or free (2); returns how it was."""
    keep, force = column[2], column[3]
    mask = in_register(np.int64(1) << bit)
    was = 2 if keep[row] & mask else (1 if force[row] & mask else 0)
    keep[row] = keep[row] | mask if value == 2 else keep[row] & ~mask
    force[row] = force[row] | mask if value == 1 else force[row] & ~mask
    return was


def registers() -> Int64:
    """The weight registers that are tried: sound, a bit stuck at 0 or 1, and bypassed; (18, 2) int64 of (keep, force)."""
    one = [(~(1 << bit), value << bit) for bit in range(8) for value in (0, 1)]
    return np.array([(-1, 0), *one, (0, 0)], np.int64)


@numba.njit(cache=True, nogil=True)
def _load(keep: Any, force: Any, of: Any, wanted: Any) -> Any:
    """What to load so that the sum goes from ``of`` to ``wanted``, to the other of 0 and -1, or as near as the weight can."""
    if -128 <= wanted - of <= 127 and in_weight(wanted - of, keep, force) == wanted - of:
        return wanted - of
    if abs(of) > 255:
        return -128 if of > 0 else 127
    best: Any = np.int64(ALL)
    load: Any = np.int64(0)
    for tried in range(256):
        to = of + in_weight((tried + 128) & 0xFF, keep, force)
        cost = 0 if to == wanted else (1 if to == ~wanted else 2 + abs(to))
        if cost < best:
            best, load = cost, in_weight(tried + 128, np.int64(-1), np.int64(0))
    return load


PULSE: Final = 1
"""The ``load`` of ``lay`` that makes pulses: 1 or -1 by the column's rail."""


@numba.njit(cache=True, nogil=True)
def lay(column: Column, phase: int, base: Int64, passed: Int64, load: int, out: Int64) -> None:
    """Weights ``out`` (R,) of a trial whose rail is at ``base`` (R,), 0 or -1, and passes known faults as ``passed`` (R,) says.

    Where they do nothing is 1 and where they do something -1: a fault that another of the same bit hides further down
    only shows if that one meets the other value. 0 is as it comes, for what is known may be wrong. ``load`` is what test
    rows are given, a pulse or a constant.
    """
    weight_keep, weight_force, keep, force = column
    rows = len(keep)
    s = np.int64(0)
    for i in range(rows):
        added: Any = np.int64(0)
        place = (i - phase) % STEP
        if moves(i, phase):
            wanted: Any = base[i]
            for j in range(min(i + STEP, rows) - 1, i - 1, -1):
                if keep[j] != -1 and passed[j] != 0:
                    wanted = np.int64(-1 if force[j] != 0 else 0)
                    if passed[j] < 0:
                        wanted = ~wanted
            out[i] = _load(weight_keep[i], weight_force[i], s, wanted) if abs(s) < 1 << 14 else 0
            added = in_weight(out[i], weight_keep[i], weight_force[i])
        elif load != PULSE:
            out[i] = load
        elif place == 1:
            # To the other of 0 and -1; where the two weights cannot hold that, as little as they can.
            sign = -1 if s >= 0 else 1
            out[i] = sign
            last = min(i + 1, rows - 1)
            for size in range(1, 128):
                m = size * sign
                if (
                    in_weight(m, weight_keep[i], weight_force[i]) == m
                    and in_weight(m, weight_keep[last], weight_force[last]) == m
                ):
                    out[i] = m
                    break
                if (
                    in_weight(-m, weight_keep[i], weight_force[i]) == -m
                    and in_weight(-m, weight_keep[last], weight_force[last]) == -m
                ):
                    out[i] = -m
                    break
        else:
            out[i] = out[i - 1] if i else 0
        s = (in_register(s + added) & keep[i]) | force[i]
