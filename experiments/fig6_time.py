"""Fig. 6 of the paper: retraining time by stage, normalised to direct retraining, the paper's method beside ours.

``python -m experiments.wire_cost`` measures, then ``python -m experiments.fig6_time --measured FILE --out FOLDER`` writes
``fig6_time.png``, ``fig6_time.csv`` and ``fig6_reduction.json``, and prints the average reductions.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.table import Table

from experiments.wire_cost import BERS, EVALUATED, LINKS, Cost, load

STAGES: Final = ("forward", "tmr", "increment", "coding", "uplink", "backward", "downlink")
TITLES: Final = ("FP", "TMR", "increment", "(de)compression", "data transmission", "BP", "model transmission")
COLOURS: Final = ("#4c78a8", "#72b7b2", "#eeca3b", "#b279a2", "#f58518", "#54a24b", "#9d755d")
METHODS: Final = (("aprm60", "APRM-60%"), ("lossless", "ours"), ("jpeg", "ours, JPEG 95"))
"""Those in the figure; the table has one more."""
KNOWN: Final = ("known", "ours, samples known")
SHOWN: Final = {"hspa": "HSPA", "lora": "LoRa", "lte": "LTE"}
REPORTED: Final = {1e-6: 0.88, 1e-5: 0.73, 1e-4: 0.38}
"""Average reduction of retraining time that the paper reports for APRM-60 % (section VI.C)."""
GOAL: Final = {1e-6: 0.98, 1e-5: 0.97, 1e-4: 0.90}


def shares(costs: Sequence[Cost]) -> list[tuple[Cost, float, float]]:
    """(cost, its time over that of direct retraining, the same with its stages overlapping), direct one after another."""
    direct = {(c.network, c.ber, c.link): c.stages.total() for c in costs if c.method == "drm"}
    return [
        (c, c.stages.total() / direct[c.network, c.ber, c.link], c.stages.overlapped / direct[c.network, c.ber, c.link])
        for c in costs
    ]


def reductions(costs: Sequence[Cost], links: Sequence[str]) -> dict[str, dict[float, float]]:
    """Average share (0 to 1) of direct retraining's time that each method saves, by BER, over networks and ``links``."""
    found = shares(costs)
    result: dict[str, dict[float, float]] = {}
    for method, title in (*METHODS, KNOWN):
        for suffix, column in (("", 1), (", overlapped", 2)):
            result[title + suffix] = {
                ber: 1
                - float(np.mean([r[column] for r in found if (r[0].method, r[0].ber) == (method, ber) and r[0].link in links]))
                for ber in BERS
            }
    return result


def draw(costs: Sequence[Cost], path: Path) -> None:
    """The stacked bars, a row for each evaluated link and a column for each network."""
    names = list(dict.fromkeys(c.network for c in costs))
    direct = {(c.network, c.ber, c.link): c.stages.total() for c in costs if c.method == "drm"}
    by: dict[tuple[str, float, str, str], Cost] = {(c.network, c.ber, c.link, c.method): c for c in costs}
    figure, axes = plt.subplots(len(EVALUATED), len(names), figsize=(3.1 * len(names), 6.6), sharey=True, squeeze=False)
    for row, link in enumerate(EVALUATED):
        for column, name in enumerate(names):
            axis = axes[row][column]
            marks, labels = [], []
            for group, ber in enumerate(BERS):
                for offset, (method, title) in enumerate(METHODS):
                    cost, at, floor = by[name, ber, link, method], group * 3.6 + offset, 0.0
                    for stage, colour in zip(STAGES, COLOURS, strict=True):
                        height = getattr(cost.stages, stage) / direct[name, ber, link]
                        axis.bar(at, height, bottom=floor, color=colour, width=0.85)
                        floor += height
                    axis.text(at, floor + 0.01, f"{floor:.1%}", ha="center", va="bottom", fontsize=6.5, rotation=90)
                    marks.append(at)
                    labels.append(title)
                axis.text(group * 3.6 + 1, 1.15, f"BER {ber:.0e}", ha="center", fontsize=8)
            axis.set_xticks(marks, labels, rotation=90, fontsize=7)
            random = next(c.random_weights for c in costs if c.network == name)
            axis.set_title(f"{SHOWN.get(link, link)} / {name}{' (random weights)' if random else ''}", fontsize=8.5)
            axis.set_ylim(0, 1.22)
            axis.spines[["top", "right"]].set_visible(False)
        axes[row][0].set_ylabel("time / direct retraining")
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS]
    figure.legend(handles, TITLES, ncols=len(TITLES), loc="lower center", fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measured", type=Path, default=Path("runs/wire_cost.json"))
    parser.add_argument("--out", type=Path, default=Path("runs/fig6"))
    given = parser.parse_args()
    costs = load(given.measured)
    given.out.mkdir(parents=True, exist_ok=True)
    draw(costs, given.out / "fig6_time.png")
    with (given.out / "fig6_time.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["network", "random_weights", "ber", "link", "method", *STAGES, "total_s", "overlapped_s", "of_direct"])
        for cost, share, _ in shares(costs):
            stages = [f"{getattr(cost.stages, stage):.6g}" for stage in STAGES]
            total, overlapped = f"{cost.stages.total():.6g}", f"{cost.stages.overlapped:.6g}"
            writer.writerow(
                [
                    cost.network,
                    cost.random_weights,
                    cost.ber,
                    cost.link,
                    cost.method,
                    *stages,
                    total,
                    overlapped,
                    f"{share:.6g}",
                ]
            )
    console = Console()
    tables: dict[str, Any] = {}
    for links in (EVALUATED, *((link,) for link in LINKS)):
        found = reductions(costs, links)
        shown = " and ".join(SHOWN.get(link, link) for link in links)
        title = f"Less retraining time than direct, average over five networks, {shown}"
        table = Table("method", *(f"{ber:g}" for ber in BERS), title=title)
        if links == EVALUATED:
            table.add_row("paper, reported", *(f"{REPORTED[ber]:.0%}" for ber in BERS))
            table.add_row("goal", *(f"{GOAL[ber]:.0%}" for ber in BERS))
        for name, values in found.items():
            table.add_row(name, *(f"{values[ber]:.2%}" for ber in BERS))
        console.print(table)
        tables[" and ".join(links)] = {
            name: {f"{ber:g}": value for ber, value in values.items()} for name, values in found.items()
        }
    tables["reported"] = {f"{ber:g}": value for ber, value in REPORTED.items()}
    (given.out / "fig6_reduction.json").write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
