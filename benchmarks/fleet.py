"""``python -m benchmarks.fleet``: several simulated devices on one Mosquitto, a model for each, all on this machine.

The digits network (``--network resnet20``: random weights and images), batch 32, chained, BER 1e-3. Every device's model is
held against the one that the same device gets in one process without any bus; one that differs ends the benchmark. What is
timed is the training: from the first iteration's end of any device to the last one's, evaluations before and after left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
import typer
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from accelsim import zoo
from accelsim.datasets import Dataset, load
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from benchmarks import loop
from r2f import inprocess, prepare, run
from r2f.devices import choosing, dividing
from r2f.display import Display
from r2f.memory import shares
from r2f.pipeline import Pipeline
from r2f.settings import Settings
from services.bus.messages import Progress
from services.trainer import waiting
from services.trainer.core import job as jobs
from services.trainer.core import ledger
from services.trainer.core import result as results
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.fleet import Fleet
from services.trainer.core.task import Recipe, Sgd

STAGES = ("forward", "tmr", "compress", "uplink", "decompress", "backward", "quantise")
TICKS = os.sysconf("SC_CLK_TCK")


class Watch(Display):
    """Notes when iterations end, and what processor time and memory the processes had by then."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.times: list[float] = []
        self.pipeline: Pipeline | None = None
        self.cpu: list[dict[str, float]] = []
        self.peak: dict[str, float] = {}

    def started(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def progress(self, message: Progress) -> None:
        if message.phase != "train" or self.pipeline is None:
            return
        self.times.append(time.perf_counter())
        if message.step in (1, message.steps) or not self.cpu:
            pids = self.pipeline.pids
            self.cpu.append({name: _cpu_s(pid) for name, pid in pids.items()})
            self.peak |= {name: _peak_mb(pid) for name, pid in pids.items()}


def _tree(pid: int) -> list[int]:
    """A process and those that it started, such as the broker that its launcher runs."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [pid, *(one for child in children for one in _tree(int(child)))]


def _cpu_s(pid: int) -> float:
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(") ")[2].split() for one in _tree(pid)]
    return sum((int(one[11]) + int(one[12])) / TICKS for one in fields)


def _peak_mb(pid: int) -> float:
    lines = [line for one in _tree(pid) for line in Path(f"/proc/{one}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def make(folder: Path, network: str, iterations: int) -> tuple[Network, Dataset, Settings]:
    """The network, its data and the settings of a run."""
    if network == "resnet20":
        made, _, settings = loop.make(folder, iterations)
        return made, load(folder / "data.npz"), settings
    torch.manual_seed(0)
    data = load("digits")
    made = lower(zoo.build("digits_cnn", 10).eval(), data.train_images[::5], data.mean, data.std, name="digits_cnn")
    settings = Settings(
        rates=Rates(input=1e-3, weight=1e-3, output=1e-3),
        iterations=iterations,
        batch=32,
        sgd=Sgd(rate=0.002),
        recipe=Recipe(corrections=2, selection=0),
        evaluation_seeds=1,
        evaluation_samples=32,
        checkpoint_every=10_000,
    )
    return made, data, settings


def one_run(top: Path, count: int, network: Network, data: Dataset, settings: Settings) -> dict[str, Any]:
    """So many devices at once: what came of it."""
    names = tuple(f"fleet-{i:02d}" for i in range(count))
    settings = replace(settings, device=",".join(names) if count > 1 else names[0])
    folder = top / f"{count}-devices"
    folder.mkdir()
    job = prepare.job_of(settings, folder.name)
    storage.save(network, folder / jobs.NETWORK)
    jobs.write(folder, job)
    memory = shares(settings.device_memory_mb, network, job.batch, data_bytes=0)
    prepared = prepare.Prepared(
        float_accuracy=Evaluation(samples=1, top1=[0.0]), classes=10, mean=(0.5,), std=(0.25,), memory=memory
    )
    (folder / prepare.PREPARED).write_bytes(msgspec.json.encode(prepared))
    fleet = choosing.fleet_of(settings)
    if fleet is not None:
        dividing.divide(settings, folder, fleet, (jobs.NETWORK, prepare.PREPARED))
    watch = Watch()
    begin = time.perf_counter()
    asyncio.run(run.execute(settings, folder, watch))
    wall = time.perf_counter() - begin
    return _found(folder, names, fleet, network, data, watch) | {"devices": count, "whole_run_s": wall}


def _found(
    folder: Path, names: tuple[str, ...], fleet: Fleet | None, network: Network, data: Dataset, watch: Watch
) -> dict[str, Any]:
    own = {name: folder if fleet is None else folder / name for name in names}
    for name, where in own.items():
        wanted = storage.digest(inprocess.retrain(network, data, jobs.read(where)).network)
        got = results.read(where).model_sha256
        if got != wanted:
            why = waiting.outcome(where) or f"it ended with the model {got[:12]}, alone it gets {wanted[:12]}"
            raise SystemExit(f"{name}: {why}")
    rows = [row for where in own.values() for row in ledger.read(where / results.PROGRESS)]
    busy = {name: watch.cpu[-1].get(name, 0.0) - before for name, before in watch.cpu[0].items()}
    steps = len(watch.times) - 1
    kinds: dict[str, float] = {}
    for name, seconds in busy.items():
        kind = name.rstrip("0123456789").rstrip("-")
        kinds[kind] = kinds.get(kind, 0.0) + 1000 * seconds / steps
    return {
        "right_models": len(own),
        "iterations": len(rows),
        "iterations_per_s": steps / (watch.times[-1] - watch.times[0]),
        "cpu_ms_an_iteration": kinds,
        "stage_ms": {stage: 1000 * statistics.median(row.host_s.get(stage, 0.0) for row in rows) for stage in STAGES},
        "uplink_bytes": statistics.mean(row.uplink_layers + row.uplink_inputs + row.uplink_repairs for row in rows),
        "downlink_bytes": statistics.mean(row.downlink for row in rows),
        "peak_mb": watch.peak,
        "processes": len(watch.peak),
    }


def main(
    devices: Annotated[str, typer.Option(help="How many at once, with commas.")] = "1,2,4,8,32",
    iterations: Annotated[int, typer.Option(min=4, help="Of each device.")] = 40,
    network: Annotated[str, typer.Option(help="digits_cnn or resnet20.")] = "digits_cnn",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
) -> None:
    """Iterations a second of all devices together, where processor time goes, and whether every model is right."""
    torch.set_num_threads(2)
    found = []
    with tempfile.TemporaryDirectory() as name:
        net, data, settings = make(Path(name), network, iterations)
        for count in map(int, devices.split(",")):
            found.append(one_run(Path(name), count, net, data, settings))
            if json_file is not None:
                json_file.write_text(json.dumps({"network": network, "cores": os.cpu_count(), "runs": found}, indent=1))
    kinds = list(found[-1]["cpu_ms_an_iteration"])
    table = Table("devices", "models right", "iterations/s", *kinds, "all", "peak MB", "processes", title="CPU ms an iteration")
    for one in found:
        each = one["cpu_ms_an_iteration"]
        table.add_row(
            str(one["devices"]), str(one["right_models"]), f"{one['iterations_per_s']:.1f}",
            *(f"{each.get(kind, 0.0):.1f}" for kind in kinds), f"{sum(each.values()):.1f}",
            f"{sum(one['peak_mb'].values()):.0f}", str(one["processes"]),
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
