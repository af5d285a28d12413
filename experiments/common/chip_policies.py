"""Ways to choose how much each chip is retrained, held against one another on chips that chose nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, Final, NamedTuple

import msgspec

from experiments.common.chips import Measured
from r2f.reduce import amounts
from r2f.reduce.amounts import Table
from r2f.reduce.course import Course, Point
from r2f.reduce.resilience import Cell

NONE: Final = "no retraining"
FIXED: Final = "fixed"
RATE: Final = "by rate"
DAMAGE: Final = "by saliency"
MAP: Final = "by map"
UNTIL: Final = "until met"
BOTH: Final = "by map, until met"
POLICIES: Final = (NONE, FIXED, RATE, DAMAGE, MAP, UNTIL, BOTH)


class Choice(NamedTuple):
    """What a policy gives one chip."""

    given: int | None
    """Iterations; None where it is named beyond help."""
    judged: int = 0
    """How often it is judged to find out."""
    spent: int = 0
    """Iterations before it was named beyond help."""


class Policy(msgspec.Struct, kw_only=True, frozen=True):
    """What a way to choose comes to, over all chips."""

    name: str
    iterations: int
    """Over all chips."""
    epochs: float
    share_of_fixed: float
    """Of the fixed policy's iterations; where channels were mapped too, of those of the fixed policy without mapping."""
    reached: int
    """Chips that are at the target on the images that chose nothing."""
    beyond: int
    """Chips that it names beyond help and does not retrain."""
    mean: float
    worst: float
    """Accuracy of the chips on those images, in per cent."""
    judged: float
    """How often a chip is judged to choose its amount, on average."""
    amounts: tuple[int | None, ...]
    """A chip each."""


class Reduced(msgspec.Struct, kw_only=True, frozen=True):
    """What came of one network."""

    network: str
    mapping: bool
    array: tuple[int, int]
    lost: float
    target: float
    """On the images that chose nothing, in per cent; ``clean`` likewise."""
    clean: float
    chosen_clean: float
    """On the images that choose."""
    images: tuple[int, int]
    """How many choose and how many report."""
    an_epoch: int
    maps: int
    """Chips of the table, a rate."""
    cells: tuple[Cell, ...]
    """Of the table, on the images that choose."""
    rates: tuple[float, ...]
    """Of the chips that are given an amount."""
    fixed: int
    """Iterations that the fixed policy gives, those that the table's worst chip needs."""
    policies: tuple[Policy, ...]
    seconds: float
    """Processor time of training all courses."""
    recipe: dict[str, Any]


def policies(
    table: Table, chips: Sequence[Measured], lost: float, clean: float, first: int, against: int | None = None
) -> list[Policy]:
    """Every policy on these chips, of which the table has none. The target is ``lost`` points below the healthy network.

    ``table`` was judged on the images that choose, as the ``chosen`` half of each chip is; ``clean`` is the healthy network's
    accuracy on the others. ``first`` is the stop behind the iterations that correct biases. Costs are shares of ``against``
    iterations a chip, those of the table's own fixed policy where None.
    """
    target = table.clean - lost
    fixed = amounts.fixed(table, target).iterations

    def by_map(course: Course) -> Choice:
        begun = msgspec.structs.replace(course, points=tuple(p for p in course.points if p.iterations <= first))
        return Choice(amounts.by_map(table, begun, target, first=first).iterations, len(begun.points), first)

    def by_damage(course: Course) -> Choice:
        return Choice(amounts.by_damage(table, course.damage, course.rate, target).iterations)

    def until(course: Course, most: int | None) -> Choice:
        """As far as ``most`` iterations; a chip that does not get there is left at that."""
        stops = [point.iterations for point in course.points if point.iterations <= (most or 0)]
        met = amounts.reached(course, target, least=amounts.least(table))
        return Choice(met, stops.index(met) + 1) if met in stops else Choice(stops[-1], len(stops))

    def both(course: Course) -> Choice:
        begun = by_map(course)
        return begun if begun.given is None else until(course, begun.given)

    ways: dict[str, Callable[[Course], Choice]] = {
        NONE: lambda course: Choice(0),
        FIXED: lambda course: Choice(fixed),
        RATE: lambda course: Choice(amounts.by_rate(table, course.rate, target).iterations),
        DAMAGE: by_damage,
        MAP: by_map,
        UNTIL: lambda course: until(course, fixed),
        BOTH: both,
    }
    total = len(chips) * ((fixed or 0) if against is None else against)
    return [
        _policy(name, [ways[name](chip.chosen) for chip in chips], chips, clean - lost, total, table.an_epoch)
        for name in POLICIES
    ]


def _policy(
    name: str, choices: Sequence[Choice], chips: Sequence[Measured], target: float, fixed: int, an_epoch: int
) -> Policy:  # fmt: skip
    given = [choice.given for choice in choices]
    found = [at(chip.reported, iterations or 0).accuracy for iterations, chip in zip(given, chips, strict=True)]
    total = sum(choice.spent if choice.given is None else choice.given for choice in choices)
    return Policy(
        name=name,
        iterations=total,
        epochs=round(total / an_epoch, 3),
        share_of_fixed=round(total / fixed, 4) if fixed else 0.0,
        reached=sum(accuracy >= target - 1e-9 for accuracy in found),
        beyond=given.count(None),
        mean=round(fmean(found), 3),
        worst=round(min(found), 3),
        judged=round(fmean(choice.judged for choice in choices), 2),
        amounts=tuple(given),
    )


def at(course: Course, iterations: int) -> Point:
    """A course's point at a stop. Raises ValueError where it has none there."""
    for point in course.points:
        if point.iterations == iterations:
            return point
    raise ValueError(f"chip {course.name}: it was not judged at {iterations} iterations")
