"""Which weights fault-aware pruning drops, against the tiling counted one weight at a time."""

from __future__ import annotations

import numpy as np
import pytest

from accelsim.accelerators import Simulated
from accelsim.engine import Engine
from accelsim.faults import chip, pruning
from accelsim.faults.permanent import Fault, fault_map
from accelsim.int8.network import Conv, Network
from accelsim.timing import Array
from tests.accelsim.faults.networks import mixed

ARRAY = Array(rows=6, columns=5)


@pytest.fixture(scope="module")
def network() -> Network:
    return mixed()


def naive(conv: Conv, bad: set[tuple[int, int]]) -> np.ndarray:
    """Weight (n, c, r, s) of a group lies in row ((r S + s) I + c) mod R and column n mod C."""
    count, depth, _, width = conv.weight.shape
    stays = np.ones(conv.weight.shape, bool)
    for n, c, r, s in np.ndindex(*conv.weight.shape):
        k = (r * width + s) * depth + c
        stays[n, c, r, s] = (k % ARRAY.rows, n % (count // conv.groups) % ARRAY.columns) not in bad
    return stays


def test_what_is_kept_is_what_lies_in_sound_elements(network: Network) -> None:
    faults = chip.random_map(ARRAY, 0.2, seed=3)
    bad = {(fault.row, fault.column) for fault in faults.faults}
    found = pruning.kept(network, faults)
    assert len(bad) == 6
    assert set(found) == {index for index, _ in network.convs()}
    for index, conv in network.convs():
        assert np.array_equal(found[index], naive(conv, bad))


def test_pruned_is_what_an_array_with_bypasses_computes(network: Network) -> None:
    faults = chip.random_map(ARRAY, 0.2, seed=3, kinds=("weight", "bypass"))
    x = np.random.default_rng(0).integers(-128, 128, (2, *network.input_shape), np.int8)
    device = Simulated(permanent=pruning.bypassed(faults))
    device.load(network)
    pruned = pruning.pruned(network, faults)
    for ours, its in zip(Engine(pruned).run(x), device.run(x), strict=True):
        assert np.array_equal(ours, its)
    for index, conv in network.convs():
        after = next(layer for at, layer in pruned.convs() if at == index)
        assert np.array_equal(after.weight, conv.weight * pruning.kept(network, faults)[index])


def test_several_faults_of_one_element_are_one_bypass() -> None:
    listed = [Fault(1, 2, "weight", 0, 1), Fault(1, 2, "accumulator", 3, 0), Fault(0, 0, "bypass")]
    around = pruning.bypassed(fault_map(ARRAY, listed))
    assert around.faults == (Fault(0, 0, "bypass"), Fault(1, 2, "bypass"))
    assert int(pruning.faulty(around).sum()) == 2
