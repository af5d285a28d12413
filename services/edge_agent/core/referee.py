"""When may a vote be believed, and what happens where it may not (architecture.md, "The link").

The server predicts a layer from the input that it rebuilt. One wrong element there is wrong in many places a layer later,
and in a few per cent of an image's activations at the end, so votes must be right nearly always, not mostly. Four means
get there:

1. Where dot products are a few terms long, as in depthwise layers, the general-purpose processor, which is reliable, computes
   the layer itself (the *referee*) sooner than the accelerator runs it twice and the runs are compared.
2. Elsewhere more executions on the accelerator, which cost little beside the link: 2, or up to 11 the more those differ.
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

from accelsim.int8.network import Activation, UInt8

Int64 = npt.NDArray[np.int64]

FIRST: Final = 2
"""Executions that every longer layer gets; how often these differ decides the rest."""
VOTING: Final = 3
"""Replicas that a vote needs, however many executions have shown where it may be believed: all but one agree there, so that at
least two of the first three do."""
HELD: Final = 7
"""The most arrays of a layer's size that settling it holds at once."""
CALM: Final = 0.0003
BREEZY: Final = 0.003
WINDY: Final = 0.01
GUSTY: Final = 0.04
STORMY: Final = 0.07
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
        return Rule(executions=11, agree=10)
    if differing > GUSTY:
        return Rule(executions=9, agree=8)
    if differing > WINDY:
        return Rule(executions=7, agree=6)
    if differing > BREEZY:
        return Rule(executions=5, agree=4)
    if differing > CALM:
        return Rule(executions=3, agree=3)
    return Rule(executions=FIRST, agree=FIRST)


@numba.njit(cache=True, nogil=True)
def _dissent(replica: Activation, candidate: Activation, dissents: UInt8) -> None:
    """Count where a replica differs from what is to be believed."""
    for i in range(candidate.size):
        dissents[i] += replica[i] != candidate[i]


@numba.njit(cache=True, nogil=True)
def _third(second: Activation, third: Activation, candidate: Activation, dissents: UInt8) -> None:
    """The same for the third, with which two may outvote the first, the candidate so far: one dissents all the same."""
    for i in range(candidate.size):
        if third[i] != candidate[i]:
            if third[i] == second[i]:
                candidate[i] = third[i]
            else:
                dissents[i] += 1


def _flat(replicas: Sequence[Activation], size: int) -> list[Activation]:
    """The replicas as rows of bytes, where they lie. Raises ValueError where a dtype or a size differs."""
    dtype = replicas[0].dtype
    for i, replica in enumerate(replicas):
        if dtype not in (np.int8, np.uint8) or replica.dtype != dtype or replica.size != size:
            raise ValueError(
                f"referee: execution {i} is {replica.dtype} of {replica.size} elements, expected int8 or uint8 alike, of {size}"
            )
    return [np.ascontiguousarray(replica).reshape(-1) for replica in replicas]


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """What a layer's executions came to. ``positions`` and ``values`` override the vote over ``replicas``, the first three at
    most: of two replicas wherever they differ, of one everywhere."""

    replicas: tuple[Activation, ...]
    positions: Int64 | None
    """Flat positions that the referee computed; None where it computed the whole layer."""
    values: Activation
    """Their fault-free outputs, flat."""
    direct: bool
    """The layer's outputs are sent themselves; there is nothing to vote on."""
    executions: int
    """How often the layer ran, in all."""


def settle(
    execute: Callable[[int, int], Sequence[Activation]],
    elements: Callable[[Int64], Activation],
    fault_free: Callable[[], Activation],
    macs: int,
    longest: int = SHORT,
) -> Settled:
    """Runs a layer as often as it needs, and the referee on what stays open.

    ``execute(first, count)`` gives that many further executions of the layer, each (N, H, W, C), from replica ``first``
    on; ``elements(positions)`` and ``fault_free()`` are the engine's of the same layer and input. ``macs`` is
    the length of its dot products, ``longest`` what ``short`` says of the link. Replica 0 is the actual output.
    """
    if macs <= BRIEF:
        return Settled(
            replicas=tuple(execute(0, 1)), positions=None, values=fault_free().reshape(-1), direct=False, executions=1
        )
    replicas = list(execute(0, FIRST))
    shape, size = replicas[0].shape, replicas[0].size
    flat = _flat(replicas, size)
    candidate, dissents = flat[0].copy(), np.zeros(size, np.uint8)
    _dissent(flat[1], candidate, dissents)
    chosen = rule(np.count_nonzero(dissents) / max(1, size), macs, longest)
    if chosen is None:
        none = np.empty(0, np.int64)
        return Settled(
            replicas=(replicas[0],), positions=none, values=replicas[0].reshape(-1)[:0].copy(), direct=True, executions=FIRST
        )
    if chosen.agree > chosen.executions:
        values = fault_free().reshape(-1)
        return Settled(replicas=(replicas[0],), positions=None, values=values, direct=False, executions=FIRST)
    ran = FIRST
    while ran < chosen.executions:
        # The candidates and the count of dissents are as large as a replica each.
        count = min(chosen.executions - ran, HELD - 2 - len(replicas))
        more = execute(ran, count)
        if len(more) != count:
            raise ValueError(f"referee: asked for {count} executions from {ran} on, got {len(more)}")
        ran += count
        others = _flat(more, size)
        if len(replicas) < VOTING:
            _third(flat[1], others[0], candidate, dissents)
            replicas.append(more[0].reshape(shape))
            others = others[1:]
        for other in others:
            _dissent(other, candidate, dissents)
    positions = np.flatnonzero(dissents > chosen.executions - chosen.agree)
    # Many scattered dot products take longer than the layer's regular loops.
    many = 16 * len(positions) > size
    values = fault_free().reshape(-1)[positions] if many else elements(positions)
    return Settled(replicas=tuple(replicas), positions=positions, values=values, direct=False, executions=ran)


def refereeing(elements: int, size: int, macs: int) -> float:
    """Modelled seconds of the referee on so many scattered elements of a layer of ``size``, or on all of it if that is faster.

    ``macs`` is the length of the layer's dot products.
    """
    return min(elements * macs / MACS_PER_S, size * macs / WHOLE_MACS_PER_S)


def seconds(settled: Settled, macs: int) -> float:
    """Modelled seconds of the referee on what it computed; ``macs`` is the length of the layer's dot products."""
    return refereeing(len(settled.values), settled.replicas[0].size, macs)
