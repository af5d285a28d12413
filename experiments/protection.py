"""What to protect, by Algorithm 1 of the paper and by estimates that are then checked, side by side.

``python -m experiments.protection --shared ../shared --network resnet20 --ber 5e-4`` searches on selection images, for each
budget of cycles, and evaluates what was found on report images under other fault seeds: in how many of them the device
answers as the fault-free network does. Nothing is retrained here (``experiments.fig5_protection`` does that). It writes
``protection.csv`` into --out and prints a table. With --part selection it evaluates on these, and searches on training images.

Rows: no protection; *Algorithm 1* on whole layers, its termination repaired; *estimated* on whole layers; the same with
uncertain images run again, which needs no other hardware either; and *sites*, which needs voters at the ports.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from accelsim.datasets import spread
from accelsim.faults import Rates
from experiments.common import cells, command, figure, retraining, runner, splits, style
from experiments.common.cells import Cell, agreement
from experiments.common.retraining import BATCH, Accuracy
from r2f import prepare
from r2f.protection.judge import Judge
from r2f.protection.plan import share
from r2f.protection.search import How, search
from r2f.protection.words import Grain, Search
from services.scheme import Scheme

SEARCHED: Final = 200
"""Selection images at most."""
SEARCH_SEEDS: Final = (2001, 2002, 2003)


@dataclass(frozen=True, slots=True)
class Way:
    """A row of the table."""

    search: Search
    units: Grain
    uncertain: bool


WAYS: Final = {
    "Algorithm 1": Way("algorithm1", "layers", False),
    "estimated": Way("estimated", "layers", False),
    "estimated, uncertain images": Way("estimated", "layers", True),
    "estimated, sites": Way("estimated", "sites", False),
    "estimated, sites, uncertain images": Way("estimated", "sites", True),
}


class Sought(msgspec.Struct, kw_only=True, frozen=True):
    """One search, and what it found on images that it did not see."""

    network: str
    ber: float
    way: str
    budget: float
    searched: int = SEARCHED
    part: Literal["report", "selection"] = "report"
    images: int = 1000
    seeds: int = retraining.SEEDS


class Result(msgspec.Struct, kw_only=True, frozen=True):
    """What it came to."""

    evaluations: float
    overhead: float
    layers: int
    ports: int
    uncertain: int
    searched: Accuracy
    """Agreement on the searched images under the searched seeds."""
    bare: Accuracy
    """Without protection, on the evaluated images."""
    found: Accuracy
    """With it."""


def measure(sought: Sought, shared: Path) -> Result:
    """Searches and evaluates. Raises what ``cells.quantised`` raises."""
    network, source = cells.quantised(Cell(network=sought.network, trained=None, deployed=(sought.ber,)), shared)
    way, rates = WAYS[sought.way], Rates.uniform(sought.ber)
    candidates, report = splits.choosing(source).test_images, splits.reporting(source).test_images
    if sought.part == "selection":
        trained = splits.choosing(source)
        others = np.setdiff1d(np.arange(len(trained.train_images)), prepare.calibration(trained))
        candidates, report = trained.train_images[others], candidates
    judge = Judge(network, candidates[spread(sought.searched, len(candidates))], rates, SEARCH_SEEDS, batch=BATCH)
    how = How(budgets=(sought.budget,), search=way.search, units=way.units, uncertain=way.uncertain)
    plan = search(judge, how)
    (choice,) = plan.choices
    seeds = retraining.fault_seeds(sought.seeds)
    fresh = Judge(network, report[spread(sought.images, len(report))], rates, seeds, batch=BATCH)
    return Result(
        evaluations=plan.evaluations,
        overhead=choice.overhead,
        layers=len(choice.layers),
        ports=len(choice.ports),
        uncertain=choice.uncertain,
        searched=agreement(choice.agreement),
        bare=agreement(fresh(Scheme()).agreement),
        found=agreement(fresh(choice.applied(Scheme())).agreement),
    )


def table(found: Sequence[tuple[Sought, Result]]) -> str:
    """A row a search and budget, beside one without protection."""
    rows = []
    for network, ber in dict.fromkeys((sought.network, sought.ber) for sought, _ in found):
        mine = [(sought, one) for sought, one in found if (sought.network, sought.ber) == (network, ber)]
        rows.append([network, f"{ber:g}", "none", "0 %", "0 %", _said(mine[0][1].bare), ""])
        for sought, one in mine:
            cost = f"{100 * one.overhead:.1f} %"
            rows.append(
                [
                    network,
                    f"{ber:g}",
                    sought.way,
                    f"{100 * sought.budget:g} %",
                    cost,
                    _said(one.found),
                    f"{one.evaluations:.1f}",
                ]
            )
    head = ["network", "BER", "search", "budget", "overhead", "answers as without faults", "evaluations"]
    return style.markdown(head, rows)


def _said(value: Accuracy) -> str:
    return f"{value.mean:.1f} ± {value.std:.1f} %"


def write(found: Sequence[tuple[Sought, Result]], path: Path) -> None:
    """The CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["network", "ber", "search", "budget", "overhead", "mean", "std", "n", "bare", "evaluations", "layers", "ports"]
        )  # fmt: skip
        for sought, one in found:
            numbers = (sought.budget, one.overhead, one.found.mean, one.found.std, one.found.n, one.bare.mean, one.evaluations)
            writer.writerow([sought.network, sought.ber, sought.way, *numbers, one.layers, one.ports])


def main() -> None:
    """Measures, writes and prints."""
    parser = figure.parser(__doc__)
    parser.add_argument("--ber", type=command.rate, nargs="+", default=[1e-4], help="bit error rates [%(default)s]")
    parser.add_argument("--budget", default="20%,50%,100%", help="shares of the network's cycles, with commas [%(default)s]")
    parser.add_argument("--images", type=command.positive, default=1000, help="to evaluate on, at most [%(default)s]")
    parser.add_argument("--searched", type=command.positive, default=SEARCHED, help="selection images at most [%(default)s]")
    parser.add_argument(
        "--part", choices=("report", "selection"), default="report", help="evaluate there; selection: search on training images"
    )
    given = parser.parse_args()
    asked = {name: getattr(given, name) for name in ("searched", "part", "images", "seeds")}
    wanted = [
        Sought(network=name, ber=ber, way=way, budget=budget, **asked)
        for name in figure.chosen(given)
        for ber in given.ber
        for way in WAYS
        for budget in map(share, given.budget.split(","))
    ]
    pool = runner.pool_of(given)
    results = runner.run(measure, wanted, Result, shared=given.shared, reads=lambda s: cells.reads_of(s.network), pool=pool)
    found = list(zip(wanted, results, strict=True))
    write(found, given.out / "protection.csv")
    print(table(found))


if __name__ == "__main__":
    command.run(main)
