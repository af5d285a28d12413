"""What each unit's faults do to the outputs, one unit at a time, and what follows for any set of units.

In an otherwise fault-free network one layer runs with faults at one site, and only what lies behind it is computed again.
That gives the change of the outputs by that unit, for some images and draws. Changes of different units are taken to add
up (to first order they do), so how often the device would still answer as the fault-free network does, and how large the
loss against its answer would be, follows for every set of protected units without running anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from accelsim.accelerators import Simulated
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8.network import INPUT, Activation, Float32, Network, UInt8
from accelsim.int8.walk import walk
from r2f.protection.greedy import SLACK
from r2f.protection.units import SITES, Unit
from services.scheme import Vote
from services.voter.core.ballot import TMR
from services.voter.core.vote import vote as voted

BATCH = 2
"""Images that share a draw of weight faults: few, so that there are many draws."""
EVERY: Final = "every"
"""In place of a site: all of a layer's together, where nobody wants to know them one by one."""
ESTIMATES = 1 << 28
"""Iteration numbers from here on are estimates': no training or evaluation has them."""


@dataclass(frozen=True, slots=True)
class Harm:
    """What was found. Rows are images, ``draws`` times over."""

    outputs: Float32
    """Fault-free, (rows, classes), in real units."""
    alone: dict[tuple[int, str], Float32]
    """(layer, site) to the change of the outputs by faults there, (rows, classes); site "" is what TMR of the layer leaves."""
    sites: tuple[str, ...]
    """Those of ``alone`` that make up a layer's faults: its tensors, or ``EVERY``."""
    passes: float
    """Work, in passes of one image through the whole network, by MACs."""

    def change(self, protected: Collection[Unit]) -> Float32:
        """Of the outputs by everything that these leave unprotected, (rows, classes)."""
        total = np.zeros_like(self.outputs)
        whole = {unit.layer for unit in protected if not unit.site}
        for (layer, site), change in self.alone.items():
            if (layer in whole) == (site == "") and not any(u.layer == layer and u.site == site != "" for u in protected):
                total += change
        return total

    def saved(self, unit: Unit, protected: Collection[Unit]) -> Float32:
        """How the change of the outputs changes with one more protected unit."""
        if unit.site:
            return -self.alone[unit.layer, unit.site]
        voted = {one.site for one in protected if one.layer == unit.layer}
        change = self.alone[unit.layer, ""].copy()
        for site in self.sites:
            if site not in voted:
                change -= self.alone[unit.layer, site]
        return change

    def loss(self, change: Float32) -> float:
        """Cross-entropy of the changed outputs against the fault-free answer, averaged."""
        answer = self.outputs.argmax(axis=1)
        logits = self.outputs + change
        logits = logits - logits.max(axis=1, keepdims=True)
        own = logits[np.arange(len(logits)), answer]
        return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - own))

    def agreement(self, change: Float32) -> float:
        """Rows, in per cent, whose answer stays."""
        return float(100 * np.mean((self.outputs + change).argmax(axis=1) == self.outputs.argmax(axis=1)))


def measure(
    network: Network,
    images: UInt8,
    rates: Rates,
    seed: int,
    *,
    by_site: bool = True,
    draws: int = 1,
    vote: Vote = "median",
    path: str = "auto",
    watch: Callable[[int, int], None] | None = None,
) -> Harm:
    """The harm of each site alone, on images (N, H, W, C); of each layer, which takes half as long, without ``by_site``.

    ``watch`` gets how many batches of how many are done.
    """
    sites: tuple[str, ...] = SITES if by_site else (EVERY,)
    engine = Engine(network, path)
    one = _Alone(engine, rates, seed, path, vote, by_site)
    clean: list[Float32] = []
    found: dict[tuple[int, str], list[Float32]] = {(i, s): [] for i, _ in network.convs() for s in ("", *sites)}
    starts = [(d, i) for d in range(draws) for i in range(0, len(images), BATCH)]
    for number, (_, first) in enumerate(starts):
        x = network.quantize_images(images[first : first + BATCH])
        outputs = one.batch(x, ESTIMATES + number, found)
        clean.append(outputs)
        if watch is not None:
            watch(number + 1, len(starts))
    joined = {key: np.concatenate(parts) for key, parts in found.items()}
    return Harm(np.concatenate(clean), joined, sites, one.passes)


def passes(layers: int, *, by_site: bool) -> float:
    """About how many passes ``measure`` takes an image of a network of so many layers."""
    states = 1 + (len(SITES) if by_site else 1)
    # Half of the network lies behind a layer on average; the executions of all layers come on top.
    return 1 + states * layers / 2 + TMR + (len(SITES) if by_site else 0)


class _Alone:
    """Runs one layer at a time with faults."""

    def __init__(self, engine: Engine, rates: Rates, seed: int, path: str, vote: Vote, by_site: bool) -> None:
        self.by_site = by_site
        self.engine = engine
        self.network = engine.network
        self.vote: Vote = vote
        self.rates = rates
        self.device = Simulated(rates, seed, "estimate", path)
        self.device.load(self.network)
        self.macs = {i: c.weight[0].size * int(np.prod(c.shape)) for i, c in self.network.convs()}
        self.passes = 0.0

    def batch(self, x: Activation, iteration: int, found: dict[tuple[int, str], list[Float32]]) -> Float32:
        """Fault-free outputs (N, classes) of a batch; what each site changes is added to ``found``."""
        values: dict[int, Activation] = {INPUT: x}
        for index, _, operands in walk(self.network, values, keep=True):
            values[index] = self.engine.fault_free(index, operands)
        self._ran(self.macs, len(x))
        clean = self._real(values[len(self.network.layers) - 1])
        for index, _ in self.network.convs():
            for site, y in self._faulty(index, values, iteration):
                found[index, site].append(self._outputs(index, y, values) - clean)
        return clean

    def _faulty(self, index: int, values: dict[int, Activation], iteration: int) -> Iterator[tuple[str, Activation]]:
        """The layer's output under faults at each site alone, and as TMR leaves it."""
        layer = self.engine.conv(index)
        x = values[layer.inputs[0]]
        self.device.rates = self.rates
        runs = self.device.run_replicas(index, x, iteration=iteration, count=TMR)
        yield "", voted(runs, self.vote)
        self._ran({index: TMR * self.macs[index]}, len(x))
        if not self.by_site:
            yield EVERY, runs[0]
            return
        for site in SITES:
            self.device.rates = Rates(**{site: getattr(self.rates, site)})
            yield site, self.device.run_layer(index, x, iteration=iteration)
        self._ran({index: len(SITES) * self.macs[index]}, len(x))

    def _outputs(self, index: int, y: Activation, clean: dict[int, Activation]) -> Float32:
        """The network's outputs (N, classes) where layer ``index`` gave ``y``; only what differs is computed again."""
        changed: dict[int, Activation] = {} if np.array_equal(y, clean[index]) else {index: y}
        for later in range(index + 1, len(self.network.layers)) if changed else ():
            layer = self.network.layers[later]
            if any(source in changed for source in layer.inputs):
                value = self.engine.fault_free(later, [changed.get(source, clean[source]) for source in layer.inputs])
                if later in self.macs:
                    self._ran({later: self.macs[later]}, len(y))
                if not np.array_equal(value, clean[later]):
                    changed[later] = value
        last = len(self.network.layers) - 1
        return self._real(changed.get(last, clean[last]))

    def _real(self, outputs: Activation) -> Float32:
        scaled: Float32 = outputs.reshape(len(outputs), -1).astype(np.float32) * np.float32(self.network.layers[-1].scale)
        return scaled

    def _ran(self, macs: Mapping[int, int], images: int) -> None:
        self.passes += images * sum(macs.values()) / sum(self.macs.values())


def choose(harm: Harm, costs: Mapping[Unit, float], budget: float, *, per_cost: bool = True) -> list[Unit]:
    """The units to protect for what the budget allows, by the loss that is estimated.

    Again and again the unit is taken that lowers the loss most for its cycles, or by itself (as Algorithm 1 has it) without
    ``per_cost``, of those that fit; a whole layer takes the place of its sites.
    """
    chosen: list[Unit] = []
    while (best := _next(harm, costs, budget, chosen, per_cost)) is not None:
        chosen = [one for one in chosen if best.site or one.layer != best.layer] + [best]
    return chosen


def _next(
    harm: Harm, costs: Mapping[Unit, float], budget: float, chosen: list[Unit], per_cost: bool
) -> Unit | None:  # fmt: skip
    """The unit that lowers the loss most, for its cost where that counts; None where none fits and lowers it."""
    change = harm.change(chosen)
    now, spent = harm.loss(change), sum(costs[one] for one in chosen)
    whole = {one.layer for one in chosen if not one.site}
    best: tuple[float, Unit] | None = None
    for unit, cost in costs.items():
        if unit in chosen or (unit.site and unit.layer in whole):
            continue
        added = cost - sum(costs[one] for one in chosen if not unit.site and one.layer == unit.layer)
        if spent + added > budget + SLACK:
            continue
        gain = now - harm.loss(change + harm.saved(unit, chosen))
        worth = gain / max(added, 1e-12) if per_cost else gain
        if gain > 0 and (best is None or worth > best[0]):
            best = worth, unit
    return None if best is None else best[1]
