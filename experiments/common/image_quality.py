"""Quality of networks that give images, at one bit error rate: fault-free, faulty, and retrained."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import msgspec

from accelsim import datasets, zoo
from accelsim.datasets import spread
from accelsim.faults import Rates
from r2f import inprocess, prepare, sheet
from r2f import settings as r2f_settings
from services.metric import Metric
from services.trainer.core import objective

NETWORKS: Final[dict[str, tuple[Metric, ...]]] = {"crops_sr2x": ("psnr", "ssim"), "shapes_unet": ("miou",)}
"""What is measured of each."""
LABELS: Final = {"crops_sr2x": "server", "shapes_unet": "teacher-soft"}
SHOWN: Final = 6
"""Images on a sheet."""
METHODS: Final = ("fault-free", "faulty", "retrained")


class Cell(msgspec.Struct, frozen=True):
    """A network at one bit error rate."""

    network: str
    weights: str
    digest: str
    """sha256 of the weights' file."""
    ber: float
    epochs: int
    seeds: int
    images: int


class Found(msgspec.Struct):
    """A value a fault seed, by metric and method."""

    values: dict[str, dict[str, list[float]]]
    iterations: int
    sent: int
    """Bytes of bodies on the link, both ways."""
    sheet: bytes
    """PNG of some images as they went in and came out."""


def measured(cell: Cell, shared: Path) -> Found:
    """One cell. Nothing of ``shared`` is read."""
    source = zoo.TRAINED_HERE[cell.network]
    settings = r2f_settings.parse(
        {"network": cell.network, "data": source, "ber": cell.ber, "epochs": cell.epochs, "batch": 16,
         "labels": LABELS[cell.network]}
    )  # fmt: skip
    data = datasets.open(settings.data)
    network = prepare.lowered(settings, data, zoo.load(cell.network, Path(cell.weights)))
    job = objective.settled(prepare.job_of(settings, "quality"), network, data)
    done = inprocess.retrain(network, data, job)
    chosen = spread(cell.images, len(data.test_images))
    seeds = range(1001, 1001 + cell.seeds)
    values: dict[str, dict[str, list[float]]] = {}
    for metric in NETWORKS[cell.network]:
        truth = inprocess.reference(msgspec.structs.replace(job, metric=metric), network, data, chosen)
        for method, of, ber in zip(METHODS, (network, network, done.network), (0.0, cell.ber, cell.ber), strict=True):
            found = inprocess.evaluate(of, data.test_images[chosen], truth, Rates.uniform(ber), seeds, batch=16)
            values.setdefault(metric, {})[method] = found.of(metric)
    sent = sum(one.input_bytes + one.layer_bytes + one.repair_bytes + one.model_bytes for one in done.iterations)
    shown = chosen[: min(SHOWN, len(chosen))]
    outputs = [
        inprocess.outputs(of, data.test_images[shown], Rates.uniform(ber), seeds[:1], batch=16)[0]
        for of, ber in ((network, 0.0), (network, cell.ber), (done.network, cell.ber))
    ]
    held = io.BytesIO()
    sheet.save(sheet.between(data, shown, sheet.outputs(job, network, done.network, *outputs)), held)
    return Found(values, len(done.iterations), sent, held.getvalue())
