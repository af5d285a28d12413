"""What the accuracy figures share: points from cells, the CSV, curves that are told apart without colour."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from matplotlib.axes import Axes

from experiments.common import cells, command, retraining, runner, style
from experiments.common.cells import Cell, Recipe
from experiments.common.retraining import Accuracy
from experiments.common.trained import TRAINED

OUT: Final = Path("runs/figures")
SMALL: Final = ("resnet20", "squeezenet1_1")
"""One network a data set: those that a figure is of where it is told neither --network nor --full."""


class Point(NamedTuple):
    """One dot of a figure. ``value`` is None where training diverged, the paper's X."""

    network: str
    method: str
    x: float
    """What the figure varies."""
    ber: float
    """That the network is deployed at."""
    metric: str
    images: int
    value: Accuracy | None
    iterations: int
    overhead: float
    """Of protection, as a share of the network's cycles."""


class Wanted(NamedTuple):
    """A point that is to be measured."""

    method: str
    x: float
    cell: Cell
    """With one deployed rate."""


def run(
    description: str | None,
    stem: str,
    x: str,
    wanted: Callable[[Sequence[str], bool, int], list[Wanted]],
    draw: Callable[[Sequence[Point], Path], None],
    finding: Callable[[Sequence[Point]], str],
    *,
    networks: Sequence[str] = SMALL,
) -> None:
    """An accuracy figure's program: measures, writes ``stem``.csv and .png into --out, prints the table and the finding.

    ``wanted`` gets the networks, whether it is to be the paper's size, and the number of fault seeds; ``x`` names what the
    figure varies; ``finding`` sets what was found beside what the paper says.
    """
    given = parser(description).parse_args()
    points = measure(wanted(chosen(given, networks), given.full, given.seeds), given.shared, runner.pool_of(given))
    write(points, given.out / f"{stem}.csv", x)
    draw(points, given.out / f"{stem}.png")
    print(f"{table(points, x)}\n\n{finding(points)}\n")


def parser(description: str | None) -> argparse.ArgumentParser:
    """``--shared``, ``--network``, ``--full``, ``--seeds``, ``--out`` and where it runs."""
    made = command.parser(description)
    command.add_shared(made)
    made.add_argument("--network", nargs="+", choices=cells.NETWORKS, metavar="NAME", help=f"of {', '.join(cells.NETWORKS)}")
    made.add_argument("--full", action="store_true", help="the paper's size: more networks, rates, settings and images")
    made.add_argument("--seeds", type=command.positive, default=retraining.SEEDS, help="fault seeds [%(default)s]")
    made.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="for the CSV and the PNG [%(default)s]")
    runner.add_pool(made)
    return made


def chosen(given: argparse.Namespace, default: Sequence[str] = SMALL) -> list[str]:
    """The networks that ``parser``'s options ask for: those named, else all with ``--full``, else the default."""
    return list(given.network or (TRAINED if given.full else default))


def measure(wanted: Sequence[Wanted], shared: Path, pool: runner.Pool) -> list[Point]:
    """The points in their order. Raises InputError where data or weights are missing, and what the runner raises."""
    found = runner.run(cells.found, [each.cell for each in wanted], cells.Found, shared=shared, reads=cells.reads, pool=pool)
    return [
        Point(
            network=each.cell.network,
            method=each.method,
            x=each.x,
            ber=each.cell.deployed[0],
            metric=one.metric,
            images=one.images,
            value=one.accuracy[0] if one.accuracy else None,
            iterations=0 if one.spent is None else one.spent.iterations,
            overhead=one.overhead,
        )
        for each, one in zip(wanted, found, strict=True)
    ]


def write(points: Iterable[Point], path: Path, x: str) -> None:
    """The CSV, a row a point; ``x`` names what the figure varies. An accuracy is empty where training diverged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        places = ["ber"] if x == "ber" else [x, "ber"]
        writer.writerow(["network", "method", *places, "metric", "images", "mean", "std", "n", "iterations", "overhead"])
        for p in points:
            value = ("", "", 0) if p.value is None else (p.value.mean, p.value.std, p.value.n)
            at = [f"{p.ber:g}"] if x == "ber" else [f"{p.x:g}", f"{p.ber:g}"]
            writer.writerow([p.network, p.method, *at, p.metric, p.images, *value, p.iterations, p.overhead])


@style.styled
def panels(points: Sequence[Point], path: Path, xlabel: str, *, base: int = 10) -> None:
    """A figure with a panel a network and a curve a method, on a logarithmic axis; a line for Base without faults."""
    names, methods = networks(points), methods_of(points)
    drawn, (axes,) = style.panels(1, len(names), (4.2 * len(names), 3.8))
    for axis, name in zip(axes, names, strict=True):
        own = [p for p in points if p.network == name]
        curves(axis, [p for p in own if p.x > 0], methods)
        for clean in (p.value for p in own if p.x == 0 and p.method == methods[0] and p.value is not None):
            axis.axhline(clean.mean, color="grey", linewidth=0.8)
        axis.set_xscale("log", base=base)
        axis.set(xlabel=xlabel, title=title(own))
        if base == 2:
            axis.set_xticks(sorted({p.x for p in own}), [f"{x:g}" for x in sorted({p.x for p in own})])
        axis.grid(alpha=0.3)
    style.legend(drawn, axes[0], "grey: Base without faults; X: diverged")
    style.save(drawn, path)


def curves(axis: Axes, points: Sequence[Point], methods: Sequence[str]) -> None:
    """A curve a method through its points of one network, with error bars; an X at the foot where training diverged.

    A method's look is that of its place in ``methods``, so it is the same in all panels.
    """
    for place, method in enumerate(methods):
        own = [p for p in points if p.method == method]
        drawn = [(p.x, p.value.mean, p.value.std) for p in own if p.value is not None]
        look = style.line(place)
        if drawn:
            x, mean, std = zip(*drawn, strict=True)
            axis.errorbar(x, mean, std, label=method, capsize=2, linewidth=1.2, markersize=4.5, **look)
        failed = [p.x for p in own if p.value is None]
        if failed:
            # In axes' height, so that they lie at the foot whatever the range.
            foot = [0.03 + 0.035 * place] * len(failed)
            axis.plot(failed, foot, "x", color=look["color"], transform=axis.get_xaxis_transform(), markersize=7)


def bars(axis: Axes, points: Sequence[Point], methods: Sequence[str]) -> None:
    """A group of bars an x and a bar a method of one network, with error bars; an X where training diverged."""
    groups = list(dict.fromkeys(p.x for p in points))
    width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        own = {p.x: p.value for p in points if p.method == method}
        at = {x: group + (place - (len(methods) - 1) / 2) * width for group, x in enumerate(groups) if x in own}
        values = [(at[x], value) for x, value in own.items() if value is not None]
        heights, errors = [value.mean for _, value in values], [value.std for _, value in values]
        axis.bar([x for x, _ in values], heights, width, yerr=errors, capsize=2, label=method, **style.bar(place))
        failed = [at[x] for x, value in own.items() if value is None]
        axis.plot(failed, [2.0] * len(failed), "x", color="black")
    axis.set_xticks(range(len(groups)), [f"{x:g}" for x in groups])


def networks(points: Sequence[Point]) -> list[str]:
    """Names of the networks, in their order."""
    return list(dict.fromkeys(p.network for p in points))


def methods_of(points: Sequence[Point]) -> list[str]:
    """Names of the methods, in their order."""
    return list(dict.fromkeys(p.method for p in points))


def title(points: Sequence[Point]) -> str:
    """What a panel is of."""
    first = points[0]
    return f"{first.network}, {first.metric.replace('top', 'top-')} of {first.images} images, %"


def table(points: Sequence[Point], x: str) -> str:
    """Accuracy as Markdown, a row a network and x, a column a method."""
    methods = methods_of(points)
    by = {(p.network, p.x, p.ber, p.method): p for p in points}
    rows = []
    for network, at, ber in dict.fromkeys((p.network, p.x, p.ber) for p in points):
        values = [shown(by[network, at, ber, m]) if (network, at, ber, m) in by else "" for m in methods]
        rows.append([network, *([f"{ber:g}"] if x == "ber" else [f"{ber:g}", f"{at:g}"]), *values])
    return style.markdown(["network", *(["BER"] if x == "ber" else ["BER", x]), *methods], rows)


def shown(point: Point) -> str:
    """An accuracy for people; X where training diverged."""
    return "X" if point.value is None else f"{point.value.mean:.1f} ± {point.value.std:.1f}"


def gains(points: Sequence[Point], method: str, over: str) -> list[float]:
    """Points of accuracy that one method has more than another, wherever both have one."""
    by = {(p.network, p.x, p.ber, p.method): p.value for p in points}
    found = []
    for (network, x, ber, name), value in by.items():
        other = by.get((network, x, ber, over))
        if name == method and value is not None and other is not None:
            found.append(value.mean - other.mean)
    return found


def recipe(**settings: cells.Value) -> Recipe:
    """Settings of ``r2f retrain``, with ``_`` for ``-``."""
    return tuple((name.replace("_", "-"), value) for name, value in settings.items())
