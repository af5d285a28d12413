"""Fig. 7 of the paper: bytes sent upwards, normalised to direct retraining, by similarity threshold, and ours.

``python -m experiments.wire_cost`` measures, then ``python -m experiments.fig7_bytes --measured FILE --out FOLDER`` writes
``fig7_bytes.png`` and ``fig7_bytes.csv``, and prints the table.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.wire_cost import BERS, Cost, load

METHODS: Final = (
    ("aprm80", "APRM-80%", "#c7c7c7"),
    ("aprm60", "APRM-60%", "#9e9e9e"),
    ("aprm50", "APRM-50%", "#6f6f6f"),
    ("lossless", "ours", "#f58518"),
    ("jpeg", "ours, JPEG 95", "#e45756"),
)
KNOWN: Final = ("known", "ours, samples known", "")
"""In the table alone."""
LINK: Final = "hspa"
"""The referee's threshold depends on the link, so bytes do a little; these are HSPA's."""


def ratios(costs: Sequence[Cost]) -> dict[tuple[str, float, str], tuple[float, float]]:
    """(network, BER, method): share of direct's bytes that go up, of everything and of the intermediate outputs alone."""
    direct = {(c.network, c.ber): c for c in costs if c.method == "drm" and c.link == LINK}
    result: dict[tuple[str, float, str], tuple[float, float]] = {}
    for c in costs:
        if c.link == LINK:
            all_of_it = direct[c.network, c.ber]
            whole = (c.layers_bytes + c.input_bytes) / (all_of_it.layers_bytes + all_of_it.input_bytes)
            result[c.network, c.ber, c.method] = whole, c.layers_bytes / all_of_it.layers_bytes
    return result


def draw(costs: Sequence[Cost], path: Path) -> None:
    """Bars of the intermediate outputs, and a tick where inputs are counted too; logarithmic, as ours would vanish."""
    names = list(dict.fromkeys(c.network for c in costs))
    found = ratios(costs)
    random = {c.network: c.random_weights for c in costs}
    figure, axes = plt.subplots(1, len(BERS), figsize=(14, 4.2), sharey=True)
    for axis, ber in zip(axes, BERS, strict=True):
        for column, name in enumerate(names):
            for offset, (method, title, colour) in enumerate(METHODS[:-1]):
                whole, layers = found[name, ber, method]
                at = column + (offset - 1.5) * 0.2
                axis.bar(at, layers, width=0.18, color=colour, label=title if column == 0 else None)
                tick = "with inputs" if column == 0 and offset == 0 else None
                axis.plot([at - 0.09, at + 0.09], [whole, whole], color="black", linewidth=1.2, label=tick)
            whole = found[name, ber, "jpeg"][0]
            at = column + 1.5 * 0.2
            label = "ours, with JPEG 95 inputs" if column == 0 else None
            axis.plot([at - 0.09, at + 0.09], [whole, whole], color="#e45756", linewidth=1.6, label=label)
        axis.set_yscale("log")
        axis.set_ylim(1e-4, 1.5)
        axis.set_xticks(range(len(names)), [f"{n}{chr(10)}(random)" if random[n] else n for n in names], fontsize=8)
        axis.set_title(f"BER {ber:.0e}", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("bytes sent up / direct retraining")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="lower center", ncols=6)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measured", type=Path, default=Path("runs/wire_cost.json"))
    parser.add_argument("--out", type=Path, default=Path("runs/fig7"))
    given = parser.parse_args()
    costs = load(given.measured)
    given.out.mkdir(parents=True, exist_ok=True)
    draw(costs, given.out / "fig7_bytes.png")
    found = ratios(costs)
    with (given.out / "fig7_bytes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["network", "ber", "method", "of_direct", "layers_of_direct_layers"])
        writer.writerows([*key, f"{whole:.6g}", f"{layers:.6g}"] for key, (whole, layers) in found.items())
    console = Console()
    for column, title in ((1, "Intermediate outputs"), (0, "Everything that goes up")):
        table = Table(
            "method", *(f"{ber:g}" for ber in BERS), title=f"{title}, share of direct's bytes, average of five networks"
        )
        for method, name, _ in (*METHODS, KNOWN):
            values = [np.mean([r[column] for (_, b, m), r in found.items() if (b, m) == (ber, method)]) for ber in BERS]
            table.add_row(name, *(f"{value:.3%}" for value in values))
        console.print(table)


if __name__ == "__main__":
    main()
