"""Fig. 10 of the paper: what more epochs do to a retrained network's accuracy.

``python -m experiments.fig10_epochs --shared ../shared`` writes ``fig10_epochs.csv`` and ``.png`` into --out and prints the
table. DRM is the paper's plain recipe in signed arithmetic, ours what ``r2f retrain`` does by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from experiments.common import command, figure, methods
from experiments.common.cells import Cell
from experiments.common.figure import Point, Wanted

BER: Final = 1e-4
"""Ten times as much for CIFAR-10's networks (``methods.scaled``)."""
EPOCHS: Final = (1, 4)
FULL_EPOCHS: Final = (1, 2, 3, 4, 5, 10)
FINDING: Final = "The paper gives no numbers: one epoch is enough, as a trained network is what it starts from."


def wanted(networks: Sequence[str], full: bool, seeds: int) -> list[Wanted]:
    """Every point; Base is the same for all."""
    found = []
    for name in networks:
        ber = methods.scaled(name, BER)
        epochs = FULL_EPOCHS if full else EPOCHS
        base = Cell(network=name, trained=None, deployed=(ber,), recipe=methods.BASE, seeds=seeds)
        found += [Wanted("Base", count, base) for count in epochs]
        for method, settings in {"DRM": methods.papers(name), "ours": methods.OURS}.items():
            for count in epochs:
                length = methods.length(name, full=full, epochs=count)
                cell = Cell(network=name, trained=ber, deployed=(ber,), recipe=settings + length, seeds=seeds)
                found.append(Wanted(method, count, cell))
    return found


def draw(points: Sequence[Point], path: Path) -> None:
    """A panel a network."""
    figure.panels(points, path, "epochs", base=2)


def main() -> None:
    """Measures, writes, draws and prints."""
    figure.run(__doc__, "fig10_epochs", "epochs", wanted, draw, lambda _: FINDING)


if __name__ == "__main__":
    command.run(main)
