"""The statistics of the draws, as statistics: fixed seeds, bounds that a right draw misses once in thousands of seeds."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from accelsim.faults import SOFT_ERRORS, Burst, Flips, Key, Rates, distinct, draw, majority

KEY = Key(seed=3, device="d", iteration=5, layer=7, replica=0)


def keys(count: int) -> Iterator[Key]:
    return (Key(11, "d", i, 0, 0) for i in range(count))


def weights(key: Key, elements: int, rate: float) -> np.ndarray:
    return draw(Rates(weight=rate), key, inputs=0, weights=elements, outputs=0).weight


@given(st.integers(0, 5000), st.floats(0, 1), st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_positions_are_sorted_distinct_and_inside(elements: int, rate: float, seed: int) -> None:
    positions = weights(Key(seed, "d", 0, 0, 0), elements, rate)
    assert positions.dtype == np.int64
    assert (np.diff(positions) > 0).all()
    assert not len(positions) or (positions[0] >= 0 and positions[-1] < 8 * elements)


@pytest.mark.parametrize("rate", [1e-3, 0.02, 0.5, 0.97])
def test_counts_are_binomial(rate: float) -> None:
    bits, draws = 8 * 500, 3000
    counts = np.array([len(weights(key, 500, rate)) for key in keys(draws)])
    mean, variance = bits * rate, bits * rate * (1 - rate)
    # Four standard errors of the mean and of the variance (whose own error is about sqrt(2 / draws)).
    assert abs(counts.mean() - mean) < 4 * np.sqrt(variance / draws)
    assert abs(counts.var() / variance - 1) < 4 * np.sqrt(2 / draws + 1 / (draws * variance))


def test_positions_and_bits_are_uniform() -> None:
    hits = np.concatenate([weights(key, 1000, 0.01) for key in keys(2000)])
    for cells, values in ((100, hits // 80), (8, hits % 8), (2, hits // 4000)):
        counts = np.bincount(values, minlength=cells)
        expected = len(hits) / cells
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert chi2 < cells - 1 + 4 * np.sqrt(2 * (cells - 1)) + 8


@pytest.mark.parametrize("field", ["seed", "device", "iteration", "layer", "replica"])
def test_draws_of_other_keys_are_independent(field: str) -> None:
    values = {"seed": 3, "device": "d", "iteration": 5, "layer": 7, "replica": 0}
    other = Key(**{**values, field: "e" if field == "device" else values[field] + 1})  # type: ignore[arg-type, operator]
    elements, rate = 200_000, 0.01
    first, second = weights(KEY, elements, rate), weights(other, elements, rate)
    common = len(np.intersect1d(first, second))
    expected = 8 * elements * rate * rate
    assert abs(common - expected) < 5 * np.sqrt(expected)


def test_sites_are_independent() -> None:
    flips = draw(Rates(0.01, 0.01, 0.0, 0.01), KEY, inputs=100_000, weights=100_000, outputs=100_000)
    expected = 8 * 100_000 * 1e-4
    for a, b in ((flips.input, flips.weight), (flips.weight, flips.output), (flips.input, flips.output)):
        assert abs(len(np.intersect1d(a, b)) - expected) < 5 * np.sqrt(expected)


def test_accumulators_have_32_bits() -> None:
    flips = draw(Rates(accumulator=0.2), KEY, inputs=10, weights=10, outputs=500)
    assert flips.accumulator.max() > 8 * 500
    assert flips.accumulator.max() < 32 * 500
    assert flips.count() == len(flips.accumulator)


def test_a_draw_is_the_same_in_any_order_and_process() -> None:
    here = [weights(key, 300, 0.01).tolist() for key in keys(4)]
    assert here[::-1] == [weights(key, 300, 0.01).tolist() for key in list(keys(4))[::-1]]
    script = (
        "from accelsim.faults import *\n"
        "print([draw(Rates(weight=0.01), Key(11, 'd', i, 0, 0), inputs=0, weights=300, outputs=0).weight.tolist()"
        " for i in range(4)])"
    )
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here)


def test_the_positions_drawn_today_are_those_drawn_tomorrow() -> None:
    assert weights(KEY, 100, 0.01).tolist() == [27, 197, 289, 350, 637, 690]


def test_cost_grows_with_flips_not_bits() -> None:
    # As many flips from a thousand times the bits take no more memory: a draw that touched every bit would fail here.
    positions = weights(KEY, 2**50, 1e-13)
    assert 500 < len(positions) < 1300


def test_extreme_rates() -> None:
    assert len(weights(KEY, 1000, 1.0)) == 8000
    assert len(weights(KEY, 1000, 1e-300)) == 0
    assert len(weights(KEY, 1000, 5e-324)) == 0
    assert len(weights(KEY, 1000, 0.0)) == 0
    assert Rates.uniform(0.25) == Rates(0.25, 0.25, 0.0, 0.25)


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rates: weight is"):
        Rates(weight=rate)


def test_bursts_are_runs_at_the_same_rate() -> None:
    burst = Burst(length=4)
    bits, rate, draws = 8000, 0.005, 400
    counts = []
    for key in keys(draws):
        flips = draw(Rates(weight=rate), key, inputs=0, weights=bits // 8, outputs=0, model=burst).weight
        counts.append(len(flips))
        runs = np.split(flips, np.flatnonzero(np.diff(flips) > 1) + 1) if len(flips) else []
        # Overlapping bursts make longer runs, the tensor's end cuts one off.
        assert all(len(run) >= 4 or run[-1] == bits - 1 for run in runs)
    assert abs(np.mean(counts) / (bits * rate) - 1) < 0.05


@given(st.integers(1, 10**6), st.floats(1e-12, 1.0), st.integers(0, 2**32))
@example(10**5, 1e-12, 0)
@example(1, 1.0, 0)
@example(4000, 1.0, 1)
@settings(max_examples=200, deadline=None)
def test_positions_are_the_sums_of_geometric_gaps(bits: int, rate: float, seed: int) -> None:
    """By the book, and from the same numbers of the generator: as many are drawn at a time as are expected, and some more."""
    rate = rate**4 if bits * rate > 1e5 else rate
    ours, book = (np.random.default_rng(seed) for _ in range(2))
    for _ in range(2):
        expected, last = [], -1
        while last < bits:
            mean = (bits - last) * rate
            for number in book.standard_exponential(int(mean + 5 * math.sqrt(mean)) + 8).tolist():
                last += 1 + (math.floor(min(number * min(-1 / math.log1p(-rate), 1e300), bits)) if rate < 1 else 0)
                expected.append(last)
        found = SOFT_ERRORS.positions(ours, bits, rate)
        assert found.dtype == np.int64
        assert found.tolist() == [place for place in expected if place < bits]
        assert ours.random() == book.random(), "as many were drawn"


class Short:
    """A generator of short gaps only, so that one draw is not enough."""

    def standard_exponential(self, count: int) -> np.ndarray:
        return np.full(count, 0.5)


@pytest.mark.parametrize("bits", [1, 38, 39, 40, 41, 1000])
def test_more_gaps_are_drawn_where_the_first_do_not_reach_the_end(bits: int) -> None:
    """At a rate of 1 - 1/e gaps of half the mean are no bits long: each bit flips, more than are expected."""
    found = SOFT_ERRORS.positions(Short(), bits, 1 - math.exp(-1))  # type: ignore[arg-type]
    assert found.tolist() == list(range(bits))


@given(st.integers(0, 300), st.data())
@settings(max_examples=100, deadline=None)
def test_distinct_is_exact_in_count(bits: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, bits))
    chosen = distinct(np.random.default_rng(0), bits, count)
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    assert not count or (chosen[0] >= 0 and chosen[-1] < bits)


class Unsorted:
    def positions(self, generator: np.random.Generator, bits: int, rate: float) -> np.ndarray:
        return np.array([3, 1])


class Outside:
    def positions(self, generator: np.random.Generator, bits: int, rate: float) -> np.ndarray:
        return np.array([bits])


@pytest.mark.parametrize("model", [Unsorted(), Outside()])
def test_a_fault_model_that_breaks_its_contract_is_named(model: Unsorted | Outside) -> None:
    with pytest.raises(ValueError, match="not sorted, distinct"):
        draw(Rates(output=0.1), KEY, inputs=1, weights=1, outputs=10, model=model)


def test_no_flips_by_default() -> None:
    assert Flips().count() == 0
    assert SOFT_ERRORS.positions(np.random.default_rng(0), 10, 0.0 + 1e-12).tolist() == []


def test_a_majority_keeps_what_two_of_three_have() -> None:
    copies = [np.array(c, np.int64) for c in ([1, 5, 9], [5, 7], [1, 5, 8])]
    assert majority(copies).tolist() == [1, 5]
    assert majority([np.zeros(0, np.int64)] * 3).tolist() == []


def test_a_vote_at_a_site_is_over_three_draws_and_touches_no_other() -> None:
    rates, key = Rates.uniform(0.05), Key(1, "d", 2, 3, 0)
    plain = draw(rates, key, inputs=4000, weights=4000, outputs=4000)
    found = draw(rates, key, inputs=4000, weights=4000, outputs=4000, voted=("weight",))
    np.testing.assert_array_equal(found.input, plain.input)
    np.testing.assert_array_equal(found.output, plain.output)
    # 3 p^2 - 2 p^3 = 0.00725 of 32,000 bits: 232 with a standard deviation of 15.
    assert 160 < len(found.weight) < 305
    # Of each pair of copies a third; the first copy is the plain draw.
    assert 0.55 < np.isin(found.weight, plain.weight).mean() < 0.8
