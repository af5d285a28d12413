"""At which learning rate is the paper's recipe at its best? The paper says none, and a comparison needs a fair one.

``python -m experiments.paper_rate --shared ../shared`` retrains each network by the paper's plain recipe in signed arithmetic
at several rates, evaluates on selection images, writes ``paper_rate.csv`` into --out and prints the table; the best go
into ``experiments.common.methods``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from experiments.common import command, figure, methods
from experiments.common.cells import Cell
from experiments.common.figure import Point, Wanted, recipe

RATES: Final = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
BER: Final = 1e-4
"""Ten times as much for CIFAR-10's networks (``methods.scaled``)."""


def wanted(networks: Sequence[str], full: bool, seeds: int) -> list[Wanted]:
    """Base, and every rate."""
    found = []
    for name in networks:
        ber = methods.scaled(name, BER)
        base = Cell(network=name, trained=None, deployed=(ber,), recipe=methods.BASE, seeds=seeds, part="selection")
        found += [Wanted("Base", lr, base) for lr in RATES]
        for lr in RATES:
            settings = methods.BASE + methods.PLAIN + methods.length(name, full=full) + recipe(lr=lr)
            cell = Cell(network=name, trained=ber, deployed=(ber,), recipe=settings, seeds=seeds, part="selection")
            found.append(Wanted("DRM", lr, cell))
    return found


def best(points: Sequence[Point]) -> dict[str, float]:
    """The rate with the largest accuracy, by network."""
    found = {}
    for name in figure.networks(points):
        values = {p.x: p.value.mean for p in points if p.network == name and p.method == "DRM" and p.value is not None}
        found[name] = max(values, key=lambda lr: values[lr])
    return found


def finding(points: Sequence[Point]) -> str:
    """The best rates."""
    return "\n".join(["best:", *(f"  {name}: {lr:g}" for name, lr in best(points).items())])


def draw(points: Sequence[Point], path: Path) -> None:
    """A panel a network."""
    figure.panels(points, path, "learning rate")


def main() -> None:
    """Measures, writes, draws and prints."""
    figure.run(__doc__, "paper_rate", "lr", wanted, draw, finding)


if __name__ == "__main__":
    command.run(main)
