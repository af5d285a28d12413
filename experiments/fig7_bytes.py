"""Fig. 7 of the paper: bytes sent upwards, normalised to direct retraining, by similarity threshold, and ours.

``python -m experiments.wire_cost`` measures, then ``python -m experiments.fig7_bytes --measured FILE --out FOLDER`` writes
``fig7_bytes.png`` and ``fig7_bytes.csv``, and prints the tables.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from experiments.common import command, style
from experiments.common.costs import BERS, Cost, load, networks

METHODS: Final = (
    ("aprm80", "APRM-80%"),
    ("aprm60", "APRM-60%"),
    ("aprm50", "APRM-50%"),
    ("lossless", "ours"),
    ("jpeg", "ours, JPEG 95"),
)
COLOURS: Final = (*style.GREYS, "#f58518", "#e45756")
KNOWN: Final = ("known", "ours, samples known")
"""In the table alone."""
LINK: Final = "hspa"
"""The referee's threshold depends on the link, so bytes do a little; these are HSPA's."""
WHAT: Final = ("Everything that goes up", "Intermediate outputs")

Ratios = dict[tuple[str, float, str], tuple[float, float]]


def ratios(costs: Sequence[Cost]) -> Ratios:
    """(network, BER, method): share of direct's bytes that go up, of everything and of the intermediate outputs alone."""
    direct = {(c.network, c.ber): c for c in costs if c.method == "drm" and c.link == LINK}
    result: Ratios = {}
    for c in costs:
        if c.link == LINK:
            all_of_it = direct[c.network, c.ber]
            whole = (c.layers_bytes + c.input_bytes) / (all_of_it.layers_bytes + all_of_it.input_bytes)
            result[c.network, c.ber, c.method] = whole, c.layers_bytes / all_of_it.layers_bytes
    return result


def table(costs: list[Cost], column: int) -> str:
    """Average over the networks of one of ``ratios``' two shares."""
    found = ratios(costs)
    rows = []
    for method, name in (*METHODS, KNOWN):
        values = [np.mean([r[column] for (_, b, m), r in found.items() if (b, m) == (ber, method)]) for ber in BERS]
        rows.append([name, *(f"{value:.3%}" for value in values)])
    title = f"{WHAT[column]} on HSPA, share of direct's bytes, {style.over(networks(costs))}"
    return f"{title}:\n\n{style.markdown(['method', *(f'{ber:g}' for ber in BERS)], rows)}\n"


@style.styled
def draw(costs: list[Cost], path: Path) -> None:
    """Dots on a logarithmic axis, a row a network: filled the intermediate outputs, open everything that goes up."""
    names = networks(costs)
    found = ratios(costs)
    random = {c.network for c in costs if c.random_weights}
    figure, (axes,) = style.panels(1, len(BERS), (14, 1.6 + 0.75 * len(names)), same_y=True)
    for axis, ber in zip(axes, BERS, strict=True):
        for row, name in enumerate(names):
            for place, ((method, title), colour) in enumerate(zip(METHODS, COLOURS, strict=True)):
                whole, layers = found[name, ber, method]
                at = row + (place - 2) * 0.14
                axis.plot([layers, whole], [at, at], color=colour, linewidth=0.8)
                axis.plot(layers, at, "o", color=colour, markersize=5, label=title if row == 0 else None)
                axis.plot(whole, at, "o", markerfacecolor="white", markeredgecolor=colour, markersize=5)
        axis.set(xscale="log", xlabel="bytes sent up / direct retraining", title=f"BER {ber:.0e}", xlim=(1e-4, 1.5))
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), [f"{name}\n(random weights)" if name in random else name for name in names])
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    title = "filled: intermediate outputs; open: with the inputs"
    figure.legend(handles, labels, title=title, loc="outside lower center", ncols=len(METHODS))
    style.save(figure, path)


def main() -> None:
    """Draws, writes and prints."""
    parser = command.parser(__doc__)
    parser.add_argument("--measured", type=Path, default=Path("runs/wire_cost.json"), help="of wire_cost [%(default)s]")
    parser.add_argument("--out", type=Path, default=Path("runs/fig7"), help="folder for what is written [%(default)s]")
    given = parser.parse_args()
    costs = load(given.measured)
    given.out.mkdir(parents=True, exist_ok=True)
    draw(costs, given.out / "fig7_bytes.png")
    with (given.out / "fig7_bytes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["network", "ber", "method", "of_direct", "layers_of_direct_layers"])
        writer.writerows([*key, f"{whole:.6g}", f"{layers:.6g}"] for key, (whole, layers) in ratios(costs).items())
    for column in (1, 0):
        print(table(costs, column))


if __name__ == "__main__":
    command.run(main)
