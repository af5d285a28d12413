"""Protection in experiments: chosen by images that are not reported, and its cost measured on those that are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from accelsim.datasets import Dataset, spread
from accelsim.faults import Rates
from accelsim.int8.network import Network, UInt8
from accelsim.timing import Array
from experiments.common import retraining
from experiments.common.retraining import BATCH, Spent
from r2f import inprocess
from r2f.protection.judge import Judge
from r2f.protection.plan import Choice
from r2f.protection.search import How, search
from r2f.protection.units import Unit, costs, overhead
from r2f.protection.words import Search
from r2f.settings import Settings
from services.edge_agent.core.answer import RUNS, margins
from services.scheme import Redundancy, Scheme
from services.trainer.core import selection
from services.trainer.core.objective import probabilities

SEEDS: Final = tuple(range(2001, 2004))
"""Fault seeds of a search; no training or evaluation has them."""
IMAGES: Final = 64
"""A search looks at so many at most."""
AGAIN: Final[dict[Redundancy, int]] = {"layer": RUNS, "network": RUNS - 1}
"""Further runs of an image whose answer is uncertain (``services.edge_agent.core.answer``)."""


def choice(network: Network, images: UInt8, rates: Rates, budget: float, by: Search) -> Choice:
    """What to protect for ``budget``, a share of the network's cycles: by the paper's Algorithm 1, layer by layer, or by ours.

    ``images`` (N, H, W, C) choose; they should be ones that the network was not fitted to.
    """
    judge = Judge(network, images[spread(IMAGES, len(images))], rates, SEEDS, batch=BATCH)
    ours = by == "estimated"
    how = How(budgets=(budget,), search=by, units="sites" if ours else "layers", uncertain=ours)
    return search(judge, how).choice(budget)


def fitting(
    settings: Settings, networks: Sequence[Network], exact: Network, data: Dataset, budget: float, by: Search
) -> Network:
    """The one of some networks that, protected, answers most like ``exact`` without faults, on the images held out.

    Protection takes errors away, so a network that was quantised for fewer than the settings say may be the better one; no
    label is looked at. The settings' own where ``budget`` is 0: the first.
    """
    if not budget:
        return networks[0]
    images = retraining.held_out(settings, data)
    (wanted,) = inprocess.outputs(exact, images, Rates(), (0,), batch=BATCH)
    truth = probabilities(exact, wanted, 1.0)

    def agreement(network: Network) -> float:
        scheme = choice(network, images, settings.rates, budget, by).applied(settings.scheme)
        given = inprocess.outputs(network, images, settings.rates, SEEDS, scheme=scheme, batch=BATCH)
        return float(np.mean([selection.agreement(settings, network, outputs, truth) for outputs in given]))

    return max(networks, key=agreement)


def protected(settings: Settings, network: Network, data: Dataset, budget: float, by: Search) -> Settings:
    """The settings with what the images that the device holds out protect at their rates; as they are where ``budget`` is 0."""
    if not budget:
        return settings
    scheme = choice(network, retraining.held_out(settings, data), settings.rates, budget, by).applied(settings.scheme)
    return msgspec.structs.replace(settings, scheme=scheme)


def retrained(
    settings: Settings,
    network: Network,
    data: Dataset,
    budget: float,
    by: Search,
    *,
    watch: Callable[[int], None] | None = None,
) -> tuple[Network, Spent, Settings]:
    """``retraining.retrained`` with protection, and the settings with the protection that it is to be deployed with.

    Raises TrainingDiverged.
    """
    settings = protected(settings, network, data, budget, by)
    after, spent = retraining.retrained(settings, network, data, watch)
    if by == "estimated":
        # Retraining moves what is critical and how close answers are, so what fits the budget is chosen anew.
        settings = protected(settings, after, data, budget, by)
    return after, spent, settings


def cost(network: Network, scheme: Scheme, images: UInt8, rates: Rates, seeds: Sequence[int]) -> float:
    """What a scheme's protection adds to the network's cycles, as a share of them, when these images (N, H, W, C) are run."""
    found = [*(Unit(layer) for layer in scheme.protected), *(Unit(port.layer, port.site) for port in scheme.ports)]
    total = overhead(found, costs(network, found, Array(), BATCH, "cycles"))
    if scheme.tmr is None:
        return total
    if not scheme.uncertain:
        return total + AGAIN["network"]
    once = msgspec.structs.replace(scheme, tmr=None, uncertain=0)
    outputs = inprocess.outputs(network, images, rates, tuple(seeds), scheme=once, batch=BATCH)
    share = np.mean([margins(each) < scheme.uncertain for each in outputs])
    return total + AGAIN[scheme.tmr] * float(share)
