"""Which elements a vote is believed on, and that the referee's values make it exact."""

from __future__ import annotations

import numpy as np
import pytest

from services.edge_agent.core import referee
from services.voter.core.vote import settled_vote


def replicas(
    count: int, share: float, seed: int = 0, shape: tuple[int, ...] = (2, 9, 7, 11)
) -> tuple[np.ndarray, list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    fault_free = generator.integers(-128, 128, shape, dtype=np.int8)
    wrong = [generator.random(shape) < share for _ in range(count)]
    return fault_free, [
        np.where(w, fault_free + generator.choice(np.array([-1, 1], np.int8), shape), fault_free) for w in wrong
    ]


@pytest.mark.parametrize(("count", "agree"), [(2, 2), (3, 3), (5, 4), (5, 5), (7, 6), (7, 7), (9, 8), (11, 10)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
def test_the_referee_computes_where_too_few_agree(
    count: int, agree: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault_free, all_replicas = replicas(count, share)
    asked: list[tuple[int, int]] = []

    def execute(first: int, count: int) -> list[np.ndarray]:
        asked.append((first, count))
        return all_replicas[first : first + count]

    seen: list[float] = []
    monkeypatch.setattr(referee, "rule", lambda u, macs, longest: seen.append(u) or referee.Rule(count, agree))
    settled = referee.settle(execute, lambda positions: fault_free.reshape(-1)[positions], lambda: fault_free, 100)

    stack = np.stack([replica.ravel() for replica in all_replicas])
    most = np.array([np.unique(column, return_counts=True)[1].max() for column in stack.T])
    assert seen == [np.mean(stack[0] != stack[1])]
    assert settled.positions is not None
    assert np.array_equal(settled.positions, np.flatnonzero(most < agree))
    assert np.array_equal(settled.values, fault_free.reshape(-1)[settled.positions])
    # Each execution once and in order, never too many at a time.
    assert [first for first, _ in asked] == [sum(n for _, n in asked[:i]) for i in range(len(asked))]
    assert sum(n for _, n in asked) == settled.executions == count
    assert all(min(first, 3) + n + 2 <= referee.HELD for first, n in asked)
    # The first three are enough for the vote of all.
    assert len(settled.replicas) == min(count, 3)
    voted = settled_vote(settled.replicas, "median", settled.positions, settled.values)
    everyone = np.median(stack, axis=0).astype(np.int8)
    everyone[settled.positions] = settled.values
    assert np.array_equal(voted.ravel(), everyone)


def test_takes_read_only_and_strided_executions() -> None:
    fault_free, all_replicas = replicas(5, 0.002, shape=(4, 16, 16, 32))
    strided = [np.repeat(replica, 2, axis=3)[..., ::2] for replica in all_replicas]
    for replica in strided:
        replica.flags.writeable = False
    found = [
        referee.settle(
            lambda first, n, r=r: r[first : first + n], lambda at: fault_free.reshape(-1)[at], lambda: fault_free, 100
        )
        for r in (all_replicas, strided)
    ]
    assert np.array_equal(found[0].positions, found[1].positions)
    assert len(found[0].positions) > 0


@pytest.mark.parametrize("odd", [np.zeros((1, 1, 1, 5), np.int8), np.zeros((1, 1, 1, 4), np.int16)])
def test_refuses_executions_that_are_not_alike(odd: np.ndarray) -> None:
    with pytest.raises(ValueError, match="execution 1"):
        referee.settle(lambda first, n: [np.zeros((1, 1, 1, 4), np.int8), odd], lambda at: at, lambda: odd, 100)


@pytest.mark.parametrize(
    ("share", "executions", "direct"),
    [
        (0.0, 2, False),
        (0.0005, 3, False),
        (0.003, 5, False),
        (0.012, 7, False),
        (0.027, 9, False),
        (0.07, 11, False),
        (0.9, 2, True),
    ],
)
def test_settle_runs_as_often_as_the_layer_needs(share: float, executions: int, direct: bool) -> None:
    fault_free, all_replicas = replicas(11, share, shape=(4, 16, 16, 32))

    def execute(first: int, count: int) -> list[np.ndarray]:
        return all_replicas[first : first + count]

    def elements(positions: np.ndarray) -> np.ndarray:
        return fault_free.reshape(-1)[positions]

    settled = referee.settle(execute, elements, lambda: fault_free, 4608)
    assert (settled.executions, settled.direct) == (executions, direct)
    assert len(settled.replicas) == (1 if direct else min(executions, 3))
    if not direct:
        voted = settled_vote(settled.replicas, "median", settled.positions, settled.values)
        # The errors here are independent, so that two are wrong alike far more often than where the thresholds were measured.
        assert np.mean(voted != fault_free) <= share**2
        assert settled.positions is None or len(settled.positions) <= 0.5 * fault_free.size


@pytest.mark.parametrize(("macs", "executions"), [(9, 1), (referee.BRIEF, 1), (64, 2)])
def test_a_layer_with_short_dot_products_is_computed_whole(macs: int, executions: int) -> None:
    fault_free, all_replicas = replicas(3, 0.9)
    settled = referee.settle(
        lambda first, count: all_replicas[first : first + count], lambda positions: fault_free[:0], lambda: fault_free, macs
    )
    assert settled.positions is None
    assert not settled.direct
    assert settled.executions == executions
    assert np.array_equal(settled_vote(settled.replicas, "median", settled.positions, settled.values), fault_free)
    assert referee.seconds(settled, macs) == fault_free.size * macs / referee.WHOLE_MACS_PER_S


def test_the_slower_the_link_the_more_the_referee_computes() -> None:
    assert referee.short(50e3) > referee.short(800e3) > referee.short(5.76e6) > referee.short(50e6) > 0
    assert referee.rule(0.4, 1000, referee.short(800e3)) == referee.Rule(executions=2, agree=3)
    assert referee.rule(0.4, 1000, referee.short(50e6)) is None
