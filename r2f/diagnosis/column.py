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


ALL: Final = 1 << 40


@numba.njit(cache=True, nogil=True)
def _rail(column: Column, held: Int64, phase: int, before: Int64) -> None:
    """The sum that reaches each row on the rail, (R + 1,), what leaves the column last, and so what each row holds."""
    keep, force = column[2], column[3]
    s = np.int64(0)
    for i in range(len(keep)):
        before[i] = s
        if moves(i, phase):
            s = _wrapped(s + held[i])
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
            held[i] = _held(weights[trial, i], weight_keep[i], weight_force[i])
        _rail(column, held, phase, before)
        for i in range(first, last, STEP):
            s = (_wrapped(before[i] + x * held[i]) & keep[i]) | force[i]
            j = i + 1
            if j < size:
                s = (_wrapped(s - x * held[j]) & keep[j]) | force[j]
                j += 1
            pulse = i // STEP
            if sure and (s < 0) != (before[j] < 0):
                if readings[trial, pulse, 0] == 0:
                    count += 1
                    off[i] += 1
                continue
            while j < size and s != before[j]:
                if moves(j, phase):
                    s = _wrapped(s + held[j])
                s = (s & keep[j]) | force[j]
                j += 1
            left = _wrapped(s - before[j])
            for place in range(len(SHIFTS)):
                if (0 if left == 0 else _read(left, SHIFTS[place])) != readings[trial, pulse, place]:
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
            held[i] = _held(weights[trial, i], weight_keep[i], weight_force[i])
        _rail(column, held, phases[trial], before)
        wrong = (before[size] ^ ends[trial]) & 0xFFFFFFFF
        while wrong:
            wrong &= wrong - 1
            count += 1
    return count


@numba.njit(cache=True, nogil=True)
def unexplained(column: Column, trials: Trials) -> int:
    """Readings, and bits of what leaves without pulses, that a column's faults do not explain."""
    size = len(column[2])
    return misfit(column, trials, (0, size), False, ALL, np.zeros(size, np.int64)) + ends_off(column, trials)


@numba.njit(cache=True, nogil=True)
def stick(column: Column, row: int, bit: int, value: int) -> int:
    """Has a latch's bit stuck at 0 or 1, or free (2); returns how it was."""
    keep, force = column[2], column[3]
    mask = _wrapped(np.int64(1) << bit)
    was = 2 if keep[row] & mask else (1 if force[row] & mask else 0)
    keep[row] = keep[row] | mask if value == 2 else keep[row] & ~mask
    force[row] = force[row] | mask if value == 1 else force[row] & ~mask
    return was


@numba.njit(cache=True, nogil=True)
def _change(column: Column, at: int, of: int, to: int, options: Int64) -> tuple[int, int]:
    """Sticks bit ``of`` of latch ``at`` at ``to``, or frees it (2); or that bit alone where ``to`` is 3 more. Where ``of`` is
    -1, makes the weight option ``to``. Returns what undoes it."""
    weight_keep, weight_force, keep, force = column
    if of < 0:
        was = weight_keep[at], weight_force[at]
        weight_keep[at], weight_force[at] = options[to]
        return was
    was = keep[at], force[at]
    if to >= 3:
        keep[at], force[at] = -1, 0
    stick(column, at, of, to % 3)
    return was


@numba.njit(cache=True, nogil=True)
def _undo(column: Column, at: int, of: int, was: tuple[int, int]) -> None:
    if of >= 0:
        column[2][at], column[3][at] = was
    else:
        column[0][at], column[1][at] = was


@numba.njit(cache=True, nogil=True)
def _best(
    column: Column, trials: Trials, row: int, options: Int64, least: int, clean: bool, off: Int64
) -> tuple[Any, Any, Any, Any]:
    """The one change at a pulse's latch or weights that explains it, and its neighbours no worse: as ``_change`` has it, and
    what it leaves; the row is -1 where there is none.

    Of several, the one that explains most; of those that do as well, the one by which most of what leaves the column without
    pulses is right. Not ``clean``: a change will do that explains a part, be it of what leaves.
    """
    size = len(column[2])
    near = row - 1, row + 1
    now = misfit(column, trials, near, False, ALL, off)
    sure = misfit(column, trials, near, True, ALL, off) - off[row] + least
    best: Any = np.int64(now - least + (0 if clean else ends_off(column, trials)))
    ends: Any = np.int64(-1)
    at: Any = np.int64(-1)
    of: Any = np.int64(-1)
    to: Any = np.int64(-1)
    for change in range(192 + 2 * len(options)):
        i, bit, value = row, change // 6, change % 6
        if change >= 192:
            i, bit, value = row + (change - 192) // len(options), -1, (change - 192) % len(options)
        if i >= size or (bit >= 0 and value >= 3 and column[2][row] == -1):
            continue
        was = _change(column, i, bit, value, options)
        if not clean or (misfit(column, trials, near, True, sure, off) < sure and off[row] < least):
            found = misfit(column, trials, near, False, min(best, now) + 1, off)
            if found <= min(best, now):
                of_ends = ends_off(column, trials)
                if not clean:
                    found += of_ends
                if found < best or (found == best and (ends < 0 or of_ends < ends)):
                    best, ends, at, of, to = found, of_ends, i, bit, value
        _undo(column, i, bit, was)
    return at, of, to, best


def registers() -> Int64:
    """The weight registers that are tried: sound, a bit stuck at 0 or 1, and bypassed; (18, 2) int64 of (keep, force)."""
    one = [(~(1 << bit), value << bit) for bit in range(8) for value in (0, 1)]
    return np.array([(-1, 0), *one, (0, 0)], np.int64)


TRIED: Final = 10
"""The most pulses that are looked at for a change that explains a part of one."""


@numba.njit(cache=True, nogil=True)
def explain(column: Column, trials: Trials, options: Int64, least: int, loose: bool) -> int:
    """Changes a column's faults, one at a time, until they explain the trials or nothing helps; returns what is left.

    From above down, for what reaches a pulse must be known, those changes that explain a pulse in full. Where there is none,
    and if ``loose``, the one that leaves least of all pulses. ``options`` are ``registers()``.
    """
    size = len(column[2])
    off, scratch = np.zeros(size, np.int64), np.zeros(size, np.int64)
    left = misfit(column, trials, (0, size), False, ALL, off)
    for _ in range(size):
        if left < least and ends_off(column, trials) < least:
            break
        changed = False
        for row in range(size):
            if off[row] < least:
                continue
            at, of, to, _ = _best(column, trials, row, options, least, True, scratch)
            if at >= 0:
                was = _change(column, at, of, to, options)
                found = misfit(column, trials, (0, size), False, left - least + 1, scratch)
                if found <= left - least:
                    left, changed = found, True
                    misfit(column, trials, (0, size), False, ALL, off)
                else:
                    _undo(column, at, of, was)
        if changed:
            continue
        best: Any = np.int64(left + ends_off(column, trials) - least)
        change: Any = (-1, -1, -1)
        tried = 0
        for row in range(size if loose else 0):
            if off[row] < least or tried == TRIED:
                continue
            tried += 1
            at, of, to, _ = _best(column, trials, row, options, least, False, scratch)
            if at >= 0:
                was = _change(column, at, of, to, options)
                found = misfit(column, trials, (0, size), False, best + 1, scratch) + ends_off(column, trials)
                if found <= best:
                    best, change = found - 1, (at, of, to)
                _undo(column, at, of, was)
        if change[0] < 0:
            break
        _change(column, change[0], change[1], change[2], options)
        left = misfit(column, trials, (0, size), False, ALL, off)
    return _pruned(column, trials, least)


@numba.njit(cache=True, nogil=True)
def refute(column: Column, trials: Trials, least: int) -> None:
    """Takes out the faults that these trials speak against: without one, its pulses are explained better."""
    size = len(column[2])
    scratch = np.zeros(size, np.int64)
    weight_keep, weight_force, keep, force = column
    for row in range(size):
        if weight_keep[row] == -1 and weight_force[row] == 0 and keep[row] == -1:
            continue
        was = weight_keep[row], weight_force[row], keep[row], force[row]
        found = misfit(column, trials, (row - 1, row + 1), False, ALL, scratch)
        weight_keep[row], weight_force[row], keep[row], force[row] = -1, 0, -1, 0
        if misfit(column, trials, (row - 1, row + 1), False, ALL, scratch) > found - least:
            weight_keep[row], weight_force[row], keep[row], force[row] = was


@numba.njit(cache=True, nogil=True)
def _cost(column: Column, trials: Trials, pulses_alone: bool) -> int:
    size = len(column[2])
    count = misfit(column, trials, (0, size), False, ALL, np.zeros(size, np.int64))
    return count if pulses_alone else count + ends_off(column, trials)


@numba.njit(cache=True, nogil=True)
def _pruned(column: Column, trials: Trials, least: int) -> int:
    """Frees a stuck bit that explains less than ``least``, or has it the other way where that explains more.

    Returns what is left. While much is left, what leaves the column without pulses says nothing of a single fault.
    """
    weight_keep, weight_force, keep = column[0], column[1], column[2]
    alone = unexplained(column, trials) >= least
    left = _cost(column, trials, alone)
    for row in range(len(keep)):
        for bit in range(32):
            if keep[row] != -1 and not keep[row] >> bit & 1:
                was = stick(column, row, bit, 2)
                found = _cost(column, trials, alone)
                if found < left + least:
                    left = found
                    continue
                stick(column, row, bit, 1 - was)
                found = _cost(column, trials, False)
                if alone and found <= unexplained_as(column, trials, row, bit, was) - least:
                    left = _cost(column, trials, alone)
                    continue
                stick(column, row, bit, was)
        if weight_keep[row] != -1 or weight_force[row] != 0:
            kept, forced = weight_keep[row], weight_force[row]
            weight_keep[row], weight_force[row] = -1, 0
            found = _cost(column, trials, alone)
            if found < left + least:
                left = found
            else:
                weight_keep[row], weight_force[row] = kept, forced
    return unexplained(column, trials)


@numba.njit(cache=True, nogil=True)
def unexplained_as(column: Column, trials: Trials, row: int, bit: int, value: int) -> int:
    """``unexplained`` if a latch's bit were stuck at ``value``, free where that is 2."""
    was = stick(column, row, bit, value)
    found = unexplained(column, trials)
    stick(column, row, bit, was)
    return found


@numba.njit(cache=True, nogil=True)
def _load(keep: Any, force: Any, of: Any, wanted: Any) -> Any:
    """What to load so that the sum goes from ``of`` to ``wanted``, to the other of 0 and -1, or as near as the weight can."""
    if -128 <= wanted - of <= 127 and _held(wanted - of, keep, force) == wanted - of:
        return wanted - of
    if abs(of) > 255:
        return -128 if of > 0 else 127
    best: Any = np.int64(ALL)
    load: Any = np.int64(0)
    for tried in range(256):
        to = of + _held((tried + 128) & 0xFF, keep, force)
        cost = 0 if to == wanted else (1 if to == ~wanted else 2 + abs(to))
        if cost < best:
            best, load = cost, _held(tried + 128, np.int64(-1), np.int64(0))
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
            added = _held(out[i], weight_keep[i], weight_force[i])
        elif load != PULSE:
            out[i] = load
        elif place == 1:
            # To the other of 0 and -1; where the two weights cannot hold that, as little as they can.
            sign = -1 if s >= 0 else 1
            out[i] = sign
            last = min(i + 1, rows - 1)
            for size in range(1, 128):
                m = size * sign
                if _held(m, weight_keep[i], weight_force[i]) == m and _held(m, weight_keep[last], weight_force[last]) == m:
                    out[i] = m
                    break
                if _held(-m, weight_keep[i], weight_force[i]) == -m and _held(-m, weight_keep[last], weight_force[last]) == -m:
                    out[i] = -m
                    break
        else:
            out[i] = out[i - 1] if i else 0
        s = (_wrapped(s + added) & keep[i]) | force[i]
