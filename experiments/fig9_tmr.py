"""Fig. 9 of the paper: how much of the last layer's output network-wise and layer-wise TMR get right.

``python -m experiments.fig9_tmr --shared ../shared`` writes ``fig9_tmr.csv`` and ``.png`` into --out and prints the table. In
network-wise TMR three executions of the whole network are voted on, in layer-wise TMR three of each layer, whose vote feeds
the next one (section V.C). The share is of the last layer's int8 outputs that are the fault-free ones', of a batch of
report images under each fault seed, by a bitwise vote as in the paper; *once* is one execution without any vote.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from experiments.common import cells, command, figure, runner, style
from experiments.common.cells import Agreed, Agreement
from experiments.common.retraining import Accuracy
from services.scheme import Redundancy

RATES: Final = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
FULL_RATES: Final = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
WAYS: Final[dict[str, Redundancy]] = {"layer-wise": "layer", "network-wise": "network"}
FINDING: Final = "The paper gives no numbers: layer-wise is much higher at low rates; the two meet where neither helps."

Shares = dict[tuple[str, str, float], Accuracy]
"""By (network, way, bit error rate)."""


def shares(found: Sequence[tuple[Agreement, Agreed]]) -> Shares:
    """What was measured, by way; the single execution is the same in both."""
    names = {redundancy: way for way, redundancy in WAYS.items()}
    result: Shares = {}
    for cell, one in found:
        result[cell.network, names[cell.redundancy], cell.ber] = one.voted
        result[cell.network, "once", cell.ber] = one.single
    return result


@style.styled
def draw(found: Shares, path: Path) -> None:
    """A panel a network."""
    networks = list(dict.fromkeys(name for name, _, _ in found))
    drawn, (axes,) = style.panels(1, len(networks), (4.2 * len(networks), 3.6), same_y=True)
    for axis, network in zip(axes, networks, strict=True):
        for place, way in enumerate((*WAYS, "once")):
            values = [(ber, value) for (name, its, ber), value in found.items() if (name, its) == (network, way)]
            rates, means, errors = zip(*((ber, value.mean, value.std) for ber, value in values), strict=True)
            axis.errorbar(rates, means, errors, label=way, capsize=2, linewidth=1.2, markersize=4.5, **style.line(place))
        axis.set(xscale="log", xlabel="bit error rate", title=f"{network}, identical outputs, %", ylim=(0, 103))
        axis.grid(alpha=0.3)
    style.legend(drawn, axes[0])
    style.save(drawn, path)


def table(found: Shares) -> str:
    """A row a network and rate."""
    rows = []
    for network, ber in dict.fromkeys((name, ber) for name, _, ber in found):
        values = (found[network, way, ber] for way in (*WAYS, "once"))
        rows.append([network, f"{ber:g}", *(f"{value.mean:.1f} ± {value.std:.1f}" for value in values)])
    return style.markdown(["network", "BER", *WAYS, "once"], rows)


def write(found: Shares, path: Path) -> None:
    """The CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["network", "way", "ber", "mean", "std", "n"])
        writer.writerows([name, way, f"{ber:g}", v.mean, v.std, v.n] for (name, way, ber), v in found.items())


def main() -> None:
    """Measures, writes, draws and prints."""
    parser = figure.parser(__doc__)
    given = parser.parse_args()
    wanted = [
        Agreement(network=name, ber=ber, redundancy=way, seeds=given.seeds)
        for name in figure.chosen(given)
        for ber in (FULL_RATES if given.full else RATES)
        for way in WAYS.values()
    ]
    found = runner.run(cells.agreed, wanted, Agreed, shared=given.shared, reads=cells.reads, pool=runner.pool_of(given))
    result = shares(list(zip(wanted, found, strict=True)))
    write(result, given.out / "fig9_tmr.csv")
    draw(result, given.out / "fig9_tmr.png")
    print(f"{table(result)}\n\n{FINDING}\n")


if __name__ == "__main__":
    command.run(main)
