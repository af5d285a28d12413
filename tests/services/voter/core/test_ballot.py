"""What goes on of a layer: its vote, and for a protected one the vote of its first three executions."""

from __future__ import annotations

import numpy as np
import pytest

from services.voter.core.ballot import count

Y = np.arange(24, dtype=np.int8).reshape(1, 2, 3, 4)


def test_one_execution_is_not_voted_on() -> None:
    assert count([Y], "median") == (None, None)


def test_the_vote_is_of_all_replicas() -> None:
    found = count([Y + 2, Y, Y, Y + 1, Y + 2], "median")
    assert found.vote is not None
    np.testing.assert_array_equal(found.vote, Y + 1)
    assert found.protected is None


def test_a_protected_layer_goes_on_with_three_however_many_ran() -> None:
    found = count([Y + 2, Y, Y, Y + 1, Y + 2], "median", protected=True)
    assert found.vote is not None
    assert found.protected is not None
    np.testing.assert_array_equal(found.vote, Y + 1)
    np.testing.assert_array_equal(found.protected, Y)


def test_the_referee_corrects_the_vote_and_not_what_a_protected_layer_goes_on_with() -> None:
    positions, values = np.array([3], np.int32), np.array([77], np.int8)
    found = count([Y, Y, Y + 1], "median", protected=True, positions=positions, values=values)
    assert found.vote is not None
    assert found.protected is not None
    assert np.flatnonzero(found.vote != Y).tolist() == [3]
    np.testing.assert_array_equal(found.protected, Y)


def test_the_referee_alone_settles_one_execution() -> None:
    found = count([Y + 1], "median", values=Y.reshape(-1))
    assert found.vote is not None
    np.testing.assert_array_equal(found.vote, Y)


@pytest.mark.parametrize(
    ("replicas", "protected", "message"),
    [
        ([], False, "without replicas"),
        ([Y], True, "a protected layer with one replica; send 3"),
        ([Y, Y], False, "2 replicas cannot be voted on"),
        ([Y, Y, Y.astype(np.int16)], False, "replica 2 is int16"),
        ([Y, Y, Y[:, :1]], False, "replica 2 is int8 of shape"),
    ],
)
def test_what_cannot_be_voted_on_says_why(replicas: list[np.ndarray], protected: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count(replicas, "median", protected=protected)
