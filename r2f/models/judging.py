"""``r2f evaluate``: a model's accuracy on held-out images, without and with a device's faults, in this process."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, pstdev
from typing import NamedTuple

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from accelsim import accelerators, datasets, faults
from accelsim.datasets import spread
from accelsim.faults import Rates
from accelsim.named import looking_in
from r2f import inprocess, prepare
from r2f.display import Display
from r2f.models.which import Model, job_of
from r2f.settings import Settings
from services.scheme import Scheme
from services.trainer.core.evaluation import Evaluation


class Judged(NamedTuple):
    """What an evaluation came to."""

    source: Path
    samples: int
    rates: Rates
    chip: str
    """Permanent faults in words; empty where there are none."""
    sound: Evaluation
    """Without soft errors and without permanent faults."""
    faulty: Evaluation | None
    """None where the device has no faults."""


def evaluate(found: Model, settings: Settings, say: Display) -> Judged:
    """Accuracy on the settings' data. The faults are those of a run's own evaluations, so its report has the same numbers.

    Raises ValueError (SettingsError, DataError) that names what does not fit.
    """
    prepare.check_files(settings)
    worn = prepare.permanent(settings)
    data = datasets.open(settings.data)
    data.check(found.network)
    job = job_of(found, settings)
    with looking_in(settings.modules):
        device = accelerators.build(settings.accelerator, faults.build(settings.fault_model), worn)
        ideal = accelerators.build(settings.accelerator, faults.build(settings.fault_model), None)
    chosen = spread(settings.evaluation_samples, len(data.test_images))
    images, labels = data.test_images[chosen], data.test_labels[chosen]

    def judged(rates: Rates, factory: accelerators.Factory, scheme: Scheme) -> Evaluation:
        return inprocess.evaluate(
            found.network, images, labels, rates, job.evaluation_seeds, scheme=scheme, device=job.device,
            batch=job.evaluation_batch, accelerator=factory,
        )  # fmt: skip

    with say.step("without faults"):
        sound = judged(Rates(), ideal, job.scheme.bare)
    faulty = None
    if settings.rates != Rates() or worn is not None:
        with say.step("with faults"):
            faulty = judged(settings.rates, device, job.scheme)
    return Judged(found.source, len(images), settings.rates, prepare.chip_words(settings), sound, faulty)


def table(judged: Judged) -> Group:
    """The evaluation for a terminal."""
    rates = msgspec.structs.asdict(judged.rates)
    what = ", ".join(f"{site} {rate:g}" for site, rate in rates.items() if rate)
    title = f"{judged.source}: {judged.samples} held-out images" + (f"; BER {what}" if what else "")
    title += f"\n{judged.chip}" if judged.chip else ""
    grid = Table("", "top-1", "std", box=None)
    five = bool(judged.sound.top5)
    if five:
        grid.add_column("top-5")
        grid.add_column("std")
    for name, of in (("no faults", judged.sound), ("faulty", judged.faulty)):
        if of is None:
            continue
        many = f" ({len(of.top1)} fault seeds)" if len(of.top1) > 1 else ""
        cells = [cell for values in (of.top1, of.top5)[: 1 + five] for cell in _cells(values)]
        grid.add_row(name + many, *cells)
    return Group(Text(title), grid)


def _cells(values: list[float]) -> tuple[str, str]:
    return f"{fmean(values):.1f} %", f"{pstdev(values):.1f}" if len(values) > 1 else ""


def plain(judged: Judged) -> dict[str, object]:
    """The evaluation as JSON has it."""
    return {
        "model": str(judged.source), "samples": judged.samples, "rates": msgspec.structs.asdict(judged.rates),
        "chip": judged.chip, "no_faults": msgspec.structs.asdict(judged.sound),
        "faulty": None if judged.faulty is None else msgspec.structs.asdict(judged.faulty),
    }  # fmt: skip
