"""The cells that figures are made of: a network retrained somehow and deployed at some error rates; what TMR agrees on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
from msgspec import structs
from torch import nn

from accelsim import datasets
from accelsim.accelerators import Simulated
from accelsim.datasets import Dataset, spread
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8.network import Network
from experiments.common import chain, protecting, retraining, splits
from experiments.common.retraining import Accuracy, Spent
from experiments.common.trained import TRAINED
from r2f import settings as r2f_settings
from r2f.protection.words import SHARES, Search
from r2f.settings import DEMO_NETWORK, Settings
from services.scheme import Redundancy
from services.trainer.core.optimiser import TrainingDiverged

Part = Literal["report", "selection"]
"""Images that a network is evaluated on (``experiments.common.splits``)."""
Value = str | int | float | bool
Recipe = tuple[tuple[str, Value], ...]
"""Settings of ``r2f retrain``, by name in order: what a method is."""
NETWORKS: Final = (DEMO_NETWORK, *TRAINED)


class Cell(msgspec.Struct, kw_only=True, frozen=True):
    """A network, retrained by a recipe or left as it is, and evaluated."""

    network: str
    """Of ``NETWORKS``."""
    trained: float | None
    """Bit error rate in training; None where it is not retrained."""
    deployed: tuple[float, ...]
    """Bit error rates that it is then evaluated at, 0 among them or not."""
    recipe: Recipe = ()
    budget: float = 0.0
    """Share of the network's cycles that protection may add, in training and deployed."""
    search: Search = "algorithm1"
    """What chooses it."""
    part: Part = "report"
    images: int = 1000
    """At most so many of them, evenly over all."""
    seeds: int = retraining.SEEDS


class Found(msgspec.Struct, kw_only=True, frozen=True):
    """What a cell came to."""

    metric: str
    images: int
    accuracy: tuple[Accuracy, ...] = ()
    """One a deployed rate; none where training diverged."""
    diverged: int | None = None
    """The iteration in which training failed; the paper's X."""
    spent: Spent | None = None
    """None where nothing was trained."""
    overhead: float = 0.0
    """What protection adds to the network's cycles on these images at the first deployed rate, as a share of them."""


def found(cell: Cell, shared: Path) -> Found:
    """Retrains and evaluates. Raises what ``r2f.settings.parse`` and ``retraining`` raise."""
    settings = settings_of(cell, shared)
    source = _source(settings.data.source)
    data = _chosen(source, cell)
    network = _suited(settings, data, cell)
    which, spent = retraining.metric(network.layers[-1].shape[2]), None
    if cell.trained is None:
        settings = protecting.protected(settings, network, data, cell.budget, cell.search)
    else:
        try:
            network, spent, settings = protecting.retrained(settings, network, data, cell.budget, cell.search)
        except TrainingDiverged as error:
            return Found(metric=which, images=len(data.test_images), diverged=error.iteration)
    seeds = retraining.fault_seeds(cell.seeds)
    accuracy = tuple(
        retraining.over(retraining.evaluated(network, data, Rates.uniform(ber), seeds, settings.scheme), which)
        for ber in cell.deployed
    )
    overhead = protecting.cost(network, settings.scheme, data.test_images, Rates.uniform(cell.deployed[0]), seeds)
    return Found(metric=which, images=len(data.test_images), accuracy=accuracy, spent=spent, overhead=round(overhead, 4))


def quantised(cell: Cell, shared: Path) -> tuple[Network, Dataset]:
    """The int8 network that a cell starts from, and its data, not split yet."""
    settings = settings_of(cell, shared)
    return _network(settings), _source(settings.data.source)


def reads(cell: Cell | Agreement) -> tuple[str, ...]:
    """Files below the folder of real data that a cell needs."""
    return reads_of(cell.network)


def reads_of(network: str) -> tuple[str, ...]:
    """Files below the folder of real data that a network needs."""
    if network == DEMO_NETWORK:
        return ()
    one = TRAINED[network]
    return f"weights/{one.weights}", f"data/{one.data}"


def settings_of(cell: Cell, shared: Path) -> Settings:
    """The run's settings of a cell."""
    files = (
        {} if cell.network == DEMO_NETWORK else dict(zip(("weights", "data"), (shared / r for r in reads(cell)), strict=True))
    )
    return r2f_settings.parse(
        {
            "network": cell.network,
            "ber": cell.deployed[0] if cell.trained is None else cell.trained,
            **files,
            **dict(cell.recipe),
        }
    )


class Agreement(msgspec.Struct, kw_only=True, frozen=True):
    """What TMR makes of one network's outputs at one error rate (section V.C of the paper)."""

    network: str
    ber: float
    redundancy: Redundancy
    images: int = 16
    seeds: int = retraining.SEEDS


class Agreed(msgspec.Struct, kw_only=True, frozen=True):
    """Per cent of the last layer's outputs that are the fault-free ones', over fault seeds, voted on and not."""

    voted: Accuracy
    single: Accuracy


def agreed(cell: Agreement, shared: Path) -> Agreed:
    """Runs one batch of report images under each fault seed."""
    settings = retraining.signed(settings_of(Cell(network=cell.network, trained=None, deployed=(cell.ber,)), shared))
    source = _source(settings.data.source)
    network = _network(settings)
    images = splits.reporting(source).test_images
    x = network.quantize_images(images[spread(cell.images, len(images))])
    engine = Engine(network)
    right = engine.run(x)[-1]
    voted, single = [], []
    for seed in retraining.fault_seeds(cell.seeds):
        device = Simulated(Rates.uniform(cell.ber), seed)
        device.load(network)
        shares = chain.similarity(device, engine, x, cell.redundancy)
        voted.append(100 * shares[max(shares)])
        single.append(100 * float(np.mean(device.run(x, iteration=0)[-1] == right)))
    return Agreed(voted=agreement(voted), single=agreement(single))


def agreement(values: Sequence[float]) -> Accuracy:
    return Accuracy(round(float(np.mean(values)), 3), round(float(np.std(values)), 3), len(values))


def _chosen(source: Dataset, cell: Cell) -> Dataset:
    data = splits.reporting(source) if cell.part == "report" else splits.choosing(source)
    places = spread(cell.images, len(data.test_images))
    return replace(data, test_images=data.test_images[places], test_labels=data.test_labels[places])


# A worker measures many cells of few networks, and quantising one takes longer than evaluating it.
@functools.lru_cache(maxsize=2)
def _source(data: str) -> Dataset:
    return datasets.load(data)


@functools.lru_cache(maxsize=4)
def _module(settings: Settings) -> nn.Module:
    return retraining.float_module(settings, splits.reporting(_source(settings.data.source)))


@functools.lru_cache(maxsize=8)
def _quantised(settings: Settings) -> Network:
    of_module = Settings(network=settings.network, weights=settings.weights, data=settings.data)
    return retraining.quantised(settings, _module(of_module), _source(settings.data.source))


def _suited(settings: Settings, data: Dataset, cell: Cell) -> Network:
    """The int8 network of a cell; of those that ``r2f protect`` tries by default, the one that protection suits best."""
    if not cell.budget or cell.search != "estimated" or settings.activations == "signed":
        return _network(settings)
    networks = [_network(structs.replace(settings, quantised_for=share)) for share in SHARES]
    return protecting.fitting(settings, networks, _network(retraining.signed(settings)), data, cell.budget, cell.search)


def _network(settings: Settings) -> Network:
    """The int8 network of a run's settings. All those that do not matter to it are left out, to quantise it once."""
    of_network = Settings(network=settings.network, weights=settings.weights, data=settings.data)
    if settings.activations == "signed":
        return _quantised(retraining.signed(of_network))
    return _quantised(
        structs.replace(
            of_network, activations=settings.activations, rates=settings.rates, quantised_for=settings.quantised_for
        )
    )
