"""The vote kernels against what the words say, value by value."""

from __future__ import annotations

import numpy as np
import pytest

from services.scheme import Vote
from services.voter.core.vote import settled_vote, vote


def naive(replicas: list[np.ndarray], kind: Vote) -> np.ndarray:
    stack = np.stack(replicas)
    if kind == "median":
        return np.sort(stack, axis=0)[len(replicas) // 2]
    ones = np.stack([(stack.view(np.uint8) >> bit) & 1 for bit in range(8)]).sum(axis=1)
    bits = (ones > len(replicas) // 2).astype(np.uint8)
    return sum(bits[bit] << bit for bit in range(8)).astype(np.uint8).view(stack.dtype)


@pytest.mark.parametrize("kind", ["median", "bitwise"])
@pytest.mark.parametrize("count", [3, 5, 7])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_equals_the_naive_vote(count: int, kind: Vote, dtype: type) -> None:
    # All orders of a few values (the 0-1 principle proves a min-max network), and random bytes on top.
    few = np.array(np.meshgrid(*[[-128, -1, 0, 127]] * count), np.int8).reshape(count, -1)
    some = np.random.default_rng(count).integers(-128, 128, (count, 5000), dtype=np.int8)
    replicas = list(np.concatenate([few, some], axis=1).view(dtype))
    voted = vote(replicas, kind)
    assert voted.dtype == dtype
    assert np.array_equal(voted, naive(replicas, kind))


def test_keeps_shape_and_takes_strided_replicas() -> None:
    base = np.random.default_rng(0).integers(-128, 128, (3, 2, 4, 4, 6), dtype=np.int8)
    replicas = [replica[..., ::2] for replica in base]
    voted = vote(replicas, "median")
    assert voted.shape == (2, 4, 4, 3)
    assert np.array_equal(voted, np.median(np.stack(replicas), axis=0))


@pytest.mark.parametrize(
    "replicas",
    [
        [],
        [np.zeros(3, np.int8)] * 4,
        [np.zeros(3, np.int8), np.zeros(3, np.int8), np.zeros(4, np.int8)],
        [np.zeros(3, np.int8), np.zeros(3, np.int8), np.zeros(3, np.uint8)],
    ],
)
def test_refuses_what_it_cannot_vote_on(replicas: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="vote"):
        vote(replicas, "median")


def test_refuses_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="mean"):
        vote([np.zeros(3, np.int8)] * 3, "mean")  # type: ignore[arg-type]


def two(seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    generator = np.random.default_rng(seed)
    first = generator.integers(-128, 128, (2, 5, 5, 7), dtype=np.int8)
    second = np.where(generator.random(first.shape) < 0.2, first ^ np.int8(1), first)
    return [first, second], np.flatnonzero(first != second)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_two_replicas_with_values_wherever_they_differ(dtype: type) -> None:
    replicas, positions = two()
    values = np.random.default_rng(1).integers(-128, 128, len(positions), dtype=np.int8)
    voted = settled_vote(replicas, "median", positions.astype(dtype), values)
    expected = replicas[0].copy().ravel()
    expected[positions] = values
    assert np.array_equal(voted, expected.reshape(replicas[0].shape))
    assert voted.base is not replicas[0]


@pytest.mark.parametrize("missing", [0, 17, -1])
def test_two_replicas_cannot_outvote_one_another(missing: int) -> None:
    replicas, positions = two()
    given = np.delete(positions, missing)
    with pytest.raises(ValueError, match=f"differ at {positions[missing]},"):
        settled_vote(replicas, "median", given, np.zeros(len(given), np.int8))
    with pytest.raises(ValueError, match="2 replicas cannot be voted on"):
        settled_vote(replicas, "median", None, None)


def test_values_of_a_whole_layer_need_no_vote() -> None:
    replicas, _ = two()
    values = np.arange(replicas[0].size, dtype=np.uint8).view(np.int8)
    for count in (1, 2):
        assert np.array_equal(settled_vote(replicas[:count], "median", None, values).ravel(), values)


def test_values_override_the_vote_of_three() -> None:
    replicas = list(np.random.default_rng(0).integers(-128, 128, (3, 40), dtype=np.int8))
    voted = settled_vote(replicas, "bitwise", np.array([3, 39], np.int32), np.array([5, -7], np.int8))
    expected = naive(replicas, "bitwise")
    expected[[3, 39]] = 5, -7
    assert np.array_equal(voted, expected)


@pytest.mark.parametrize(
    ("positions", "values"),
    [
        (None, np.zeros(39, np.int8)),
        (None, np.zeros(40, np.int16)),
        (np.array([1, 2], np.int32), np.zeros(3, np.int8)),
        (np.array([1.0, 2.0], np.float32), np.zeros(2, np.int8)),
        (np.array([-1, 2], np.int32), np.zeros(2, np.int8)),
        (np.array([2, 40], np.int32), np.zeros(2, np.int8)),
        (np.array([2, 2], np.int32), np.zeros(2, np.int8)),
        (np.array([3, 2], np.int32), np.zeros(2, np.int8)),
    ],
)
def test_refuses_values_that_do_not_fit(positions: np.ndarray | None, values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="vote"):
        settled_vote([np.zeros(40, np.int8)] * 3, "median", positions, values)
    with pytest.raises(ValueError, match="whole layer"):
        settled_vote([np.zeros(40, np.int8)], "median", np.zeros(0, np.int32), np.zeros(0, np.int8))
