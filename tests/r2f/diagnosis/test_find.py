"""A diagnosis against chips that are known: small ones of every kind, full ones, soft errors on top, over the bus."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelsim.accelerators import Simulated, build
from accelsim.faults import Rates, chip
from accelsim.faults.permanent import Fault, FaultMap, fault_map
from accelsim.int8.network import Activation
from accelsim.timing import Array
from r2f.diagnosis import drive
from r2f.diagnosis.ask import Count
from r2f.diagnosis.column import SHIFTS, Column, Trials, read_all, registers, sound, walk
from r2f.diagnosis.find import Found, Progress, _of_column, _round, as_map, find
from r2f.diagnosis.probes import Probe, Tile, answered, probe
from r2f.diagnosis.settle import certain, left_over, settle
from r2f.diagnosis.shots import Shots, first_look, shoot


def run_steps(steps: Generator[Probe, Activation, Any], faults: FaultMap) -> Any:
    """What comes of steps whose probes run on the simulated chip, nothing in between."""
    device = Simulated(permanent=faults)
    outputs: Activation | None = None
    while True:
        try:
            made = next(steps) if outputs is None else steps.send(outputs)
        except StopIteration as end:
            return end.value
        device.load(made.network)
        outputs = device.run_layer(0, made.network.quantize_images(made.images))


def run(faults: FaultMap, **asked: Any) -> Found:
    """A diagnosis."""
    found: Found = run_steps(find(faults.array, **asked), faults)
    return found


def columns(faults: FaultMap) -> list[Column]:
    masks = (faults.weight_keep.view(np.int8), faults.weight_force, faults.sum_keep, faults.sum_force)
    return [Column(*(np.ascontiguousarray(mask[:, c]).astype(np.int64) for mask in masks)) for c in range(faults.array.columns)]


def places(faults: FaultMap) -> set[tuple[int, int]]:
    return {(fault.row, fault.column) for fault in faults.faults}


KINDS = ["weight", "accumulator", "bypass"]


def trials(faults: FaultMap, believed: Column, rounds: int, seed: int) -> list[Trials]:
    """What some rounds see of each column."""
    generator = np.random.default_rng(seed)
    seen = []
    for made in range(rounds):
        seen += run_steps(_round(faults.array, Count(faults.array), believed, made, generator), faults)
    return [_of_column(seen, c) for c in range(faults.array.columns)]


def shots(faults: FaultMap) -> list[Shots]:
    """What the first look sees of each column."""
    return run_steps(shoot(faults.array, Count(faults.array)), faults)


@given(st.integers(1, 20), st.integers(1, 4), st.floats(0, 0.6), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_a_chips_own_faults_explain_all_that_it_does(rows: int, across: int, rate: float, seed: int) -> None:
    """Shots and pulses, as a column is thought to answer them, against the engine; rails for another chip too."""
    array = Array(rows=rows, columns=across)
    faults = chip.random_map(array, rate, seed, KINDS)  # type: ignore[arg-type]
    other = columns(chip.random_map(array, rate / 2, seed + 1, KINDS))  # type: ignore[arg-type]
    believed = Column(*(np.stack(masks) for masks in zip(*other, strict=True)))
    for column, first, of in zip(columns(faults), shots(faults), trials(faults, believed, 2, seed), strict=True):
        assert left_over(column, first, of, np.zeros(rows, np.int64)) == 0


def test_what_a_sound_column_answers_is_not_explained_by_a_faulty_one() -> None:
    faults = fault_map(Array(rows=12, columns=1), [])
    (first,), (of,) = shots(faults), trials(faults, sound(12, 1), 2, 1)
    (faulty,) = columns(fault_map(faults.array, [Fault(5, 0, "accumulator", 9, 1)]))
    assert left_over(faulty, first, of, np.zeros(12, np.int64)) > 8


def hidden() -> FaultMap:
    """Below the first two neither a sum of 0 nor one of -1 lets a shot reach bit 22: which row has it is a guess."""
    stuck = (3, 16, 1), (10, 17, 0), (20, 22, 0)
    return fault_map(Array(rows=30, columns=1), [Fault(row, 0, "accumulator", bit, value) for row, bit, value in stuck])


@pytest.mark.parametrize("downward", [False, True])
def test_a_stuck_bit_in_a_wrong_row_is_moved(downward: bool) -> None:
    truth = hidden()
    (first,), (of,), (wanted,) = shots(truth), trials(truth, sound(30, 1), 2, 1), columns(truth)
    column = sound(30)
    first_look(first, column, registers(), 1)
    assert not (column.sum_keep == wanted.sum_keep).all()
    assert settle(column, first, of, registers(), 1, downward) == 0
    for found, there in zip(column, wanted, strict=True):
        np.testing.assert_array_equal(found, there)


def test_what_cannot_be_told_apart_is_in_doubt() -> None:
    """Of shots alone; a column that nothing explains in full has only what they leave no doubt of."""
    truth = hidden()
    (first,) = shots(truth)
    column = sound(30)
    certain(first, column, registers(), 1)
    assert as_map(truth.array, [column]).faults == truth.faults[:2]


def test_a_walk_is_the_engines() -> None:
    truth, rng = chip.random_map(Array(rows=9, columns=5), 0.3, 3), np.random.default_rng(3)
    vectors, weight = rng.integers(-128, 128, (20, 9)), rng.integers(-128, 128, (9, 5))
    asked = probe(truth.array, [Tile(weight.astype(np.int8), shift, np.zeros(5, np.int64)) for shift in SHIFTS], vectors)
    device = Simulated(permanent=truth)
    device.load(asked.network)
    read = answered(device.run_layer(0, asked.network.quantize_images(asked.images)), len(SHIFTS))
    masks = Column(*(np.stack(of) for of in zip(*columns(truth), strict=True)))
    np.testing.assert_array_equal(read_all(walk(masks, vectors, weight)[:, None])[:, 0], read)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_found_acts_as_the_chip_does(seed: int) -> None:
    """Random weights and inputs of every size: the same sums, bit for bit, where a column is explained."""
    array, rng = Array(rows=9, columns=40), np.random.default_rng(seed)
    truth = chip.random_map(array, 0.15, seed)
    found = run(truth)
    alike = np.setdiff1d(np.arange(array.columns), found.unexplained)
    assert len(alike) >= 36
    vectors = rng.integers(-128, 128, (400, array.rows)) * (rng.random((400, array.rows)) < 0.7)
    tiles = [
        Tile(rng.integers(-128, 128, (array.rows, array.columns)).astype(np.int8), shift, np.zeros(array.columns, np.int64))
        for shift in (*SHIFTS, 4, 12)
    ]
    asked = probe(array, tiles, vectors)
    read = []
    for faults in (truth, found.faults):
        device = Simulated(permanent=faults)
        device.load(asked.network)
        read.append(answered(device.run_layer(0, asked.network.quantize_images(asked.images)), len(tiles)))
    np.testing.assert_array_equal(read[0][..., alike], read[1][..., alike])


@given(
    faults=st.sampled_from([0.0, 0.02, 0.05, 0.1]), rows=st.integers(8, 40), across=st.integers(1, 4), seed=st.integers(0, 999)
)
@settings(max_examples=25, deadline=None)
def test_small_chips_of_every_kind_are_found(faults: float, rows: int, across: int, seed: int) -> None:
    """Element by element; where faults hide one another some bits may be others, and then all answers are the same."""
    truth = chip.random_map(Array(rows=rows, columns=across), faults, seed, KINDS)  # type: ignore[arg-type]
    found = run(truth)
    explained = {place for place in places(truth) if place[1] not in found.unexplained}
    named = {place for place in places(found.faults) if place[1] not in found.unexplained}
    missed, false = explained - named, named - explained
    assert len(missed) + len(false) <= 2, (missed, false)
    if not faults:
        assert found.faults.faults == ()


@pytest.mark.parametrize("row", [0, 7, 14, 15])
@pytest.mark.parametrize("value", [0, 1])
def test_every_single_stuck_bit_is_found(row: int, value: int) -> None:
    """A column each: all 8 bits of a weight and all 32 of an accumulator, and a bypass."""
    faults = [Fault(row, bit, "weight", bit, value) for bit in range(8)]
    faults += [Fault(row, 8 + bit, "accumulator", bit, value) for bit in range(32)]
    faults.append(Fault(row, 40, "bypass"))
    truth = fault_map(Array(rows=16, columns=42), faults)
    found = run(truth)
    assert set(found.faults.faults) == set(truth.faults)
    assert found.unexplained == ()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("share", [0.01, 0.05])
def test_a_chip_is_found_to_the_bit(share: float, seed: int) -> None:
    truth = chip.random_map(Array(), share, seed)
    found = run(truth)
    assert chip.digest(found.faults) == chip.digest(truth)
    assert (found.unexplained, found.vectors > 0, found.passes < 120) == ((), True, True)


@pytest.mark.parametrize(("share", "columns"), [(0.01, 12), (0.02, 12), (0.05, 4)])
def test_columns_of_256_rows(share: float, columns: int) -> None:
    """None is false; missed are at most stuck bits 31 above another one, which have no effect, and what is not explained."""
    truth = chip.random_map(Array(rows=256, columns=columns), share, 2)
    told: list[Progress] = []
    found = run(truth, watch=told.append)
    assert len(found.unexplained) <= 1
    assert not places(found.faults) - places(truth)
    explained = {place for place in places(truth) if place[1] not in found.unexplained}
    top = {(fault.row, fault.column) for fault in truth.faults if (fault.kind, fault.bit) == ("accumulator", 31)}
    assert not explained - places(found.faults) - top
    assert [made.round for made in told] == list(range(1, found.rounds + 1))
    assert told[-1].explained >= columns - len(found.unexplained)
    assert 0 < told[0].vectors < told[-1].vectors <= found.vectors


def test_soft_errors_on_top_are_voted_away() -> None:
    truth = chip.random_map(Array(), 0.03, 5)
    done = drive.in_process(build("simulated", permanent=truth), truth.array, Rates.uniform(1e-5), seed=3)
    named = places(done.found.faults)
    assert len(named & places(truth)) >= 0.95 * len(places(truth))
    assert not named - places(truth)
    assert done.down > 0
    assert done.up > 0


def test_the_vote_over_runs() -> None:
    runs = [np.array(values, np.int8) for values in ([1, 5, -128, 9], [1, 7, 3, 9], [2, 5, 4, 9])]
    assert drive.voted(runs).tolist() == [1, 5, 3, 9]
    assert drive.voted(runs[:1]) is runs[0]


def test_equal_masks_are_one_map() -> None:
    truth = fault_map(
        Array(rows=4, columns=3), [Fault(1, 2, "weight", 7, 1), Fault(0, 0, "bypass"), Fault(3, 1, "accumulator", 31, 1)]
    )
    assert chip.digest(as_map(truth.array, columns(truth))) == chip.digest(truth)
