"""What comes when in a run: samples, rates, views, checks. All of it follows from the job and the number of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from accelsim.datasets import spread
from accelsim.faults import Rates
from services.scheme import View
from services.trainer.core.job import Job

Int64 = npt.NDArray[np.int64]

LARGEST_SHARE = 4
"""The selection samples are at most one in so many of the training samples."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A job on a device with some number of training samples.

    Iterations count the passes of the device in training mode: the first ``corrections`` correct biases, the others learn.
    """

    job: Job
    pool: Int64
    """Numbers of the samples that are learnt from."""
    selection: Int64
    """Numbers of those that are kept for deciding; none where nothing is decided."""
    order: tuple[int, ...] = ()
    """What sets this device's order of samples apart from that of others which learn with it."""

    @property
    def corrections(self) -> int:
        """Iterations that correct biases; at least one where that is all that is done."""
        job, wanted = self.job, self.job.recipe.corrections
        if job.method == "correct":
            return max(1, wanted) if job.iterations is None else job.iterations
        return wanted if job.iterations is None else min(wanted, job.iterations)

    @property
    def learning(self) -> int:
        """Iterations that learn."""
        return self.iterations - self.corrections

    @property
    def iterations(self) -> int:
        """All of them."""
        if self.job.iterations is not None:
            return self.job.iterations
        return self.corrections + (0 if self.job.method == "correct" else self.job.recipe.epochs * self.an_epoch)

    @property
    def an_epoch(self) -> int:
        """Batches in which every sample comes once."""
        return -(-len(self.pool) // self.job.batch)

    @property
    def updates(self) -> int:
        """Steps of the optimiser."""
        return -(-self.learning // self.job.recipe.accumulate)

    def samples(self, iteration: int) -> Int64:
        """Numbers of the samples of a batch; an epoch is a permutation of all, cut into batches of nearly one size."""
        epoch, place = divmod(iteration, self.an_epoch)
        order = np.random.Generator(np.random.PCG64([self.job.seed, epoch, *self.order])).permutation(self.pool)
        edges = [len(order) * i // self.an_epoch for i in (place, place + 1)]
        return order[edges[0] : edges[1]]

    def view(self, iteration: int) -> View | None:
        """How the device is to change the images of a batch; None where it shows them as they are.

        What the recipe leaves open (``viewing.decided``) is not done.
        """
        recipe = self.job.recipe
        flip, shift = bool(recipe.flip), recipe.shift or 0
        if iteration < self.corrections or not (flip or shift):
            return None
        return View(seed=self.job.seed % 2**31 * 2**32 + iteration, flip=flip, shift=shift)

    def rates(self, iteration: int) -> Rates:
        """Error rates that the device is to have in an iteration, at most 1."""
        recipe, rates = self.job.recipe, self.job.rates
        if iteration < self.corrections:
            return rates
        rising = recipe.curriculum * self.learning
        done = iteration - self.corrections + 1
        factor = recipe.rate_factor * (min(1.0, done / rising) if rising else 1.0)
        if factor == 1:
            return rates
        return Rates(**{site: min(1.0, factor * getattr(rates, site)) for site in rates.__struct_fields__})

    def slope(self, update: int) -> float:
        """The learning rate of an update as a share of the highest."""
        recipe = self.job.recipe
        warmup = math.ceil(recipe.warmup * self.updates)
        if update < warmup:
            return (update + 1) / (warmup + 1)
        if recipe.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (update - warmup) / max(1, self.updates - warmup)))

    def is_check(self, done: int) -> bool:
        """Whether what was learnt is tried after ``done`` iterations."""
        learnt, checks = done - self.corrections, self.job.recipe.checks
        return learnt > 0 and learnt in {self.learning * i // checks for i in range(1, checks + 1)}


def plan(job: Job, available: int) -> Plan:
    """The plan for a device with ``available`` training samples. Raises ValueError where they are fewer than a batch."""
    wanted = max(0, min(job.recipe.selection, available // LARGEST_SHARE, available - job.batch))
    selection = spread(wanted, available) if wanted else np.empty(0, np.int64)
    pool = np.setdiff1d(np.arange(available), selection)
    if len(pool) < job.batch:
        raise ValueError(
            f"device {job.device!r} has {available} training samples, {len(selection)} of them for selection: fewer than a "
            f"batch of {job.batch}; start a run with a smaller --batch"
        )
    return Plan(job, pool, selection)
