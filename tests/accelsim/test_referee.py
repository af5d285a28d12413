"""Which elements a vote is believed on, and that the referee's values make it exact."""

from __future__ import annotations

import numpy as np
import pytest

from accelsim import referee


def replicas(
    count: int, share: float, seed: int = 0, shape: tuple[int, ...] = (2, 9, 7, 11)
) -> tuple[np.ndarray, list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    golden = generator.integers(-128, 128, shape, dtype=np.int8)
    wrong = [generator.random(shape) < share for _ in range(count)]
    return golden, [np.where(w, golden + generator.choice(np.array([-1, 1], np.int8), shape), golden) for w in wrong]


@pytest.mark.parametrize(("count", "agree"), [(3, 2), (3, 3), (5, 3), (5, 4), (7, 4), (7, 6), (7, 7)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
def test_unsettled_is_where_too_few_agree(count: int, agree: int, share: float) -> None:
    _, all_replicas = replicas(count, share)
    stack = np.stack([replica.ravel() for replica in all_replicas])
    most = np.array([np.unique(column, return_counts=True)[1].max() for column in stack.T])
    assert np.array_equal(referee.unsettled(all_replicas, agree), np.flatnonzero(most < agree))
    assert referee.disagreeing(all_replicas) == np.mean(most < count)


@pytest.mark.parametrize("agree", [0, 1, 4])
def test_refuses_what_is_no_majority(agree: int) -> None:
    with pytest.raises(ValueError, match="majority"):
        referee.unsettled(replicas(3, 0.1)[1], agree)


@pytest.mark.parametrize(
    ("share", "executions", "direct"), [(0.0, 3, False), (0.002, 7, False), (0.05, 7, False), (0.07, 7, False), (0.9, 1, True)]
)
def test_settle_runs_as_often_as_the_layer_needs(share: float, executions: int, direct: bool) -> None:
    golden, all_replicas = replicas(7, share, shape=(4, 16, 16, 32))

    def execute(first: int, count: int) -> list[np.ndarray]:
        return all_replicas[first : first + count]

    def elements(positions: np.ndarray) -> np.ndarray:
        return golden.reshape(-1)[positions]

    settled = referee.settle(execute, elements, lambda: golden, 4608)
    assert (len(settled.replicas), settled.direct) == (executions, direct)
    if not direct:
        voted = np.median(np.stack(settled.replicas), axis=0).astype(np.int8)
        assert np.array_equal(referee.override(voted, settled), golden)
        assert settled.positions is None or len(settled.positions) <= 0.5 * golden.size


def test_a_hopeless_layer_with_short_dot_products_is_computed_whole() -> None:
    golden, all_replicas = replicas(3, 0.9)
    settled = referee.settle(
        lambda first, count: all_replicas[first : first + count], lambda positions: golden[:0], lambda: golden, 64
    )
    assert settled.positions is None
    assert not settled.direct
    assert np.array_equal(referee.override(np.zeros_like(golden), settled), golden)


def test_the_slower_the_link_the_more_the_referee_computes() -> None:
    assert referee.short(50e3) > referee.short(800e3) > referee.short(5.76e6) > referee.short(50e6) > 0
    assert referee.rule(0.4, 1000, referee.short(800e3)) == referee.Rule(executions=3, agree=4)
    assert referee.rule(0.4, 1000, referee.short(50e6)) is None
