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
from services.metric import METRICS, Metric, written
from services.scheme import Scheme
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.job import Against


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
    metric: Metric = "top1"
    against: Against = "labels"
    """"fault-free outputs" are those of the run's network from before retraining, or the model's own where it is of no run."""


def evaluate(found: Model, settings: Settings, say: Display) -> Judged:
    """Accuracy on the settings' data. The faults are those of a run's own evaluations, so its report has the same numbers.

    Raises ValueError (SettingsError, DataError) that names what does not fit.
    """
    prepare.check_files(settings)
    worn = prepare.permanent(settings)
    data = datasets.open(settings.data)
    data.check(found.network, images=True)
    job = prepare.settled(job_of(found, settings), found.network, data)
    metric = job.metric or "top1"
    origin = found.network if found.run is None else prepare.network_of(found.run)
    with looking_in(settings.modules):
        device = accelerators.build(settings.accelerator, faults.build(settings.fault_model), worn)
        ideal = accelerators.build(settings.accelerator, faults.build(settings.fault_model), None)
    chosen = spread(settings.evaluation_samples, len(data.test_images))
    images, truth = data.test_images[chosen], inprocess.reference(job, origin, data, chosen)

    def judged(rates: Rates, factory: accelerators.Factory, scheme: Scheme) -> Evaluation:
        return inprocess.evaluate(
            found.network, images, truth, rates, job.evaluation_seeds, scheme=scheme, device=job.device,
            batch=job.evaluation_batch, accelerator=factory,
        )  # fmt: skip

    with say.step("without faults"):
        sound = judged(Rates(), ideal, job.scheme.bare)
    faulty = None
    if settings.rates != Rates() or worn is not None:
        with say.step("with faults"):
            faulty = judged(settings.rates, device, job.scheme)
    return Judged(found.source, len(images), settings.rates, prepare.chip_words(settings), sound, faulty, metric, job.against)


def table(judged: Judged) -> Group:
    """The evaluation for a terminal."""
    rates = msgspec.structs.asdict(judged.rates)
    what = ", ".join(f"{site} {rate:g}" for site, rate in rates.items() if rate)
    title = f"{judged.source}: {judged.samples} held-out images" + (f"; BER {what}" if what else "")
    title += f"\n{judged.chip}" if judged.chip else ""
    title += f"\nmeasured against {judged.against}" if judged.against != "labels" else ""
    grid = Table("", METRICS[judged.metric].title, "std", box=None)
    five = bool(judged.sound.top5) and judged.metric == "top1"
    if five:
        grid.add_column("top-5")
        grid.add_column("std")
    for name, of in (("no faults", judged.sound), ("faulty", judged.faulty)):
        if of is None:
            continue
        seeds = len(of.of(judged.metric))
        many = f" ({seeds} fault seeds)" if seeds > 1 else ""
        shown: list[Metric] = [judged.metric, "top5"]
        cells = [cell for metric in shown[: 1 + five] for cell in _cells(metric, of.of(metric))]
        grid.add_row(name + many, *cells)
    return Group(Text(title), grid)


def _cells(metric: Metric, values: list[float]) -> tuple[str, str]:
    return written(metric, fmean(values)), f"{pstdev(values):.{METRICS[metric].digits}f}" if len(values) > 1 else ""


def plain(judged: Judged) -> dict[str, object]:
    """The evaluation as JSON has it."""
    return {
        "model": str(judged.source), "samples": judged.samples, "metric": judged.metric, "against": judged.against,
        "rates": msgspec.structs.asdict(judged.rates),
        "chip": judged.chip, "no_faults": msgspec.structs.asdict(judged.sound),
        "faulty": None if judged.faulty is None else msgspec.structs.asdict(judged.faulty),
    }  # fmt: skip
