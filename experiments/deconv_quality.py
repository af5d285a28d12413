"""Quality of networks that give images under faults: fault-free, faulty, and retrained, against the bit error rate.

``python -m experiments.deconv_quality`` trains the U-Net for segmentation and the super-resolution network that are made here
(no data or weights are needed; minutes), quantises each for each bit error rate, retrains it in one process with its own
recipe, and measures the data set's test images, which chose nothing: PSNR and SSIM, or mIoU. Mean and population standard
deviation over the fault seeds. A table, a CSV, a figure, and a sheet of samples for each network and rate.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes

from accelsim.files import write_whole
from experiments.common import command, figure, image_quality, runner, style
from experiments.common.image_quality import METHODS, NETWORKS, Cell, Found
from r2f import float_training
from services.metric import METRICS, Metric, written

BERS: Final = (3e-4, 1e-3)


def trained(network: str, folder: Path) -> Path:
    """The network's weights, trained once and left in the folder."""
    path = folder / f"{network}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        float_training.main(network, path)
    return path


def recovered(values: dict[str, list[float]]) -> float:
    """(retrained - faulty) / (fault-free - faulty), of means."""
    clean, before, after = (float(np.mean(values[method])) for method in METHODS)
    return (after - before) / (clean - before)


def rows(cells: Sequence[Cell], found: Sequence[Found]) -> list[dict[str, object]]:
    """A row a network, rate and metric."""
    return [
        {
            "network": cell.network, "ber": cell.ber, "metric": metric, "images": cell.images, "seeds": cell.seeds,
            "epochs": cell.epochs, "iterations": one.iterations, "sent_bytes": one.sent,
            **{f"{method}_mean": float(np.mean(values[method])) for method in METHODS},
            **{f"{method}_std": float(np.std(values[method])) for method in METHODS},
            "recovered": recovered(values),
        }
        for cell, one in zip(cells, found, strict=True)
        for metric, values in one.values.items()
    ]  # fmt: skip


def table(written_rows: Sequence[dict[str, object]]) -> str:
    """The rows for a page."""
    lines = []
    for row in written_rows:
        metric: Metric = row["metric"]  # type: ignore[assignment]
        digits = METRICS[metric].digits
        shown = [f"{written(metric, float(str(row[f'{m}_mean'])))} ± {float(str(row[f'{m}_std'])):.{digits}f}" for m in METHODS]
        lines.append([str(row["network"]), f"{row['ber']:g}", METRICS[metric].title, *shown, f"{row['recovered']:.0%}"])
    return style.markdown(("network", "BER", "metric", *METHODS, "won back"), lines)


@style.styled
def draw(written_rows: Sequence[dict[str, object]], path: Path) -> None:
    """A panel a network and metric, quality over the bit error rate."""
    kinds = list(dict.fromkeys((str(row["network"]), str(row["metric"])) for row in written_rows))
    drawn, (axes,) = style.panels(1, len(kinds), (3.8 * len(kinds), 3.6))
    for axis, (network, metric) in zip(axes, kinds, strict=True):
        _panel(axis, [row for row in written_rows if (row["network"], row["metric"]) == (network, metric)])
        unit = METRICS[metric]  # type: ignore[index]
        own = next(row for row in written_rows if row["network"] == network)
        axis.set(xlabel="bit error rate", ylabel=f"{unit.title}, {unit.unit}".rstrip(", "))
        axis.set_title(f"{network}\n{own['images']} test images, {own['seeds']} fault seeds")
        axis.set_xscale("log")
        axis.grid(alpha=0.3)
    style.legend(drawn, axes[0])
    style.save(drawn, path)


def _panel(axis: Axes, own: Sequence[dict[str, object]]) -> None:
    for place, method in enumerate(METHODS):
        x, mean, std = ([float(str(row[name])) for row in own] for name in ("ber", f"{method}_mean", f"{method}_std"))
        axis.errorbar(x, mean, std, label=method, capsize=2, **style.line(place))


def main() -> None:
    """Trains, measures, writes, draws and prints."""
    parser = command.parser(__doc__)
    command.add_networks(parser, list(NETWORKS))
    command.add_rates(parser, BERS)
    parser.add_argument("--epochs", type=command.positive, default=2, help="of retraining [%(default)s]")
    parser.add_argument("--seeds", type=command.positive, default=5, help="fault seeds [%(default)s]")
    parser.add_argument("--images", type=command.positive, default=60, help="test images, evenly over all [%(default)s]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here, too")
    parser.add_argument("--out", type=Path, default=figure.OUT, metavar="FOLDER", help="CSV, figure, weights [%(default)s]")
    runner.add_pool(parser)
    given = parser.parse_args()
    cells = []
    for network in given.network:
        weights = trained(network, given.out).absolute()
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        for ber in given.ber:
            cells.append(Cell(network, str(weights), digest, ber, given.epochs, given.seeds, given.images))
    found = runner.run(image_quality.measured, cells, Found, shared=Path(), reads=lambda _: (), pool=runner.pool_of(given))
    all_rows = rows(cells, found)
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / "deconv_quality.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(all_rows[0]))
        writer.writeheader()
        writer.writerows(all_rows)
    if given.json is not None:
        write_whole(given.json, (json.dumps(all_rows, indent=1) + "\n").encode())
    for cell, one in zip(cells, found, strict=True):
        (given.out / f"deconv_quality_{cell.network}_{cell.ber:g}.png").write_bytes(one.sheet)
    draw(all_rows, given.out / "deconv_quality.png")
    print(table(all_rows))


if __name__ == "__main__":
    command.run(main)
