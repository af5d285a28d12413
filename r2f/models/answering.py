"""``r2f predict``: what a model says of image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from accelsim import accelerators, faults
from accelsim.datasets.classlist import class_list
from accelsim.datasets.pictures import picture, suffixes
from accelsim.faults import Rates
from accelsim.named import looking_in
from r2f import inprocess, prepare
from r2f.models.which import Model, job_of
from r2f.settings import Settings
from services.trainer.core.objective import probabilities

AT_ONCE = 32


class Answer(NamedTuple):
    """The likeliest classes of an image, the likeliest first."""

    file: Path
    classes: list[int]
    names: list[str]
    probabilities: list[float]


def predict(found: Model, files: Sequence[Path], settings: Settings, *, top: int, faulty: bool) -> Iterator[Answer]:
    """What the model answers to image files, and to those below folders; with the settings' faults or without any.

    Raises ValueError that names what does not fit, before the first answer where it can be known by then.
    """
    network = found.network
    if network.layers[-1].shape[:2] != (1, 1):
        raise ValueError(f"{found.source}: the network's output is an image, which names no class")
    prepare.check_files(settings)
    names = _names(found, settings)
    due = [path for file in files for path in _images(file)]
    job = job_of(found, settings)
    worn = prepare.permanent(settings) if faulty else None
    with looking_in(settings.modules):
        device = accelerators.build(settings.accelerator, faults.build(settings.fault_model), worn)
    rates = settings.rates if faulty else Rates()
    scheme = job.scheme if faulty else job.scheme.bare
    for start in range(0, len(due), AT_ONCE):
        part = due[start : start + AT_ONCE]
        images = np.stack([picture(path, network.input_shape).pixels for path in part])
        # A seed a batch: else every batch would be struck in the same places.
        seeds = [job.evaluation_seeds[0] + start]
        (outputs,) = inprocess.outputs(
            network, images, rates, seeds, scheme=scheme, device=job.device, batch=AT_ONCE, accelerator=device
        )
        shares = probabilities(network, outputs, 1.0)
        for path, row in zip(part, shares, strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            yield Answer(path, best.tolist(), [names[i] for i in best], [float(row[i]) for i in best])


def _names(found: Model, settings: Settings) -> Sequence[str]:
    count = found.network.layers[-1].shape[2]
    names: Sequence[str] | None = None
    if settings.data.classes is not None:
        names = class_list(settings.data.classes)
    elif found.run is not None:
        names = prepare.read(found.run).class_names
    if names is None:
        return [f"class {i}" for i in range(count)]
    if len(names) != count:
        raise ValueError(f"--classes: {len(names)} names for a network of {count} classes; give one a class, in its order")
    return names


def _images(file: Path) -> list[Path]:
    """The file, or the image files below a folder. Raises ValueError where there are none."""
    if not file.is_dir():
        if not file.exists():
            raise ValueError(f"{file}: no such file")
        return [file]
    known = suffixes()
    found = sorted(path for path in file.rglob("*") if path.suffix.lower() in known and not path.name.startswith("."))
    if not found:
        raise ValueError(f"{file}: no image files below it")
    return found


def table(answers: Sequence[Answer]) -> Table:
    """Answers for a terminal."""
    grid = Table("image", "answer", "probability", box=None, pad_edge=False)
    for one in answers:
        for rank, (name, share) in enumerate(zip(one.names, one.probabilities, strict=True)):
            style = "bold" if rank == 0 else "dim"
            grid.add_row(Text(str(one.file)) if rank == 0 else "", Text(name), f"{100 * share:.1f} %", style=style)
    return grid
