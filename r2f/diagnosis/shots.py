"""The first look at an array: one row at a time is given an input, and all others 0.

With inputs of 0 a sum goes down a column without any addition, so that **each of its bits fares alone**: it leaves as the
lowest latch that has it stuck says, or as it came. A *shot* adds ``x`` times the weight of row i to what comes from above. It
sees that row's weight alone, whatever is broken elsewhere; of the latches it sees what reaches row i, latch i, and which bits
the rows below let through. So a column is explained from its last row up, knowing which stuck bits are still to come: the
cheapest way there is found as Viterbi's algorithm does, the states being the stuck bits above and below.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final, NamedTuple

import numba
import numpy as np

from accelsim.int8.network import Activation
from accelsim.timing import Array
from r2f.diagnosis.ask import Count
from r2f.diagnosis.column import ALL, SHIFTS, Column, Int8, Int64, in_register, in_weight, requantised
from r2f.diagnosis.probes import Probe

LOADS: Final = (0, -1, 1, 2, 4, 8, 16, 32, 64, -128)
"""A bit of a weight is stuck where loading it changes nothing."""
INPUTS: Final = (1, 85, -128)
"""A low bit alone, four bits, and all upper bits."""
RAISED: Final = (-1, 1, 16, 64)
"""Loads of the shots at a sum that was made -1."""
RAISERS: Final = (0, 1)
"""Rows that do that, the second one where the first one's weight cannot be -1. They have no such shots."""
BEAM: Final = 24
"""The most states of a row that are followed."""


class Shots(NamedTuple):
    """What was done to a column and read of it."""

    raised: Int64
    """(2,): loads of RAISERS that make the sum -1 where ``base`` says so."""
    base: Int64
    """(S,): whether the sum was made -1 before, 0 or 1."""
    x: Int64
    """(S,)"""
    load: Int64
    """(S,)"""
    ends: Int64
    """(2,): what leaves the column without a shot, by base."""
    readings: Int8
    """(R, S, 4): what the shot at each row changes of that, at each of SHIFTS."""


def shoot(array: Array, count: Count) -> Generator[Probe, Activation, list[Shots]]:
    """Shots at every row, of each column."""
    rows, columns = array.rows, array.columns
    base, x, load = (np.array(of, np.int64) for of in zip(*_kinds(), strict=True))
    readings = np.zeros((rows, len(base), len(SHIFTS), columns), np.int8)
    none, raising = np.zeros((2, rows), np.int64)
    raising[: len(RAISERS)] = 1
    raise_ = np.tile(np.array([-1, 0], np.int64), (columns, 1))
    ends = np.zeros((2, columns), np.int64)
    for high, start, loads in ((0, none, LOADS), (1, raising, RAISED)):
        weights = [np.full((rows, columns), of, np.int8) for of in loads]
        if high:
            for made in weights:
                made[: len(RAISERS)] = raise_.T[:rows]
        ends[high] = (yield from count.ends(start[None], np.zeros(1, np.int64), weights[:1]))[0]
        at = np.tile(ends[high], (len(loads), 1))
        for given in INPUTS:
            asked = np.concatenate([start[None], start + given * np.eye(rows, dtype=np.int64)])
            if high:
                asked[1 : 1 + len(RAISERS)] = start  # they are taken
            read = yield from count.differences(asked, weights, at)
            which = [int(np.flatnonzero((base == high) & (x == given) & (load == of))[0]) for of in loads]
            readings[:, which] = read[1:]
        if not high:
            for c in range(columns):
                seen = Shots(raise_[c], base, x, load, ends[:, c].copy(), np.ascontiguousarray(readings[:2, ..., c]))
                raise_[c, :rows] = _raise(*registers_alike(seen))[:rows]
    return [Shots(raise_[c], base, x, load, ends[:, c].copy(), np.ascontiguousarray(readings[..., c])) for c in range(columns)]


def _raise(keep: Int64, force: Int64) -> Int64:
    """Loads (2,) of RAISERS with such registers that add up to -1, or of the first one alone, as near as it can."""
    for second in (0, -1, 1):
        held = int(in_weight(second, keep[1], force[1])) if len(keep) > 1 else 0
        first = -1 - held
        if -128 <= first <= 127 and in_weight(first, keep[0], force[0]) == first:
            return np.array([first, second], np.int64)
    return np.array([-1, 0], np.int64)


def _kinds() -> list[tuple[int, int, int]]:
    """(base, x, load) of the shots at a row."""
    return [(0, x, load) for load in LOADS for x in INPUTS] + [(1, x, load) for load in RAISED for x in INPUTS]


@numba.njit(cache=True, nogil=True)
def registers_alike(shots: Shots) -> tuple[Int64, Int64]:
    """The weight registers (keep, force), (R,) each, of which loading a bit changes nothing in any shot, be the bit hidden."""
    _, base, x, load, _, readings = shots
    rows = len(readings)
    keep, force = np.full(rows, -1, np.int64), np.zeros(rows, np.int64)
    for i in range(rows):
        stuck: Any = np.int64(0)
        moved = False
        for a in range(len(base)):
            if base[a] != 0 or load[a] != 0:
                continue
            for place in range(readings.shape[2]):
                moved |= readings[i, a, place] != 0
        for bit in range(8):
            of = -128 if bit == 7 else 1 << bit
            alike = True
            for a in range(len(base)):
                if base[a] != 0 or load[a] != 0:
                    continue
                for b in range(len(base)):
                    if base[b] == 0 and load[b] == of and x[b] == x[a]:
                        for place in range(readings.shape[2]):
                            alike &= readings[i, a, place] == readings[i, b, place]
            if alike:
                stuck |= 1 << bit
        keep[i] = ~stuck
        if moved:
            bit = 7
            while bit > 0 and not stuck >> bit & 1:
                bit -= 1
            force[i] = (1 << bit) & stuck
    return keep, force


@numba.njit(cache=True, nogil=True)
def _off(
    i: int, shots: Shots, keep: Any, force: Any, s: tuple[Any, Any], latch: tuple[Any, Any], below: tuple[Any, Any], enough: int
) -> int:
    """Readings of the shots at row i that are not explained by a weight register, what comes from above (by base), a latch, and
    what the rows below keep and force; or ``enough`` once it is that many."""
    _, base, x, load, ends, readings = shots
    count = 0
    for a in range(len(base)):
        if base[a] == 1 and i <= 1:
            continue
        p = in_register(s[1] if base[a] == 1 else s[0])
        p = (in_register(p + x[a] * in_weight(load[a], keep, force)) & latch[0]) | latch[1]
        left = in_register(((p & below[0]) | below[1]) - ends[base[a]])
        for place in range(readings.shape[2]):
            if (0 if left == 0 else requantised(left, SHIFTS[place])) != readings[i, a, place]:
                count += 1
        if count >= enough:
            return enough
    return count


@numba.njit(cache=True, nogil=True)
def columns_rows(column: Column, shots: Shots, off: Int64, enough: int, start: int = 0) -> int:
    """Readings not explained by a column's faults, of each row's shots ``off`` (R,) and in all, or ``enough`` if more.

    ``start`` is the row that is looked at first: where a fault was changed, it is soon clear that it explains nothing.
    """
    weight_keep, weight_force, keep, force = column
    rows = len(keep)
    below_keep, below_force = np.full(rows + 1, -1, np.int64), np.zeros(rows + 1, np.int64)
    for i in range(rows - 1, -1, -1):
        below_keep[i] = keep[i] & below_keep[i + 1]
        below_force[i] = (force[i] & below_keep[i + 1]) | below_force[i + 1]
    zero, raised = np.zeros(rows + 1, np.int64), np.zeros(rows + 1, np.int64)
    for i in range(rows):
        more = in_weight(shots.raised[i], weight_keep[i], weight_force[i]) if i <= 1 else np.int64(0)
        zero[i + 1] = (zero[i] & keep[i]) | force[i]
        raised[i + 1] = (in_register(raised[i] + more) & keep[i]) | force[i]
    total: Any = np.int64(0)
    for which, p in ((0, zero[rows]), (1, raised[rows])):
        wrong = (p ^ shots.ends[which]) & 0xFFFFFFFF
        while wrong:
            wrong &= wrong - 1
            total += 1
    if total >= enough:
        return enough
    for k in range(rows):
        i = (start + k) % rows
        off[i] = _off(
            i,
            shots,
            weight_keep[i],
            weight_force[i],
            (zero[i], raised[i]),
            (keep[i], force[i]),
            (below_keep[i + 1], below_force[i + 1]),
            enough,
        )
        total += off[i]
        if total >= enough:
            return enough
    return total


@numba.njit(cache=True, nogil=True)
def latches(column: Column, shots: Shots, least: int) -> None:
    """Gives a column, its weight registers being known, the latches that explain its shots best, from the last row up.

    A state is what is stuck above, with the value that comes down, and what the rows below keep and force.
    """
    weight_keep, weight_force, keep, force = column
    rows = len(keep)
    ends = shots.ends
    first: Any = np.int64(0)
    for i in range(min(rows, 2)):
        first += in_weight(shots.raised[i], weight_keep[i], weight_force[i])
    common = ~(ends[0] ^ ends[1]) & 0xFFFFFFFF
    fault = 2 * least - 1
    kinds = 6  # above, its values, below's keep and force, cost, parent
    now = np.zeros((BEAM, kinds), np.int64)
    now[0, 0], now[0, 1], now[0, 2], now[0, 3], now[0, 4] = common, ends[0] & common, -1, 0, 0
    live = 1
    parents, bits, values = np.zeros((3, rows, BEAM), np.int64)
    room = BEAM * 200
    after = np.zeros((room, kinds + 2), np.int64)
    for i in range(rows - 1, -1, -1):
        made = 0
        for k in range(live):
            above, value, below_keep, below_force, cost = now[k, 0], now[k, 1], now[k, 2], now[k, 3], now[k, 4]
            plain = 0
            for move in range(4):
                if move >= 2 and plain == 0:
                    break
                for bit in range(32):
                    mask = np.int64(1) << bit
                    if move == 0 and bit > 0:
                        break
                    if move > 0 and not common & mask:
                        continue
                    if (move == 1 or move == 2) and not above & mask:
                        continue
                    if move == 3 and above & mask:
                        continue
                    for hidden in range(1 if move < 2 else 2):
                        up, val = above, value
                        latch_keep: Any = np.int64(-1)
                        latch_force: Any = np.int64(0)
                        if move == 1 or move == 2:
                            latch_keep = in_register(~mask)
                            latch_force = in_register(val & mask)
                            up, val = up & ~mask, val & ~mask
                        if move >= 2:
                            up |= mask
                            val = (val & ~mask) | (mask if hidden else 0)
                        off = _off(
                            i,
                            shots,
                            weight_keep[i],
                            weight_force[i],
                            (val, (first & ~up) | val),
                            (latch_keep, latch_force),
                            (below_keep, below_force),
                            1 << 30,
                        )
                        if move == 0:
                            plain = off
                        total = cost + 2 * off + (0 if move == 0 or move == 1 else fault)
                        if made < room and (move < 2 or off < plain):
                            after[made, 0], after[made, 1] = up, val
                            after[made, 2] = latch_keep & below_keep
                            after[made, 3] = (latch_force & below_keep) | below_force
                            after[made, 4], after[made, 5] = total, k
                            after[made, 6] = bit if move == 1 or move == 2 else -1
                            after[made, 7] = 1 if latch_force != 0 else 0
                            made += 1
        order = np.argsort(after[:made, 4])
        live = 0
        for o in order:
            alike = False
            for k in range(live):
                alike |= bool((now[k, :4] == after[o, :4]).all())
            if alike:
                continue
            now[live] = after[o, :kinds]
            parents[i, live], bits[i, live], values[i, live] = after[o, 5], after[o, 6], after[o, 7]
            live += 1
            if live == BEAM:
                break
    best: Any = np.int64(ALL)
    k = 0
    for n in range(live):
        # What is stuck above row 0 is nowhere; a bit that was not raised may well not be stuck.
        cost = now[n, 4]
        left = now[n, 0] & ~(~first & ~now[n, 1]) & 0xFFFFFFFF
        while left:
            left &= left - 1
            cost += 4 * fault
        if cost < best:
            best, k = cost, n
    keep[:], force[:] = -1, 0
    for i in range(rows):
        if bits[i, k] >= 0:
            mask = np.int64(1) << bits[i, k]
            keep[i] = in_register(~mask)
            force[i] = in_register(mask) if values[i, k] else 0
        k = parents[i, k]


@numba.njit(cache=True, nogil=True)
def _weights(column: Column, shots: Shots, options: Int64, off: Int64) -> bool:
    """Has each weight register be the plainest of ``options`` that explains its row's shots best; whether any is another."""
    weight_keep, weight_force, _, _ = column
    rows = len(weight_keep)
    changed = False
    for i in range(rows):
        if weight_keep[i] == -1 and weight_force[i] == 0 and off[i] == 0:
            continue
        was = weight_keep[i], weight_force[i]
        now = was
        best: Any = np.int64(ALL)
        for option in range(len(options) + 1):
            if option < len(options):
                weight_keep[i], weight_force[i] = options[option]
            else:
                weight_keep[i], weight_force[i] = was
            columns_rows(column, shots, off, ALL)
            if off[i] < best:
                best, now = off[i], (weight_keep[i], weight_force[i])
        weight_keep[i], weight_force[i] = now
        changed |= now != was
    return changed


@numba.njit(cache=True, nogil=True)
def first_look(shots: Shots, column: Column, options: Int64, least: int) -> int:
    """Gives a column the faults that explain its shots; returns the readings that are left. ``options`` are ``registers()``."""
    weight_keep, weight_force, _, _ = column
    off = np.zeros(len(weight_keep), np.int64)
    kept, forced = registers_alike(shots)
    weight_keep[:], weight_force[:] = kept, forced
    for _ in range(3):
        latches(column, shots, least)
        columns_rows(column, shots, off, ALL)
        if not _weights(column, shots, options, off):
            break
    return columns_rows(column, shots, off, ALL)
