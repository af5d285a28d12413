"""The vote kernels against what the words say, value by value."""

from __future__ import annotations

import numpy as np
import pytest

from services.voter.vote import Kind, vote


def naive(replicas: list[np.ndarray], kind: Kind) -> np.ndarray:
    stack = np.stack(replicas)
    if kind == "median":
        return np.sort(stack, axis=0)[len(replicas) // 2]
    ones = np.stack([(stack.view(np.uint8) >> bit) & 1 for bit in range(8)]).sum(axis=1)
    bits = (ones > len(replicas) // 2).astype(np.uint8)
    return sum(bits[bit] << bit for bit in range(8)).astype(np.uint8).view(np.int8)


@pytest.mark.parametrize("kind", ["median", "bitwise"])
@pytest.mark.parametrize("count", [3, 5, 7])
def test_equals_the_naive_vote(count: int, kind: Kind) -> None:
    # All orders of a few values (the 0-1 principle proves a min-max network), and random bytes on top.
    few = np.array(np.meshgrid(*[[-128, -1, 0, 127]] * count), np.int8).reshape(count, -1)
    some = np.random.default_rng(count).integers(-128, 128, (count, 5000), dtype=np.int8)
    replicas = list(np.concatenate([few, some], axis=1))
    assert np.array_equal(vote(replicas, kind), naive(replicas, kind))


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
