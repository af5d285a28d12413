"""How well permanent faults are found by test networks, and what it takes: recall, false ones, vectors, bytes.

``python -m experiments.diagnose --json FILE`` has random chips of 32x32 and 256x256 elements, 1 to 5 % of them faulty (half
with a stuck bit of the weight, half of the accumulator), diagnosed through both ends of the link in one process, without soft
errors and with. An element counts as found where the map names it, whatever bit; *exact* counts the chips whose every bit is
right. The bound is what it takes to name such a map among all there are: bytes that no test could do without. 256x256 takes
a minute or several a chip.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from accelsim.accelerators import build
from accelsim.faults import Rates, chip
from accelsim.faults.permanent import FaultMap
from accelsim.files import write_whole
from accelsim.timing import Array
from experiments.common import command
from r2f.diagnosis.drive import in_process

SIDES: Final = (32, 256)
SHARES: Final = (0.01, 0.02, 0.05)
BERS: Final = (0.0, 1e-5)
HEAD: Final = (
    "| array | faulty | BER | chips | elements | found | false | exact | columns unexplained | networks | vectors | answers, B "
    "| down, B | up, B | bound, B | s a chip |"
)
KINDS: Final = 2 * 8 + 2 * 32
"""Faults that an element of such a chip may have."""


class Row(NamedTuple):
    """Some chips alike. Counts are totals, what it took a mean a chip."""

    side: int
    share: float
    ber: float
    chips: int
    faulty: int
    found: int
    false: int
    exact: int
    unexplained: int
    networks: float
    vectors: float
    answers: float
    down: float
    up: float
    bound: float
    seconds: float

    def __str__(self) -> str:
        share = 100 * self.found / max(1, self.faulty)
        return (
            f"| {self.side}x{self.side} | {100 * self.share:g} % | {self.ber:g} | {self.chips} | {self.faulty} | {share:.2f} % "
            f"| {self.false} | {self.exact} | {self.unexplained} | {self.networks:.0f} | {self.vectors:.0f} "
            f"| {self.answers:,.0f} | {self.down:,.0f} | {self.up:,.0f} | {self.bound:,.0f} | {self.seconds:.1f} |"
        )


def bound_bytes(size: int, faulty: int) -> float:
    """Bytes that name ``faulty`` of ``size`` elements and a fault of each."""
    places = math.lgamma(size + 1) - math.lgamma(faulty + 1) - math.lgamma(size - faulty + 1)
    return (places / math.log(2) + faulty * math.log2(KINDS)) / 8


def places(faults: FaultMap) -> set[tuple[int, int]]:
    """The faulty elements of a map, (row, column)."""
    return {(fault.row, fault.column) for fault in faults.faults}


def measure(side: int, share: float, ber: float, seeds: range) -> Row:
    """Random chips of so many rows and columns, one a seed."""
    array = Array(rows=side, columns=side)
    counts: dict[str, int] = dict.fromkeys(("faulty", "found", "false", "exact", "unexplained"), 0)
    took: dict[str, Any] = dict.fromkeys(("networks", "vectors", "answers", "down", "up", "bound", "seconds"), 0.0)
    for seed in seeds:
        faults = chip.random_map(array, share, seed)
        start = time.perf_counter()
        done = in_process(build("simulated", permanent=faults), array, Rates.uniform(ber), seed=seed)
        of, named = places(faults), places(done.found.faults)
        counts["faulty"] += len(of)
        counts["found"] += len(of & named)
        counts["false"] += len(named - of)
        counts["exact"] += chip.digest(faults) == chip.digest(done.found.faults)
        counts["unexplained"] += len(done.found.unexplained)
        took["networks"] += done.found.passes
        took["vectors"] += done.found.vectors
        took["answers"] += done.found.answers
        took["down"] += done.down
        took["up"] += done.up
        took["bound"] += bound_bytes(side * side, len(of))
        took["seconds"] += time.perf_counter() - start
    return Row(side, share, ber, len(seeds), **counts, **{name: value / len(seeds) for name, value in took.items()})


def main() -> int:
    """Measures, prints a Markdown row each, and leaves them as JSON."""
    parser = command.parser(__doc__)
    command.add_rates(parser, BERS)
    parser.add_argument("--side", nargs="+", type=command.positive, default=list(SIDES), help="rows and columns [%(default)s]")
    parser.add_argument("--share", nargs="+", type=command.rate, default=list(SHARES), help="faulty elements [%(default)s]")
    parser.add_argument("--chips", type=command.positive, default=5, help="chips of each kind [%(default)s]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows, as far as they are measured")
    given = parser.parse_args()
    rows: list[Row] = []
    print(HEAD + "\n" + "|---" * (HEAD.count("|") - 1) + "|", flush=True)
    for side in given.side:
        for share in given.share:
            for ber in given.ber:
                rows.append(measure(side, share, ber, range(1, given.chips + 1)))
                print(rows[-1], flush=True)
                if given.json is not None:
                    write_whole(given.json, json.dumps([row._asdict() for row in rows], indent=1).encode() + b"\n")
    return 0


if __name__ == "__main__":
    command.run(main)
