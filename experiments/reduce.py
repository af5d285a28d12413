"""Reduce: how much retraining chips with faulty elements need, and what it saves to give each just that (docs/reduce.md).

``python -m experiments.reduce --shared ../shared --json FILE`` measures a table of accuracy by fault rate and amount of
retraining, reads from it how much each of 100 other random chips is given, by every policy of
``experiments.common.chip_policies``, and writes what came of that: total epochs, and how many chips are at the target on images
that chose nothing. ``reduce.csv`` and ``.png`` go into --out. Chips are retrained with the weights on faulty elements held at 0
(FAP+T), as they are, and with channels in the order that loses least (SalvageDNN). A chip's course is measured once as far as
the fixed amount; every policy is read off it, since a course's stops do not depend on where it ends
(tests/r2f/reduce/test_retraining.py).

The target is so many points below the fault-free network; the fixed amount is what the table's worst chip needs for it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from accelsim.files import write_whole
from accelsim.int8 import storage
from experiments.common import cells as retrained
from experiments.common import chip_figure, chips, command, figure, runner, splits, style
from experiments.common.chip_policies import Reduced, policies
from experiments.common.chips import ChipCell, Measured
from r2f.reduce import amounts
from r2f.reduce.amounts import Table
from r2f.reduce.resilience import cells
from services.trainer.core import recipe

RATES: Final = (0.01, 0.025, 0.04, 0.055, 0.0625, 0.07, 0.0775, 0.085, 0.0925, 0.1)
"""Of the table, closer to one another where amounts rise: a chip between two is given that of the higher one."""
LOWEST, HIGHEST = 0.01, 0.1
"""Of the chips, evenly between."""
STOPS: Final = (0, 4, 16, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256)
"""Amounts, in iterations of 16 images; the first four correct biases."""
FIRST: Final = 4
FIRST_CHIP: Final = 50_001
"""Seed of the first chip that is given an amount, and of what rates these chips have; the table's are from 1 on, and by some
below it the policies were made."""
LOST: Final = 7.0
"""Points below the fault-free network that are allowed."""


def for_table(network: str, maps: int, mapping: bool) -> list[ChipCell]:
    """The healthy network and the table's chips."""
    healthy = ChipCell(network=network, mapping=mapping, stops=STOPS, largest=STOPS[-1], rate=0.0, seed=0)
    chosen = [(rate, seed) for rate in RATES for seed in range(1, maps + 1)]
    return [healthy, *(msgspec.structs.replace(healthy, rate=rate, seed=seed) for rate, seed in chosen)]


def for_amounts(healthy: ChipCell, count: int, most: int) -> list[ChipCell]:
    """The chips that are given amounts, as far as ``most`` iterations, more than which no policy gives."""
    drawn = np.random.default_rng(FIRST_CHIP).uniform(LOWEST, HIGHEST, count).round(4)
    stops = tuple(stop for stop in healthy.stops if stop <= most)
    return [
        msgspec.structs.replace(healthy, stops=stops, rate=float(rate), seed=FIRST_CHIP + place)
        for place, rate in enumerate(drawn)
    ]


def measure(
    network: str, maps: int, count: int, lost: float, shared: Path, pool: runner.Pool, plain: Reduced | None = None
) -> Reduced:
    """One network; with its channels mapped where it is given what came of it in its ``plain`` order.

    Raises InputError where data are missing or no chip of the table reaches the target, and what the runner raises.
    """

    def measured(of: list[ChipCell]) -> list[Measured]:
        return runner.run(chips.measured, of, Measured, shared=shared, reads=chips.reads, pool=pool)

    mapping = plain is not None
    asked = for_table(network, maps, mapping)
    sound, *courses = measured(asked)
    healthy = asked[0]
    int8, _, data, job = chips.subject(network, healthy.recipe, healthy.largest, shared)
    choosing, reporting = splits.halved(data)
    table = Table(
        network=network,
        sha256=storage.digest(int8),
        rows=healthy.rows,
        columns=healthy.columns,
        mapping=mapping,
        job=job,
        an_epoch=recipe.plan(job, len(data.train_images)).an_epoch,
        images=len(choosing.test_images),
        clean=sound.chosen.points[0].accuracy,
        courses=tuple(each.chosen for each in courses),
    )
    fixed = amounts.fixed(table, table.clean - lost)
    if fixed.iterations is None:
        raise command.InputError(f"--lost {lost:g}: {fixed.why}; allow more")
    fleet = measured(for_amounts(healthy, count, max(FIRST, fixed.iterations)))
    clean = sound.reported.points[0].accuracy
    against = None if plain is None else plain.fixed
    return Reduced(
        network=network,
        mapping=mapping,
        array=(healthy.rows, healthy.columns),
        lost=lost,
        target=round(clean - lost, 3),
        clean=clean,
        chosen_clean=table.clean,
        images=(len(choosing.test_images), len(reporting.test_images)),
        an_epoch=table.an_epoch,
        maps=maps,
        cells=tuple(cells(table)),
        rates=tuple(each.chosen.rate for each in fleet),
        fixed=fixed.iterations,
        policies=tuple(policies(table, fleet, lost, clean, FIRST, against)),
        seconds=round(sum(each.chosen.seconds for each in (*courses, *fleet)), 1),
        recipe=msgspec.to_builtins(job.recipe) | {"batch": job.batch, "labels": job.labels},
    )


def table(found: Sequence[Reduced]) -> str:
    """A row a network and policy, as Markdown."""
    rows = []
    for one in found:
        name = f"{one.network}{', mapped' if one.mapping else ''}"
        for policy in one.policies:
            rows.append(
                [
                    name, policy.name, f"{policy.epochs:.2f}", f"{100 * policy.share_of_fixed:.1f} %",
                    f"{policy.reached} of {len(one.rates)}", str(policy.beyond), f"{policy.mean:.1f}", f"{policy.worst:.1f}",
                    f"{policy.judged:.1f}",
                ]
            )  # fmt: skip
    head = ["network", "policy", "epochs", "of fixed", "at the target", "beyond help", "mean top-1", "worst", "judged"]
    return style.markdown(head, rows)


def write(found: Sequence[Reduced], path: Path) -> None:
    """The CSV, a row a network and policy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["network", "mapping", "policy", "iterations", "epochs", "share_of_fixed", "reached", "chips", "beyond"]
        )
        for one in found:
            for p in one.policies:
                row = [p.name, p.iterations, p.epochs, p.share_of_fixed, p.reached, len(one.rates), p.beyond]
                writer.writerow([one.network, int(one.mapping), *row])


def main() -> None:
    """Measures, writes, draws and prints."""
    parser = command.parser(__doc__)
    command.add_shared(parser)
    command.add_networks(parser, retrained.NETWORKS, ["resnet20"])
    parser.add_argument("--maps", type=command.positive, default=6, help="chips of the table, a rate [%(default)s]")
    parser.add_argument("--chips", type=command.positive, default=100, help="chips that are given an amount [%(default)s]")
    parser.add_argument("--lost", type=float, default=LOST, help="points below fault-free that are allowed [%(default)s]")
    parser.add_argument("--no-mapping", action="store_true", help="leave out what ordering channels to suit each chip brings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the result")
    parser.add_argument("--out", type=Path, default=figure.OUT, metavar="FOLDER", help="for the CSV and the PNG [%(default)s]")
    runner.add_pool(parser)
    given = parser.parse_args()
    if not 0 < given.lost < 100:
        raise command.InputError(f"--lost {given.lost:g}: expected points of accuracy, above 0 and below 100")
    pool = runner.pool_of(given)
    found = []
    for name in given.network:
        how = (name, given.maps, given.chips, given.lost, given.shared, pool)
        found.append(measure(*how))
        if not given.no_mapping:
            found.append(measure(*how, plain=found[-1]))
    write(found, given.out / "reduce.csv")
    chip_figure.draw(found, given.out / "reduce.png")
    print(f"{table(found)}\n")
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_whole(given.json, msgspec.json.format(msgspec.json.encode(found)) + b"\n")


if __name__ == "__main__":
    command.run(main)
