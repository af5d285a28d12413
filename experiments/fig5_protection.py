"""Fig. 5 of the paper: accuracy against the bit error rate, retrained with the critical layers protected, and ours.

``python -m experiments.fig5_protection --shared ../shared`` writes ``fig5_protection.csv`` and ``.png`` into --out, and prints
the table and the gains beside the paper's. TCLP-x % protects layers that Algorithm 1 chose for x % more cycles and retrains
with them by the paper's plain recipe in signed arithmetic; TCLP-200 % is TMR of everything. Ours are what ``r2f retrain``
does by default, without protection and with what is chosen for as many cycles as ``r2f protect --units sites`` does, the error
rate to quantise for among it. Both searches look at held-out training images; the CSV has the cycles that were really added on
the reported ones. X: training diverged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

from msgspec import structs

from experiments.common import cells, command, figure, methods
from experiments.common.cells import Cell
from experiments.common.figure import Point, Wanted
from r2f.protection.words import Search

RATES: Final = (5e-5, 1e-4)
FULL_RATES: Final = (1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 2e-4, 5e-4)
"""The paper's, and two beyond; for CIFAR-10's networks ten times as much (``methods.scaled``)."""
PAPERS: Final = (0.0, 0.5, 2.0)
FULL_PAPERS: Final = (0.0, 0.2, 0.5, 2.0)
"""Budgets of the paper's methods; DRM is the one without."""
OURS: Final = (0.0, 0.5)
FULL_OURS: Final = (0.0, 0.2, 0.5)
REPORTED: Final = {("TCLP-200%", "Base"): 13.73, ("TCLP-200%", "DRM"): 4.97, ("TCLP-50%", "DRM"): 2.01}
"""Points that one is above the other on average, at the rate 1e-4 (section VI.B)."""
AT: Final = 1e-4


def wanted(networks: Sequence[str], full: bool, seeds: int) -> list[Wanted]:
    """Every point, Base at first."""
    found = []
    for name in networks:
        rates = [methods.scaled(name, ber) for ber in (FULL_RATES if full else RATES)]
        base = Cell(network=name, trained=None, deployed=(0.0,), recipe=methods.BASE, seeds=seeds)
        found += [Wanted("Base", ber, structs.replace(base, deployed=(ber,))) for ber in (0.0, *rates)]
        length = methods.length(name, full=full)
        ways: list[tuple[str, Cell]] = []
        for budget in FULL_PAPERS if full else PAPERS:
            ways.append((_named("TCLP", budget), _with(base, methods.papers(name) + length, budget, "algorithm1")))
        for budget in FULL_OURS if full else OURS:
            ways.append((_named("ours", budget), _with(base, methods.ours(name, full=full), budget, "estimated")))
        found += [Wanted(way, ber, structs.replace(cell, trained=ber, deployed=(ber,))) for way, cell in ways for ber in rates]
    return found


def _named(way: str, budget: float) -> str:
    return f"{way}-{round(100 * budget)}%" if budget else {"TCLP": "DRM"}.get(way, way)


def _with(base: Cell, recipe: cells.Recipe, budget: float, search: Search) -> Cell:
    return structs.replace(base, recipe=recipe, budget=budget, search=search)


def finding(points: Sequence[Point]) -> str:
    """Gains at one rate beside the paper's."""
    at = [p for p in points if p.ber == methods.scaled(p.network, AT)]
    ours = [(way, other) for way in figure.methods_of(points) if way.startswith("ours") for other in ("Base", "DRM")]
    lines = [f"Points of one above another at BER {AT:g} (ten times that for CIFAR-10), on average over the networks:"]
    for way, other in [*REPORTED, *ours]:
        if gained := figure.gains(at, way, other):
            said = f"; the paper's {REPORTED[way, other]:+.2f}" if (way, other) in REPORTED else ""
            lines.append(f"  {way} above {other}: {fmean(gained):+.2f}{said}")
    return "\n".join(lines)


def draw(points: Sequence[Point], path: Path) -> None:
    """A panel a network."""
    figure.panels(points, path, "bit error rate")


def main() -> None:
    """Measures, writes, draws and prints."""
    figure.run(__doc__, "fig5_protection", "ber", wanted, draw, finding)


if __name__ == "__main__":
    command.run(main)
