"""Fig. 6 of the paper: retraining time by stage, normalised to direct retraining, the paper's method beside ours.

``python -m experiments.wire_cost`` measures, then ``python -m experiments.fig6_time --measured FILE --out FOLDER`` writes
``fig6_time.png``, ``fig6_time.csv`` and ``fig6_reduction.json``, and prints the average reductions and where the time goes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.patches import Rectangle

from experiments.common import command, style
from experiments.common.costs import BERS, EVALUATED, LINKS, SHOWN, Cost, load, networks

STAGES: Final = ("forward", "tmr", "increment", "coding", "uplink", "backward", "downlink")
TITLES: Final = ("FP", "TMR", "increment", "(de)compression", "data transmission", "BP", "model transmission")
COLOURS: Final = ("#4c78a8", "#72b7b2", "#eeca3b", "#b279a2", "#f58518", "#54a24b", "#9d755d")
METHODS: Final = (("aprm60", "APRM-60%"), ("lossless", "ours"), ("jpeg", "ours, JPEG 95"))
"""Those in the figure; the table has one more."""
KNOWN: Final = ("known", "ours, samples known")
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
    found = [row for row in shares(costs) if row[0].link in links]
    result: dict[str, dict[float, float]] = {}
    for method, title in (*METHODS, KNOWN):
        for suffix, column in (("", 1), (", overlapped", 2)):
            result[title + suffix] = {
                ber: 1 - float(np.mean([row[column] for row in found if (row[0].method, row[0].ber) == (method, ber)]))
                for ber in BERS
            }
    return result


def reduction_table(costs: list[Cost], links: Sequence[str]) -> str:
    """``reductions`` for people, beside the paper's where it averages over these links."""
    rows = [[name, *(f"{values[ber]:.2%}" for ber in BERS)] for name, values in reductions(costs, links).items()]
    if tuple(links) == EVALUATED:
        given = (("paper, reported", REPORTED), ("goal", GOAL))
        rows = [[name, *(f"{values[ber]:.0%}" for ber in BERS)] for name, values in given] + rows
    where = " and ".join(SHOWN[link] for link in links)
    title = f"Less retraining time than direct on {where}, {style.over(networks(costs))}"
    return f"{title}:\n\n{style.markdown(['method', *(f'{ber:g}' for ber in BERS)], rows)}\n"


def seconds_table(costs: Sequence[Cost]) -> str:
    """Where the time goes: seconds of ours with lossless inputs on the evaluated links; JPEG inputs and direct beside them."""
    sizes = ("outputs MB", "inputs MB")
    spent = ("FP + TMR + referee", "coding", "uplink", "BP", "total", "overlapped", "JPEG 95", "JPEG 95, overlapped", "direct")
    by = {(c.network, c.ber, c.link, c.method): c for c in costs}
    rows = []
    for name, ber, link in dict.fromkeys((c.network, c.ber, c.link) for c in costs if c.link in EVALUATED):
        ours, jpeg, direct = (by[name, ber, link, method] for method in ("lossless", "jpeg", "drm"))
        at = ours.stages
        seconds = (at.forward + at.tmr, at.coding, at.uplink, at.backward, at.total(), at.overlapped)
        beside = (jpeg.stages.total(), jpeg.stages.overlapped)
        bytes_up = (f"{size / 1e6:.2f}" for size in (ours.layers_bytes, ours.input_bytes))
        values = (f"{value:.1f}" for value in (*seconds, *beside))
        rows.append([f"{name} {ber:.0e}", SHOWN[link], *bytes_up, *values, f"{direct.stages.total():.0f}"])
    title = "Seconds of an iteration, ours with lossless inputs"
    return f"{title}:\n\n{style.markdown(['network, BER', 'link', *sizes, *spent], rows)}\n"


def csv_rows(costs: Sequence[Cost]) -> Iterator[list[object]]:
    """Every cost: what it is of, seconds of each stage, and its share of direct retraining's time."""
    yield ["network", "random_weights", "ber", "link", "method", *STAGES, "total_s", "overlapped_s", "of_direct"]
    for cost, share, _ in shares(costs):
        seconds = [getattr(cost.stages, stage) for stage in STAGES]
        numbers = [f"{value:.6g}" for value in (*seconds, cost.stages.total(), cost.stages.overlapped, share)]
        yield [cost.network, cost.random_weights, cost.ber, cost.link, cost.method, *numbers]


@style.styled
def draw(costs: list[Cost], path: Path) -> None:
    """The stacked bars, a row for each evaluated link and a column for each network."""
    names = networks(costs)
    direct = {(c.network, c.ber, c.link): c.stages.total() for c in costs if c.method == "drm"}
    by: dict[tuple[str, float, str, str], Cost] = {(c.network, c.ber, c.link, c.method): c for c in costs}
    figure, axes = style.panels(len(EVALUATED), len(names), (max(9, 3.1 * len(names)), 6.6), same_y=True)
    for row, link in zip(axes, EVALUATED, strict=True):
        for axis, name in zip(row, names, strict=True):
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
            random = any(c.random_weights for c in costs if c.network == name)
            axis.set_title(f"{SHOWN[link]} / {name}{' (random weights)' if random else ''}", fontsize=8.5)
            axis.set_ylim(0, 1.22)
        row[0].set_ylabel("time / direct retraining")
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS]
    figure.legend(handles, TITLES, ncols=len(TITLES), loc="outside lower center", fontsize=8)
    style.save(figure, path)


def main() -> None:
    """Draws, writes and prints."""
    parser = command.parser(__doc__)
    parser.add_argument("--measured", type=Path, default=Path("runs/wire_cost.json"), help="of wire_cost [%(default)s]")
    parser.add_argument("--out", type=Path, default=Path("runs/fig6"), help="folder for what is written [%(default)s]")
    given = parser.parse_args()
    costs = load(given.measured)
    given.out.mkdir(parents=True, exist_ok=True)
    draw(costs, given.out / "fig6_time.png")
    with (given.out / "fig6_time.csv").open("w", newline="") as file:
        csv.writer(file).writerows(csv_rows(costs))
    written: dict[str, Any] = {"networks": networks(costs), "reported": {f"{ber:g}": value for ber, value in REPORTED.items()}}
    for links in (EVALUATED, *((link,) for link in LINKS)):
        print(reduction_table(costs, links))
        found = reductions(costs, links)
        written[" and ".join(links)] = {
            name: {f"{ber:g}": value for ber, value in values.items()} for name, values in found.items()
        }
    print(seconds_table(costs))
    (given.out / "fig6_reduction.json").write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    command.run(main)
