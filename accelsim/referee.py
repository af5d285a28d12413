"""When may a vote be believed, and what happens where it may not (design section 7, "Votes go wrong where ...").

The server predicts a layer from the input that it rebuilt. One wrong element there is wrong in many places a layer later,
and in a few per cent of an image's activations at the end, so votes must be right nearly always, not mostly. Four means
get there:

1. Where dot products are a few terms long, as in depthwise layers, the general-purpose processor, which is reliable, computes
   the layer itself (the *referee*) sooner than the accelerator runs it twice and the runs are compared.
2. Elsewhere more executions on the accelerator, which cost little beside the link: 2, or up to 7 the more those disagree.
3. The referee computes the elements on which too few replicas agree, one dot product each. What it computed is exact. Where
   that would be most of a layer it computes all of it.
4. Where the dot products are so long that the link is faster than the referee, such a layer's outputs are sent themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
import numpy.typing as npt

from accelsim.kernels import _pointer
from accelsim.network import Int8

Int64 = npt.NDArray[np.int64]

FIRST: Final = 2
"""Executions that every longer layer gets; how often these differ decides the rest."""
VOTING: Final = 3
"""Replicas that a vote needs, however many executions have shown where it may be believed."""
CALM: Final = 0.0003
BREEZY: Final = 0.003
WINDY: Final = 0.02
STORMY: Final = 0.08
WILD: Final = 0.17
BRIEF: Final = 16
"""MACs an output up to which the referee computes the whole layer at once: what running again and comparing takes."""

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


def rule(differing: float, macs: int, longest: int = SHORT) -> Rule | None:
    """The rule for a layer, from the share (0 to 1) of elements on which its first two executions differ.

    ``macs`` is the length of its dot products, ``longest`` what ``short`` says of the link. ``agree`` above ``executions``
    means that no agreement is believed and the referee computes the layer; None that its outputs are to be sent
    themselves. The thresholds are measured: ``python -m experiments.vote_rules`` and docs/wire.md.
    """
    if macs <= BRIEF:
        return Rule(executions=1, agree=2)
    if differing > WILD:
        return Rule(executions=FIRST, agree=FIRST + 1) if macs <= longest else None
    if differing > STORMY:
        return Rule(executions=7, agree=7)
    if differing > WINDY:
        return Rule(executions=7, agree=6)
    if differing > BREEZY:
        return Rule(executions=5, agree=4)
    if differing > CALM:
        return Rule(executions=3, agree=3)
    return Rule(executions=FIRST, agree=FIRST)


@numba.njit(cache=True, nogil=True)
def _scan(addresses: Int64, size: int, agree: int, out: Int64) -> int:
    """How many positions have fewer than ``agree`` equal values; the first ``out.size`` of them are written to ``out``."""
    count = addresses.size
    first = numba.carray(_pointer(addresses[0]), size, np.int8)
    found = 0
    block = 64
    for start in range(0, size, block):
        end = min(start + block, size)
        # Most blocks are unanimous, and this first loop is the one that is vectorised.
        differs = np.int8(0)
        for r in range(1, count):
            other = numba.carray(_pointer(addresses[r]), size, np.int8)
            for i in range(start, end):
                differs |= other[i] ^ first[i]
        if differs == 0:
            continue
        for i in range(start, end):
            same = 0
            candidate = 0
            # A value that enough replicas share is held by one of the first few.
            while same < agree and candidate <= count - agree:
                value = numba.carray(_pointer(addresses[candidate]), size, np.int8)[i]
                same = 0
                for r in range(count):
                    same += numba.carray(_pointer(addresses[r]), size, np.int8)[i] == value
                candidate += 1
            if same < agree:
                if found < out.size:
                    out[found] = i
                found += 1
    return found


def _flat(replicas: Sequence[Int8]) -> list[Int8]:
    """The replicas as rows of bytes, where they lie: a copy of all of them is more than a small device has room for."""
    size = replicas[0].size
    for i, replica in enumerate(replicas):
        if replica.dtype != np.int8 or replica.size != size:
            raise ValueError(f"referee: replica {i} is {replica.dtype} of {replica.size} elements, expected int8 of {size}")
    return [np.ascontiguousarray(replica).reshape(-1) for replica in replicas]


def _addresses(flat: Sequence[Int8]) -> Int64:
    return np.array([replica.__array_interface__["data"][0] for replica in flat], np.int64)


def unsettled(replicas: Sequence[Int8], agree: int) -> Int64:
    """Sorted flat positions (int64) at which fewer than ``agree`` of the replicas (int8, one shape) have one value.

    ``agree`` is more than half of them, so that elsewhere the median and the bitwise majority are that value.
    Raises ValueError if it is not, or where a dtype or a size differs.
    """
    if not len(replicas) < 2 * agree <= 2 * len(replicas):
        raise ValueError(f"unsettled: {agree} of {len(replicas)} is no majority")
    flat = _flat(replicas)
    addresses, size = _addresses(flat), flat[0].size
    positions = np.empty(_scan(addresses, size, agree, np.empty(0, np.int64)), np.int64)
    _scan(addresses, size, agree, positions)
    return positions


def disagreeing(replicas: Sequence[Int8]) -> float:
    """Share (0 to 1) of elements on which the replicas (int8, one shape) are not unanimous.

    Raises ValueError where a dtype or a size differs.
    """
    flat = _flat(replicas)
    return _scan(_addresses(flat), flat[0].size, len(flat), np.empty(0, np.int64)) / max(1, flat[0].size)


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """What a layer's executions came to. ``positions`` and ``values`` override the vote over ``replicas``, the first three at
    most: of two replicas wherever they differ, of one everywhere."""

    replicas: tuple[Int8, ...]
    positions: Int64 | None
    """Flat positions that the referee computed; None where it computed the whole layer."""
    values: Int8
    """Their golden outputs, flat."""
    direct: bool
    """The layer's outputs are sent themselves; there is nothing to vote on."""
    executions: int
    """How often the layer ran, in all."""


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
    replicas = list(execute(0, 1 if macs <= BRIEF else FIRST))
    chosen = rule(disagreeing(replicas), macs, longest)
    if chosen is None:
        none = np.empty(0, np.int64)
        return Settled(replicas=(replicas[0],), positions=none, values=np.empty(0, np.int8), direct=True, executions=FIRST)
    if chosen.agree > chosen.executions:
        ran = len(replicas)
        return Settled(replicas=(replicas[0],), positions=None, values=golden().reshape(-1), direct=False, executions=ran)
    if chosen.executions > FIRST:
        replicas += execute(FIRST, chosen.executions - FIRST)
    positions = unsettled(replicas, chosen.agree)
    # Many scattered dot products take longer than the layer's regular loops.
    many = 16 * len(positions) > replicas[0].size
    values = golden().reshape(-1)[positions] if many else elements(positions)
    # All but one agree elsewhere, so at least two of the first three: their vote is that of all, and the others can go.
    voting = tuple(replicas[:VOTING])
    return Settled(replicas=voting, positions=positions, values=values, direct=False, executions=len(replicas))


def refereeing(elements: int, size: int, macs: int) -> float:
    """Modelled seconds of the referee on so many scattered elements of a layer of ``size``, or on all of it if that is faster.

    ``macs`` is the length of the layer's dot products.
    """
    return min(elements * macs / MACS_PER_S, size * macs / WHOLE_MACS_PER_S)


def seconds(settled: Settled, macs: int) -> float:
    """Modelled seconds of the referee on what it computed; ``macs`` is the length of the layer's dot products."""
    return refereeing(len(settled.values), settled.replicas[0].size, macs)
