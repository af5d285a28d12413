"""Fig. 2 of the paper: must the errors in training be those of the device that the network is deployed on?

``python -m experiments.fig2_matching --shared ../shared`` writes ``fig2_matching.csv`` and ``.png`` into --out and prints the
table. Base is not retrained; MR is retrained at the bit error rate that it is deployed at, UR-C at one close to it, UR-F at
one far from it (section III.B), all by the paper's plain recipe in signed arithmetic. The rates are the paper's; for
CIFAR-10's networks, which the paper has not, ten times as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

from experiments.common import command, figure, methods, style
from experiments.common.cells import Cell
from experiments.common.figure import Point, Wanted

DEPLOYED: Final = {
    1e-6: {"UR-F": 5e-5, "UR-C": 5e-6, "MR": 1e-6},
    5e-5: {"UR-F": 1e-6, "UR-C": 4.5e-5, "MR": 5e-5},
    1e-4: {"UR-F": 1e-6, "UR-C": 9e-5, "MR": 1e-4},
}
"""Bit error rate in training of each method, by that of the device. The paper has the first two, where little is lost."""


def wanted(networks: Sequence[str], full: bool, seeds: int) -> list[Wanted]:
    """Every bar."""
    found = []
    for name in networks:
        for deployed, trained in DEPLOYED.items():
            ber = methods.scaled(name, deployed)
            base = Cell(network=name, trained=None, deployed=(ber,), recipe=methods.BASE, seeds=seeds)
            found.append(Wanted("Base", ber, base))
            settings = methods.papers(name) + methods.length(name, full=full)
            for method, rate in trained.items():
                at = methods.scaled(name, rate)
                found.append(Wanted(method, ber, Cell(network=name, trained=at, deployed=(ber,), recipe=settings, seeds=seeds)))
    return found


@style.styled
def draw(points: Sequence[Point], path: Path) -> None:
    """A panel a network, a group of bars a deployed rate, a bar a method."""
    names, shown = figure.networks(points), figure.methods_of(points)
    drawn, (axes,) = style.panels(1, len(names), (4.2 * len(names), 3.6))
    for axis, name in zip(axes, names, strict=True):
        own = [p for p in points if p.network == name]
        figure.bars(axis, own, shown)
        axis.set(xlabel="bit error rate of the device", title=figure.title(own))
    style.legend(drawn, axes[0])
    style.save(drawn, path)


def finding(points: Sequence[Point]) -> str:
    """What each way of matching gains, beside the paper's words."""
    lines = ["Points above Base, on average over networks and rates:"]
    lines += [
        f"  {method}: {fmean(figure.gains(points, method, 'Base')):+.2f}" for method in DEPLOYED[1e-4] if _any(points, method)
    ]
    return "\n".join([*lines, "  the paper gives no numbers: UR-F gains marginally, UR-C and MR much more"])


def _any(points: Sequence[Point], method: str) -> bool:
    return bool(figure.gains(points, method, "Base"))


def main() -> None:
    """Measures, writes, draws and prints."""
    figure.run(__doc__, "fig2_matching", "ber", wanted, draw, finding)


if __name__ == "__main__":
    command.run(main)
