"""What is deployed in the end: the network from before retraining, unless another is better beyond its error bars.

Networks are compared on training samples that nothing is learnt from, by the share of right answers of the faulty device:
right is the label, where labels are known, else the fault-free network's answer. Each network answers the same samples under
the same fault seeds, so each answer is paired with the one before.
"""

from __future__ import annotations

from math import sqrt
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from accelsim.int8.network import Network

Int64 = npt.NDArray[np.int64]
Right = npt.NDArray[np.uint8]
"""1 where an answer is right, by (fault seed, sample)."""

SEEDS: Final = tuple(2**52 + i for i in range(3))
"""Fault seeds of the comparison: no training or evaluation has them."""
ERRORS: Final = 2.0
"""Standard errors by which a network must be better than the one before."""
BEFORE: Final = "before"


class Candidate(msgspec.Struct, kw_only=True, frozen=True):
    """A network that was tried. Numbers are per cent of ``samples`` answers under each fault seed, and points of it."""

    name: str
    """``before``, ``corrected``, or ``iteration N``."""
    right: float
    gain: float = 0.0
    """Over the one before retraining."""
    error: float = 0.0
    """Standard error of the gain, of fault seeds and of samples together."""


class Selection(msgspec.Struct, kw_only=True, frozen=True):
    """How it was decided what is deployed."""

    samples: int
    against: str
    """``labels``, or ``fault-free answers``."""
    candidates: list[Candidate]
    """The network from before retraining is the first."""
    deployed: str
    """Name of the candidate that is."""


class Tried(NamedTuple):
    """The candidates so far, and what it takes to choose among them."""

    candidates: list[Candidate]
    truth: Int64
    """The right answers (N,)."""
    before: Right
    best: Network
    """The one with the most right answers."""
    best_name: str
    right: Right
    """Of the best."""


def first(network: Network, truth: Int64, right: Right) -> Tried:
    """The network from before retraining."""
    return Tried([Candidate(name=BEFORE, right=_percent(right))], truth, right, network, BEFORE, right)


def further(tried: Tried, name: str, network: Network, right: Right) -> Tried:
    """One candidate more; among equal ones the later is the better, as it has learnt more."""
    gain, error = gained(tried.before, right)
    candidates = [*tried.candidates, Candidate(name=name, right=_percent(right), gain=gain, error=error)]
    if _percent(right) >= _percent(tried.right):
        return Tried(candidates, tried.truth, tried.before, network, name, right)
    return tried._replace(candidates=candidates)


def is_better(tried: Tried) -> bool:
    """Whether the best candidate is better than the network from before, beyond its error bars."""
    gain, error = gained(tried.before, tried.right)
    return gain > ERRORS * error


def gained(before: Right, after: Right) -> tuple[float, float]:
    """Points gained and their standard error: the samples' and, on top of it, the fault seeds' (both paired)."""
    gains = 100 * (after.astype(np.float64) - before)
    seeds, samples = gains.shape
    of_samples = gains.mean(axis=0).var(ddof=1) / samples if samples > 1 else 0.0
    of_seeds = gains.mean(axis=1).var(ddof=1) / seeds if seeds > 1 else 0.0
    return float(gains.mean()), sqrt(of_samples + of_seeds)


def _percent(right: Right) -> float:
    return 100 * float(right.mean())
