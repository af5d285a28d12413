"""Fig. 1 of the paper: accuracy against the bit error rate, nothing retrained.

``python -m experiments.fig1_ber_sweep --shared ../shared`` writes ``fig1_ber_sweep.csv`` and ``.png`` into --out, and prints
the table and the losses beside the paper's. Soft errors hit inputs, weights and outputs of every MAC layer at one rate
(architecture.md, "Faults"); a weight flip lasts for one batch of 16. *Base* is signed arithmetic as in the paper, *ours* the
arithmetic and the quantiser that are used by default. The networks are those whose weights are at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from experiments.common import command, figure, methods
from experiments.common.cells import Cell
from experiments.common.figure import Point, Wanted
from experiments.common.trained import TRAINED

RATES: Final = (0.0, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3)
FULL_RATES: Final = (0.0, 1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
METHODS: Final = {"Base": methods.BASE, "ours, not retrained": methods.UNTRAINED}
AT: Final = 5e-5
REPORTED: Final = {"SqueezeNet": 6.04, "ResNet18": 3.72}
"""Points of top-5 that the paper's networks lose at that rate (section III.A)."""


def wanted(networks: Sequence[str], full: bool, seeds: int) -> list[Wanted]:
    """Every point."""
    return [
        Wanted(method, ber, Cell(network=name, trained=None, deployed=(ber,), recipe=settings, seeds=seeds))
        for name in networks
        for method, settings in METHODS.items()
        for ber in (FULL_RATES if full else RATES)
    ]


def finding(points: Sequence[Point]) -> str:
    """What is lost at one rate, beside the paper's."""
    by = {(p.network, p.method, p.ber): p.value for p in points}
    lines = [f"Points lost at BER {AT:g}:"]
    for name, method in dict.fromkeys((p.network, p.method) for p in points):
        clean, faulty = by[name, method, 0.0], by[name, method, AT]
        if clean is not None and faulty is not None:
            lines.append(f"  {name}, {method}: {clean.mean - faulty.mean:.2f}")
    return "\n".join([*lines, *(f"  the paper's {name}: {lost:.2f}" for name, lost in REPORTED.items())])


def draw(points: Sequence[Point], path: Path) -> None:
    """A panel a network."""
    figure.panels(points, path, "bit error rate")


def main() -> None:
    """Measures, writes, draws and prints."""
    figure.run(__doc__, "fig1_ber_sweep", "ber", wanted, draw, finding, networks=tuple(TRAINED))


if __name__ == "__main__":
    command.run(main)
