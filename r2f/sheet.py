"""Sample images of a run whose outputs are images or masks: as they went in, and as they came out before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from accelsim import datasets
from accelsim.datasets import Dataset, Int64, spread
from accelsim.int8 import storage
from accelsim.int8.network import Activation, Network, UInt8
from r2f.plots import STYLE
from r2f.settings import Settings
from services.trainer import samples
from services.trainer.core import job as jobs
from services.trainer.core import objective, result
from services.trainer.core.job import Job

FILE: Final = "samples.png"
COLOURS: Final = np.array(
    [
        (238, 240, 243),
        (52, 101, 157),
        (237, 174, 73),
        (42, 127, 98),
        (209, 73, 91),
        (141, 106, 159),
        (125, 136, 150),
        (27, 31, 36),
    ],
    np.uint8,
)
"""Of the classes of masks, over and over."""


Column = tuple[str, list[UInt8]]
"""A title and images (H, W, 3)."""


def draw(folder: Path, settings: Settings) -> str:
    """Leaves ``samples.png`` in a finished run's folder; its name, or nothing where outputs are classes.

    A row an image, under the first fault seed. Inputs and targets are shown where the run has the device's own data.
    """
    job, network = jobs.read(folder), storage.load(folder / jobs.NETWORK)
    if job.against == "labels":
        return ""
    shown = {name: samples.read(folder, name, network) for name in ("clean_before", "faulty_before", "faulty_after")}
    retrained = storage.load(folder / result.RETRAINED)
    columns = outputs(job, network, retrained, shown["clean_before"], shown["faulty_before"], shown["faulty_after"])
    if settings.launch or job.against == "targets":
        data = datasets.open(settings.data)
        chosen = spread(job.evaluation_samples, len(data.test_images))
        columns = between(data, chosen[samples.places(len(chosen))], columns)
    save(columns, folder / FILE)
    return FILE


def outputs(
    job: Job, before: Network, after: Network, clean: Activation, faulty: Activation, retrained: Activation
) -> list[Column]:
    """Columns of outputs (N, H, W, C): of the network from before retraining without faults and with, and of the one after."""
    return [
        ("fault-free", pictures(job, before, clean)),
        ("faulty, before", pictures(job, before, faulty)),
        ("faulty, retrained", pictures(job, after, retrained)),
    ]


def save(columns: Sequence[Column], to: Path | IO[bytes]) -> None:
    """The sheet as PNG."""
    with matplotlib.rc_context(STYLE):
        rows = len(columns[0][1])
        figure = Figure(figsize=(1.9 * len(columns), 1.9 * rows + 0.3), layout="constrained")
        grid = figure.subplots(rows, len(columns), squeeze=False)
        for axes_row, images in zip(grid, zip(*(column for _, column in columns), strict=True), strict=True):
            for axes, image in zip(axes_row, images, strict=True):
                axes.imshow(image, interpolation="nearest")
                axes.set_axis_off()
        for axes, (title, _) in zip(grid[0], columns, strict=True):
            axes.set_title(title, fontsize=9, loc="center")
        figure.savefig(to, format="png", dpi=150, facecolor="white")


def between(data: Dataset, chosen: Int64, columns: Sequence[Column]) -> list[Column]:
    """The columns between the inputs of test images (N,), unless they are vectors, and their targets, if there are any."""
    found = list(columns)
    if not data.latents:
        found.insert(0, ("input", [_three(image) for image in data.test_images[chosen]]))
    if data.test_targets is not None:
        targets = data.test_targets[chosen]
        found.append(("target", [_three(one) if one.ndim == 3 else _coloured(one) for one in targets]))
    return found


def pictures(job: Job, network: Network, outputs: Activation) -> list[UInt8]:
    """Outputs (N, H, W, C) as images (H, W, 3)."""
    if objective.kind_of(job, network) == "masks":
        return [_coloured(one) for one in outputs.argmax(axis=-1)]
    assert job.output_range is not None
    shares = (objective.real(network, outputs) - job.output_range[0]) / objective.span(job)
    return [_three(one) for one in np.clip(np.rint(255 * shares), 0, 255).astype(np.uint8)]


def _coloured(mask: npt.NDArray[Any]) -> UInt8:
    """Classes (H, W) as an image (H, W, 3)."""
    return np.asarray(COLOURS[mask % len(COLOURS)], np.uint8)


def _three(image: UInt8) -> UInt8:
    """An image (H, W, C) with three channels: grey three times, and of many the first three."""
    return np.repeat(image[..., :1], 3, axis=2) if image.shape[2] < 3 else image[..., :3]
