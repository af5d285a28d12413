"""Table III of the paper: its networks, and what they come to here.

``python -m experiments.table3_networks --shared ../shared`` writes ``table3_networks.csv`` into --out and prints the table:
bytes of the int8 network's weights and biases, MAC layers, multiplications and modelled cycles of an image, each beside the
paper's number where it gives one. Networks whose weights are not at hand have random ones, which changes none of these.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from experiments.common import command, figure, networks, runner, sizes, style
from experiments.common.sizes import Measured, Size

REPORTED: Final = {
    "ResNet18": (1.2, 20), "ResNet50": (24.3, 53), "MobileNet": (3.3, 52), "ShuffleNet": (1.3, 57), "SqueezeNet": (1.2, 26),
}  # fmt: skip
"""Megabytes and layers in the paper. ResNet-18 with 1000 classes has 11.7 million weights: its 1.2 MB cannot be."""
HEAD: Final = ("network", "here", "MB", "paper", "MAC layers", "paper", "10^6 multiplications", "10^6 cycles")


def rows(found: Sequence[Measured]) -> list[list[str]]:
    """A row a network."""
    result = []
    for source, one in zip(networks.FIVE, found, strict=True):
        size, layers = REPORTED[source.paper]
        numbers = (f"{one.bytes / 1e6:.1f}", f"{size:g}", str(one.layers), str(layers), f"{one.macs / 1e6:.0f}")
        result.append([source.paper, source.zoo, *numbers, f"{one.cycles / 1e6:.2f}"])
    return result


def write(found: Sequence[Measured], path: Path) -> None:
    """The CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["paper", "network", "bytes", "paper_mb", "layers", "paper_layers", "macs", "cycles"])
        for source, one in zip(networks.FIVE, found, strict=True):
            size, layers = REPORTED[source.paper]
            writer.writerow([source.paper, source.zoo, one.bytes, size, one.layers, layers, one.macs, one.cycles])


def main() -> None:
    """Measures, writes and prints."""
    parser = command.parser(__doc__)
    command.add_shared(parser)
    parser.add_argument("--out", type=Path, default=figure.OUT, metavar="FOLDER", help="for the CSV [%(default)s]")
    runner.add_pool(parser)
    given = parser.parse_args()
    wanted = [Size(network=source.zoo) for source in networks.FIVE]
    found = runner.run(sizes.measured, wanted, Measured, shared=given.shared, reads=lambda _: (), pool=runner.pool_of(given))
    write(found, given.out / "table3_networks.csv")
    print(style.markdown(HEAD, rows(found)) + "\n")


if __name__ == "__main__":
    command.run(main)
