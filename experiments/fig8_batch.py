"""Fig. 8 of the paper: what the batch size does to a retrained network's accuracy.

``python -m experiments.fig8_batch --shared ../shared`` writes ``fig8_batch.csv`` and ``.png`` into --out and prints the table.
All batch sizes see equally many images. DRM is the paper's plain recipe in signed arithmetic, ours what ``r2f retrain`` does
by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from experiments.common import command, figure, methods
from experiments.common.cells import Cell
from experiments.common.figure import Point, Wanted, recipe

BER: Final = 1e-4
"""Ten times as much for CIFAR-10's networks (``methods.scaled``)."""
BATCHES: Final = (4, 16, 32)
FULL_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
FINDING: Final = "The paper gives no numbers: larger batches help, hardly any more from 16 on."


def wanted(networks: Sequence[str], full: bool, seeds: int) -> list[Wanted]:
    """Every point; Base is the same at all batch sizes."""
    found = []
    for name in networks:
        ber = methods.scaled(name, BER)
        sizes = FULL_BATCHES if full else BATCHES
        base = Cell(network=name, trained=None, deployed=(ber,), recipe=methods.BASE, seeds=seeds)
        found += [Wanted("Base", size, base) for size in sizes]
        for method, settings in {"DRM": methods.papers(name), "ours": methods.OURS}.items():
            for size in sizes:
                length = methods.length(name, full=full, batch=size)
                cell = Cell(
                    network=name, trained=ber, deployed=(ber,), recipe=settings + recipe(batch=size) + length, seeds=seeds
                )
                found.append(Wanted(method, size, cell))
    return found


def draw(points: Sequence[Point], path: Path) -> None:
    """A panel a network."""
    figure.panels(points, path, "batch size", base=2)


def main() -> None:
    """Measures, writes, draws and prints."""
    figure.run(__doc__, "fig8_batch", "batch", wanted, draw, lambda _: FINDING)


if __name__ == "__main__":
    command.run(main)
