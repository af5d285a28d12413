"""Fault-aware pruning: every faulty element bypassed, so that the weights that land on it are 0 (FAP; Zhang, Gu, Basu and Garg,
"Analyzing and mitigating the impact of permanent faults on a systolic array based neural network accelerator", VTS 2018).

A stuck bit sits where it can do most harm; a missing product is one that a network can learn to do without. FAP needs nothing
of the array but the bypass, and costs no time there. What is left of each layer is told by ``kept``, which retraining (FAP+T)
holds to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from accelsim.faults.permanent import Fault, FaultMap, fault_map, faulty_network, faulty_weights
from accelsim.int8.network import Conv, Network

Bool = npt.NDArray[np.bool_]
Kept = Mapping[int, Bool]
"""Index of each MAC layer: which weights (O, I/groups, R, S) lie in sound elements."""


def faulty(faults: FaultMap) -> Bool:
    """Elements (R, C) with any fault."""
    found = np.zeros((faults.array.rows, faults.array.columns), np.bool_)
    for fault in faults.faults:
        found[fault.row, fault.column] = True
    return found


def bypassed(faults: FaultMap) -> FaultMap:
    """The same array with every faulty element bypassed, each named once."""
    places = np.argwhere(faulty(faults))
    return fault_map(faults.array, [Fault(int(row), int(column), "bypass") for row, column in places])


def kept(network: Network, faults: FaultMap) -> dict[int, Bool]:
    """The weights of each MAC layer that FAP leaves."""
    around = bypassed(faults)
    return {index: _kept(layer, around) for index, layer in network.convs()}


def pruned(network: Network, faults: FaultMap) -> Network:
    """The network as FAP leaves it: what an array runs whose faulty elements are bypassed."""
    return faulty_network(network, bypassed(faults))


def _kept(conv: Conv, around: FaultMap) -> Bool:
    # What a bypassed element holds is 0 whatever is loaded, so ones show which elements are not.
    ones = replace(conv, weight=np.ones_like(conv.weight))
    held: Bool = faulty_weights(ones, around) != 0
    return held
