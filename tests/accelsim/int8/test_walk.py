"""The one walk: operands in order, and nothing kept longer than its last reader needs it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from accelsim.accelerators.contract import example
from accelsim.int8.network import INPUT, Add, Network
from accelsim.int8.walk import last_uses, walk


def network() -> Network:
    """0 -> 1 -> 2, 3 = 1 + 2, 4 = pool, 5 = flatten, 6 = classes, and 7 = 6 + 6."""
    whole, _ = example(8)
    twice = Add(name="twice", inputs=(6, 6), shape=(1, 1, 5), scale=1.0, multipliers=(1.0, 1.0))
    return replace(whole, layers=(*whole.layers, twice))


def test_each_layer_sees_its_operands_and_they_go_behind_their_last_reader() -> None:
    values = {INPUT: "x"}
    seen, alive = [], []
    for index, layer, operands in walk(network(), values):
        seen.append((index, layer.name, operands))
        values[index] = str(index)
        alive.append(sorted(values))
    assert [operands for _, _, operands in seen] == [["x"], ["0"], ["1"], ["1", "2"], ["3"], ["4"], ["5"], ["6", "6"]]
    assert [name for _, name, _ in seen] == [layer.name for layer in network().layers]
    # At the time a layer is done its operands are still there; then they go.
    assert alive == [[-1, 0], [0, 1], [1, 2], [1, 2, 3], [3, 4], [4, 5], [5, 6], [6, 7]]
    assert values == {7: "7"}


def test_all_is_kept_on_request_and_a_walk_may_start_in_the_middle() -> None:
    values = {2: "2", 1: "1"}
    for index, _, _ in walk(network(), values, first=3, keep=True):
        values[index] = str(index)
    assert sorted(values) == [1, 2, 3, 4, 5, 6, 7]


def test_an_operand_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        list(walk(network(), {}))


def test_last_uses() -> None:
    assert last_uses(network()) == {INPUT: 0, 0: 1, 1: 3, 2: 3, 3: 4, 4: 5, 5: 6, 6: 7}
