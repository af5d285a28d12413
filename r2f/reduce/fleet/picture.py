"""A fleet on one page: epochs a chip, accuracy before and after, rate against amount, and the cost against a fixed amount."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from accelsim.files import write_whole
from r2f.plots import AFTER, BEFORE, CLEAN, DEVICE, GRID, HOST, INK, QUIET, STYLE
from r2f.reduce.fleet.plan import Plan
from r2f.reduce.fleet.results import Row

PICTURE: Final = "fleet.png"
_STATES: Final = {
    "reached": (AFTER, "o"),
    "in doubt": (DEVICE, "D"),
    "missed": (BEFORE, "s"),
    "beyond help": (INK, "x"),
    "failed": (HOST, "P"),
}


def draw(plan: Plan, rows: list[Row], path: Path) -> None:
    """The page as PNG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.5, 8), layout="constrained")
        (first, second), (third, fourth) = figure.subplots(2, 2)
        epochs(first, plan, rows)
        accuracy(second, plan, rows)
        by_rate(third, plan, rows)
        cost(fourth, plan, rows)
        figure.suptitle(
            f"{plan.network}, {len(rows)} chips of {plan.rows}x{plan.columns}, {plan.policy}, target {plan.target:g} %",
            x=0.01, ha="left", fontsize=14, fontweight="bold",
        )  # fmt: skip
        body = io.BytesIO()
        figure.savefig(body, dpi=150, facecolor="white", format="png")
        write_whole(path, body.getvalue())


def epochs(axes: Axes, plan: Plan, rows: list[Row]) -> None:
    """A bar a chip, from the least faulty to the most; crosses are chips that were not retrained."""
    ordered = sorted(rows, key=lambda row: (row["rate"], row["name"]))
    for place, row in enumerate(ordered):
        colour, mark = _STATES.get(row["state"], (QUIET, "_"))
        if row["epochs"]:
            axes.bar(place, row["epochs"], color=colour, width=0.8)
        else:
            axes.plot(place, 0, mark, color=colour, markersize=5, clip_on=False, zorder=3)
    if plan.fixed is not None:
        axes.axhline(plan.fixed / plan.an_epoch, color=QUIET, linewidth=1, linestyle="--")
        axes.annotate(
            "fixed", (0, plan.fixed / plan.an_epoch), xytext=(2, 3), textcoords="offset points", color=QUIET, fontsize=9
        )  # fmt: skip
    axes.set_xlim(-0.7, len(ordered) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="chips by rising share of faulty elements", ylabel="epochs")
    axes.yaxis.grid(True, color=GRID)
    axes.set_title("Epochs of retraining a chip")


def accuracy(axes: Axes, plan: Plan, rows: list[Row]) -> None:
    """Each chip from before to after, by rate."""
    done = [row for row in rows if row["after"] is not None]
    for row in done:
        x = 100 * row["rate"]
        axes.plot([x, x], [row["before"], row["after"]], color=GRID, linewidth=1.5, zorder=1)
    x = [100 * row["rate"] for row in done]
    axes.plot(x, [row["before"] for row in done], "o", color=BEFORE, markersize=5, label="before", linestyle="none")
    axes.plot(x, [row["after"] for row in done], "o", color=AFTER, markersize=5, label="after", linestyle="none")
    axes.axhline(plan.target, color=INK, linewidth=1, linestyle="--", label=f"target {plan.target:g} %")
    axes.axhline(plan.clean, color=CLEAN, linewidth=1, label=f"fault-free {plan.clean:.1f} %")
    axes.set(xlabel="faulty elements, %", ylabel="top-1, %")
    axes.yaxis.grid(True, color=GRID)
    axes.legend(loc="best", fontsize=9)
    axes.set_title("Accuracy before and after")


def by_rate(axes: Axes, plan: Plan, rows: list[Row]) -> None:
    """Iterations by rate, and what became of the chip; one that is beyond help is at the top."""
    top = max((row["iterations"] or 0 for row in rows), default=0)
    top = max(top, plan.fixed or 0, 1)
    for state, (colour, mark) in _STATES.items():
        own = [row for row in rows if row["state"] == state]
        if own:
            y = [1.1 * top if row["iterations"] is None else row["iterations"] for row in own]
            x = [100 * row["rate"] for row in own]
            axes.plot(x, y, mark, color=colour, markersize=6, linestyle="none", label=f"{state}: {len(own)}", clip_on=False)
    axes.set_ylim(-0.04 * top, 1.15 * top)
    axes.yaxis.grid(True, color=GRID)
    axes.set(xlabel="faulty elements, %", ylabel="iterations")
    axes.legend(loc="best", fontsize=9)
    axes.set_title("Amount by rate")


def cost(axes: Axes, plan: Plan, rows: list[Row]) -> None:
    """Epochs in all against the fixed amount for every chip."""
    spent = sum(row["epochs"] or 0 for row in rows)
    bars = [(f"this fleet\n({plan.policy})", spent, AFTER)]
    if plan.fixed is not None:
        bars.append(("fixed amount\nfor every chip", plan.fixed * len(rows) / plan.an_epoch, CLEAN))
    for place, (_, value, colour) in enumerate(bars):
        axes.barh(place, value, color=colour, height=0.55)
        axes.annotate(
            f"{value:.3g}", (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontweight="bold"
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xlim(0, 1.15 * max(*(value for _, value, _ in bars), 1e-9))
    axes.set_ylim(-0.7, len(bars) - 0.3)
    axes.invert_yaxis()
    axes.xaxis.grid(True, color=GRID)
    axes.set(xlabel="epochs over all chips")
    axes.set_title("Cost in all")
