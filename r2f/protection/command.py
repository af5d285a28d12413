"""``r2f protect``: from settings to a plan, a table and a picture."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any, Final

import matplotlib
import msgspec
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from accelsim import datasets
from accelsim.datasets import Dataset, spread
from accelsim.faults import Rates
from accelsim.int8.network import Network, UInt8
from accelsim.timing import Array
from accelsim.timing.scalesim import read_config
from r2f import inprocess, prepare
from r2f import settings as settings_file
from r2f.display import Display
from r2f.plots import AFTER, BEFORE, GRID, QUIET, STYLE
from r2f.protection import judge, plan, search
from r2f.protection.judge import Judge, Score
from r2f.protection.plan import Plan
from r2f.protection.words import SHARES, Cost, Grain, Search
from r2f.settings import Settings, SettingsError
from services.trainer.core import objective

PICTURE = "sensitivities.png"
_SITES: Final = (("weight", BEFORE, "//"), ("input", AFTER, ""), ("output", QUIET, ".."))
"""With colours, and hatches for print in black and white."""
FIRST_SEED = 5001
"""Fault seeds of a search begin here: they are neither a training's nor an evaluation's."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the command's own options say."""

    budget: str = "20%,50%,200%"
    search: Search = "estimated"
    units: Grain = "layers"
    cost: Cost = "cycles"
    uncertain: bool = True
    images: int = 200
    seeds: int = 3
    batch: int = 16
    quantise_for: str | None = None
    """Shares of the error rates with commas; None for ``SHARES``, or all of the rates where a search is not worth three."""


def protect(settings: Settings, asked: Asked, out: Path, say: Display) -> tuple[Plan, Path]:
    """Search a plan for the network that a run with these settings starts from; leaves it in ``out``, with a picture.

    What was measured before in ``out`` is not measured again. Raises ValueError that names what does not fit.
    """
    settings = settings_file.resolved(settings)
    prepare.check(settings)
    try:
        budgets = tuple(sorted({plan.share(part.strip()) for part in asked.budget.split(",")}))
    except ValueError as error:
        raise SettingsError(f"--{error}") from None
    shares = _shares(asked)
    if asked.cost == "macs" and asked.units == "sites":
        raise SettingsError("--cost macs: voters at ports multiply nothing; take --units layers, or --cost cycles")
    data = datasets.open(settings.data)
    if data.kind != "classes":
        raise SettingsError(
            f"--data {settings.data.source}: its outputs are images; a search compares answers, which are classes"
        )
    module = prepare.float_module(settings, data, say)
    with say.step("quantising to int8"):
        networks: dict[float, Network] = {}
        for share in shares:
            networks[share] = prepare.lowered(settings, data, module, share)
            data.check(networks[share])
        signed = msgspec.structs.replace(settings, activations="signed")
        exact = prepare.lowered(signed, data, module) if len(shares) > 1 else None
    images = searched(data, asked.images)
    out.mkdir(parents=True, exist_ok=True)
    with say.counting("evaluating by inference") as evaluated, say.counting("estimating layer by layer") as estimated:
        done = 0

        def scored(score: Score, cached: bool) -> None:
            nonlocal done
            done += 1
            evaluated(done, None, f"{score.mean:.1f} %{' (known)' if cached else ''}")

        how = search.How(
            budgets=budgets,
            search=asked.search,
            units=asked.units,
            cost=asked.cost,
            uncertain=asked.uncertain and data.classes > 1,
            vote=settings.scheme.vote,
            array=Array() if settings.array is None else read_config(Path(settings.array)),
        )
        seeds = tuple(settings.seed + FIRST_SEED + i for i in range(asked.seeds))
        right = None
        if exact is not None:
            (answers,) = inprocess.outputs(exact, images, Rates(), seeds[:1], batch=asked.batch)
            right = objective.probabilities(exact, answers, 1.0)
        plans = []
        for share, network in networks.items():
            referee = Judge(
                network, images, settings.rates, seeds, batch=asked.batch, right=right, cache=out / judge.FILE, watch=scored
            )
            plans.append((share, search.search(referee, how, lambda step, steps: estimated(step, steps, "")), referee))
        found = search.joined(plans, how)
    plan.write(out, found)
    draw(found, out / PICTURE)
    return found, out


def _shares(asked: Asked) -> tuple[float, ...]:
    """Shares of the error rates that networks are quantised for."""
    if asked.quantise_for is None:
        return SHARES[:1] if asked.search == "algorithm1" else SHARES
    found = []
    for text in asked.quantise_for.split(","):
        try:
            share = plan.share(text.strip())
        except ValueError:
            share = math.inf
        if share > 1:
            raise SettingsError(f"--quantise-for {text.strip()!r}: expected shares of the error rates, such as 100%,50%,25%")
        found.append(share)
    return tuple(dict.fromkeys(found))


def searched(data: Dataset, count: int) -> UInt8:
    """At most so many training images (N, H, W, C) by which nothing was quantised, evenly over all of them."""
    others = np.setdiff1d(np.arange(len(data.train_images)), prepare.calibration(data))
    if not len(others):
        raise SettingsError(f"{data.name}: its {len(data.train_images)} training images are all needed to quantise; give more")
    return data.train_images[others[spread(count, len(others))]]


def table(found: Plan) -> Table:
    """A row a budget."""
    seeds = "1 fault seed" if len(found.seeds) == 1 else f"{len(found.seeds)} fault seeds"
    title = (
        f"{found.network}: answers as without faults, on {found.images} training images, {seeds}; "
        f"found in {found.evaluations:g} evaluations"
    )
    rows = [
        ("budget", "overhead", "quantised for", "as without faults", "layers in TMR", "voted at ports", "run again"),
        ("none", "0 %", f"{100 * found.quantised_for:g} %", _spread(found.unprotected), "", "", ""),
    ]
    for one in found.choices:
        ports = ", ".join(f"{port.layer} {port.site}" for port in one.ports)
        again = "" if one.tmr is None else f"margin < {one.uncertain}" if one.uncertain else "all"
        layers, made_for = ", ".join(map(str, sorted(one.layers))), f"{100 * one.quantised_for:g} %"
        rows.append(
            (f"{100 * one.budget:g} %", f"{100 * one.overhead:.1f} %", made_for, _spread(one.agreement), layers, ports, again)
        )
    # What all have alike says nothing, and takes room from those that differ.
    told = [column for column in zip(*rows, strict=True) if set(column[1:]) not in ({""}, {"100 %"})]
    grid = Table(*(column[0] for column in told), title=Text(title), box=None)
    if any(column[0] == "quantised for" for column in told):
        grid.caption = "as without faults: each by the network that is quantised so, which is not the same one in all rows"
    for row in zip(*(column[1:] for column in told), strict=True):
        grid.add_row(*row)
    return grid


def _spread(values: tuple[float, ...]) -> str:
    several = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{several} %"


def draw(found: Plan, path: Path) -> None:
    """Bars of the loss that faults at each layer alone cause, by site where sites were measured, and of what TMR costs."""
    layers = list(dict.fromkeys(one.layer for one in found.sensitivities))
    names = {one.layer: one.name for one in found.sensitivities}
    ber = max(msgspec.structs.astuple(found.rates))
    made = "" if found.quantised_for == 1 else f", quantised for {100 * found.quantised_for:g} % of it"
    edge: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.5}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.0, 0.28 * len(layers) + 1.5), 5.2), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        whole = {one.layer: one for one in found.sensitivities if not one.site}
        x = np.arange(len(layers))
        above.bar(x, [whole[layer].loss for layer in layers], 0.85, color=GRID, label="all", **edge)
        for shift, (site, colour, hatch) in enumerate(_SITES):
            of_site = {one.layer: one.loss for one in found.sensitivities if one.site == site}
            if of_site:
                heights = [of_site[layer] for layer in layers]
                above.bar(x + 0.27 * (shift - 1), heights, 0.25, color=colour, hatch=hatch, label=f"{site}s alone", **edge)
        above.set_title(f"{found.network}: loss that faults at one layer cause, BER {ber:g}{made}")
        above.legend(ncols=4, fontsize=8)
        below.bar(x, [100 * whole[layer].cost for layer in layers], 0.85, color=GRID, **edge)
        below.set_title(f"Overhead of its TMR, % of the network's {found.cost}")
        below.set_xticks(x, [f"{layer} {names[layer][-22:]}" for layer in layers], rotation=90, fontsize=6)
        for axes in (above, below):
            axes.yaxis.grid(True, color=GRID)
        figure.savefig(path, dpi=150, facecolor="white")
