"""Fig. 1 of the paper: accuracy against the bit error rate, 1e-6 to 1e-4 and on to where it collapses.

``python -m experiments.fig1_ber_sweep --shared ../shared`` writes a CSV (a row for each network, rate and seed) and a PNG
(mean and standard deviation over the seeds). The networks are those whose weights are at hand. Soft errors hit inputs,
weights and outputs of every MAC layer at one rate (architecture.md, "Faults"); a weight flip lasts for one batch of 16.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from accelsim.accelerators import Simulated
from accelsim.datasets import Int64, spread
from accelsim.faults import Rates
from accelsim.int8.network import Network, UInt8
from experiments.common import command, style
from experiments.common.trained import TRAINED, images_of, lowered, top

RATES = (0.0, 1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
BATCH = 16
PANELS = ((10, "CIFAR-10", 1), (1000, "ImageNet", 5))
"""(classes, data set, k of the accuracy that is drawn), as the paper has them."""


@dataclass(frozen=True, slots=True)
class Point:
    """Accuracy, in per cent, of one network at one rate under the faults of one seed."""

    network: str
    ber: float
    seed: int
    images: int
    top1: float
    top5: float


def measure(network: Network, images: UInt8, labels: Int64, ber: float, seed: int) -> Point:
    """Accuracy of the simulated device on uint8 images (N, H, W, C) in batches of 16, each an iteration of its own."""
    device = Simulated(Rates.uniform(ber), seed)
    device.load(network)
    logits = [
        device.run(network.quantize_images(images[start : start + BATCH]), iteration=start // BATCH)[-1]
        for start in range(0, len(images), BATCH)
    ]
    return Point(network.name, ber, seed, len(images), *top(np.concatenate(logits), labels))


def line(points: Sequence[Point]) -> str:
    """One network at one rate: mean and standard deviation over the seeds."""
    first = points[0]
    cells = [f"{np.mean(v):5.1f} ± {np.std(v):.1f}" for v in ([p.top1 for p in points], [p.top5 for p in points])]
    return f"{first.network:14} BER {first.ber:.0e}  top-1 {cells[0]}  top-5 {cells[1]}  ({first.images} images)"


@style.styled
def draw(points: Iterable[Point], path: Path) -> None:
    """Writes the figure: CIFAR by top-1, ImageNet by top-5, as the paper's."""
    points = list(points)
    figure, ((left, right),) = style.panels(1, 2, (10, 4))
    for axis, (classes, data, k) in zip((left, right), PANELS, strict=True):
        names = list(dict.fromkeys(p.network for p in points if TRAINED[p.network].num_classes == classes))
        for name, colour in zip(names, style.COLOURS, strict=False):
            own = [p for p in points if p.network == name]
            rates = sorted({p.ber for p in own if p.ber > 0})
            groups = [[p.top1 if k == 1 else p.top5 for p in own if p.ber == rate] for rate in rates]
            label = f"{name}, {own[0].images} images"
            means, deviations = [np.mean(group) for group in groups], [np.std(group) for group in groups]
            axis.errorbar(rates, means, deviations, color=colour, marker="o", markersize=4, capsize=3, label=label)
            if clean := [p.top1 if k == 1 else p.top5 for p in own if p.ber == 0]:
                axis.axhline(float(np.mean(clean)), color=colour, linestyle=":", linewidth=1)
        axis.set(xscale="log", xlabel="bit error rate", ylabel=f"top-{k}, %", title=f"{data}, top-{k}", ylim=(0, 100))
        axis.grid(alpha=0.3)
        if names:
            axis.legend(loc="lower left", title="dotted: no faults")
    style.save(figure, path)


def main() -> None:
    """Measures, prints a line a network and rate, and writes ``fig1_ber_sweep.csv`` and ``.png`` into --out."""
    parser = command.parser(__doc__)
    command.add_shared(parser)
    command.add_networks(parser, list(TRAINED))
    command.add_rates(parser, RATES)
    parser.add_argument("--seeds", type=command.positive, default=3, help="fault seeds [%(default)s]")
    parser.add_argument("--images", type=command.positive, default=1000, help="test images at most [%(default)s]")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the CSV and the PNG [%(default)s]")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    points = []
    with (given.out / "fig1_ber_sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)])
        writer.writeheader()
        for name in given.network:
            network = lowered(name, given.shared)
            images, labels = images_of(name, given.shared, "test")
            chosen = spread(given.images, len(images))
            for ber in given.ber:
                seeds = range(given.seeds if ber > 0 else 1)
                found = [measure(network, images[chosen], labels[chosen], ber, seed) for seed in seeds]
                writer.writerows(map(asdict, found))
                file.flush()
                points += found
                print(line(found), flush=True)
    draw(points, given.out / "fig1_ber_sweep.png")
    print(f"wrote {given.out / 'fig1_ber_sweep.csv'} and {given.out / 'fig1_ber_sweep.png'}")


if __name__ == "__main__":
    command.run(main)
