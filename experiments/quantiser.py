"""What each part of the quantiser gains against faults, alone and together, on images that may choose.

``python -m experiments.quantiser --shared ../shared`` prints a table for each network: how often the faulty int8 network
agrees with the float one, its largest output being the largest and among the five largest, in per cent, mean and standard
deviation over fault seeds; nothing is retrained. The parts: uint8 for what cannot be negative, gains a channel, scales and
gains chosen for the bit error rate, and where a classifier's outputs lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Final

import numpy as np

from accelsim.datasets import IMAGENET_MEAN, IMAGENET_STD, Int64
from accelsim.faults import Rates
from accelsim.int8.network import UInt8
from accelsim.lowering import fold, trace
from accelsim.lowering.graph import Graph
from accelsim.lowering.quantise import Aim, plain, quantise
from experiments.common import command, retraining, splits
from experiments.common.trained import float_logits, images_of, module_of
from r2f import inprocess

RATES: Final = {"squeezenet1_1": (1e-4, 2e-4), "mobilenet_v2": (1e-4, 2e-4), "resnet20": (5e-4, 1e-3), "resnet56": (5e-4, 1e-3)}
HEAD: Final = "| network | quantised | BER | fault-free, of 1 / of 5 | with faults, of 1 | of 5 |\n|---|---|---|---|---|---|"


def aims(graph: Graph, ber: float) -> dict[str, Aim]:
    """Each part alone, two together, and all. The paper's way has gains too where there are depthwise layers."""
    return {
        "int8, as the paper": plain(graph),
        "uint8": Aim(gains=False),
        "gains": Aim(unsigned=False),
        "for the BER": Aim(unsigned=False, gains=False, ber=ber),
        "uint8, gains": Aim(),
        "uint8, for the BER": Aim(gains=False, ber=ber),
        "gains, for the BER": Aim(unsigned=False, ber=ber),
        "all three": Aim(ber=ber),
        "all three, outputs placed": Aim(ber=ber, classifier=True),
    }


def rows(name: str, shared: Path, most: int, seeds: Sequence[int]) -> Iterator[str]:
    """The rows of one network."""
    module = module_of(name, shared)
    images, _ = images_of(name, shared, "train")
    calibration, chosen = images[splits.calibration(len(images))], images[splits.selection(len(images))[:most]]
    graph = fold(trace(module, chosen.shape[1:]))
    answers = float_logits(module, chosen).argmax(1).astype(np.int64)
    for ber in RATES[name]:
        for what, aim in aims(graph, ber).items():
            yield f"| {name} | {what} | {ber:g} | {_cells(graph, aim, calibration, chosen, answers, ber, seeds)} |"


def _cells(graph: Graph, aim: Aim, calibration: UInt8, images: UInt8, answers: Int64, ber: float, seeds: Sequence[int]) -> str:
    network = quantise(graph, calibration, IMAGENET_MEAN, IMAGENET_STD, "trial", aim)
    clean, faulty = (
        inprocess.evaluate(network, images, answers, Rates.uniform(rate), seeds, batch=retraining.BATCH) for rate in (0.0, ber)
    )
    cells = [f"{fmean(values):.1f} ± {pstdev(values):.1f}" for values in (faulty.top1, faulty.top5)]
    return " | ".join([f"{clean.top1[0]:.1f} / {clean.top5[0]:.1f}", *cells])


def main() -> None:
    """Prints the tables."""
    parser = command.parser(__doc__)
    command.add_shared(parser)
    command.add_networks(parser, list(RATES))
    parser.add_argument("--images", type=command.positive, default=1000, help="selection images at most [%(default)s]")
    parser.add_argument("--seeds", type=command.positive, default=retraining.SEEDS, help="of faults [%(default)s]")
    given = parser.parse_args()
    print(HEAD)
    for name in given.network:
        for row in rows(name, given.shared, given.images, range(retraining.FIRST_SEED, retraining.FIRST_SEED + given.seeds)):
            print(row, flush=True)


if __name__ == "__main__":
    command.run(main)
