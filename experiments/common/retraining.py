"""A retraining as experiments do it: a run's settings in, networks and accuracies out, all in one process.

A setting is one of ``r2f retrain``'s (``r2f.settings``), so whatever a run can be told, an experiment can. Data come split
(``experiments.common.splits``), and every method that is compared is evaluated under the same fault seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Final

import msgspec
from torch import nn

from accelsim import zoo
from accelsim.datasets import Dataset
from accelsim.faults import Rates
from accelsim.int8.network import Network, UInt8
from accelsim.named import looking_in
from experiments.common import splits
from r2f import float_training, inprocess, prepare
from r2f.settings import OPTIONS, TRAINING, Settings, flat
from services.scheme import Scheme
from services.trainer.core import recipe as trainer_recipe
from services.trainer.core import viewing
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.job import Job

BATCH: Final = 16
"""Images that an evaluation runs at a time, as in the paper: so long does a flipped weight stay flipped."""
SEEDS: Final = 5
FIRST_SEED: Final = 1001
"""Fault seeds of evaluations; never the training's."""
MANY: Final = 100
"""Classes from which on the paper's top-5 says more than top-1."""

_OWN: Final = ("protect", "checkpoint-every")
"""Settings of training and scheme that an experiment chooses by itself, or that change no result."""


class Accuracy(msgspec.Struct, frozen=True):
    """In per cent: mean and standard deviation over ``n`` fault seeds."""

    mean: float
    std: float
    n: int


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What retraining took. Bytes are bodies alone, without the framing that the bus adds."""

    iterations: int
    up: int
    down: int
    deployed: str
    """Which network it ended with (``services.trainer.core.selection``); ``last`` where nothing was held out to decide."""


def fault_seeds(count: int) -> tuple[int, ...]:
    """The seeds under which every method is evaluated."""
    return tuple(range(FIRST_SEED, FIRST_SEED + count))


def metric(classes: int) -> str:
    """``top5`` where there are many classes, as the paper has it for ImageNet, else ``top1``."""
    return "top5" if classes >= MANY else "top1"


def over(found: Evaluation, which: str) -> Accuracy:
    """One metric of an evaluation. The deviation is the population's, 0 where there is one seed."""
    values: Sequence[float] = getattr(found, which)
    return Accuracy(round(fmean(values), 3), round(pstdev(values), 3), len(values))


def float_module(settings: Settings, data: Dataset) -> nn.Module:
    """The float network in evaluation mode: read from its weights, or trained here on the training part.

    Raises ValueError (SettingsError, DataError) that names what does not fit.
    """
    prepare.check(settings)
    if settings.weights is None:
        return float_training.train(lambda: zoo.build(settings.network, data.classes), data, seed=settings.seed)
    with looking_in(settings.modules):
        return zoo.load(settings.network, Path(settings.weights))


def quantised(settings: Settings, module: nn.Module, data: Dataset, share: float | None = None) -> Network:
    """The int8 network, quantised by the training part of ``data``, which is not split yet, as ``r2f retrain`` does it.

    It is quantised for a ``share`` of the settings' error rates, the settings' own where that is None.
    """
    network = prepare.lowered(settings, splits.choosing(data), module, share)
    data.check(network)
    return network


def evaluated(network: Network, data: Dataset, rates: Rates, seeds: Sequence[int], scheme: Scheme) -> Evaluation:
    """Accuracy on the test part of ``data``, as ``splits`` made it, under each fault seed."""
    # Increments change nothing of what a device computes, and to code them takes time.
    plain = msgspec.structs.replace(scheme, codec="direct")
    return inprocess.evaluate(network, data.test_images, data.test_labels, rates, seeds, scheme=plain, batch=BATCH)


def retrained(
    settings: Settings, network: Network, data: Dataset, watch: Callable[[int], None] | None = None
) -> tuple[Network, Spent]:
    """The network that retraining on the training part of ``data`` ends with, and what it took.

    ``watch`` gets the number of iterations that are done.

    Raises ``services.trainer.core.optimiser.TrainingDiverged``.
    """
    job = viewing.decided(_job(settings, data), network, data.train_images[prepare.calibration(data)])
    each = None if watch is None else lambda made, _: watch(made.iteration + 1)
    done = inprocess.retrain(network, data, job, watch=each)
    up = sum(i.input_bytes + i.layer_bytes + i.repair_bytes for i in done.iterations)
    down = done.other_model_bytes + sum(i.model_bytes for i in done.iterations)
    deployed = "last" if done.selection is None else done.selection.deployed
    return done.network, Spent(iterations=len(done.iterations), up=up, down=down, deployed=deployed)


def signed(settings: Settings) -> Settings:
    """The same in the paper's arithmetic, which is quantised with no thought of faults: what all is compared with."""
    return msgspec.structs.replace(settings, activations="signed")


def held_out(settings: Settings, data: Dataset) -> UInt8:
    """Training images (N, H, W, C) that the device keeps for deciding what is deployed; nothing is learnt from them.

    All training images where the recipe keeps none.
    """
    kept = trainer_recipe.plan(_job(settings, data), len(data.train_images)).selection
    return data.train_images[kept] if len(kept) else data.train_images


def _job(settings: Settings, data: Dataset) -> Job:
    return prepare.job_of(settings, "experiment", BATCH, data.digest())


def recipe(settings: Settings) -> dict[str, Any]:
    """The settings that say how it is trained and what crosses the link, by name: what a result is of. None are paths."""
    return {name: value for name, value in flat(settings).items() if name in _passed()}


def add_recipe(to: argparse.ArgumentParser) -> None:
    """The options of ``r2f retrain`` about training and the link, as they are there."""
    group = to.add_argument_group("as r2f retrain has them, defaults too")
    for name in _passed():
        group.add_argument(f"--{name}", metavar="X", help=OPTIONS[name].help.replace("%", "%%"))


def given_recipe(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``add_recipe``'s options that were given, for ``r2f.settings.parse``."""
    return {name: given[name.replace("-", "_")] for name in _passed() if given[name.replace("-", "_")] is not None}


def _passed() -> Iterator[str]:
    """Names of the settings that an experiment passes on."""
    for name, option in OPTIONS.items():
        if name not in _OWN and (option.panel == TRAINING or option.field.startswith("scheme.")):
            yield name
