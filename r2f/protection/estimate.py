"""What each unit's faults do to the outputs, one unit at a time, and what follows for any set of units.

In an otherwise fault-free network one layer runs with faults at one site, and only what lies behind it is computed again.
That gives the change of the outputs by that unit, for some images and draws. Changes of different units are taken to add
up (to first order they do), so how often the device would still answer as the fault-free network does, and how large the
loss against its answer would be, follows for every set of protected units without running anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

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
ESTIMATES = 1 << 28
"""Iteration numbers from here on are estimates': no training or evaluation has them."""


@dataclass(frozen=True, slots=True)
class Harm:
    """What was found. Rows are images, ``draws`` times over."""

    outputs: Float32
    """Fault-free, (rows, classes), in real units."""
    alone: dict[tuple[int, str], Float32]
    """(layer, site) to the change of the outputs by faults there, (rows, classes); site "" is what TMR of the layer leaves."""
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
        gone = [self.alone[unit.layer, s] for s in SITES if Unit(unit.layer, s) not in protected]
        return self.alone[unit.layer, ""] - np.sum(gone, axis=0, dtype=np.float32)

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
    draws: int = 1,
    vote: Vote = "median",
    path: str = "auto",
    watch: Callable[[int, int], None] | None = None,
) -> Harm:
    """The harm of each site alone, on images (N, H, W, C). ``watch`` gets how many batches of how many are done."""
    engine = Engine(network, path)
    one = _Alone(engine, rates, seed, path, vote)
    clean: list[Float32] = []
    found: dict[tuple[int, str], list[Float32]] = {(i, s): [] for i, _ in network.convs() for s in ("", *SITES)}
    starts = [(d, i) for d in range(draws) for i in range(0, len(images), BATCH)]
    for number, (_, first) in enumerate(starts):
        x = network.quantize_images(images[first : first + BATCH])
        outputs = one.batch(x, ESTIMATES + number, found)
        clean.append(outputs)
        if watch is not None:
            watch(number + 1, len(starts))
    joined = {key: np.concatenate(parts) for key, parts in found.items()}
    return Harm(np.concatenate(clean), joined, one.passes)


class _Alone:
    """Runs one layer at a time with faults."""

    def __init__(self, engine: Engine, rates: Rates, seed: int, path: str, vote: Vote) -> None:
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
        for site in SITES:
            self.device.rates = Rates(**{site: getattr(self.rates, site)})
            yield site, self.device.run_layer(index, x, iteration=iteration)
        self._ran({index: self.macs[index] * (TMR + len(SITES))}, len(x))

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


def choose(harm: Harm, costs: Mapping[Unit, float], budget: float) -> list[Unit]:
    """The units to protect: again and again the one that lowers the estimated loss most for its cycles, of those that fit."""
    chosen: list[Unit] = []
    change = harm.change(())
    now, spent = harm.loss(change), 0.0
    while True:
        whole = {unit.layer for unit in chosen if not unit.site}
        refund = {u: sum(costs[c] for c in chosen if c.layer == u.layer) if not u.site else 0.0 for u in costs}
        fits = [
            u for u in costs
            if u not in chosen and not (u.site and u.layer in whole) and spent + costs[u] - refund[u] <= budget + SLACK
        ]  # fmt: skip
        gains = {u: now - harm.loss(change + harm.saved(u, chosen)) for u in fits}
        worth = [u for u in fits if gains[u] > 0]
        if not worth:
            return chosen
        best = max(worth, key=lambda u: gains[u] / max(costs[u] - refund[u], 1e-12))
        change = change + harm.saved(best, chosen)
        spent += costs[best] - refund[best]
        chosen = [c for c in chosen if best.site or c.layer != best.layer] + [best]
        now = harm.loss(change)
