"""Is what the server has just what the device computed, bit for bit, and what does that cost?

``python -m experiments.exactness`` takes the paper's five networks at 224 px and BER 1e-6 to 1e-3 over the chained codec in
exact mode, once with settled votes (``core.referee``) and once with plain three-way votes, where repairs have to do it all.
Each rebuilt MAC layer is compared with a run of the device that knows nothing of the codec, and the server computes on the
portable path whatever path the device is on. Exit code 1 if any element differs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from accelsim.accelerators import Simulated
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8.network import Network, UInt8
from experiments.common import chain, command
from experiments.common.networks import FIVE, photos, stored

BERS: Final = (1e-6, 1e-5, 1e-4, 1e-3)
HEAD: Final = (
    "| network | BER | votes | layers | wrong before | wrong | sent, of raw | round trips | repair up B | down B "
    "| of the chained bytes | repair GMAC | of a pass | referee, of a pass |"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network at one error rate with one kind of votes."""

    network: str
    ber: float
    settled: bool
    """Votes with the referee; False is plain three-way voting."""
    layers: int
    """MAC layers compared."""
    before: float
    """Share (0 to 1) of the elements that the server would have wrong without repair."""
    wrong: int
    """Elements that are not the device's in exact mode."""
    raw: int
    """Bytes of the outputs of all these layers."""
    round_trips: int
    up: int
    """Bytes of repairs on the wire, upwards."""
    down: int
    chained: int
    """Bytes of the chained outputs on the wire, without repairs."""
    repair_macs: int
    """What the device's reliable processor multiplied for the repairs."""
    referee_macs: int
    """The same for the votes."""
    macs: int
    """Multiply-accumulates of one fault-free pass of the batch."""

    def __str__(self) -> str:
        return (
            f"| {self.network} | {self.ber:.0e} | {'settled' if self.settled else 'three-way'} | {self.layers} "
            f"| {self.before:.2%} | {self.wrong} | {(self.chained + self.up) / self.raw:.3%} "
            f"| {self.round_trips} | {self.up:,} | {self.down:,} "
            f"| {(self.up + self.down) / self.chained:.2%} | {self.repair_macs / 1e9:.3g} | {self.repair_macs / self.macs:.2%} "
            f"| {self.referee_macs / self.macs:.2%} |"
        )


def measure(network: Network, images: UInt8, ber: float, seed: int, iteration: int) -> Iterator[Row]:
    """A row for settled and one for three-way votes, on one batch of uint8 ``images`` (N, H, W, C).

    Raises RuntimeError if two round trips were not enough.
    """
    device = Simulated(Rates.uniform(ber), seed)
    device.load(network)
    server = Engine(network, "portable")
    x = network.quantize_images(images)
    computed = device.run(x, iteration=iteration)
    for settle in (True, False):
        exact = chain.chained(device, server, x, iteration, settle=settle, exact=True)
        repaired = exact.round_trips > 0
        before = chain.chained(device, server, x, iteration, settle=settle).mismatched_share if repaired else 0.0
        yield Row(
            network=network.name,
            ber=ber,
            settled=settle,
            layers=len(exact.outputs),
            before=before,
            wrong=sum(int(np.count_nonzero(exact.outputs[index] != computed[index])) for index, _ in network.convs()),
            raw=exact.raw,
            round_trips=exact.round_trips,
            up=exact.repair_up,
            down=exact.repair_down,
            chained=exact.wire - exact.repair_up,
            repair_macs=exact.repair_macs,
            referee_macs=sum(sent.refereed for sent in exact.layers),
            macs=len(images) * sum(int(np.prod(layer.shape)) * layer.weight[0].size for _, layer in network.convs()),
        )


def main() -> int:
    """Measures and prints a Markdown row each; 1 if any element differs."""
    parser = command.parser(__doc__)
    command.add_shared(parser)
    command.add_cache(parser)
    command.add_networks(parser, [source.zoo for source in FIVE])
    command.add_rates(parser, BERS)
    parser.add_argument("--batch", type=command.positive, default=4, help="photos in a batch [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="of the faults [%(default)s]")
    given = parser.parse_args()
    images = photos(given.shared)
    batch = images[100 : 100 + given.batch]
    start = time.perf_counter()
    rows: list[Row] = []
    print(HEAD + "\n" + "|---" * (HEAD.count("|") - 1) + "|", flush=True)
    for source in (s for s in FIVE if s.zoo in given.network):
        network = stored(source, given.shared, images, given.cache)
        for ber in given.ber:
            for row in measure(network, batch, ber, given.seed, iteration=0):
                rows.append(row)
                print(row, flush=True)
    wrong = sum(row.wrong for row in rows)
    verdict = "every tensor of the server is the device's, bit for bit" if wrong == 0 else f"{wrong:,} elements differ"
    print(f"\n{len(rows)} runs of {len(batch)} photos, {time.perf_counter() - start:.0f} s: {verdict}")
    return 1 if wrong else 0


if __name__ == "__main__":
    command.run(main)
