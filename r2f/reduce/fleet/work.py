"""What one job of a fleet is: a chip, the stops at which it is judged, and what all chips share."""

from __future__ import annotations

import functools
import hashlib
import socket
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import Meta

import accelsim
import r2f
import services
from accelsim import datasets
from accelsim.datasets import Dataset, Spec, spread
from accelsim.faults import chip as chips
from accelsim.faults.mapping import Saliency, magnitude
from accelsim.faults.permanent import FaultMap
from accelsim.int8 import storage
from accelsim.int8.network import Network
from r2f.reduce.amounts import reached
from r2f.reduce.course import Course, Images, courses, placed, rate_of
from services.trainer.core.job import Job


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """What every job of a fleet takes. It is sent to a worker once; the data are not: each worker reads them by their path."""

    network: bytes
    """``accelsim.int8.storage.to_bytes``."""
    data: Spec
    images: str
    """Digest of the data (``accelsim.datasets.Dataset.sha256``)."""
    job: Job
    mapping: bool
    code: str
    """Digest of the R2F that sends it (``code``)."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One chip's job."""

    name: str
    chip: bytes
    """``accelsim.faults.chip.packed``."""
    stops: tuple[Annotated[int, Meta(ge=0)], ...]
    """Ascending; where there are none, nothing is run and the course only says what of the saliency is lost."""
    until: float | None = None
    """Accuracy, in per cent, at which it ends before the last stop."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one chip."""

    course: Course
    network: bytes = b""
    """Behind the course's last point, as ``accelsim.int8.storage.to_bytes``; empty where nothing was run."""
    failed: str = ""
    """Why there is no network, where the chip cannot be retrained."""


class _Subject(NamedTuple):
    network: Network
    saliency: Saliency
    data: Dataset
    judged: Images


def work(shared: bytes, order: Order) -> Done:
    """Runs one order; ``shared`` is a packed ``Shared``. What fails for this chip, or for the data at this worker, is in
    ``Done.failed``, so that other chips go on."""
    common = msgspec.msgpack.decode(shared, type=Shared)
    faults = chips.unpacked(order.chip, order.name)
    course = Course(chip=chips.digest(faults), name=faults.name, rate=rate_of(faults), damage=0.0, points=())
    try:
        subject = _subject(shared)
        if not order.stops:
            damage = placed(subject.network, faults, subject.saliency, mapping=common.mapping).damage
            return Done(course=msgspec.structs.replace(course, damage=damage))
        network, course = _retrained(subject, faults, common, order)
    except (ValueError, OSError) as error:
        return Done(course=course, failed=" ".join(str(error).split()))
    return Done(course=course, network=storage.to_bytes(network))


def _retrained(subject: _Subject, faults: FaultMap, common: Shared, order: Order) -> tuple[Network, Course]:
    found = courses(
        subject.network, faults, subject.saliency, subject.data, common.job, order.stops, [subject.judged],
        mapping=common.mapping,
    )  # fmt: skip
    network, (course,) = next(found)
    corrections = common.job.recipe.corrections
    while order.until is None or reached(course, order.until, least=corrections) is None:
        further = next(found, None)
        if further is None:
            break
        network, (course,) = further
    return network, course


def opened(spec: Spec, sha256: str) -> Dataset:
    """The data that a plan was made for. Raises DataError, or ValueError where they are others."""
    data = datasets.open(spec)
    found = data.sha256()
    if found != sha256:
        raise ValueError(
            f"{data.name}: these are other images or labels than the plan's: sha256 {found[:16]}..., not {sha256[:16]}...; "
            "give every machine the same data at this path, or plan anew"
        )
    return data


def judged_of(data: Dataset, job: Job) -> Images:
    """The held-out images by which chips are judged: those of ``r2f resilience``."""
    places = spread(job.evaluation_samples, len(data.test_images))
    return Images(data.test_images[places], data.test_labels[places])


def digest(shared: Shared, order: Order) -> str:
    """All that a chip's network depends on, but R2F's own code and where the data lie: what a result is known by."""
    network = hashlib.sha256(shared.network).hexdigest()
    return hashlib.sha256(msgspec.json.encode((network, shared.images, shared.job, shared.mapping, order))).hexdigest()


@functools.cache
def code() -> str:
    """SHA-256 of the source of R2F's packages and the versions of the libraries that learn: workers must have the same."""
    of = hashlib.sha256(repr((np.__version__, torch.__version__.partition("+")[0])).encode())
    for package in (accelsim, services, r2f):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            of.update(f"{package.__name__}/{path.relative_to(root).as_posix()}\0".encode())
            of.update(path.read_bytes())
    return of.hexdigest()


@functools.lru_cache(maxsize=1)
def _subject(shared: bytes) -> _Subject:
    common = msgspec.msgpack.decode(shared, type=Shared)
    if common.code != code():
        raise ValueError(
            f"{socket.gethostname()}: the worker's R2F, NumPy or PyTorch is another than the command's ("
            f"digest {code()[:16]}..., not {common.code[:16]}...), and would make another model; install the same there"
        )
    network = storage.from_bytes(common.network)
    data = opened(common.data, common.images)
    data.check(network)
    return _Subject(network, magnitude(network), data, judged_of(data, common.job))
