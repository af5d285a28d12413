"""What is deployed in the end: the network from before retraining, unless another is better beyond its error bars.

Networks are compared on training samples that nothing is learnt from, by how far the faulty device's class probabilities
agree with the right ones: those of the fault-free network, or the label, where labels are known. Agreement is the
sum over classes of the smaller of the two, 1 where they are alike; where each pixel has a class, the mean of that. It tells
more of an image than whether the largest class is right, so fewer images tell networks apart. Of an output that is an image it
is 1 less the root of its mean squared error in shares of the range: the higher it is, the higher is PSNR. Each network answers
the same samples under the same fault seeds, so each answer is paired with the one before.
"""

from __future__ import annotations

from math import sqrt
from typing import Final, NamedTuple, assert_never

import msgspec
import numpy as np
import numpy.typing as npt

from accelsim.int8.network import Activation, Network
from services.trainer.core import objective
from services.trainer.core.task import Task

Float32 = npt.NDArray[np.float32]
Agreement = npt.NDArray[np.float32]
"""0 to 1, by (fault seed, sample)."""

SEEDS: Final = tuple(2**52 + i for i in range(5))
"""Fault seeds of the comparison: no training or evaluation has them."""
ERRORS: Final = 1.0
"""Standard errors by which a network must be better than the one before."""
BEFORE: Final = "before"
CORRECTED: Final = "corrected"


class Candidate(msgspec.Struct, kw_only=True, frozen=True):
    """A network that was tried. Numbers are per cent of full agreement, and points of it."""

    name: str
    """``before``, ``corrected``, or ``iteration N``."""
    agreement: float
    gain: float = 0.0
    """Over the one before retraining."""
    error: float = 0.0
    """Standard error of the gain, of fault seeds and of samples together."""


class Selection(msgspec.Struct, kw_only=True, frozen=True):
    """How it was decided what is deployed."""

    samples: int
    against: str
    """``labels``, ``targets``, or ``fault-free answers``."""
    candidates: list[Candidate]
    """The network from before retraining is the first."""
    deployed: str
    """Name of the candidate that is."""


class Tried(NamedTuple):
    """The candidates so far, and what it takes to choose among them."""

    candidates: list[Candidate]
    truth: Float32
    """The right outputs: probabilities (N, classes), or of each pixel (N, H, W, classes), or images (N, H, W, C)."""
    before: Agreement
    best: Network
    """The one that agrees most."""
    best_name: str
    agreement: Agreement
    """Of the best."""


def agreement(task: Task, network: Network, outputs: Activation, truth: Float32) -> Float32:
    """How far a network's outputs (N, H, W, C) agree with the right ones, of the shape of ``Tried.truth``; (N,)."""
    kind = objective.kind_of(task, network)
    match kind:
        case "classes":
            return alike(network, outputs, truth)
        case "masks":
            shared = np.minimum(objective.probabilities(network, outputs, 1.0), truth).sum(axis=-1)
            return np.asarray(shared.mean(axis=(1, 2), dtype=np.float64), np.float32)
        case "pixels":
            error = (objective.real(network, outputs) - truth) / objective.span(task)
            root = np.sqrt(np.square(error).mean(axis=(1, 2, 3), dtype=np.float64))
            return np.asarray(np.maximum(1 - root, 0), np.float32)
        case _:
            assert_never(kind)


def alike(network: Network, outputs: Activation, truth: Float32) -> Float32:
    """What the class probabilities of outputs (N, 1, 1, classes) share with the right ones (N, classes): 0 to 1, (N,)."""
    return np.asarray(np.minimum(objective.probabilities(network, outputs, 1.0), truth).sum(axis=1), np.float32)


def against(task: Task) -> str:
    """What agreement is with, in words."""
    if task.labels not in ("device", "server"):
        return "fault-free answers"
    return "targets" if task.output_range is not None else "labels"


def first(network: Network, truth: Float32, found: Agreement) -> Tried:
    """The network from before retraining."""
    return Tried([Candidate(name=BEFORE, agreement=_percent(found))], truth, found, network, BEFORE, found)


def further(tried: Tried, name: str, network: Network, found: Agreement) -> Tried:
    """One candidate more; among equal ones the later is the better, as it has learnt more."""
    gain, error = gained(tried.before, found)
    candidates = [*tried.candidates, Candidate(name=name, agreement=_percent(found), gain=gain, error=error)]
    if _percent(found) >= _percent(tried.agreement):
        return Tried(candidates, tried.truth, tried.before, network, name, found)
    return tried._replace(candidates=candidates)


def is_better(tried: Tried) -> bool:
    """Whether the best candidate is better than the network from before, beyond its error bars."""
    gain, error = gained(tried.before, tried.agreement)
    return gain > ERRORS * error


def gained(before: Agreement, after: Agreement) -> tuple[float, float]:
    """Points gained and their standard error: the samples' and, on top of it, the fault seeds' (both paired)."""
    gains = 100 * (after.astype(np.float64) - before)
    seeds, samples = gains.shape
    of_samples = gains.mean(axis=0).var(ddof=1) / samples if samples > 1 else 0.0
    of_seeds = gains.mean(axis=1).var(ddof=1) / seeds if seeds > 1 else 0.0
    return float(gains.mean()), sqrt(of_samples + of_seeds)


def _percent(found: Agreement) -> float:
    return 100 * float(found.mean(dtype=np.float64))
