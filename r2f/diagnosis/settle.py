"""Which faults explain both looks at a column: its shots and the pulses on its rails.

What the shots leave open is which row of several has a stuck bit, and what a fault further down hides. So few changes explain
the shots as well as what is believed, and of those the one is made that explains most pulses, until all are explained or
none helps.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

from r2f.diagnosis.column import ALL, SHIFTS, STEP, Column, Int64, Trials, ends_off, misfit, stick
from r2f.diagnosis.shots import Shots, columns_rows, first_look

BIT: Final = 1
ROW: Final = 2
CHANGES: Final = 24
"""The most changes of a column at once; one with more to change is not the one that it is taken for."""
ROWS: Final = 1 << 24
"""More than the trials of a column can leave unexplained."""


@numba.njit(cache=True, nogil=True)
def left_over(column: Column, shots: Shots, trials: Trials, off: Int64) -> int:
    """Readings, and bits of what leaves without pulses, that a column's faults do not explain; of ``off`` as for ``misfit``."""
    size = len(column[2])
    return columns_rows(column, shots, off, ALL) + misfit(column, trials, (0, size), False, ALL, off) + ends_off(column, trials)


@numba.njit(cache=True, nogil=True)
def _down(off: Int64, least: int) -> int:
    """What counts first where faults are sought from above down: the rows from the first with unexplained pulses on."""
    for row in range(len(off)):
        if off[row] >= least:
            return (len(off) - row) * ROWS
    return 0


@numba.njit(cache=True, nogil=True)
def _better(column: Column, shots: Shots, trials: Trials, most: Any, best: Any, scratch: Int64, row: int, down: int) -> int:
    """What the trials leave unexplained where the shots leave ``most`` at most, or ``best``.

    ``row`` is where something was changed; ``down`` is ``least`` for ``downward`` of ``settle``, or 0.
    """
    if columns_rows(column, shots, scratch, most + 1, row) > most:
        return best
    if down:
        every = misfit(column, trials, (0, len(column[2])), False, ALL, scratch)
        return min(best, _down(scratch, down) + every + ends_off(column, trials))
    found = misfit(column, trials, (0, len(column[2])), False, best, scratch)
    return best if found >= best else min(best, found + ends_off(column, trials))


@numba.njit(cache=True, nogil=True)
def settle(column: Column, shots: Shots, trials: Trials, options: Int64, least: int, downward: bool) -> int:
    """Changes a column's faults, one at a time, until they explain its shots and trials or nothing helps; returns what is left.

    A change has a stuck bit in another row, or free, or one more; or another weight register of ``options``.
    ``downward``: not the one that explains most, but the one that explains most from above down.
    """
    weight_keep, weight_force, keep, _ = column
    size = len(keep)
    off, scratch = np.zeros(size, np.int64), np.zeros(size, np.int64)
    common = ~(shots.ends[0] ^ shots.ends[1])
    down = least if downward else 0
    for _ in range(CHANGES):
        most = columns_rows(column, shots, scratch, ALL) + least - 1
        left = misfit(column, trials, (0, size), False, ALL, off) + ends_off(column, trials)
        if left < least:
            break
        best: Any = np.int64(left - least + 1 + (_down(off, least) if downward else 0))
        change = (-1, -1, -1, -1)
        for bit in range(32):
            if not common >> bit & 1:
                continue
            for of in range(-1, size):
                if of >= 0 and keep[of] >> bit & 1:
                    continue
                was = stick(column, of, bit, 2) if of >= 0 else 2
                for row in range(-1 if of >= 0 else 0, size):
                    if row == of or (row >= 0 and not keep[row] >> bit & 1):
                        continue
                    for value in range(2):
                        if of >= 0 and row < 0 and value:
                            continue
                        if row >= 0:
                            stick(column, row, bit, value)
                        found = _better(column, shots, trials, most, best, scratch, max(row, 0), down)
                        if found < best:
                            best, change = found, (bit, of, row, value)
                        if row >= 0:
                            stick(column, row, bit, 2)
                if of >= 0:
                    stick(column, of, bit, was)
        for row in range(size):
            if off[row] == 0 and (row == 0 or off[row - 1] == 0):
                continue
            kept, forced = weight_keep[row], weight_force[row]
            for option in range(len(options)):
                weight_keep[row], weight_force[row] = options[option]
                found = _better(column, shots, trials, most, best, scratch, row, down)
                if found < best:
                    best, change = found, (-2, row, option, 0)
            weight_keep[row], weight_force[row] = kept, forced
        if change[0] == -1:
            break
        if change[0] == -2:
            weight_keep[change[1]], weight_force[change[1]] = options[change[2]]
        else:
            if change[1] >= 0:
                stick(column, change[1], change[0], 2)
            if change[2] >= 0:
                stick(column, change[2], change[0], change[3])
    return _pruned(column, shots, trials, least)


@numba.njit(cache=True, nogil=True)
def _pruned(column: Column, shots: Shots, trials: Trials, least: int) -> int:
    """Frees what explains less than ``least``; returns what is left."""
    weight_keep, weight_force, keep, _ = column
    scratch = np.zeros(len(keep), np.int64)
    left = left_over(column, shots, trials, scratch)
    for row in range(len(keep)):
        for bit in range(32):
            if keep[row] != -1 and not keep[row] >> bit & 1:
                was = stick(column, row, bit, 2)
                found = left_over(column, shots, trials, scratch)
                if found < left + least:
                    left = found
                else:
                    stick(column, row, bit, was)
        if weight_keep[row] != -1 or weight_force[row] != 0:
            kept, forced = weight_keep[row], weight_force[row]
            weight_keep[row], weight_force[row] = -1, 0
            found = left_over(column, shots, trials, scratch)
            if found < left + least:
                left = found
            else:
                weight_keep[row], weight_force[row] = kept, forced
    return left


@numba.njit(cache=True, nogil=True)
def doubts(column: Column, shots: Shots, trials: Trials, doubtful: Int64, options: Int64, least: int) -> int:
    """How many rows have a fault instead of which another one explains as much: ``doubtful`` (R,) becomes BIT where that is in
    the same row, ROW where it is in another one."""
    weight_keep, weight_force, keep, _ = column
    size = len(keep)
    scratch = np.zeros(size, np.int64)
    common = ~(shots.ends[0] ^ shots.ends[1])
    most = columns_rows(column, shots, scratch, ALL) + least - 1
    best: Any = np.int64(misfit(column, trials, (0, size), False, ALL, scratch) + ends_off(column, trials) + least)
    doubtful[:] = 0
    for of in range(size):
        for bit in range(32):
            if keep[of] >> bit & 1:
                continue
            was = stick(column, of, bit, 2)
            for row in range(size):
                for other in range(32):
                    if (
                        doubtful[of] == ROW
                        or (row != of and other != bit)
                        or not common >> other & 1
                        or not keep[row] >> other & 1
                    ):
                        continue
                    for value in range(2):
                        if row == of and other == bit and value == was:
                            continue
                        stick(column, row, other, value)
                        if _better(column, shots, trials, most, best, scratch, row, 0) < best:
                            doubtful[of] = max(doubtful[of], BIT if row == of else ROW)
                        stick(column, row, other, 2)
            stick(column, of, bit, was)
        if weight_keep[of] != -1 or weight_force[of] != 0:
            kept, forced = weight_keep[of], weight_force[of]
            for option in range(len(options)):
                if (options[option, 0], options[option, 1]) != (kept, forced):
                    weight_keep[of], weight_force[of] = options[option]
                    if _better(column, shots, trials, most, best, scratch, of, 0) < best:
                        doubtful[of] = max(doubtful[of], BIT)
            weight_keep[of], weight_force[of] = kept, forced
    return int((doubtful > 0).sum())


@numba.njit(cache=True, nogil=True)
def certain(shots: Shots, column: Column, options: Int64, least: int) -> None:
    """Gives a column what its shots alone leave no doubt of: of one that nothing explains in full, that is what is reported."""
    size = len(column[2])
    none = np.empty((0, size), np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    trials = Trials(none[0], none[1], none[2], none[3], np.empty((0, (size + STEP - 1) // STEP, len(SHIFTS)), np.int8))
    doubtful = np.zeros(size, np.int64)
    first_look(shots, column, options, least)
    doubts(column, shots, trials, doubtful, options, least)
    for row in range(size):
        if doubtful[row] == ROW:
            for mask, free in ((column[0], -1), (column[1], 0), (column[2], -1), (column[3], 0)):
                mask[row] = free
