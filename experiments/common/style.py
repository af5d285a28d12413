"""How figures and tables look."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")

COLOURS: Final = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#eeca3b", "#9d755d")
GREYS: Final = ("#c7c7c7", "#9e9e9e", "#6f6f6f")
MARKS: Final = ("o", "s", "^", "D", "v", "P", "*", "X")
DASHES: Final = ("-", "--", "-.", ":")
HATCHES: Final = ("", "///", "...", "xxx", "\\\\\\", "ooo", "+++", "***")
DARK: Final = ("#1b1b1b", "#e07b00", "#2f7f3f", "#6f4fa0", "#3b6ea8", "#b8383d", "#7a7a7a", "#8a6a2a")
"""Of lines: dark enough for thin ones, and of different lightness."""
STYLE: Final[Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9,
    "legend.frameon": False,
}


def styled(draw: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """``draw`` in this style, which is gone again behind it."""

    @functools.wraps(draw)
    def inside(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        with matplotlib.rc_context(STYLE):
            draw(*arguments, **options)

    return inside


def panels(rows: int, columns: int, size: tuple[float, float], *, same_y: bool = False) -> tuple[Figure, list[list[Axes]]]:
    """A figure of ``size`` inches and its axes by row and column."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=same_y)
    return figure, [list(row) for row in axes]


def line(place: int) -> dict[str, Any]:
    """Look of the ``place``-th curve of a figure: colour, mark and dashes all differ, so it needs no colour."""
    return {
        "color": DARK[place % len(DARK)],
        "marker": MARKS[place % len(MARKS)],
        "linestyle": DASHES[place % len(DASHES)],
    }


def bar(place: int) -> dict[str, Any]:
    """Look of the ``place``-th kind of bar: colour and hatch."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "hatch": HATCHES[place % len(HATCHES)],
        "edgecolor": "black",
        "linewidth": 0.5,
    }


def legend(figure: Figure, axes: Axes, title: str | None = None) -> None:
    """What the curves or bars of ``axes``, and so of all panels, are: below the panels, where it covers none of them."""
    handles, labels = axes.get_legend_handles_labels()
    room = int(figure.get_figwidth() / (0.6 + 0.075 * max(map(len, labels))))  # by their longest label, about
    columns = max(1, min(len(labels), room, max(2, round(figure.get_figwidth() * 0.7))))
    figure.legend(handles, labels, title=title, title_fontsize=7, loc="outside lower center", ncols=columns)


def save(figure: Figure, path: Path) -> None:
    """Writes the PNG."""
    figure.savefig(path, dpi=150, facecolor="white")


def over(names: Sequence[str]) -> str:
    """What an average is over: ``average over 2 networks: A, B``."""
    return f"average over {len(names)} networks: {', '.join(names)}" if len(names) != 1 else f"{names[0]} alone"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown, which goes into the docs as it is, and is as wide as it must be wherever it is printed."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
