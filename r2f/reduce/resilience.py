"""``r2f resilience``: how accuracy depends on the share of faulty elements and on the amount of retraining (Reduce, step 1).

Random chips of each rate are retrained as far as the largest amount and judged at each. What was measured is kept in the
folder, a line a chip under a digest of all that it depends on but R2F's own code, so a measurement that was stopped goes on,
and one with more rates or maps adds to it.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import torch

from accelsim import datasets
from accelsim.datasets import Dataset, spread
from accelsim.faults import chip as chips
from accelsim.faults.mapping import magnitude
from accelsim.faults.permanent import FaultMap
from accelsim.files import read_lines, write_whole
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.timing import Array
from accelsim.timing.scalesim import read_config
from r2f import prepare
from r2f import settings as settings_file
from r2f.display import Display
from r2f.folders import locked
from r2f.reduce.amounts import Table
from r2f.reduce.course import Course, Images, courses, right
from r2f.reduce.retraining import job_of
from r2f.settings import Settings, SettingsError
from services.trainer.core import recipe
from services.trainer.core.job import Job

FILE: Final = "resilience.json"
KEPT: Final = "courses.jsonl"
MOST: Final = 100_000
"""The largest amount, in iterations."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the command's own options say."""

    rates: tuple[float, ...]
    """Shares of faulty elements, above 0 and at most 1."""
    maps: int
    """Random chips of each rate."""
    amounts: tuple[str, ...]
    """Iterations, or with an ``e`` epochs, of retraining behind which a chip is judged."""
    mapping: bool = False
    chip_seed: int = 1
    """The first of the random chips' seeds."""
    jobs: int = 1
    """Chips at a time, a process each."""


class Subject(NamedTuple):
    """What all chips of a table share."""

    network: Network
    data: Dataset
    job: Job
    stops: tuple[int, ...]
    judged: Images
    mapping: bool


_Tell = Callable[[int, str], None]
"""Of chips that are done, and a word on the last."""


class _Line(msgspec.Struct):
    key: str
    course: Course


def measure(settings: Settings, asked: Asked, out: Path, say: Display) -> Table:
    """The table, left in ``out``. Raises ValueError that names what does not fit."""
    settings = settings_file.resolved(settings)
    prepare.check(settings)
    array = Array() if settings.array is None else read_config(Path(settings.array))
    # Before anything is trained, when how many iterations an epoch has is not known yet.
    for text in asked.amounts:
        iterations(text, 1)
    if not any(float(text.removesuffix("e")) for text in asked.amounts):
        raise SettingsError("--amounts: give at least one above 0")
    maps = list(drawn(asked, array))
    data = datasets.open(settings.data)
    module = prepare.float_module(settings, data, say)
    with say.step("quantising to int8"):
        network = prepare.lowered(settings, data, module)
    data.check(network)
    subject = subject_of(settings, network, data, asked)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        clean = 100 * float(right(network, subject.job, subject.judged).mean())
        with say.counting("retraining chips") as tell:
            found = _measured(subject, maps, settings, asked.jobs, out / KEPT, lambda n, text: tell(n, len(maps), text))
        table = Table(
            network=network.name,
            sha256=storage.digest(network),
            data=data.sha256(),
            rows=array.rows,
            columns=array.columns,
            mapping=asked.mapping,
            job=subject.job,
            an_epoch=recipe.plan(subject.job, len(data.train_images)).an_epoch,
            images=len(subject.judged.images),
            clean=clean,
            courses=tuple(found),
        )
        write_whole(out / FILE, msgspec.json.format(msgspec.json.encode(table)) + b"\n")
    return table


def read(path: Path) -> Table:
    """A table that ``measure`` wrote. Raises ValueError that names the file and what is wrong."""
    try:
        table = msgspec.json.decode(path.read_bytes(), type=Table)
    except (OSError, msgspec.MsgspecError) as error:
        raise ValueError(f"{path}: {error}; expected a table that r2f resilience wrote") from error
    if not table.courses or not all(course.points for course in table.courses):
        raise ValueError(f"{path}: courses: a table without measured chips says nothing; measure it with r2f resilience")
    stops = [[point.iterations for point in course.points] for course in table.courses]
    for course, own in zip(table.courses, stops, strict=True):
        if own != sorted(set(own)) or own[0] != 0 or own != stops[0]:
            raise ValueError(
                f"{path}: courses: {course.name} was measured behind {own} iterations, the first chip behind {stops[0]}; they "
                "rise from 0 on, and are the same for all"
            )
    return table


def of_network(table: Table, network: Network, path: Path) -> None:
    """Raises ValueError, which names the table's file, where it is of another network."""
    found = storage.digest(network)
    if found != table.sha256:
        raise ValueError(
            f"{path}: it is of another network: {table.network} with sha256 {table.sha256[:16]}..., and this is {network.name} "
            f"with {found[:16]}...; measure this one with r2f resilience"
        )


def subject_of(settings: Settings, network: Network, data: Dataset, asked: Asked) -> Subject:
    """What all chips share. Raises SettingsError for amounts that are none."""
    size = recipe.plan(job_of(settings, network, data, 1), len(data.train_images)).an_epoch
    stops = _amounts(asked, size)
    places = spread(settings.evaluation_samples, len(data.test_images))
    judged = Images(data.test_images[places], data.test_labels[places])
    return Subject(network, data, job_of(settings, network, data, stops[-1]), stops, judged, asked.mapping)


def _amounts(asked: Asked, an_epoch: int) -> tuple[int, ...]:
    stops = tuple(sorted({iterations(text, an_epoch) for text in asked.amounts}))
    if not stops or stops[-1] < 1:
        raise SettingsError("--amounts: give at least one that comes to an iteration or more")
    return stops


def iterations(text: str, an_epoch: int) -> int:
    """``40`` or ``0.5e`` as iterations. Raises SettingsError for what is neither, or more than ``MOST``."""
    try:
        value = float(text.removesuffix("e")) * (an_epoch if text.endswith("e") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST or (not text.endswith("e") and value != int(value)):
        raise SettingsError(
            f"--amounts {text!r}: expected iterations, such as 40, or epochs, such as 0.5e, up to {MOST} iterations"
        )
    return round(value)


def share(text: str, option: str) -> float:
    """``2%`` or ``0.02`` as 0.02. Raises SettingsError, which names the option, for what is no share above 0."""
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise SettingsError(f"{option} {text!r}: expected a share of the elements, above 0 and at most 1, as 2% or 0.02")
    return value


def per_cent(text: str, option: str) -> float:
    """``90`` or ``90%`` as 90.0. Raises SettingsError, which names the option, for what is no accuracy."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = math.nan
    if not 0 < value <= 100:
        raise SettingsError(f"{option} {text!r}: expected an accuracy in per cent, above 0 and at most 100")
    return value


def drawn(asked: Asked, array: Array) -> Iterator[FaultMap]:
    """The random chips of a table. Raises SettingsError for a rate that breaks no element of this array."""
    size = array.rows * array.columns
    counts: dict[int, float] = {}
    for rate in sorted(set(asked.rates)):
        faulty = round(rate * size)
        if faulty < 1:
            raise SettingsError(f"--rates {rate:g}: of {size} processing elements that is none; give {1 / size:.2g} or more")
        if faulty in counts:
            raise SettingsError(
                f"--rates {counts[faulty]:g} and {rate:g}: of {size} processing elements both are {faulty}; give one of the two"
            )
        counts[faulty] = rate
    for rate in counts.values():
        for place in range(asked.maps):
            yield chips.random_map(array, rate, asked.chip_seed + place)


def _measured(
    subject: Subject, maps: Sequence[FaultMap], settings: Settings, jobs: int, file: Path, tell: _Tell
) -> list[Course]:
    base = _base(subject)
    keys = [hashlib.sha256(f"{base} {chips.digest(faults)}".encode()).hexdigest() for faults in maps]
    known = {line.key: line.course for line in read_lines(file, _Line, "all chips are measured anew")}
    missing = [place for place, key in enumerate(keys) if key not in known]
    done = len(maps) - len(missing)
    tell(done, f"{done} known")
    for place, course in _courses(subject, maps, missing, settings, jobs):
        known[keys[place]] = course
        with file.open("ab") as out:
            out.write(msgspec.json.encode(_Line(keys[place], course)) + b"\n")
        done += 1
        tell(done, f"{100 * course.rate:.3g} % faulty: {course.points[0].accuracy:.1f} to {course.points[-1].accuracy:.1f} %")
    return [known[key] for key in keys]


def _base(subject: Subject) -> str:
    """Digest of all that a chip's course depends on beside its map."""
    arrays = (subject.judged.images, subject.judged.labels, subject.data.train_images, subject.data.train_labels)
    what = (
        storage.digest(subject.network),
        subject.job,
        subject.stops,
        subject.mapping,
        [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays],
    )
    return hashlib.sha256(msgspec.json.encode(what)).hexdigest()


def course_of(subject: Subject, faults: FaultMap) -> Course:
    """One chip, through all stops."""
    saliency = magnitude(subject.network)
    *_, (_, (found,)) = courses(
        subject.network, faults, saliency, subject.data, subject.job, subject.stops, [subject.judged], mapping=subject.mapping
    )
    return found


def _courses(
    subject: Subject, maps: Sequence[FaultMap], places: Sequence[int], settings: Settings, jobs: int
) -> Iterator[tuple[int, Course]]:
    """(place, course) as they are done."""
    if jobs == 1 or len(places) < 2:
        for place in places:
            yield place, course_of(subject, maps[place])
        return
    given = (storage.to_bytes(subject.network), settings, msgspec.json.encode(subject.job), subject.stops, subject.mapping)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(places)), context, _begin, given) as pool:
        due = {pool.submit(_in_worker, chips.packed(maps[place])): place for place in places}
        for future in as_completed(due):
            yield due[future], future.result()


_subject: Subject | None = None
"""A worker's."""


def _begin(network: bytes, settings: Settings, job: bytes, stops: tuple[int, ...], mapping: bool) -> None:
    global _subject
    torch.set_num_threads(1)
    data = datasets.open(settings.data)
    places = spread(settings.evaluation_samples, len(data.test_images))
    judged = Images(data.test_images[places], data.test_labels[places])
    own = msgspec.json.decode(job, type=Job)
    _subject = Subject(storage.from_bytes(network), data, own, stops, judged, mapping)


def _in_worker(packed: bytes) -> Course:
    if _subject is None:
        raise RuntimeError("a worker was asked before it was told what chips share")
    return course_of(_subject, chips.unpacked(packed, "chip"))


class Cell(NamedTuple):
    """Accuracy of the chips of one rate behind one amount, in per cent."""

    rate: float
    iterations: int
    mean: float
    std: float
    worst: float
    chips: int


def cells(table: Table) -> list[Cell]:
    """A cell a rate and amount. The deviation is the sample's, 0 of a single chip."""
    found = []
    for rate in table.rates():
        own = [course for course in table.courses if course.rate == rate]
        for place, point in enumerate(own[0].points):
            values = [course.points[place].accuracy for course in own]
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            found.append(Cell(rate, point.iterations, statistics.fmean(values), std, min(values), len(values)))
    return found
