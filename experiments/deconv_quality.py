"""Quality of networks that give images under faults: fault-free, faulty, and retrained, against the bit error rate.

``python -m experiments.deconv_quality`` trains the U-Net for segmentation and the super-resolution network that are made
here (no data or weights are needed), retrains each at each bit error rate in one process by the defaults of ``r2f retrain``,
and measures the data set's test images, which chose nothing: PSNR and SSIM, or mIoU. Mean and population standard deviation
over the fault seeds. A table, a CSV, a figure, and a sheet of samples for each network and rate. Another network is named
with its ``--weights`` and ``--data``.

``fault-free`` and ``faulty`` are the paper's arithmetic, nothing retrained, without faults and with; ``quantised for it`` is
the network that retraining starts from. ``won back`` is (retrained - faulty) / (fault-free - faulty), ``by retraining`` the
same with ``quantised for it`` in the place of ``faulty``: what retraining alone wins of what was still lost.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes

from accelsim import zoo
from accelsim.files import write_whole
from experiments.common import command, figure, image_quality, retraining, runner, style
from experiments.common.image_quality import METHODS, Cell, Found
from r2f import float_training
from services.metric import METRICS, written

BERS: Final = (3e-4, 5e-4, 1e-3, 2e-3)
NETWORKS: Final = ("crops_sr2x", "shapes_unet")
"""Those that are trained here."""


def trained(network: str, folder: Path) -> Path:
    """The network's weights, trained once and left in the folder."""
    path = folder / f"{network}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        float_training.main(network, path)
    return path


def recovered(values: dict[str, list[float]], before: str) -> float | None:
    """(retrained - before) / (fault-free - before), of means; None where nothing was lost."""
    clean, start, after = (float(np.mean(values[method])) for method in ("fault-free", before, "retrained"))
    return (after - start) / (clean - start) if clean > start else None


def rows(cells: Sequence[Cell], found: Sequence[Found]) -> list[dict[str, object]]:
    """A row a network, rate and metric."""
    return [
        {
            "network": cell.network, "ber": cell.ber, "metric": metric, "images": one.images, "seeds": cell.seeds,
            "overhead": one.overhead, "iterations": one.iterations, "deployed": one.deployed, "sent_bytes": one.sent,
            **{f"{method}_mean": float(np.mean(values[method])) for method in METHODS},
            **{f"{method}_std": float(np.std(values[method])) for method in METHODS},
            "won_back": recovered(values, "faulty"), "by_retraining": recovered(values, "quantised for it"),
        }
        for cell, one in zip(cells, found, strict=True)
        for metric, values in one.values.items()
    ]  # fmt: skip


def table(written_rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a page."""
    lines = []
    for row in written_rows:
        digits = METRICS[row["metric"]].digits
        shown = [f"{written(row['metric'], row[f'{m}_mean'])} ± {row[f'{m}_std']:.{digits}f}" for m in METHODS]
        won = ["nothing was lost" if row[name] is None else f"{row[name]:.0%}" for name in ("won_back", "by_retraining")]
        lines.append([row["network"], f"{row['ber']:g}", f"{row['overhead']:.1%}", METRICS[row["metric"]].title, *shown, *won])
    return style.markdown(("network", "BER", "overhead", "metric", *METHODS, "won back", "by retraining"), lines)


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


def cells_of(given: argparse.Namespace) -> list[Cell]:
    """What is to be measured. Raises InputError for a network without its weights or data."""
    recipe, cells = tuple(retraining.given_recipe(vars(given)).items()), []
    recipe += tuple((name, value) for name in ("mean", "std") if (value := getattr(given, name)) is not None)
    for network in given.network:
        own = given.weights is not None or given.data is not None
        if own and (given.weights is None or given.data is None or len(given.network) > 1):
            raise command.InputError("--weights and --data: give both, with one --network")
        if not own and network not in NETWORKS:
            raise command.InputError(f"--network {network}: give its --weights and --data; {', '.join(NETWORKS)} need none")
        if own and not given.weights.is_file():
            raise command.InputError(f"--weights {given.weights}: not found")
        weights = given.weights if own else trained(network, given.out)
        data = str(given.data.absolute()) if own else zoo.TRAINED_HERE[network]
        digest = hashlib.sha256(weights.read_bytes() + (Path(data).read_bytes() if Path(data).is_file() else b"")).hexdigest()
        cells += [
            Cell(network, str(weights.absolute()), digest, data, ber, given.seeds, given.images, given.vote_weights, recipe)
            for ber in given.ber
        ]
    return cells


def main() -> None:
    """Trains, measures, writes, draws and prints."""
    parser = command.parser(__doc__)
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), metavar="NAME", help="of the zoo [%(default)s]")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of another network than those")
    parser.add_argument("--data", type=Path, metavar="FILE.npz", help="images and targets for it (docs/data.md)")
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", metavar="X[,X,X]", help="of its pixels in 0..1, as r2f retrain has it")
    command.add_rates(parser, BERS)
    parser.add_argument("--seeds", type=command.positive, default=retraining.SEEDS, help="fault seeds [%(default)s]")
    parser.add_argument("--images", type=command.positive, default=200, help="test images, evenly over all [%(default)s]")
    parser.add_argument("--vote-weights", action="store_true", help="of the retrained network, where they are read")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here, too")
    parser.add_argument("--out", type=Path, default=figure.OUT, metavar="FOLDER", help="CSV, figure, weights [%(default)s]")
    retraining.add_recipe(parser)
    runner.add_pool(parser)
    given = parser.parse_args()
    cells = cells_of(given)
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
        (given.out / f"deconv_quality_{Path(cell.network).name}_{cell.ber:g}.png").write_bytes(one.sheet)
    draw(all_rows, given.out / "deconv_quality.png")
    print(table(all_rows))


if __name__ == "__main__":
    command.run(main)
