"""Quality of a network that gives images at one bit error rate: the paper's arithmetic, quantised for faults, retrained."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from accelsim import datasets, zoo
from accelsim.datasets import DataError, Dataset, spread
from accelsim.faults import Rates
from accelsim.int8.network import Network
from accelsim.named import looking_in
from experiments.common import protecting, retraining
from experiments.common.retraining import BATCH
from r2f import inprocess, prepare, sheet
from r2f import settings as r2f_settings
from services.metric import Metric
from services.scheme import Port, Scheme
from services.trainer.core.job import Job

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
    voted: bool = False
    """The retrained network's weights are voted on where they are read, in training and after."""
    recipe: tuple[tuple[str, str], ...] = ()
    """Settings of ``r2f retrain`` about training and the link that were given."""


class Found(msgspec.Struct):
    """A value a fault seed, by metric and method."""

    values: dict[str, dict[str, list[float]]]
    images: int
    overhead: float
    """Of the vote, as a share of the network's cycles."""
    deployed: str
    """Which network retraining ended with."""
    iterations: int
    sent: int
    """Bytes of bodies on the link, both ways."""
    sheet: bytes
    """PNG of some images as they went in and came out."""


class Ran(NamedTuple):
    """What is measured by a method's name."""

    method: str
    network: Network
    ber: float
    scheme: Scheme


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
    if cell.voted:
        ports = tuple(Port(index, "weight") for index, _ in network.convs())
        settings = msgspec.structs.replace(settings, scheme=msgspec.structs.replace(settings.scheme.bare, ports=ports))
    job = prepare.settled(prepare.job_of(settings, "quality"), network, data)
    done = inprocess.retrain(network, data, job)
    bare, scheme = settings.scheme.bare, settings.scheme
    ran = [
        Ran(METHODS[0], paper, 0.0, bare), Ran(METHODS[1], paper, cell.ber, bare), Ran(METHODS[2], network, cell.ber, bare),
        Ran(METHODS[3], done.network, cell.ber, scheme), Ran(METHODS[4], done.network, 0.0, scheme),
    ]  # fmt: skip
    chosen, seeds = spread(cell.images, len(data.test_images)), retraining.fault_seeds(cell.seeds)
    values: dict[str, dict[str, list[float]]] = {}
    for metric in MEASURED[data.kind]:
        truth = inprocess.reference(msgspec.structs.replace(job, metric=metric), network, data, chosen)
        values[metric] = {
            one.method: inprocess.evaluate(
                one.network, data.test_images[chosen], truth, Rates.uniform(one.ber), seeds, scheme=one.scheme, batch=BATCH
            ).of(metric)
            for one in ran
        }
    return Found(
        values,
        len(chosen),
        protecting.cost(done.network, scheme, data.test_images[chosen], settings.rates, seeds),
        "last" if done.selection is None else done.selection.deployed,
        len(done.iterations),
        done.other_model_bytes + sum(i.input_bytes + i.layer_bytes + i.repair_bytes + i.model_bytes for i in done.iterations),
        _sheet(cell, data, job, ran),
    )


def _sheet(cell: Cell, data: Dataset, job: Job, ran: Sequence[Ran]) -> bytes:
    """The first images of the evaluation as they went in and came out under its first fault seed."""
    shown = spread(cell.images, len(data.test_images))[:SHOWN]
    images, seed, columns = data.test_images[shown], retraining.fault_seeds(1), []
    for one in ran[:4]:
        (out,) = inprocess.outputs(one.network, images, Rates.uniform(one.ber), seed, scheme=one.scheme, batch=BATCH)
        columns.append((one.method, sheet.pictures(job, one.network, out)))
    held = io.BytesIO()
    sheet.save(sheet.between(data, shown, columns), held)
    return held.getvalue()
