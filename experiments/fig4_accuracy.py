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

from experiments.common import command, figure, methods
from experiments.common.cells import Cell
from experiments.common.figure import Point, Wanted

RATES: Final = (1e-5, 5e-5, 1e-4)
FULL_RATES: Final = (1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 2e-4, 5e-4)
"""The paper's, and two beyond; for CIFAR-10 ten times as much (``methods.scaled``)."""
THETAS: Final = (0.6,)
FULL_THETAS: Final = (0.8, 0.6, 0.5)
"""Thresholds of similarity of the approximate retraining."""
REPORTED: Final = 1.93
"""Points that DRM is above Base on average, at the highest rate at which a network can still be retrained (section VI.B)."""


def wanted(networks: Sequence[str], full: bool, seeds: int) -> list[Wanted]:
    """Every point, Base at first."""
    found = []
    for name in networks:
        rates = [methods.scaled(name, ber) for ber in (FULL_RATES if full else RATES)]
        base = Cell(network=name, trained=None, deployed=(0.0,), recipe=methods.BASE, seeds=seeds)
        found += [Wanted("Base", ber, structs.replace(base, deployed=(ber,))) for ber in (0.0, *rates)]
        length = methods.length(name, full=full)
        ways = {"DRM": methods.papers(name) + length}
        for theta in FULL_THETAS if full else THETAS:
            ways[f"APRM-{round(100 * theta)}%"] = methods.papers(name, theta) + length
        ways["ours"] = methods.ours(name, full=full)
        for method, settings in ways.items():
            retrained = structs.replace(base, recipe=settings)
            found += [Wanted(method, ber, structs.replace(retrained, trained=ber, deployed=(ber,))) for ber in rates]
    return found


def highest(points: Sequence[Point], method: str) -> list[float]:
    """Points that a method is above Base, for each network at the highest rate at which it did not diverge."""
    found = []
    for name in figure.networks(points):
        own = [p for p in points if p.network == name]
        ber = max((p.ber for p in own if p.method == method and p.value is not None), default=None)
        found += figure.gains([p for p in own if p.ber == ber], method, "Base")
    return found


def finding(points: Sequence[Point]) -> str:
    """What each method gains beside what the paper's does."""
    lines = ["Points above Base at the highest rate that could be retrained, on average over the networks:"]
    for method in figure.methods_of(points):
        if method != "Base" and (gained := highest(points, method)):
            lines.append(f"  {method}: {fmean(gained):+.2f}")
    return "\n".join([*lines, f"  the paper's DRM: {REPORTED:+.2f} (its networks, 50,000 photos)"])


def draw(points: Sequence[Point], path: Path) -> None:
    """A panel a network."""
    figure.panels(points, path, "bit error rate")


def main() -> None:
    """Measures, writes, draws and prints."""
    figure.run(__doc__, "fig4_accuracy", "ber", wanted, draw, finding)


if __name__ == "__main__":
    command.run(main)
