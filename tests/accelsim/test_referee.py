"""Which elements a vote is believed on, and that the referee's values make it exact."""

from __future__ import annotations

import numpy as np
import pytest

from accelsim import referee
from services.voter.vote import settled_vote


def replicas(
    count: int, share: float, seed: int = 0, shape: tuple[int, ...] = (2, 9, 7, 11)
) -> tuple[np.ndarray, list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    golden = generator.integers(-128, 128, shape, dtype=np.int8)
    wrong = [generator.random(shape) < share for _ in range(count)]
    return golden, [np.where(w, golden + generator.choice(np.array([-1, 1], np.int8), shape), golden) for w in wrong]


@pytest.mark.parametrize(("count", "agree"), [(2, 2), (3, 2), (3, 3), (5, 3), (5, 4), (7, 4), (7, 6), (7, 7)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
def test_unsettled_is_where_too_few_agree(count: int, agree: int, share: float) -> None:
    _, all_replicas = replicas(count, share)
    stack = np.stack([replica.ravel() for replica in all_replicas])
    most = np.array([np.unique(column, return_counts=True)[1].max() for column in stack.T])
    assert np.array_equal(referee.unsettled(all_replicas, agree), np.flatnonzero(most < agree))
    assert referee.disagreeing(all_replicas) == np.mean(most < count)


def test_takes_read_only_and_strided_replicas() -> None:
    _, all_replicas = replicas(3, 0.3)
    padded = [np.repeat(replica, 2, axis=3)[..., ::2] for replica in all_replicas]
    for replica in padded:
        replica.flags.writeable = False
    assert np.array_equal(referee.unsettled(padded, 3), referee.unsettled(all_replicas, 3))


@pytest.mark.parametrize("odd", [np.zeros(5, np.int8), np.zeros(4, np.int16)])
def test_refuses_replicas_that_are_not_alike(odd: np.ndarray) -> None:
    with pytest.raises(ValueError, match="replica 1"):
        referee.disagreeing([np.zeros(4, np.int8), odd])


@pytest.mark.parametrize("agree", [0, 1, 4])
def test_refuses_what_is_no_majority(agree: int) -> None:
    with pytest.raises(ValueError, match="majority"):
        referee.unsettled(replicas(3, 0.1)[1], agree)


@pytest.mark.parametrize(
    ("share", "executions", "direct"),
    [(0.0, 2, False), (0.0005, 3, False), (0.005, 5, False), (0.02, 7, False), (0.06, 7, False), (0.9, 2, True)],
)
def test_settle_runs_as_often_as_the_layer_needs(share: float, executions: int, direct: bool) -> None:
    golden, all_replicas = replicas(7, share, shape=(4, 16, 16, 32))

    def execute(first: int, count: int) -> list[np.ndarray]:
        return all_replicas[first : first + count]

    def elements(positions: np.ndarray) -> np.ndarray:
        return golden.reshape(-1)[positions]

    settled = referee.settle(execute, elements, lambda: golden, 4608)
    assert (settled.executions, settled.direct) == (executions, direct)
    assert len(settled.replicas) == (1 if direct else min(executions, 3))
    if not direct:
        voted = settled_vote(settled.replicas, "median", settled.positions, settled.values)
        # The errors here are independent, so that two are wrong alike far more often than where the thresholds were measured.
        assert np.mean(voted != golden) <= share**2
        assert settled.positions is None or len(settled.positions) <= 0.5 * golden.size


@pytest.mark.parametrize(("count", "agree"), [(3, 3), (5, 4), (7, 6), (7, 7)])
def test_where_all_but_one_agree_three_replicas_vote_alike(count: int, agree: int) -> None:
    _, all_replicas = replicas(count, 0.3)
    believed = np.ones(all_replicas[0].size, bool)
    believed[referee.unsettled(all_replicas, agree)] = False
    assert 0 < believed.sum() < believed.size
    few, many = (np.median(np.stack(some), axis=0).ravel()[believed] for some in (all_replicas[: referee.VOTING], all_replicas))
    assert np.array_equal(few, many)


@pytest.mark.parametrize(("macs", "executions"), [(9, 1), (referee.BRIEF, 1), (64, 2)])
def test_a_layer_with_short_dot_products_is_computed_whole(macs: int, executions: int) -> None:
    golden, all_replicas = replicas(3, 0.9)
    settled = referee.settle(
        lambda first, count: all_replicas[first : first + count], lambda positions: golden[:0], lambda: golden, macs
    )
    assert settled.positions is None
    assert not settled.direct
    assert settled.executions == executions
    assert np.array_equal(settled_vote(settled.replicas, "median", settled.positions, settled.values), golden)
    assert referee.seconds(settled, macs) == golden.size * macs / referee.WHOLE_MACS_PER_S


def test_the_slower_the_link_the_more_the_referee_computes() -> None:
    assert referee.short(50e3) > referee.short(800e3) > referee.short(5.76e6) > referee.short(50e6) > 0
    assert referee.rule(0.4, 1000, referee.short(800e3)) == referee.Rule(executions=2, agree=3)
    assert referee.rule(0.4, 1000, referee.short(50e6)) is None
