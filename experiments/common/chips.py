"""Cells of chips with permanent faults: one random chip, retrained stop by stop, judged on the half that chooses and on
the other."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

import msgspec

from accelsim.datasets import Dataset
from accelsim.faults import chip
from accelsim.faults.mapping import Saliency, magnitude
from accelsim.int8.network import Network
from accelsim.timing import Array
from experiments.common import cells, splits
from experiments.common.cells import Cell, Recipe
from r2f.reduce import retraining
from r2f.reduce.course import Course, Images, courses, point, right
from services.trainer.core.job import Job

ROWS: Final = 32
"""And columns of the array, as in the paper."""


class ChipCell(msgspec.Struct, kw_only=True, frozen=True):
    """A random chip and how far it is retrained."""

    network: str
    """Of ``cells.NETWORKS``."""
    rate: float
    """Share of faulty elements; 0 is the healthy network, which is judged and not retrained."""
    seed: int
    mapping: bool
    stops: tuple[int, ...]
    """Iterations behind which it is judged."""
    largest: int
    """Amount that its job is made for; where the stops end before, the course is the same as far as they go."""
    recipe: Recipe = ()
    rows: int = ROWS
    columns: int = ROWS


class Measured(msgspec.Struct, kw_only=True, frozen=True):
    """The course of a chip as either half of the test images sees it."""

    chosen: Course
    reported: Course


def measured(cell: ChipCell, shared: Path) -> Measured:
    """Retrains one chip, or judges the healthy network. Raises what ``cells`` and ``r2f.reduce`` raise."""
    network, saliency, data, job = subject(cell.network, cell.recipe, cell.largest, shared)
    judges = [Images(half.test_images, half.test_labels) for half in splits.halved(data)]
    faults = chip.random_map(Array(rows=cell.rows, columns=cell.columns), cell.rate, cell.seed)
    found: list[Course] = []
    if not faults.faults:
        answers = [right(network, job, judged) for judged in judges]
        found = [
            Course(chip=chip.digest(faults), name="healthy", rate=0.0, damage=0.0, points=(point(0, each, each),))
            for each in answers
        ]
    for _, seen in courses(network, faults, saliency, data, job, cell.stops, judges, mapping=cell.mapping) if not found else ():
        found = list(seen)
    return Measured(chosen=found[0], reported=found[1])


def reads(cell: ChipCell) -> tuple[str, ...]:
    """Files below the folder of real data that a cell needs."""
    return cells.reads_of(cell.network)


@functools.lru_cache(maxsize=2)
def subject(network: str, recipe: Recipe, largest: int, shared: Path) -> tuple[Network, Saliency, Dataset, Job]:
    """What all chips of an experiment share: the int8 network, its saliency, its data and the job."""
    cell = Cell(network=network, trained=None, deployed=(0.0,), recipe=recipe)
    int8, data = cells.quantised(cell, shared)
    job = retraining.job_of(cells.settings_of(cell, shared), int8, data, largest)
    return int8, magnitude(int8), data, job
