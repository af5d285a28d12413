"""Fig. 4 of the paper: accuracy against the bit error rate, retrained with exact and with approximate outputs, and ours.

``python -m experiments.fig4_accuracy --shared ../shared`` writes ``fig4_accuracy.csv`` and ``.png`` into --out, and prints the
table and what retraining gains beside what the paper reports. Base is not retrained; DRM is retrained from the device's
own outputs, APRM-x % from approximate ones wherever a layer's similarity is over x % (paper, section VI.B), both by the
paper's plain recipe in signed arithmetic; ours is what ``r2f retrain`` does by default. X: training diverged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

from msgspec import structs

from experiments.common import command, figure, methods, runner, style
from experiments.common.cells import Cell, Recipe
from experiments.common.figure import Point, Wanted
from experiments.common.trained import TRAINED

RATES: Final = (1e-5, 5e-5, 1e-4)
FULL_RATES: Final = (1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 2e-4, 5e-4)
"""The paper's, and two beyond; for CIFAR-10 ten times as much (``methods.scaled``)."""
METHODS: Final[dict[str, Recipe]] = {"DRM": methods.DRM, "APRM-60%": methods.aprm(0.6), "ours": methods.OURS}
FULL_METHODS: Final[dict[str, Recipe]] = {
    "DRM": methods.DRM,
    **{f"APRM-{round(100 * theta)}%": methods.aprm(theta) for theta in (0.8, 0.6, 0.5)},
    "ours": methods.OURS,
}
REPORTED: Final = 1.93
"""Points that DRM is above Base on average, at the highest rate at which a network can still be retrained (section VI.B)."""


def wanted(networks: Sequence[str], *, full: bool, seeds: int) -> list[Wanted]:
    """Every point, Base at first."""
    found = []
    for name in networks:
        rates = [methods.scaled(name, ber) for ber in (FULL_RATES if full else RATES)]
        base = Cell(network=name, trained=None, deployed=(0.0,), recipe=methods.BASE, seeds=seeds)
        found += [Wanted("Base", ber, _at(base, ber)) for ber in (0.0, *rates)]
        for method, settings in (FULL_METHODS if full else METHODS).items():
            retrained = Cell(
                network=name, trained=0.0, deployed=(0.0,), seeds=seeds, recipe=settings + methods.length(name, full=full)
            )
            found += [Wanted(method, ber, _at(retrained, ber)) for ber in rates]
    return found


def _at(cell: Cell, ber: float) -> Cell:
    return structs.replace(cell, trained=None if cell.trained is None else ber, deployed=(ber,))


def highest(points: Sequence[Point], method: str) -> list[float]:
    """Points that a method is above Base, for each network at the highest rate at which it did not diverge."""
    found = []
    for name in dict.fromkeys(p.network for p in points):
        own = [p for p in points if p.network == name]
        ber = max((p.ber for p in own if p.method == method and p.value is not None), default=None)
        found += figure.gains([p for p in own if p.ber == ber], method, "Base")
    return found


@style.styled
def draw(points: Sequence[Point], path: Path) -> None:
    """A panel a network."""
    names = list(dict.fromkeys(p.network for p in points))
    shown = list(dict.fromkeys(p.method for p in points))
    drawn, (axes,) = style.panels(1, len(names), (4.2 * len(names), 3.8))
    for axis, name in zip(axes, names, strict=True):
        own = [p for p in points if p.network == name]
        figure.curves(axis, [p for p in own if p.ber > 0], shown)
        for clean in (p.value for p in own if p.ber == 0 and p.value is not None):
            axis.axhline(clean.mean, color="grey", linewidth=0.8, label="Base, no faults")
        axis.set(xscale="log", xlabel="bit error rate", title=figure.title(own))
        axis.grid(alpha=0.3)
    axes[0].legend(loc="lower left", title="X: diverged")
    style.save(drawn, path)


def main() -> None:
    """Measures, writes, draws and prints."""
    parser = figure.parser(__doc__, methods.SMALL)
    given = parser.parse_args()
    networks = list(TRAINED) if given.full else given.network
    points = figure.measure(wanted(networks, full=given.full, seeds=given.seeds), given.shared, runner.pool_of(given))
    figure.write(points, given.out / "fig4_accuracy.csv", "ber")
    draw(points, given.out / "fig4_accuracy.png")
    print(figure.table(points, "ber"))
    for method in dict.fromkeys(p.method for p in points if p.method != "Base"):
        if gained := highest(points, method):
            print(f"{method} over Base at the highest rate that can be retrained: {fmean(gained):+.2f} points on average")
    print(f"the paper's DRM: {REPORTED:+.2f} (its own networks, 50,000 photos)")


if __name__ == "__main__":
    command.run(main)
