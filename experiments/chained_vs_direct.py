"""Does it matter to learning how the outputs crossed the link? Retraining with direct, chained, and plain voted outputs.

``python -m experiments.chained_vs_direct --shared ../shared --out FOLDER`` retrains each network once a training seed with
``direct`` (all outputs as they are) and with ``chained`` without referee and repairs, where the server's outputs are only
as good as three-way votes; then once with ``chained`` exact, whose model must be direct's bit for bit. It prints the
table, and writes ``chained_vs_direct.json`` after every network and ``chained_vs_direct.png`` at the end. ``--network
digits_cnn`` needs no files and takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Final

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from accelsim import zoo
from accelsim.datasets import Dataset, load, spread
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from experiments.common import command, style
from experiments.common.trained import TRAINED, module_of
from r2f import float_training, inprocess
from services.scheme import Scheme
from services.trainer.core.job import Job
from services.trainer.core.task import PAPER, Sgd


@dataclass(frozen=True, slots=True)
class Setting:
    """One network's retraining. Accuracy is top-``top`` on all held-out images."""

    ber: float
    iterations: int
    batch: int
    sgd: Sgd
    top: int


SETTINGS: Final = {
    "digits_cnn": Setting(2e-3, 120, 32, Sgd(rate=5e-3, clip=1.0), 1),
    "resnet20": Setting(1e-3, 100, 32, Sgd(rate=1e-2, clip=1.0), 1),
    # One epoch of the 400 photos at hand, the paper's batch, unclipped.
    "squeezenet1_1": Setting(1e-4, 25, 16, Sgd(rate=3e-5, clip=1e6), 5),
}
FAULT_SEEDS: Final = (1001, 1002, 1003)
COLOURS: Final = {"direct": "#7d8896", "votes": "#edae49", "before": "#d1495b"}


class Run(msgspec.Struct, kw_only=True):
    """One retraining. ``accuracy`` has one number a fault seed, in per cent."""

    network: str
    ber: float
    top: int
    codec: str
    seed: int
    accuracy: tuple[float, ...]
    mismatched: float
    """Share of the server's elements that were not the device's."""
    layer_bytes: float
    """Of the intermediate outputs' int8 bytes, the share that was sent."""
    model_sha256: str


def retrain(name: str, network: Network, data: Dataset, codec: str, seed: int) -> Run:
    """One retraining with ``direct``, ``votes`` (chained, plain) or ``exact`` (chained), and the evaluation after it."""
    setting = SETTINGS[name]
    exact = codec == "exact"
    job = Job(
        session="experiment",
        device="device",
        rates=Rates.uniform(setting.ber),
        scheme=Scheme(codec="direct" if codec == "direct" else "chained", referee=exact, exact=exact),
        iterations=setting.iterations,
        batch=setting.batch,
        sgd=setting.sgd,
        recipe=PAPER,
        labels="device",
        seed=seed,
    )
    done = inprocess.retrain(network, data, job)
    elements = sum(record.elements for record in done.iterations)
    return Run(
        network=name,
        ber=setting.ber,
        top=setting.top,
        codec=codec,
        seed=seed,
        accuracy=tuple(evaluate(name, done.network, data)),
        mismatched=sum(record.mismatched for record in done.iterations) / elements,
        layer_bytes=sum(record.layer_bytes for record in done.iterations) / elements,
        model_sha256=storage.digest(done.network),
    )


def evaluate(name: str, network: Network, data: Dataset, *, faults: bool = True) -> list[float]:
    """Accuracy in per cent on held-out images, one number a fault seed."""
    setting = SETTINGS[name]
    rates = Rates.uniform(setting.ber if faults else 0.0)
    found = inprocess.evaluate(network, data.test_images, data.test_labels, rates, FAULT_SEEDS, batch=50)
    return found.top5 if setting.top == 5 else found.top1


def prepare(name: str, shared: Path) -> tuple[Network, Dataset]:
    """The int8 network and its data. Raises InputError or DataError naming the file that is missing."""
    if name == "digits_cnn":
        data = load("digits")
        module = float_training.train(lambda: zoo.build(name, data.classes), data)
    else:
        data = load(command.real(shared, f"data/{TRAINED[name].data}"))
        module = module_of(name, shared)
    chosen = data.train_images[spread(128, len(data.train_images))]
    return lower(module, chosen, data.mean, data.std, name=name), data


def experiment(name: str, shared: Path, seeds: int, say: Console) -> list[Run]:
    """All runs of one network. Raises RuntimeError if exact chained does not end with direct's model."""
    network, data = prepare(name, shared)
    setting = SETTINGS[name]
    clean = evaluate(name, network, data, faults=False)[0]
    before = evaluate(name, network, data)
    runs = [
        Run(
            network=name, ber=setting.ber, top=setting.top, codec=codec, seed=0, accuracy=tuple(found), mismatched=0.0,
            layer_bytes=0.0, model_sha256=storage.digest(network),
        )
        for codec, found in (("clean", [clean]), ("before", before))
    ]  # fmt: skip
    say.print(f"{name}: fault-free {clean:.1f}, faulty {fmean(before):.1f}")
    for seed in range(seeds):
        for codec in ("direct", "votes") if seed else ("direct", "exact", "votes"):
            runs.append(retrain(name, network, data, codec, seed))
            say.print(f"{name} seed {seed} {codec}: {fmean(runs[-1].accuracy):.1f}")
    first, exact = (next(r for r in runs if r.codec == codec) for codec in ("direct", "exact"))
    if first.model_sha256 != exact.model_sha256:
        raise RuntimeError(f"{name}: exact chained ended with {exact.model_sha256}, direct with {first.model_sha256}")
    return runs


def table(runs: list[Run]) -> Table:
    """Mean and standard deviation over training seeds of the accuracy averaged over fault seeds."""
    grid = Table("network", "BER", "top", "outputs", "accuracy, %", "bytes", "elements wrong", box=None)
    for name in dict.fromkeys(run.network for run in runs):
        for codec in ("clean", "before", "direct", "exact", "votes"):
            found = [run for run in runs if (run.network, run.codec) == (name, codec)]
            if not found:
                continue
            means = [fmean(run.accuracy) for run in found]
            sent = codec not in ("clean", "before")
            grid.add_row(
                name, f"{found[0].ber:g}", str(found[0].top), codec, f"{fmean(means):.1f} ± {_std(found, means):.1f}",
                f"{100 * fmean(r.layer_bytes for r in found):.1f} %" if sent else "",
                f"{100 * fmean(r.mismatched for r in found):.2f} %" if sent else "",
            )  # fmt: skip
    return grid


def _std(found: list[Run], means: list[float]) -> float:
    """Over training seeds; where there is one run, over its fault seeds."""
    return pstdev(means) if len(means) > 1 else pstdev(found[0].accuracy)


@style.styled
def draw(runs: list[Run], path: Path) -> None:
    """Accuracy before and after, a dot a training seed."""
    names = list(dict.fromkeys(run.network for run in runs))
    figure, (axes,) = style.panels(1, len(names), (3.1 * len(names) + 1, 3.6))
    for axis, name in zip(axes, names, strict=True):
        for x, codec in enumerate(("before", "direct", "votes")):
            found = [run for run in runs if (run.network, run.codec) == (name, codec)]
            means = [fmean(run.accuracy) for run in found]
            axis.bar(x, fmean(means), yerr=_std(found, means), width=0.6, capsize=4, color=COLOURS[codec])
            if len(means) > 1:
                axis.plot(x + np.linspace(-0.15, 0.15, len(means)), means, "o", color="black", markersize=3)
            axis.annotate(f"{fmean(means):.1f}", (x, 2), ha="center", color="white", fontweight="bold")
        clean = next(run for run in runs if (run.network, run.codec) == (name, "clean"))
        axis.axhline(clean.accuracy[0], color="#2a7f62", linestyle="--", linewidth=1)
        axis.set_xticks(range(3), ["before", "direct,\nexact", "voted"])
        axis.set_ylim(0, 100)
        axis.set_title(f"{name}, BER {clean.ber:g}\ntop-{clean.top}, %  (dashes: fault-free)", fontsize=9)
    style.save(figure, path)


def main() -> None:
    """Runs, draws and prints."""
    parser = command.parser(__doc__)
    command.add_shared(parser)
    command.add_networks(parser, list(SETTINGS))
    parser.add_argument("--seeds", type=command.positive, default=3, help="training seeds [%(default)s]")
    parser.add_argument("--threads", type=command.positive, default=2, help="torch threads [%(default)s]")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON and the PNG")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    say = Console()
    runs: list[Run] = []
    for name in given.network:
        runs += experiment(name, given.shared, given.seeds, say)
        (given.out / "chained_vs_direct.json").write_bytes(msgspec.json.format(msgspec.json.encode(runs)))
    draw(runs, given.out / "chained_vs_direct.png")
    say.print(table(runs))


if __name__ == "__main__":
    command.run(main)
