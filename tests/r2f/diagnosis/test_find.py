"""A diagnosis against chips that are known: small ones of every kind, full ones, soft errors on top, over the bus."""

from __future__ import annotations

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
from r2f.diagnosis.column import Column, answers, sums
from r2f.diagnosis.find import Found, _Count, _scan, as_map, find, walks
from r2f.diagnosis.probes import Tile, answered, most, probe, wrapped


def run(faults: FaultMap, **asked: int) -> Found:
    """A diagnosis whose probes run on the simulated chip, nothing in between."""
    device, steps = Simulated(permanent=faults), find(faults.array, **asked)
    outputs: Activation | None = None
    while True:
        try:
            made = next(steps) if outputs is None else steps.send(outputs)
        except StopIteration as end:
            found: Found = end.value
            return found
        device.load(made.network)
        outputs = device.run_layer(0, made.network.quantize_images(made.images))


def columns(faults: FaultMap) -> list[Column]:
    masks = (faults.weight_keep.view(np.int8), faults.weight_force, faults.sum_keep, faults.sum_force)
    return [Column(*(np.ascontiguousarray(mask[:, c]).astype(np.int64) for mask in masks)) for c in range(faults.array.columns)]


def places(faults: FaultMap) -> set[tuple[int, int]]:
    return {(fault.row, fault.column) for fault in faults.faults}


KINDS = ["weight", "accumulator", "bypass"]


@given(st.integers(1, 9), st.integers(1, 4), st.floats(0, 0.6), st.integers(0, 999), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_what_a_column_would_answer_is_what_the_array_answers(rows: int, across: int, rate: float, seed: int, of: int) -> None:
    """The few operations a test vector against the engine, which walks down the column."""
    array, rng = Array(rows=rows, columns=across), np.random.default_rng(of)
    faults = chip.random_map(array, rate, seed, KINDS)  # type: ignore[arg-type]
    device = Simulated(permanent=faults)
    rail, weight, x, second = (int(rng.integers(-60, 61)) for _ in range(4))
    shift, bias = int(rng.integers(0, 25)), rng.integers(-(2**20), 2**20, across)
    steps = _scan(array, _Count(), (rail, weight, x, second), (shift,), -bias)
    made = next(steps)
    device.load(made.network)
    with pytest.raises(StopIteration) as end:
        steps.send(device.run_layer(0, made.network.quantize_images(made.images)))
    (read,) = end.value.value
    for c, column in enumerate(columns(faults)):
        out = np.empty((1, rows), np.int64)
        answers(column, np.array([(rail, weight, x, second, shift, bias[c], 0)], np.int64), out)
        np.testing.assert_array_equal(out[0], read[:, c])
        if second == 0:
            sums(column, rail, weight, x, out[0])
            np.testing.assert_array_equal(
                np.rint(np.float32(wrapped(out[0] + bias[c])) / 2.0**shift).clip(-128, 127), read[:, c]
            )


@given(st.integers(1, 9), st.integers(1, 4), st.floats(0, 0.6), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_walks_end_as_they_are_meant_to(rows: int, across: int, rate: float, seed: int) -> None:
    array = Array(rows=rows, columns=across)
    faults = chip.random_map(array, rate, seed, KINDS)  # type: ignore[arg-type]
    weights, expected = walks(columns(faults), np.random.default_rng(seed))
    bias = np.clip(wrapped(-expected), -most(array), most(array))
    tiles = [Tile(made.astype(np.int8), 0, of) for made, of in zip(weights, bias, strict=True)]
    made = probe(array, tiles, np.ones((1, rows), np.int64))
    device = Simulated(permanent=faults)
    device.load(made.network)
    read = answered(device.run_layer(0, made.network.quantize_images(made.images)), len(tiles))[0]
    np.testing.assert_array_equal(read, wrapped(expected + bias).clip(-128, 127))


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
    assert (found.unexplained, found.vectors > 0, found.passes < 60) == ((), True, True)


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
