"""The course of a diagnosis: which test networks are run, and the map that explains what they answered (docs/chips.md).

It is a generator, as a retraining's course is: whoever drives it has the device run a Probe and sends its outputs back. What
is known of a column narrows what is asked next:

1. *Rails*: what leaves each column without input, and where one row adds a constant, 32 bits in five readings of seven.
2. *Scans*: a vector a row. Two loads show the weight register's eight bits at 0 and at 1, at two places of the sum. A *pulse*
   takes the sum from 0 to -1, or back, for just one latch: a stuck bit of that latch becomes a carry, which leaves the column.
3. *Walks*: pulses over many rows at once, a bit of the row's number each, made for what is known of each column: they pass its
   faults in the state in which these do nothing. They show what the scans could not, faults behind and before others, and
   are repeated until nothing contradicts the map.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final, NamedTuple

import numpy as np

from accelsim.faults.permanent import Fault, FaultMap, fault_map
from accelsim.int8.network import Activation, Int8
from accelsim.timing import Array
from r2f.diagnosis.column import PATH_SHIFTS, Column, Seen, explain, sound
from r2f.diagnosis.probes import FILTERS, Int64, Probe, Tile, answered, most, probe, wrapped

Steps = Generator[Probe, Activation, "Found"]

RAIL_SHIFTS: Final = (25, 18, 11, 4, 0)
PULSE_SHIFTS: Final = (0, 11, 22)
STARTS: Final = 3
"""Rows from which a -1 is sent down: should one not do so, the next may."""
REGISTER: Final = ((0, 1, 0), (0, 64, 6), (-1, -1, 0), (-1, -128, 7), (127, 1, 0), (127, 127, 7))
"""(weight loaded, input, shift) of the scans of weight registers."""
PULSES: Final = ((0, -1, 1), (0, 1, -1), (0, -128, 64), (1, -1, -1), (-1, 1, 1), (64, -128, -64))
"""(rail, weight, input of the row) of the pulses; the next row has the opposite input."""
RANDOM: Final = 16
"""Walks beside those by the bits of the row's number."""
KEPT: Final = 128
"""The most walks of a column that are looked back at."""
VECTORS: Final = 512
"""The most vectors that one network is given at once."""


class Found(NamedTuple):
    """What a diagnosis found."""

    faults: FaultMap
    unexplained: tuple[int, ...]
    """Columns whose answers the map does not explain in full."""
    rounds: int
    """Of walks."""
    passes: int
    """Of the device, before any repetition."""
    vectors: int
    """In all of them."""
    answers: int
    """Bytes that were read."""


def find(array: Array, *, seed: int = 0, rounds: int = 8, least: int = 1) -> Steps:
    """Find the permanent faults of an array. ``seed`` is of what is random in walks, ``rounds`` the most of those.

    ``least``: a fault must explain so many answers to be believed; more than 1 where answers may be wrong.
    """
    rows, columns = array.rows, array.columns
    count = _Count()
    rails = yield from _rails(array, count)
    zero, minus = rails[0], rails[1:-2]
    of_rail = {(0, -1): zero, (0, 1): zero, (0, -128): zero, (1, -1): rails[1], (-1, 1): rails[-2], (64, -128): rails[-1]}
    scans: list[tuple[int, int, int, int, int]] = []
    biases: list[Int64] = []
    readings: list[Int64] = []
    asked: list[tuple[tuple[int, int, int, int], tuple[int, ...]]] = [
        ((0, weight, x, 0), (shift,)) for weight, x, shift in REGISTER
    ]
    asked += [((rail, weight, x, -x), PULSE_SHIFTS) for rail, weight, x in PULSES]
    for of, shifts in asked:
        rail_sum = of_rail[of[:2]] if of[0] else zero
        readings += yield from _scan(array, count, of, shifts, rail_sum)
        scans += [(*of, shift) for shift in shifts]
        biases += [-rail_sum if of[0] else np.zeros_like(zero)] * len(shifts)
    seen = [
        Seen(
            np.array([(*scan, bias[c], scan[0] == 0) for scan, bias in zip(scans, biases, strict=True)], np.int64),
            np.array([read[:, c] for read in readings]),
            int(zero[c]),
            np.array([value[c] for value in minus]),
            np.zeros((0, rows), np.int64),
            np.zeros((0, 1 + len(PATH_SHIFTS)), np.int64),
        )
        for c in range(columns)
    ]
    believed: list[Column] = []
    left = np.zeros(columns, np.int64)
    for c in range(columns):
        column, left[c] = explain(seen[c], sound(rows), least=least)
        believed.append(column)
    generator = np.random.Generator(np.random.Philox(key=seed))
    ran, off = 0, np.zeros(columns, np.int64)
    while ran < rounds:
        weights, expected = walks(believed, generator)
        bias = np.clip(wrapped(-expected), -most(array), most(array))
        read = yield from _walk(array, count, weights, bias)
        ran += 1
        off = (read != _read(wrapped(expected + bias))).sum(axis=(0, 1))
        if not (off >= least).any():
            break
        for c in np.flatnonzero((off >= least) | (left >= least)).tolist():
            walked = np.concatenate([bias[:, c, None], read[:, :, c]], axis=1)
            made = np.ascontiguousarray(weights[:, :, c])
            seen[c] = seen[c]._replace(
                walks=np.concatenate([seen[c].walks, made])[-KEPT:], walked=np.concatenate([seen[c].walked, walked])[-KEPT:]
            )
            believed[c], left[c] = explain(seen[c], believed[c], least=least)
            if left[c] >= least and ran > 1:
                # The steps so far led astray; from the start, with all that has been seen since then, they may not.
                again, less = explain(seen[c], sound(rows), least=least)
                if less < left[c]:
                    believed[c], left[c] = again, less
    unexplained = tuple(np.flatnonzero((left >= least) | (off >= least)).tolist())
    return Found(as_map(array, believed), unexplained, ran, count.passes, count.vectors, count.answers)


class _Count:
    """What was asked so far."""

    def __init__(self) -> None:
        self.passes = self.vectors = self.answers = 0

    def ask(
        self, array: Array, tiles: Sequence[Tile], vectors: Int64, beside: Int64 | None = None
    ) -> Generator[Probe, Activation, Int64]:
        """Answers (T, tiles, C), by as many passes as the vectors need."""
        parts = []
        for first in range(0, len(vectors), VECTORS):
            part = vectors[first : first + VECTORS]
            outputs = yield probe(array, tiles, part, None if beside is None else beside[first : first + VECTORS])
            parts.append(answered(outputs, len(tiles)))
            self.passes += 1
            self.vectors += len(part)
            self.answers += outputs.size
        return np.concatenate(parts)


def _full(array: Array, weight: int) -> Int8:
    return np.full((array.rows, array.columns), weight, np.int8)


def _rails(array: Array, count: _Count) -> Generator[Probe, Activation, Int64]:
    """What leaves each column, (cases, C): without input, with -1 from row 0, 1, ..., and on the other rails of pulses."""
    starts = min(STARTS, array.rows)
    cases = [(-1, 0, 0), *((-1, row, 1) for row in range(starts)), (1, 0, -1), (-128, 0, 64)]
    vectors = np.zeros((len(cases), array.rows), np.int64)
    for case, (_, row, x) in enumerate(cases):
        vectors[case, row] = x
    once, twice = np.zeros((2, len(cases), array.columns), np.int64)
    top = np.zeros_like(once)
    for shift in RAIL_SHIFTS:
        for values, beside in ((once, None), (twice, vectors)):
            tiles = [Tile(_full(array, weight), shift, -value) for (weight, _, _), value in zip(cases, values, strict=True)]
            read = yield from count.ask(array, tiles, vectors, beside)
            own = np.stack([read[case, case] for case in range(len(cases))])
            if beside is None and shift == RAIL_SHIFTS[0]:
                top = own
            values[:] = wrapped((own << shift) - np.clip(wrapped(-values), -most(array), most(array)))
    # Of twice a sum the top bit is lost. Where a sum is near 2^31, so that its bias was cut, the first reading knows it.
    half = (twice & 0xFFFFFFFF) >> 1
    return np.where(np.abs(top) < 48, once, np.where(top < 0, half - 2**31, half))


def _scan(
    array: Array, count: _Count, of: tuple[int, int, int, int], shifts: Sequence[int], rail_sum: Int64
) -> Generator[Probe, Activation, list[Int64]]:
    """One vector a row, (rail, weight, input, input of the next row): readings (R, C) for each shift, less the rail's sum."""
    rail, weight, x, second = of
    rows = np.arange(array.rows)
    alone = np.zeros((array.rows, array.rows), np.int64)
    alone[:, 0] = rail
    vectors = alone.copy()
    vectors[rows, rows] += x
    vectors[rows[:-1], rows[1:]] += second
    read = yield from count.ask(array, [Tile(_full(array, weight), shift, -rail_sum) for shift in shifts], vectors)
    cut = np.abs(rail_sum) > most(array)
    if cut.any():
        tiles = [Tile(_full(array, weight), shift, -2 * rail_sum) for shift in shifts]
        again = yield from count.ask(array, tiles, vectors, alone)
        read = np.where(cut, again, read)
    return [read[:, tile] for tile in range(len(shifts))]


def _walk(array: Array, count: _Count, weights: Int64, bias: Int64) -> Generator[Probe, Activation, Int64]:
    """Walks (n, R, C) with biases (n, C): readings (n, shifts, C)."""
    once = max(1, FILTERS // (array.columns * len(PATH_SHIFTS)))
    parts = []
    for first in range(0, len(weights), once):
        tiles = [
            Tile(made.astype(np.int8), shift, of)
            for made, of in zip(weights[first : first + once], bias[first : first + once], strict=True)
            for shift in PATH_SHIFTS
        ]
        read = yield from count.ask(array, tiles, np.ones((1, array.rows), np.int64))
        parts.append(read[0].reshape(-1, len(PATH_SHIFTS), array.columns))
    return np.concatenate(parts)


def _read(sums: Int64) -> Int64:
    """What is read of sums (n, C) at each of PATH_SHIFTS: (n, shifts, C)."""
    scaled = sums.astype(np.float32)[:, None] * np.array([2.0**-shift for shift in PATH_SHIFTS], np.float32)[:, None]
    found: Int64 = np.clip(np.rint(scaled), -128, 127).astype(np.int64)
    return found


def walks(believed: Sequence[Column], generator: np.random.Generator) -> tuple[Int64, Int64]:
    """Weights (n, R, C) of walks, every input being 1, and the sums (n, C) that leave columns with the faults believed.

    A walk exposes a latch to 0 or to -1. For each bit of the row's number there are two, which expose those rows to 0 where it
    is set and where it is not, and the others to -1; the rest change at random rows. A latch that is known to be faulty is
    passed in the state in which that does nothing, in the random walks mostly.
    """
    weight_keep, weight_force, keep, force = (np.stack(masks, axis=1) for masks in zip(*believed, strict=True))
    rows, columns = keep.shape
    number = np.arange(rows)
    levels = max(1, int(rows - 1).bit_length() + 1)
    zero = [(number >> level & 1) == odd for level in range(levels) for odd in (0, 1)]
    exposed = np.empty((len(zero) + RANDOM, rows, columns), np.bool_)
    exposed[: len(zero)] = np.array(zero)[:, :, None]
    for walk in range(RANDOM):
        share = (0.5, 0.2, 0.06)[walk % 3]
        exposed[len(zero) + walk] = np.cumsum(generator.random((rows, columns)) < share, axis=0) % 2 == 1
    passed = np.where(np.arange(len(exposed)) < len(zero), 1.0, 0.6)[:, None]
    weights = np.zeros(exposed.shape, np.int64)
    sums = np.zeros((len(exposed), columns), np.int64)
    for row in range(rows):
        ones, zeros = force[row] != 0, (keep[row] != -1) & (force[row] == 0)
        state = np.where(exposed[:, row], 0, -1)
        known = (ones | zeros) & (generator.random(state.shape) < passed)
        state = np.where(known, np.where(ones, -1, 0), state)
        step = state - sums
        weights[:, row] = np.where(np.abs(step) > 127, 0, step)
        held = ((weights[:, row] & weight_keep[row]) | weight_force[row]) & 0xFF
        sums = wrapped(((sums + (held ^ 0x80) - 0x80) & keep[row]) | force[row])
    return weights, sums


def as_map(array: Array, believed: Sequence[Column]) -> FaultMap:
    """The columns' masks as a map of faults."""
    faults = []
    for c, column in enumerate(believed):
        free, sums = column.weight_keep & 0xFF, column.sum_keep & 0xFFFFFFFF
        for row in np.flatnonzero((free != 0xFF) | (sums != 0xFFFFFFFF)).tolist():
            if free[row] == 0 and column.weight_force[row] & 0xFF == 0 and sums[row] == 0xFFFFFFFF:
                faults.append(Fault(row, c, "bypass"))
                continue
            for bit in range(8):
                if not int(free[row]) >> bit & 1:
                    faults.append(Fault(row, c, "weight", bit, int(column.weight_force[row]) >> bit & 1))
            for bit in range(32):
                if not int(sums[row]) >> bit & 1:
                    faults.append(Fault(row, c, "accumulator", bit, int(column.sum_force[row]) >> bit & 1))
    return fault_map(array, faults, "diagnosed")
