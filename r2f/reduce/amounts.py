"""How much retraining a chip is given: a fixed amount, by its fault rate, by what its own map does, or until it is good enough.

Reduce (Hanif and Shafique, DATE 2023) takes the amount from a table of accuracy by fault rate and amount. It leaves open
what to do about maps of one rate that differ, rates between and beyond those measured, and chips that nothing helps. Here:

- *spread*: of the maps of one rate the worst counts, or the ``share`` that is asked for (0.75: three of four are helped);
- *noise*: an accuracy is taken for good enough where one is ``SURE`` that it is so on as many other images (``good``), and a
  course that is good enough and then is not again counts from where it stays good enough;
- *least*: a chip with faults is given the iterations that correct biases, which cost no gradient and win most back, even where
  it looks good enough without;
- *order*: no rate is given less than a smaller one: the amount is the running maximum over rising rates;
- *between* two measured rates a chip gets the amount of the higher one;
- *doubt*: a chip of the table that the largest amount leaves at the target, but not surely, needs the largest amount;
- *beyond* the highest measured rate, and from the lowest rate on at which too few maps were helped by the largest amount, a
  chip is beyond help: it is named so and not retrained.

The amount by a chip's own map goes by the same rules, with a score of the map in place of the rate: the course of the
chip itself over its first iterations, which correct biases and cost next to nothing, or what of the network's saliency its map
takes. A map that is worse than any of the table, at a rate within it, gets the fixed amount.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from r2f.reduce.course import Course, Point
from services.trainer.core.job import Job

SURE: Final = 1.645
"""Standard errors of a prediction by which a chip must be good enough where its amount is decided: sure to 95 %, one-sided."""
FORMAT: Final = "r2f-resilience/1"

By = Literal["rate", "damage", "accuracy"]
"""What an amount may be read off by: the share of faulty elements, the saliency lost, the accuracy behind the first
iterations."""


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``r2f resilience`` measured: ``resilience.json``."""

    format: Literal["r2f-resilience/1"] = FORMAT
    network: str
    sha256: str
    """Of the int8 network (``accelsim.int8.storage.digest``)."""
    data: str = ""
    """Of the data (``accelsim.datasets.Dataset.sha256``); empty in tables from before it was written down."""
    rows: Annotated[int, Meta(ge=1)]
    columns: Annotated[int, Meta(ge=1)]
    """Of the array."""
    mapping: bool
    """Whether channels were ordered to suit each chip first."""
    job: Job
    """How chips are retrained; its iterations are the largest amount."""
    an_epoch: Annotated[int, Meta(ge=1)]
    """Iterations of an epoch."""
    images: Annotated[int, Meta(ge=1)]
    """By which chips were judged."""
    clean: Annotated[float, Meta(ge=0, le=100)]
    """Accuracy of the healthy network on them, in per cent."""
    courses: tuple[Course, ...]

    def rates(self) -> list[float]:
        """Those measured, ascending."""
        return sorted({course.rate for course in self.courses})


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """What a chip is given."""

    iterations: int | None
    """None: it is beyond help, and is not retrained."""
    why: str


def good(point: Point, target: float, sure: float = SURE) -> bool:
    """Whether a chip is predicted, by so many standard errors, to be at the target accuracy, in per cent, on other images.

    Of those there are to be as many as it was judged by, so what it will have lost there is as uncertain again as what it has
    lost here: the prediction's error is sqrt(2) times the point's.
    """
    return point.accuracy >= target + sure * math.sqrt(2) * point.error


def least(table: Table) -> int:
    """Iterations that every chip with faults is given: those that correct biases, where the table goes as far."""
    corrections = table.job.recipe.corrections
    return corrections if any(p.iterations >= corrections for course in table.courses for p in course.points) else 0


def needed(course: Course, target: float, sure: float = SURE, least: int = 0) -> int | None:
    """The first stop of a course, ``least`` or more, from which on it is ``good``.

    Its last where it is at the target there, but not surely; None where it is below: what more iterations would do was
    not measured.
    """
    last = course.points[-1]
    found = last.iterations if last.accuracy >= target and last.iterations >= least else None
    for point in reversed(course.points):
        if not good(point, target, sure) or point.iterations < least:
            break
        found = point.iterations
    return found


def reached(course: Course, target: float, sure: float = SURE, least: int = 0) -> int | None:
    """The first stop, ``least`` or more, at which a course is ``good``: where the sequential rule ends it.

    None where it never is.
    """
    return next((p.iterations for p in course.points if good(p, target, sure) and p.iterations >= least), None)


def fixed(table: Table, target: float, sure: float = SURE) -> Amount:
    """The one amount for all chips: what the worst chip of the table needs, of those that any amount helps."""
    all_needs = [needed(course, target, sure, least(table)) for course in table.courses]
    needs = [need for need in all_needs if need is not None]
    if not needs:
        return Amount(iterations=None, why=f"no chip of the table reaches {target:g} %")
    lost = len(all_needs) - len(needs)
    beyond = f", {lost} beyond help left out" if lost else ""
    return Amount(iterations=max(needs), why=f"the most that one of the table's {len(all_needs)} chips needs{beyond}")


def steps(
    table: Table, by: By, target: float, *, sure: float = SURE, share: float = 1.0, first: int = 0
) -> list[tuple[float, int | None]]:
    """The required amount by score, ascending in both: (score, iterations), from one measured score on the next.

    ``first`` is the stop whose accuracy is the score of ``accuracy``. Scores rise with what a map does to a network.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share:g}: expected a share of the maps that must be helped, above 0 and at most 1")
    by_score: dict[float, list[float]] = {}
    for course in table.courses:
        need = needed(course, target, sure, least(table))
        by_score.setdefault(score(course, by, first), []).append(math.inf if need is None else need)
    most, found = 0.0, []
    for at in sorted(by_score):
        needs = sorted(by_score[at])
        most = max(most, needs[math.ceil(share * len(needs) - 1e-9) - 1])
        found.append((at, None if math.isinf(most) else int(most)))
    return found


def score(course: Course, by: By, first: int = 0) -> float:
    """How bad a chip is, more being worse. Raises ValueError where the course has no point at the stop ``first``."""
    match by:
        case "rate":
            return course.rate
        case "damage":
            return course.damage
        case "accuracy":
            for point in course.points:
                if point.iterations == first:
                    return -point.accuracy
            stops = ", ".join(str(point.iterations) for point in course.points)
            raise ValueError(f"chip {course.name or course.chip}: it was not judged at {first} iterations, only at {stops}")


def chosen(required: Sequence[tuple[float, int | None]], at: float, said: Callable[[float], str]) -> Amount:
    """The amount of a chip with a score, by ``steps``: that of the next score from it up. ``said`` puts a score into words."""
    for measured, iterations in required:
        if at <= measured:
            if iterations is None:
                return Amount(iterations=None, why=f"beyond help: at {said(measured)} the largest amount was not enough")
            return Amount(iterations=iterations, why=f"what the table's chips up to {said(measured)} need")
    worst = said(required[-1][0]) if required else "nothing"
    return Amount(iterations=None, why=f"beyond the table, which ends at {worst}: {said(at)}; measure worse chips")


def by_rate(table: Table, rate: float, target: float, *, sure: float = SURE, share: float = 1.0) -> Amount:
    """Reduce's amount: that of a chip's share of faulty elements (0 to 1)."""
    if rate == 0:
        return Amount(iterations=0, why="no fault")
    return chosen(steps(table, "rate", target, sure=sure, share=share), rate, lambda at: f"{100 * at:.3g} % faulty elements")


def by_damage(table: Table, damage: float, rate: float, target: float, *, sure: float = SURE) -> Amount:
    """The amount of a chip by what of the network's saliency its map takes, which is known without running anything."""
    return _by_score(table, "damage", damage, rate, target, sure, 0, lambda at: f"{at:.3g} of the saliency lost")


def by_map(table: Table, begun: Course, target: float, *, first: int, sure: float = SURE) -> Amount:
    """The amount that a chip's own map asks for, by its course up to the stop ``first``.

    Never less than ``first``, which has been spent. That one is good enough by then is no reason to leave it at that: of the
    table's chips that were as accurate, the worst counts.
    """
    bad = score(begun, "accuracy", first)
    found = _by_score(
        table, "accuracy", bad, begun.rate, target, sure, first, lambda at: f"{-at:.1f} % behind {first} iterations"
    )
    return found if found.iterations is None or found.iterations >= first else Amount(iterations=first, why=found.why)


def _by_score(
    table: Table, by: By, bad: float, rate: float, target: float, sure: float, first: int, said: Callable[[float], str]
) -> Amount:
    required = steps(table, by, target, sure=sure, first=first)
    if required and bad > required[-1][0] and rate <= table.rates()[-1]:
        # Of many chips some are worse than the worst of few, without being of another kind.
        most = fixed(table, target, sure)
        return Amount(iterations=most.iterations, why=f"{said(bad)}, worse than any of the table: {most.why}")
    return chosen(required, bad, said)
