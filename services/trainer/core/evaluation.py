"""How accurate a faulty device is: which samples it runs, under which fault seeds, and how many answers are right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from accelsim.faults import Rates
from accelsim.int8.network import Activation, Float32

Int64 = npt.NDArray[np.int64]

TOP: Final = 5
"""The second number that is measured: whether the label is among so many largest outputs."""
FIRST: Final = 1 << 30
"""Iteration numbers from here on are evaluations', so that their faults and events are never a training's."""
PLAIN_VERSION: Final = 1 << 30
"""Of the network in the paper's arithmetic, out of the way of those of training."""


class Evaluation(msgspec.Struct, kw_only=True, frozen=True):
    """Accuracy on ``samples`` held-out images in per cent, one number a fault seed."""

    samples: int
    top1: list[float]
    top5: list[float] = []
    """Empty where the network has no more than five classes: all answers are among five."""


class Counts(NamedTuple):
    """Right answers among ``samples``. ``top5`` is None where the network has no more than five classes."""

    samples: int
    top1: int
    top5: int | None


class Pass(NamedTuple):
    """One forward pass of an evaluation."""

    run: int
    """Which of the seeds it is of, from 0."""
    seed: int
    """Of its faults."""
    iteration: int
    samples: Int64


def seeds_of(rates: Rates, seeds: Sequence[int]) -> Sequence[int]:
    """The fault seeds that tell anything apart: the first alone where there are no faults."""
    return seeds if rates != Rates() else seeds[:1]


def passes(samples: Int64, seeds: Sequence[int], batch: int) -> Iterator[Pass]:
    """The passes of an evaluation in order: all samples under the first seed, ``batch`` at a time, then the next seed."""
    for run, seed in enumerate(seeds):
        for number, start in enumerate(range(0, len(samples), batch)):
            yield Pass(run, seed, FIRST + number, samples[start : start + batch])


def pass_of(iteration: int) -> int | None:
    """Which pass of its seed an iteration's number is of, from 1; None where it is a training's."""
    return iteration - FIRST + 1 if iteration >= FIRST else None


def count(outputs: Activation | Float32, labels: Int64) -> Counts:
    """How many of the labels (N,) the outputs (N, 1, 1, C) answer with. Among equal outputs the lowest class comes first.

    Raises ValueError where they are not of one length, or a label is no class of the network's.
    """
    rows = outputs.reshape(len(outputs), -1)
    classes = rows.shape[1]
    if labels.shape != (len(rows),):
        raise ValueError(f"evaluation: labels of shape {labels.shape} for {len(rows)} outputs")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"evaluation: labels run from {labels.min()} to {labels.max()}, the network has {classes} classes")
    if not np.isfinite(rows).all():
        raise ValueError("evaluation: outputs are not finite numbers; the network itself is broken")
    own = rows[np.arange(len(rows)), labels][:, None]
    before = (rows > own) | ((rows == own) & (np.arange(classes) < labels[:, None]))
    rank = before.sum(axis=1)
    return Counts(len(rows), int((rank < 1).sum()), int((rank < TOP).sum()) if classes > TOP else None)


def accuracy(counts: Sequence[Sequence[Counts]]) -> Evaluation:
    """The evaluation that some passes, a sequence for each seed, come to."""
    samples = 0
    top1: list[float] = []
    top5: list[float] = []
    for of_seed in counts:
        samples = sum(found.samples for found in of_seed)
        top1.append(100 * sum(found.top1 for found in of_seed) / samples)
        five = [found.top5 for found in of_seed if found.top5 is not None]
        if five:
            top5.append(100 * sum(five) / samples)
    return Evaluation(samples=samples, top1=top1, top5=top5)
