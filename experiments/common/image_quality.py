"""Quality of a network that gives images at one bit error rate: the paper's arithmetic, quantised for faults, retrained."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import msgspec

from accelsim import datasets, zoo
from accelsim.datasets import DataError, Dataset, spread
from accelsim.faults import Rates
from accelsim.int8.network import Network
from accelsim.named import looking_in
from experiments.common import retraining
from r2f import inprocess, prepare, sheet
from r2f import settings as r2f_settings
from services.metric import Metric
from services.trainer.core import objective

MEASURED: Final[dict[str, tuple[Metric, ...]]] = {"images": ("psnr", "ssim"), "masks": ("miou",)}
"""By what the data have as targets."""
SHOWN: Final = 6
"""Images on a sheet."""
METHODS: Final = ("fault-free", "faulty", "quantised for it", "retrained", "retrained, no faults")
"""The first two are the paper's arithmetic (``--activations signed``), nothing retrained; the third is what retraining starts
from, with faults."""


class Cell(msgspec.Struct, frozen=True):
    """A network at one bit error rate."""

    network: str
    weights: str
    digest: str
    """sha256 of the weights' file, and of the data's where they are a file."""
    data: str
    ber: float
    seeds: int
    images: int
    recipe: tuple[tuple[str, str], ...] = ()
    """Settings of ``r2f retrain`` about training and the link that were given."""


class Found(msgspec.Struct):
    """A value a fault seed, by metric and method."""

    values: dict[str, dict[str, list[float]]]
    images: int
    deployed: str
    """Which network retraining ended with."""
    iterations: int
    sent: int
    """Bytes of bodies on the link, both ways."""
    sheet: bytes
    """PNG of some images as they went in and came out."""


def measured(cell: Cell, shared: Path) -> Found:
    """One cell, on test images, which chose nothing. Nothing of ``shared`` is read.

    Raises DataError where the data have no targets.
    """
    settings = r2f_settings.parse(
        {"network": cell.network, "weights": cell.weights, "data": cell.data, "ber": cell.ber} | dict(cell.recipe)
    )
    data = datasets.open(settings.data)
    if data.kind not in MEASURED:
        raise DataError(f"{data.name}: has {data.kind}; quality needs images or masks as targets")
    with looking_in(settings.modules):
        module = zoo.load(settings.network, Path(cell.weights))
    paper, network = (prepare.lowered(one, data, module) for one in (retraining.signed(settings), settings))
    data.check(network, images=True)
    job = prepare.settled(prepare.job_of(settings, "quality"), network, data)
    done = inprocess.retrain(network, data, job)
    ran = list(zip(METHODS, (paper, paper, network, done.network, done.network), (0.0, *[cell.ber] * 3, 0.0), strict=True))
    chosen, seeds = spread(cell.images, len(data.test_images)), retraining.fault_seeds(cell.seeds)
    values: dict[str, dict[str, list[float]]] = {}
    for metric in MEASURED[data.kind]:
        truth = inprocess.reference(msgspec.structs.replace(job, metric=metric), network, data, chosen)
        values[metric] = {
            method: inprocess.evaluate(
                of, data.test_images[chosen], truth, Rates.uniform(ber), seeds, scheme=settings.scheme, batch=retraining.BATCH
            ).of(metric)
            for method, of, ber in ran
        }
    return Found(
        values,
        len(chosen),
        "last" if done.selection is None else done.selection.deployed,
        len(done.iterations),
        done.other_model_bytes + sum(i.input_bytes + i.layer_bytes + i.repair_bytes + i.model_bytes for i in done.iterations),
        _sheet(cell, data, job, ran),
    )


def _sheet(cell: Cell, data: Dataset, job: objective.Job, ran: list[tuple[str, Network, float]]) -> bytes:
    """The first images of the evaluation as they went in and came out under its first fault seed."""
    shown = spread(cell.images, len(data.test_images))[:SHOWN]
    images, seed, columns = data.test_images[shown], retraining.fault_seeds(1), []
    for method, of, ber in ran[:4]:
        (out,) = inprocess.outputs(of, images, Rates.uniform(ber), seed, scheme=job.scheme, batch=retraining.BATCH)
        columns.append((method, sheet.pictures(job, of, out)))
    held = io.BytesIO()
    sheet.save(sheet.between(data, shown, columns), held)
    return held.getvalue()
