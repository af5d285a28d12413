"""When may a vote be believed, and what happens where it may not (design section 7, "Votes go wrong where ...").

The server predicts a layer from the input that it rebuilt. One wrong element there is wrong in many places a layer later,
and in a few per cent of an image's activations at the end, so votes must be right nearly always, not mostly. Three means
get there, in this order:

1. More executions on the accelerator, which cost little beside the link: 3, or 7 where the first three disagree more.
2. The referee: the general-purpose processor is reliable, and computes the elements on which too few replicas agree
   by itself, one dot product each. What it computed is exact. Where that would be most of a layer it computes all of it.
3. Where the dot products are so long that the link is faster than the referee, such a layer's outputs are sent themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
import numpy.typing as npt

from accelsim.network import Int8

Int64 = npt.NDArray[np.int64]

FIRST: Final = 3
"""Executions that every layer gets; how often these disagree decides the rest."""
CALM: Final = 0.002
STORMY: Final = 0.05
WILD: Final = 0.25

MACS_PER_S: Final = 2e9
"""Modelled speed of the referee: int8 dot products on four cores like the Cortex-A53 of the paper's board (section VI.A),
a twentieth of their arithmetic peak of 38e9 as the operands are gathered."""
WHOLE_MACS_PER_S: Final = 4e9
"""The same for whole layers, in regular loops: a tenth of the peak."""
SAVED: Final = 0.3
"""Bytes that an increment saves over the output itself where replicas disagree nearly everywhere (measured: 0.2 to 0.35)."""


def short(bits_per_s: float) -> int:
    """MACs an output up to which the referee is faster than sending what an increment would save, on such an uplink."""
    return int(SAVED * 8 / bits_per_s * WHOLE_MACS_PER_S)


SHORT: Final = short(5.76e6)
"""For HSPA, the faster of the two links that the paper evaluates."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How often a layer runs, and how many of those executions must agree on an element for it to be believed."""

    executions: int
    agree: int


def rule(disagreeing: float, macs: int, longest: int = SHORT) -> Rule | None:
    """The rule for a layer, from the share (0 to 1) of elements on which its first three executions are not unanimous.

    ``macs`` is the length of its dot products, ``longest`` what ``short`` says of the link. ``agree`` above ``executions``
    means that no agreement is believed and the referee computes the layer; None that its outputs are to be sent
    themselves. The thresholds are measured: docs/wire.md.
    """
    if disagreeing > WILD:
        return Rule(executions=3, agree=4) if macs <= longest else None
    if disagreeing > STORMY:
        return Rule(executions=7, agree=7)
    if disagreeing > CALM:
        return Rule(executions=7, agree=6)
    return Rule(executions=3, agree=3)


@numba.njit(cache=True, nogil=True)
def _scan(replicas: npt.NDArray[np.int8], agree: int, out: Int64, write: bool) -> int:
    count, size = replicas.shape
    found = 0
    block = 64
    for start in range(0, size, block):
        end = min(start + block, size)
        # Most blocks are unanimous, and this first loop is the one that is vectorised.
        differs = np.int8(0)
        for r in range(1, count):
            for i in range(start, end):
                differs |= replicas[r, i] ^ replicas[0, i]
        if differs == 0:
            continue
        for i in range(start, end):
            same = 1
            for r in range(1, count):
                same += replicas[r, i] == replicas[0, i]
            # A value that enough replicas share is held by one of the first few.
            first = 0
            while same < agree and first < count - agree:
                first += 1
                same = 0
                for r in range(count):
                    same += replicas[r, i] == replicas[first, i]
            if same < agree:
                if write:
                    out[found] = i
                found += 1
    return found


def unsettled(replicas: Sequence[Int8], agree: int) -> Int64:
    """Sorted flat positions (int64) at which fewer than ``agree`` of the replicas (int8, one shape) have one value.

    ``agree`` is more than half of them, so that elsewhere the median and the bitwise majority are that value.
    Raises ValueError if it is not.
    """
    if not len(replicas) < 2 * agree <= 2 * len(replicas):
        raise ValueError(f"unsettled: {agree} of {len(replicas)} is no majority")
    stack = np.stack([replica.reshape(-1) for replica in replicas])
    positions = np.empty(_scan(stack, agree, np.empty(0, np.int64), False), np.int64)
    _scan(stack, agree, positions, True)
    return positions


def disagreeing(replicas: Sequence[Int8]) -> float:
    """Share (0 to 1) of elements on which the replicas (int8, one shape) are not unanimous."""
    stack = np.stack([replica.reshape(-1) for replica in replicas])
    return float(_scan(stack, len(replicas), np.empty(0, np.int64), False) / max(1, stack.shape[1]))


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """What a layer's executions came to. ``positions`` and ``values`` override the vote over ``replicas``."""

    replicas: tuple[Int8, ...]
    positions: Int64 | None
    """Flat positions that the referee computed; None where it computed the whole layer."""
    values: Int8
    """Their golden outputs, flat."""
    direct: bool
    """The layer's outputs are sent themselves; there is nothing to vote on."""


def settle(
    execute: Callable[[int, int], Sequence[Int8]],
    elements: Callable[[Int64], Int8],
    golden: Callable[[], Int8],
    macs: int,
    longest: int = SHORT,
) -> Settled:
    """Runs a layer as often as it needs, and the referee on what stays open.

    ``execute(first, count)`` gives that many further executions of the layer, int8 (N, H, W, C), from replica ``first``
    on; ``elements(positions)`` and ``golden()`` are ``Engine.elements`` and ``Engine.golden`` of the same layer and input.
    ``macs`` is the length of its dot products, ``longest`` what ``short`` says of the link. Replica 0 is the actual output.
    """
    replicas = list(execute(0, FIRST))
    chosen = rule(disagreeing(replicas), macs, longest)
    if chosen is None:
        none = np.empty(0, np.int64)
        return Settled(replicas=(replicas[0],), positions=none, values=np.empty(0, np.int8), direct=True)
    if chosen.agree > chosen.executions:
        return Settled(replicas=tuple(replicas), positions=None, values=golden().reshape(-1), direct=False)
    if chosen.executions > FIRST:
        replicas += execute(FIRST, chosen.executions - FIRST)
    positions = unsettled(replicas, chosen.agree)
    # Many scattered dot products take longer than the layer's regular loops.
    many = 16 * len(positions) > replicas[0].size
    values = golden().reshape(-1)[positions] if many else elements(positions)
    return Settled(replicas=tuple(replicas), positions=positions, values=values, direct=False)


def seconds(settled: Settled, macs: int) -> float:
    """Modelled seconds of the referee on what it computed; ``macs`` is the length of the layer's dot products."""
    speed = WHOLE_MACS_PER_S if settled.positions is None else MACS_PER_S
    # Where most of a layer is open the loops over all of it are faster.
    whole = settled.replicas[0].size * macs / WHOLE_MACS_PER_S
    return min(len(settled.values) * macs / speed, whole)


def override(voted: Int8, settled: Settled) -> Int8:
    """The vote (changed in place, and returned) with the referee's values where it computed them."""
    voted.reshape(-1)[slice(None) if settled.positions is None else settled.positions] = settled.values
    return voted
