"""A run as pictures: accuracy, loss, bytes, stage times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from r2f.report import Report, over, size
from services.metric import METRICS

INK, QUIET, GRID = "#1b1f24", "#6b7480", "#e3e6ea"
FLOAT, CLEAN, PLAIN, BEFORE, AFTER = "#b8c0ca", "#7d8896", "#8f1d2c", "#d1495b", "#2a7f62"
HOST, DEVICE, LINK = "#34659d", "#edae49", "#8d6a9f"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "r2f",
}


def draw(folder: Path, report: Report) -> list[Path]:
    """Writes the run's plots as PNG into the folder; returns their paths. ``summary.png`` holds all four."""
    with matplotlib.rc_context(STYLE):
        paths = []
        for name, panel in _PANELS.items():
            figure = Figure(figsize=(5.2, 3.4), layout="constrained")
            panel(figure.subplots(), report)
            paths.append(_save(figure, folder / f"{name}.png"))
        figure = Figure(figsize=(11, 7), layout="constrained")
        figure.suptitle(
            f"{report.network}, BER {report.ber:g}, {report.codec}{over(report.link)}",
            x=0.01, ha="left", fontsize=14, fontweight="bold",
        )  # fmt: skip
        for axes, panel in zip(figure.subplots(2, 2).flat, _PANELS.values(), strict=True):
            panel(axes, report)
        paths.append(_save(figure, folder / "summary.png"))
    return paths


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150, facecolor="white")
    return path


def accuracy(axes: Axes, report: Report) -> None:
    """Bars of the metric, with each fault seed as a dot and the standard deviation as a whisker."""
    found, unit = report.accuracy, METRICS[report.metric]
    digits = unit.digits
    calm = "no soft\nerrors" if report.chip else "no faults"
    shown = [
        ("float", found.float_, FLOAT),
        (f"{calm},\nbefore", found.int8, CLEAN),
        (f"{calm},\nretrained", found.int8_after, CLEAN),
        *([] if found.faulty_plain is None else [("faulty,\nas the paper", found.faulty_plain, PLAIN)]),
        ("faulty,\nbefore", found.faulty_before, BEFORE),
        ("faulty,\nretrained", found.faulty_after, AFTER),
    ]
    for x, (_, value, colour) in enumerate(shown):
        axes.bar(x, value.mean, color=colour, width=0.62)
        several = len(value.values) > 1
        if several:
            axes.errorbar(x, value.mean, value.std, color=INK, capsize=4, linewidth=1.2)
            jitter = np.linspace(-0.16, 0.16, len(value.values))
            axes.plot(x + jitter, value.values, ".", color="white", markeredgecolor=INK, markersize=6, zorder=3)
        label = f"{value.mean:.{digits}f}" + (f" ± {value.std:.{digits}f}" if several else "")
        top = max(value.mean + value.std, *value.values)
        axes.annotate(label, (x, top), xytext=(0, 5), textcoords="offset points", ha="center", fontweight="bold", fontsize=8)
    axes.set_xticks(range(len(shown)), [name for name, _, _ in shown], fontsize=8)
    axes.tick_params(axis="x", length=0, labelcolor=INK)
    highest = max(max(value.mean + value.std, *value.values) for _, value, _ in shown) if unit.most is None else unit.most
    axes.set_ylim(0, 1.12 * highest)
    if unit.most is not None:
        axes.set_yticks(np.linspace(0, unit.most, 6))
    axes.yaxis.grid(True, color=GRID)
    axes.spines["left"].set_visible(False)
    title = unit.title[0].upper() + unit.title[1:] if unit.title == unit.title.lower() else unit.title
    named = f"{title} on {report.samples} held-out images" + (f", {unit.unit}" if unit.unit else "")
    axes.set_title(f"{named} (faulty: {report.verdict})")


def loss(axes: Axes, report: Report) -> None:
    """Loss of each iteration on the device's own outputs, and its running mean."""
    values = np.array(report.loss)
    steps = np.arange(1, len(values) + 1)
    few = len(values) < 20  # a line of one point is none
    axes.plot(steps, values, "o-" if few else "-", color=BEFORE, alpha=1 if few else 0.35, linewidth=1, markersize=4)
    window = max(1, len(values) // 10)
    if window > 1:
        mean = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], mean, color=BEFORE, linewidth=2)
    axes.set_xlabel("iteration")
    axes.set_xlim(0.5, len(values) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylim(bottom=0)
    axes.yaxis.grid(True, color=GRID)
    axes.set_title("Loss on the faulty device" + (f" (thick: mean of {window})" if window > 1 else ""))


def traffic(axes: Axes, report: Report) -> None:
    """Bytes an iteration, plain and sent, as two points of a row on a logarithmic scale, where bars would have no zero."""
    up, down, n = report.uplink_bytes, report.downlink_bytes, report.iterations
    rows = [
        ("intermediate\noutputs, up", up.direct_layers, up.sent_layers),
        ("images, up", up.direct - up.direct_layers, up.sent - up.sent_layers),
        ("model, down", down.full, down.sent),
    ]
    places = [max(count / n, 1) for _, *counts in rows for count in counts]
    for y, (_, plain, sent) in enumerate(reversed(rows)):
        axes.plot([max(sent / n, 1), max(plain / n, 1)], [y, y], color=GRID, linewidth=3, zorder=1)
        for count, colour, marker, above in ((plain, CLEAN, "s", 9), (sent, AFTER, "o", -15)):
            axes.plot(max(count / n, 1), y, marker, color=colour, markersize=9, zorder=2)
            share = f" ({100 * sent / plain:.1f} %)" if above < 0 and plain else ""
            axes.annotate(
                size(round(count / n)) + share, (max(count / n, 1), y), xytext=(0, above), textcoords="offset points",
                ha="center", fontsize=9,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(min(places) / 8, max(places) * 8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.xaxis.grid(True, color=GRID)
    axes.set_xlabel("bytes an iteration")
    axes.set_title("On the link: plain (squares) and sent (circles)")


def stages(axes: Axes, report: Report) -> None:
    """Time of each stage: measured on this host, and below it what the models say of the device and the link."""
    names = list(report.stages_s)
    y = np.arange(len(names))[::-1].astype(float)
    host, device, link = (
        1e3 * np.array([getattr(report.stages_s[name], part) for name in names]) for part in ("host", "device", "link")
    )
    largest = max(host.max(), device.max(), link.max(), 1e-3)
    unit, scale = ("seconds", 1e-3) if largest >= 1e4 else ("milliseconds", 1.0)
    modelled = device + link > 0
    place = y + np.where(modelled, 0.2, 0.0)
    for label, values, colour, at, height in (
        ("host, measured", host, HOST, place, np.where(modelled, 0.36, 0.6)),
        ("device, modelled", device, DEVICE, y - 0.2, np.full(len(y), 0.36)),
        ("link, modelled", link, LINK, y - 0.2, np.full(len(y), 0.36)),
    ):
        there = values > 0
        if there.any():
            axes.barh(at[there], scale * values[there], height=height[there], color=colour, label=label)
        for position, value in zip(at[there], scale * values[there], strict=True):
            axes.annotate(number(value), (value, position), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(y, names)
    axes.set_xlim(0, 1.25 * scale * largest)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.xaxis.grid(True, color=GRID)
    axes.set_xlabel(f"{unit} an iteration")
    axes.set_ylim(-0.6, len(names) + 0.1)  # room for the legend above the bars
    if axes.patches:
        axes.legend(loc="upper right", ncols=3, fontsize=9, borderaxespad=0, columnspacing=1, handlelength=1.2)
    shortly = {"seconds": "s", "milliseconds": "ms"}[unit]
    wall = f"{number(1e3 * scale * report.iteration_s)} {shortly}"
    axes.set_title(f"Stages (with all waiting, {wall} wall clock)")


def number(value: float) -> str:
    """Three digits at least, and no exponent where it is not tiny."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


_PANELS = {"accuracy": accuracy, "loss": loss, "bytes": traffic, "stages": stages}
