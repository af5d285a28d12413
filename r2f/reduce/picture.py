"""A resilience table for people: rows in a terminal, a heat map and the required amounts as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table as Grid
from rich.text import Text

from r2f.plots import AFTER, BEFORE, GRID, HOST, QUIET, STYLE
from r2f.reduce.amounts import Table, by_rate, steps
from r2f.reduce.resilience import cells

PICTURE: Final = "resilience.png"
LOSSES: Final = (2.0, 4.0, 6.0)
"""Points below the healthy network of the targets that are shown where none is named."""
_LOOKS: Final = ((HOST, "-", "o"), (AFTER, "--", "s"), (BEFORE, ":", "^"))


def targets_of(table: Table, given: Sequence[float]) -> list[float]:
    """The target accuracies that are shown, in per cent."""
    return list(given) or [round(table.clean - loss, 1) for loss in LOSSES]


def rows(table: Table, targets: Sequence[float]) -> Grid:
    """A column a rate and a row an amount: mean, deviation and worst accuracy; below, what each target needs."""
    found = cells(table)
    each = len(table.courses) // max(1, len(table.rates()))
    title = (
        f"{table.network} on a {table.rows}x{table.columns} array{', channels mapped' if table.mapping else ''}: top-1 of "
        f"{table.images} images in per cent, mean ± std and worst of {each} chips; fault-free {table.clean:.1f}"
    )
    grid = Grid(title=Text(title), title_justify="left", box=None, pad_edge=False)
    grid.add_column("iterations (epochs)")
    for rate in table.rates():
        grid.add_column(f"{100 * rate:.3g} % faulty", justify="right")
    for amount in sorted({cell.iterations for cell in found}):
        own = [cell for cell in found if cell.iterations == amount]
        values = (f"{cell.mean:.1f} ± {cell.std:.1f}\n{cell.worst:.1f}" for cell in own)
        grid.add_row(f"{amount} ({amount / table.an_epoch:.2g})", *values)
    grid.add_section()
    for target in targets:
        grid.add_row(f"iterations for {target:g} %", *(_need(table, rate, target) for rate in table.rates()))
    return grid


def _need(table: Table, rate: float, target: float) -> str:
    amount = by_rate(table, rate, target).iterations
    return "beyond help" if amount is None else str(amount)


def draw(table: Table, targets: Sequence[float], path: Path) -> None:
    """Mean accuracy by rate and amount as a heat map; beside it what each target needs, by rate."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.5, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
        heat(left, table)
        required(right, table, targets)
        figure.suptitle(f"{table.network}, {table.rows}x{table.columns} array{', channels mapped' if table.mapping else ''}")
        figure.savefig(path, dpi=150, facecolor="white")


def heat(axes: Axes, table: Table) -> None:
    """The heat map, with the mean and the worst chip in every field."""
    found = cells(table)
    rates, amounts = table.rates(), sorted({cell.iterations for cell in found})
    mean = np.array([[cell.mean for cell in found if cell.rate == rate] for rate in rates])
    low = max(0.0, min(table.clean - 30, float(np.median(mean)) - 10))
    axes.imshow(mean, cmap="cividis", vmin=low, vmax=table.clean, aspect="auto", origin="lower")
    for cell in found:
        x, y = amounts.index(cell.iterations), rates.index(cell.rate)
        ink = "white" if cell.mean < (low + table.clean) / 2 else "black"
        axes.text(x, y, f"{cell.mean:.1f}\n{cell.worst:.1f}", ha="center", va="center", fontsize=7.5, color=ink)
    axes.set_xticks(range(len(amounts)), [f"{amount}" for amount in amounts])
    axes.set_yticks(range(len(rates)), [f"{100 * rate:.3g} %" for rate in rates])
    axes.set(xlabel=f"iterations of retraining (an epoch is {table.an_epoch})", ylabel="faulty elements")
    axes.set_title(f"Top-1: mean of a rate's chips, below it the worst ({table.clean:.1f} % fault-free)")


def required(axes: Axes, table: Table, targets: Sequence[float]) -> None:
    """The required amount by rate, a line a target, and at the upper edge the rates at which chips are beyond help."""
    largest = table.courses[0].points[-1].iterations
    lost = False
    for place, target in enumerate(targets):
        colour, dashes, mark = _LOOKS[place % len(_LOOKS)]
        curve = [(100 * rate, need) for rate, need in steps(table, "rate", target) if need is not None]
        label = f"{target:g} %" if curve else f"{target:g} %: no rate"
        x, y = zip(*curve, strict=True) if curve else ((), ())
        # A chip between two measured rates gets the amount of the higher one.
        axes.plot(x, y, color=colour, linestyle=dashes, marker=mark, drawstyle="steps-pre", label=label)
        beyond = [100 * rate for rate, need in steps(table, "rate", target) if need is None]
        lost |= bool(beyond)
        # Targets beside one another, or one would hide the next.
        axes.plot(beyond, [(1.1 + 0.06 * place) * largest] * len(beyond), color=colour, linestyle="none", marker="x")
    top = 1.16 + 0.06 * len(targets) if lost else 1.08
    axes.set(xlabel="faulty elements, %", ylabel="iterations", ylim=(-0.04 * largest, top * largest))
    if lost:
        axes.text(0.01, 0.99, "x: beyond help", transform=axes.transAxes, ha="left", va="top", fontsize=8)
    axes.axhline(largest, color=QUIET, linewidth=0.8)
    axes.yaxis.grid(True, color=GRID)
    axes.set_title("Amount required by rate")
    axes.legend(loc="best", title="for a top-1 of")
