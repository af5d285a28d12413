"""What retraining does to one chip, measured stop by stop: the raw material of the table, and of every way to choose an
amount."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from accelsim.datasets import Dataset
from accelsim.faults import chip as chips
from accelsim.faults.mapping import Saliency, lost, mapped
from accelsim.faults.permanent import FaultMap
from accelsim.faults.pruning import Kept, faulty, kept
from accelsim.int8 import storage
from accelsim.int8.network import Network, UInt8
from r2f import inprocess
from r2f.reduce.retraining import networks
from services.scheme import Scheme
from services.trainer.core import evaluation
from services.trainer.core.job import Job

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

DIRECT = Scheme(codec="direct")
"""What crosses a link makes no difference to what a device computes."""


class Images(NamedTuple):
    """Images (N, H, W, C) uint8 by which a chip is judged, and their labels (N,)."""

    images: UInt8
    labels: Int64


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """How accurate a chip is at one stop."""

    iterations: Annotated[int, Meta(ge=0, le=10**9)]
    accuracy: Annotated[float, Meta(ge=0, le=100)]
    """Top-1 in per cent, on average over the fault seeds where there are soft errors."""
    error: Annotated[float, Meta(ge=0, le=100)]
    """Standard error, in points, of what it has lost against the healthy network: the images are the same, so only those count
    that one of the two gets wrong and the other right."""


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """One chip from before retraining to the last stop that was asked for."""

    chip: str
    """Digest of its map (``accelsim.faults.chip.digest``)."""
    name: str
    rate: Annotated[float, Meta(ge=0, le=1)]
    """Share of its processing elements that are faulty."""
    damage: float
    """What of the network's saliency its map takes, with channels where they then lie (``accelsim.faults.mapping.lost``)."""
    points: tuple[Point, ...]
    """By rising iterations."""
    seconds: float = 0.0
    """Processor time of training, without evaluations."""


class Placed(NamedTuple):
    """A network as it lies on a chip, the weights that stay, and what of the saliency is lost."""

    network: Network
    """The same function as without the chip's faults, in an order that suits the chip where it was mapped."""
    kept: Kept
    damage: float


def placed(network: Network, faults: FaultMap, saliency: Saliency, *, mapping: bool) -> Placed:
    """The network on a chip whose faulty elements are bypassed: in its own order, or, with ``mapping``, in the least
    harmful."""
    own = saliency
    if mapping:
        network, order = mapped(network, faults, saliency)
        own = {
            index: saliency[index][order[index]]
            if layer.groups > 1
            else saliency[index][order[index]][:, order[layer.inputs[0]]]
            for index, layer in network.convs()
        }
    return Placed(network, kept(network, faults), lost(network, faults, own))


def rate_of(faults: FaultMap) -> float:
    """Share of a chip's processing elements that are faulty."""
    return float(faulty(faults).mean())


def right(network: Network, job: Job, judged: Images) -> Bool:
    """Which images a network gets right under the job's soft errors: (fault seeds, N)."""
    seeds = evaluation.seeds_of(job.rates, job.evaluation_seeds)
    outputs = inprocess.outputs(
        network, judged.images, job.rates, seeds, scheme=DIRECT, device=job.device, batch=job.evaluation_batch
    )  # fmt: skip
    return np.stack([y.reshape(len(y), -1).argmax(axis=1) == judged.labels for y in outputs])


def point(iterations: int, found: Bool, healthy: Bool) -> Point:
    """A stop's point from which images (seeds, N) are right there, and which the healthy network gets right (seeds, N)."""
    change = found.mean(axis=0) - healthy.mean(axis=0)
    error = float(change.std(ddof=1)) / sqrt(len(change)) if len(change) > 1 else 0.0
    return Point(iterations=iterations, accuracy=100 * float(found.mean()), error=100 * error)


def courses(
    network: Network,
    faults: FaultMap,
    saliency: Saliency,
    data: Dataset,
    job: Job,
    stops: Sequence[int],
    judges: Sequence[Images],
    *,
    mapping: bool = False,
) -> Iterator[tuple[Network, tuple[Course, ...]]]:
    """The chip's network at each stop, and its course so far as each of ``judges`` sees it.

    Whoever has seen enough stops asking, and nothing further is computed. Raises what ``networks`` raises.
    """
    on_chip = placed(network, faults, saliency, mapping=mapping)
    healthy = [right(network, job, judged) for judged in judges]
    points: list[tuple[Point, ...]] = [() for _ in judges]
    seconds = 0.0
    begin = time.process_time()
    for stop, found in networks(on_chip.network, on_chip.kept, data, job, stops):
        seconds += time.process_time() - begin
        points = [
            (*before, point(stop, right(found, job, judged), answers))
            for before, judged, answers in zip(points, judges, healthy, strict=True)
        ]
        yield found, tuple(
            Course(
                chip=chips.digest(faults), name=faults.name, rate=rate_of(faults), damage=on_chip.damage,
                points=own, seconds=round(seconds, 2),
            )
            for own in points
        )  # fmt: skip
        begin = time.process_time()


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A chip that was given an amount of retraining."""

    chip: str
    iterations: int
    sha256: str
    """Of the int8 network for it (``accelsim.int8.storage.digest``)."""
    accuracy: float
    error: float


def retrained(
    network: Network,
    faults: FaultMap,
    saliency: Saliency,
    data: Dataset,
    job: Job,
    amount: int,
    judged: Images,
    *,
    mapping: bool = False,
) -> tuple[Network, Result]:
    """The network for one chip behind ``amount`` iterations: as the course has it at that stop, to the bit."""
    for found, (own,) in courses(network, faults, saliency, data, job, [amount], [judged], mapping=mapping):
        last = own.points[-1]
        return found, Result(
            chip=own.chip, iterations=amount, sha256=storage.digest(found), accuracy=last.accuracy, error=last.error
        )  # fmt: skip
    raise AssertionError("a course has as many points as stops")
