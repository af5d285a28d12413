"""The course of a diagnosis: which test networks are run, and the map that explains what they answered (docs/chips.md).

It is a generator, as a retraining's course is: whoever drives it has the device run a Probe and sends its outputs back. Each
round lays rails (``column``) for what is believed of each column so far, measures the 32 bits that leave each, has a pulse
at every row, and lets what differs change what is believed. It ends when a round finds nothing new, and every known fault
of a latch has been passed where it does something, lest one above it be hidden.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from accelsim.faults.permanent import Fault, FaultMap, fault_map
from accelsim.int8.network import Activation
from accelsim.timing import Array
from r2f.diagnosis.ask import Count
from r2f.diagnosis.column import (
    PHASES,
    PULSE,
    SHIFTS,
    STEP,
    Column,
    Int8,
    Int64,
    Trials,
    lay,
    moves,
    pulses,
    read_all,
    registers,
    sound,
    walk,
)
from r2f.diagnosis.probes import Probe, wrapped
from r2f.diagnosis.settle import ROW, certain, doubts, left_over, settle
from r2f.diagnosis.shots import Shots, first_look, shoot

Steps = Generator[Probe, Activation, "Found"]

REGISTER: Final = (4, 32)
"""Inputs of the pulses that show weight registers loaded with 0 and with -1, in the first two rounds."""
SWITCH: Final = 0.08
"""Share of rows at which such a rail goes to the other side."""
TURNS: Final = 2
"""Rails a round that pass a known fault where it does something."""
KEPT: Final = 42
"""The most trials of earlier rounds that are looked back at."""
CHECKED: Final = 64
"""Random vectors of the last check, the first one of zeros."""
TILES: Final = 4
"""Random weights of the last check."""
IDLE: Final = 3
"""Rounds that leave as many columns unexplained, or the same in doubt, after which that stays so."""


class Found(NamedTuple):
    """What a diagnosis found."""

    faults: FaultMap
    unexplained: tuple[int, ...]
    """Columns whose answers the map does not explain in full."""
    rounds: int
    passes: int
    """Of the device, before any repetition."""
    vectors: int
    """In all of them."""
    answers: int
    """Bytes that were read."""


class Progress(NamedTuple):
    """How far a diagnosis is, after a round."""

    round: int
    explained: int
    """Columns of which nothing is left unexplained, of ``columns``."""
    columns: int
    vectors: int
    """Sent so far, before any repetition."""


class _Rail(NamedTuple):
    """One rail of each column, under one or several loads of the test rows."""

    phase: int
    x: int
    weights: Int64
    """(loads, R, C)"""


class _Trial(NamedTuple):
    """As ``Trials``, of all columns."""

    weights: Int8
    phase: int
    x: int
    ends: Int64
    readings: Int8
    """(P, 4, C), 0 where there is none."""
    right: npt.NDArray[np.bool_]
    """(C,): whether what leaves without a pulse was read twice alike."""


def find(
    array: Array, *, seed: int = 0, rounds: int = 16, least: int = 1, watch: Callable[[Progress], None] | None = None
) -> Steps:
    """Find the permanent faults of an array, in so many rounds at most. ``seed`` is of what is random in rails.

    ``least``: a fault must explain so many answers to be believed; more than 1 where answers may be wrong. ``watch`` is told of
    every round.
    """
    count = Count(array)
    generator = np.random.Generator(np.random.Philox(key=seed))
    believed = sound(array.rows, array.columns)
    every = range(array.columns)
    columns = [Column(*(mask[c] for mask in believed)) for c in every]
    options = registers()
    trials: list[_Trial] = []
    doubtful = np.zeros((array.columns, array.rows), np.int64)
    ran = idle = still = 0
    beyond = array.columns
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shots = yield from shoot(array, count)
        list(pool.map(partial(first_look, options=options, least=least), shots, columns))
        for made in range(rounds):
            new = yield from _round(array, count, believed, made, generator)
            trials = trials[-KEPT:] + new
            seen = [_of_column(trials, c) for c in every]
            fresh = [_of_column(new, c) for c in every]
            settled = pool.map(partial(_settled, options=options, least=least), columns, shots, fresh, seen)
            off, left = np.array(list(settled), np.int64).T
            ran += 1
            if watch is not None:
                watch(Progress(ran, int((left < least).sum()), array.columns, count.vectors))
            still = still + 1 if beyond and (left >= least).sum() >= beyond else 0
            beyond = int((left >= least).sum())
            if made < 1 or (made + 1) * TURNS < _latches(believed) or ((off >= least).any() and still < IDLE):
                continue
            before = doubtful.copy()
            list(pool.map(partial(doubts, options=options, least=least), columns, shots, seen, doubtful))
            idle = idle + 1 if (doubtful == before).all() else 0
            if max(idle, still) >= IDLE or not doubtful.any():
                break
        other = yield from _acts_otherwise(array, count, believed, generator)
        for mask, free in zip(believed, sound(array.rows, array.columns), strict=True):
            mask[doubtful == ROW] = free[doubtful == ROW]
        wrong = np.flatnonzero((left >= least) | (other >= least))
        list(pool.map(lambda c: certain(shots[c], columns[c], options, least), wrong.tolist()))
    unexplained = tuple(np.union1d(wrong, np.flatnonzero((doubtful > 0).any(axis=1))).tolist())
    return Found(as_map(array, columns), unexplained, ran, count.passes, count.vectors, count.answers)


def _acts_otherwise(
    array: Array, count: Count, believed: Column, generator: np.random.Generator
) -> Generator[Probe, Activation, Int64]:
    """Answers (C,) that are not as what is believed would have them, of random weights and inputs at every row at once."""
    vectors = generator.integers(-128, 128, (CHECKED, array.rows)) * (
        generator.random((CHECKED, 1)) < generator.random(array.rows)
    )
    vectors[0] = 0
    weights = generator.integers(-128, 128, (TILES, array.rows, array.columns)).astype(np.int8)
    sums = np.stack([walk(believed, vectors, made.astype(np.int64)) for made in weights], axis=1)
    ends = sums[0]
    read = yield from count.differences(vectors, list(weights), ends)
    expected = read_all(wrapped(sums - ends))
    found: Int64 = (read != expected).sum(axis=(0, 1, 2))
    return found


def _latches(believed: Column) -> int:
    """The most faulty latches that a column has."""
    return int((believed.sum_keep != -1).sum(axis=1).max())


def _of_column(trials: Sequence[_Trial], c: int) -> Trials:
    """Those trials of column c whose sum was read for certain."""
    kept = [trial for trial in trials if trial.right[c]]
    rows, pulsed = len(trials[0].weights), len(trials[0].readings)
    return Trials(
        np.array([trial.weights[:, c] for trial in kept], np.int64).reshape(len(kept), rows),
        np.array([trial.phase for trial in kept], np.int64),
        np.array([trial.x for trial in kept], np.int64),
        np.array([trial.ends[c] for trial in kept], np.int64),
        np.array([trial.readings[:, :, c] for trial in kept], np.int8).reshape(len(kept), pulsed, len(SHIFTS)),
    )


def _settled(column: Column, shots: Shots, fresh: Trials, every: Trials, *, options: Int64, least: int) -> tuple[int, int]:
    """How much of the fresh trials a column's faults did not explain, and of all once they are changed so that they do."""
    if not len(fresh.phases):
        return least, least  # nothing was read of it that can be trusted
    off = left = left_over(column, shots, fresh, np.zeros_like(column.sum_keep))
    if off >= least:
        left = settle(column, shots, every, options, least, False)
    if left >= least:
        again = sound(len(column.sum_keep))
        first_look(shots, again, options, least)
        other = settle(again, shots, every, options, least, True)
        if other < left:
            left = other
            for mask, better in zip(column, again, strict=True):
                mask[:] = better
    return off, left


def _round(
    array: Array, count: Count, believed: Column, made: int, generator: np.random.Generator
) -> Generator[Probe, Activation, list[_Trial]]:
    """Rails for what is believed of each column, what leaves each, and its pulses."""
    rails: list[_Rail] = []
    for phase in PHASES:
        for base in (0, -1):
            path, passed = np.full((array.columns, array.rows), base, np.int64), np.ones_like(believed.sum_keep)
            rails.append(_Rail(phase, 1, _laid(believed, phase, path, passed, [PULSE])))
            if made < len(REGISTER):
                rails.append(_Rail(phase, REGISTER[made], _laid(believed, phase, path, passed, [0, -1])))
        for turn in range(TURNS):
            path = -(np.cumsum(generator.random((array.columns, array.rows)) < SWITCH, axis=1) + turn & 1)
            passed = np.ones_like(path)
            for c in range(array.columns):
                faulty = np.flatnonzero(believed.sum_keep[c] != -1)[::-1]
                if len(faulty):
                    passed[c, faulty[(made * TURNS + turn) % len(faulty)]] = -1
            rails.append(_Rail(phase, 1, _laid(believed, phase, path, passed, [PULSE])))
    vectors = np.stack([_vectors(array, phase) for phase in PHASES])
    own = np.array([PHASES.index(rail.phase) for rail in rails])
    ends = yield from count.ends(vectors, own, [rail.weights[0].astype(np.int8) for rail in rails])
    trials: list[_Trial] = []
    for phase in PHASES:
        for x in sorted({rail.x for rail in rails}):
            of = [r for r, rail in enumerate(rails) if (rail.phase, rail.x) == (phase, x)]
            if of:
                trials += yield from _pulsed(array, count, [rails[r] for r in of], ends[of])
    return trials


def _laid(believed: Column, phase: int, path: Int64, passed: Int64, loads: Sequence[int]) -> Int64:
    """Weights (loads, R, C) of rails at ``path`` (C, R) that pass faults as ``passed`` (C, R) says."""
    columns, rows = believed.sum_keep.shape
    out = np.empty((len(loads), columns, rows), np.int64)
    for c in range(columns):
        column = Column(*(mask[c] for mask in believed))
        for n, load in enumerate(loads):
            lay(column, phase, path[c], passed[c], load, out[n, c])
    return np.ascontiguousarray(out.transpose(0, 2, 1))


def _vectors(array: Array, phase: int) -> Int64:
    """Inputs (R,) of a rail alone."""
    inputs = np.zeros(array.rows, np.int64)
    inputs[[row for row in range(array.rows) if moves(row, phase)]] = 1
    return inputs


def _pulsed(array: Array, count: Count, rails: Sequence[_Rail], ends: Int64) -> Generator[Probe, Activation, list[_Trial]]:
    """The trials of rails that have one phase and input."""
    phase, x = rails[0].phase, rails[0].x
    first, stop = pulses(array.rows, phase)
    rows = range(first, stop, STEP)
    vectors = np.tile(_vectors(array, phase), (1 + len(rows), 1))
    for pulse, row in enumerate(rows):
        vectors[1 + pulse, row] = x
        vectors[1 + pulse, row + 1 : row + 2] = -x
    loaded = [(r, made.astype(np.int8)) for r, rail in enumerate(rails) for made in rail.weights]
    read = yield from count.differences(vectors, [made for _, made in loaded], np.array([ends[r] for r, _ in loaded]))
    trials = []
    for n, (r, made) in enumerate(loaded):
        right = (read[0, n] == 0).all(axis=0)
        readings = np.zeros((-(-array.rows // STEP), *read.shape[2:]), np.int8)
        readings[np.array(rows, np.int64) // STEP] = read[1:, n]
        trials.append(_Trial(made, phase, x, ends[r], readings, right))
    return trials


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
