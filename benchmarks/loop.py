"""``python -m benchmarks.loop``: the whole pipeline over the bus against the same computation in one process.

ResNet-20 at batch 16 with random weights, calibrated on smooth random images (no data set is needed); both sides end
with the same model, which is checked. Seconds an iteration are the median over iterations after a warm-up, each side
with the machine to itself. Rounds alternate, so that a slow spell of the machine hits both.

The recipe and the arithmetic are those that ``r2f retrain`` has by default. ``--paper`` takes the paper's: signed activations,
the device's labels, plain gradients; what it leaves out is what ours costs.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from accelsim import zoo
from accelsim.datasets import Spec, load
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from r2f import inprocess, prepare, run
from r2f.display import Display
from r2f.memory import shares
from r2f.settings import PLAIN, Settings
from services.bus.messages import Progress
from services.trainer.core import job as jobs
from services.trainer.core import ledger
from services.trainer.core import result as results
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.job import Job

WARM_UP = 8


class Stopwatch(Display):
    """Notes when each training iteration ended."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.times: list[float] = []

    def progress(self, message: Progress) -> None:
        if message.phase == "train":
            self.times.append(time.perf_counter())


def make(folder: Path, iterations: int, *, paper: bool = False) -> tuple[Network, Job, Settings]:
    """The network, its data (``data.npz``) and one job for both sides; with the paper's recipe and arithmetic or with ours."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (320, 8, 8, 3)).astype(np.float32)
    images = np.clip(coarse.repeat(4, 1).repeat(4, 2) + random.normal(0, 12, (320, 32, 32, 3)), 0, 255).astype(np.uint8)
    labels = random.integers(0, 10, 320)
    np.savez(
        folder / "data.npz",
        train_images=images[:256],
        train_labels=labels[:256],
        test_images=images[256:],
        test_labels=labels[256:],
    )
    torch.manual_seed(0)
    network = lower(
        zoo.build("resnet20").eval(),
        images[:64],
        (0.5,) * 3,
        (0.25,) * 3,
        "resnet20",
        activations="signed" if paper else "auto",
    )
    settings = Settings(
        network="resnet20",
        data=Spec(source=str(folder / "data.npz")),
        rates=Rates(input=1e-5, weight=1e-5, output=1e-5),
        iterations=iterations,
        evaluation_seeds=1,
        evaluation_samples=16,
        checkpoint_every=10_000,
    )
    if paper:
        settings = msgspec.structs.replace(settings, **PLAIN | {"iterations": iterations})
    return network, prepare.job_of(settings, "benchmark"), settings


def over_the_bus(folder: Path, network: Network, job: Job, settings: Settings) -> tuple[list[float], str]:
    """Seconds of each iteration after the warm-up, and the digest of the model."""
    folder.mkdir()
    storage.save(network, folder / jobs.NETWORK)
    jobs.write(folder, job)
    memory = shares(settings.device_memory_mb, network, job.batch, data_bytes=0)
    prepared = prepare.Prepared(
        float_accuracy=Evaluation(samples=1, top1=[0.0]), classes=10, mean=(0.5,) * 3, std=(0.25,) * 3, memory=memory
    )
    (folder / prepare.PREPARED).write_bytes(msgspec.json.encode(prepared))
    watch = Stopwatch()
    asyncio.run(run.execute(settings, folder, watch))
    return np.diff(watch.times)[WARM_UP:].tolist(), results.read(folder).model_sha256


def in_process(folder: Path, network: Network, job: Job) -> tuple[list[float], str]:
    """The same, without a bus."""
    times: list[float] = []
    done = inprocess.retrain(
        network, load(folder / "data.npz"), job, watch=lambda record, model: times.append(time.perf_counter())
    )
    return np.diff(times)[WARM_UP:].tolist(), storage.digest(done.network)


def main(
    iterations: Annotated[int, typer.Option(help="Iterations a round.")] = 60,
    rounds: Annotated[int, typer.Option(help="Rounds of each side.")] = 2,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's recipe and arithmetic, in place of ours.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
) -> None:
    """Seconds an iteration over Mosquitto and over the embedded broker ÷ seconds in one process."""
    torch.set_num_threads(2)
    times: dict[str, list[float]] = {"in process": [], "mosquitto": [], "embedded": []}
    models: set[str] = set()
    stages: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        network, job, settings = make(top, iterations, paper=paper)
        for number in range(rounds):
            found, model = in_process(top, network, job)
            times["in process"] += found
            models.add(model)
            for broker in ("mosquitto", "embedded"):
                chosen = msgspec.structs.replace(settings, embedded=broker == "embedded")
                folder = top / f"{broker}-{number}"
                found, model = over_the_bus(folder, network, job, chosen)
                times[broker] += found
                models.add(model)
                if broker == "mosquitto":
                    stages = _stages(ledger.read(folder / results.PROGRESS)[WARM_UP:])
    if len(models) != 1:
        raise SystemExit(f"the sides ended with different models: {models}")
    base = statistics.median(times["in process"])
    title = f"ResNet-20, batch {job.batch}, chained, BER 1e-5, recipe {'of the paper' if paper else 'as by default'}"
    table = Table("side", "ms an iteration", "ratio", title=title)
    for side, found in times.items():
        table.add_row(side, f"{1000 * statistics.median(found):.1f}", f"{statistics.median(found) / base:.2f}")
    profile = Table("stage", "ms", title="host time of the stages over Mosquitto (they overlap)")
    for stage, seconds in stages.items():
        profile.add_row(stage, f"{1000 * seconds:.1f}")
    Console().print(table, profile)
    if json_file is not None:
        ratios = {f"{side}_vs_in_process": statistics.median(found) / base for side, found in times.items()}
        json_file.write_text(json.dumps({**ratios, "in_process_s": base, "stages_s": stages}, indent=1))


def _stages(rows: list[ledger.Row]) -> dict[str, float]:
    names = {stage for row in rows for stage in row.host_s}
    return {stage: statistics.median(row.host_s.get(stage, 0.0) for row in rows) for stage in sorted(names)}


if __name__ == "__main__":
    typer.run(main)
