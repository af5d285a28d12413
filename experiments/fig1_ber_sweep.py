"""Fig. 1: accuracy against the bit error rate, 1e-6 to 1e-4 and on to where it collapses.

``python -m experiments.fig1_ber_sweep --shared ../shared`` writes a CSV (a row for each network, rate and seed) and a PNG
(mean and standard deviation over the seeds). The networks are those whose weights are at hand. Soft errors hit inputs,
weights and outputs of every MAC layer at one rate (architecture.md, "Faults"); a weight flip lasts for one batch of 16.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import matplotlib
import numpy as np

from accelsim.accelerators import Simulated
from accelsim.faults import Rates
from accelsim.int8.network import Network, UInt8
from experiments.int8_accuracy import TRAINED, images_of, lowered, top

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RATES = (0.0, 1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
BATCH = 16


@dataclass(frozen=True, slots=True)
class Point:
    """Accuracy, in per cent, of one network at one rate under the faults of one seed."""

    network: str
    ber: float
    seed: int
    images: int
    top1: float
    top5: float


def measure(
    network: Network, images: UInt8, labels: np.ndarray[tuple[int], np.dtype[np.int64]], ber: float, seed: int
) -> Point:
    """Accuracy of the simulated device on uint8 images (N, H, W, C) in batches of 16, each an iteration of its own."""
    device = Simulated(Rates.uniform(ber), seed)
    device.load(network)
    logits = [
        device.run(network.quantize_images(images[start : start + BATCH]), iteration=start // BATCH)[-1]
        for start in range(0, len(images), BATCH)
    ]
    scores = np.concatenate(logits).reshape(len(images), -1).astype(np.float32)
    return Point(network.name, ber, seed, len(images), top(scores, labels, 1), top(scores, labels, 5))


def draw(points: Iterable[Point], path: Path) -> None:
    """Writes the figure: CIFAR by top-1, ImageNet by top-5, as the paper's."""
    points = list(points)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for axis, classes, name, value in ((axes[0], 10, "CIFAR-10, top-1", "top1"), (axes[1], 1000, "ImageNet, top-5", "top5")):
        for network in dict.fromkeys(p.network for p in points if TRAINED[p.network].num_classes == classes):
            own = [p for p in points if p.network == network]
            rates = sorted({p.ber for p in own if p.ber > 0})
            groups = [[getattr(p, value) for p in own if p.ber == rate] for rate in rates]
            line = axis.errorbar(
                rates, [np.mean(g) for g in groups], [np.std(g) for g in groups],
                marker="o", markersize=4, capsize=3, linewidth=1.5, label=network,
            )  # fmt: skip
            if clean := [getattr(p, value) for p in own if p.ber == 0]:
                axis.axhline(float(np.mean(clean)), color=line[0].get_color(), linestyle=":", linewidth=1)
        axis.set(xscale="log", xlabel="bit error rate", ylabel="accuracy, %", title=name, ylim=(0, 100))
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(loc="lower left", title="dotted: no faults")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measures, prints a line a network and rate, and writes ``fig1_ber_sweep.csv`` and ``.png`` into --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and weights/")
    parser.add_argument("--network", nargs="*", default=list(TRAINED), choices=list(TRAINED))
    parser.add_argument("--ber", nargs="*", type=float, default=list(RATES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000, help="test images at most")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    points = []
    with (args.out / "fig1_ber_sweep.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)])
        writer.writeheader()
        for name in args.network:
            network = lowered(name, args.shared)
            images, labels = images_of(name, args.shared, "test")
            images, labels = images[: args.images], labels[: args.images]
            for ber in args.ber:
                seeds = range(args.seeds if ber > 0 else 1)
                row = [measure(network, images, labels, ber, seed) for seed in seeds]
                writer.writerows(map(asdict, row))
                file.flush()
                points += row
                means = [f"{np.mean(v):5.1f} ± {np.std(v):.1f}" for v in ([p.top1 for p in row], [p.top5 for p in row])]
                print(f"{name:14} BER {ber:.0e}  top-1 {means[0]}  top-5 {means[1]}  ({len(images)} images)", flush=True)
    draw(points, args.out / "fig1_ber_sweep.png")
    print(f"wrote {args.out / 'fig1_ber_sweep.csv'} and {args.out / 'fig1_ber_sweep.png'}")


if __name__ == "__main__":
    main()
