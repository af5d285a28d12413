"""How often is a believed vote wrong, and what does each rule for believing votes cost the device?

``python -m experiments.vote_rules`` is the measurement behind the thresholds of ``core.referee`` and their table in
docs/wire.md. Every MAC layer of the device's own faulty run is executed eleven times on its actual input. Over the layers that
are voted on, by the share ``u`` of elements on which the first two executions differ, it prints for each rule (2 of 2, 2 of 3,
...): how many believed elements were wrong, the share that the referee computes, and modelled device seconds an iteration: the
executions and the vote by ``accelsim.timing``, the referee by ``core.referee``. Then what its rules come to for each
network. SqueezeNet and MobileNetV2 have real weights, other networks random ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
import numpy.typing as npt

from accelsim.accelerators import Simulated
from accelsim.faults import Rates
from accelsim.int8.network import INPUT, Activation, Conv, Network, UInt8
from accelsim.int8.walk import walk
from accelsim.timing import Array, layer_timing
from experiments.common import command
from experiments.common.networks import FIVE, photos, stored
from services.edge_agent.core import referee

Int64 = npt.NDArray[np.int64]

BERS: Final = (1e-6, 1e-5, 1e-4)
NETWORKS: Final = ("squeezenet1_1", "mobilenet_v2", "resnet18")
RULES: Final = ((2, 2), (3, 2), (3, 3), (5, 4), (5, 5), (7, 6), (7, 7), (9, 8), (11, 10))
"""(executions, how many must agree)."""
EDGES: Final = (0.0, referee.CALM, referee.BREEZY, referee.WINDY, referee.GUSTY, referee.STORMY, referee.WILD, 1.0)
"""Of the bins of ``u``; each holds its upper edge, the first one also 0."""
MOST: Final = 11
ARRAY: Final = Array()
HEAD: Final = "| BER, `u` | layers, elements | " + " | ".join(f"{k} of {n}" for n, k in RULES) + " |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One MAC layer of one batch."""

    network: str
    ber: float
    iteration: int
    index: int
    macs: int
    """Of one output."""
    elements: int
    u: float
    """Share (0 to 1) of elements on which the first two executions differ."""
    open: tuple[int, ...]
    """By rule: elements on which too few agree."""
    wrong: tuple[int, ...]
    """By rule: elements on which enough agree, on a value that is not the fault-free one."""
    executing_s: tuple[float, ...]
    """By rule: modelled seconds of the executions, their write-back and the vote."""
    once_s: float
    """Of one execution and its write-back."""

    def seconds(self, rule: int) -> float:
        """Modelled device time of a rule, by its place in ``RULES``: executions and referee."""
        return self.executing_s[rule] + referee.refereeing(self.open[rule], self.elements, self.macs)

    def chosen(self) -> tuple[int, float]:
        """What the rule that ``core.referee`` takes comes to, on HSPA: believed and wrong elements, and device seconds."""
        rule = referee.rule(self.u, self.macs)
        if rule is None:
            return 0, self.executing_s[0]
        if rule.agree > rule.executions:
            executing_s = self.once_s if rule.executions == 1 else self.executing_s[0]
            return 0, executing_s + referee.refereeing(self.elements, self.elements, self.macs)
        place = RULES.index((rule.executions, rule.agree))
        return self.wrong[place], self.seconds(place)


@numba.njit(cache=True, nogil=True)
def _tally(
    replicas: tuple[Activation, ...], fault_free: Activation, executions: Int64, agree: Int64, opened: Int64, wrong: Int64
) -> int:
    """Adds to ``opened`` and ``wrong`` of each rule; returns on how many elements the first two differ."""
    differ = 0
    values = np.empty(len(replicas), np.int8)
    for i in range(fault_free.size):
        fine = True
        for r in range(len(replicas)):
            values[r] = replicas[r][i]
            fine &= values[r] == fault_free[i]
        if fine:
            continue
        differ += values[0] != values[1]
        for rule in range(executions.size):
            most, winner = 0, values[0]
            for candidate in range(executions[rule]):
                same = 0
                for r in range(executions[rule]):
                    same += values[r] == values[candidate]
                if same > most:
                    most, winner = same, values[candidate]
            opened[rule] += most < agree[rule]
            wrong[rule] += most >= agree[rule] and winner != fault_free[i]
    return differ


def tally(
    replicas: Sequence[Activation], fault_free: Activation, rules: Sequence[tuple[int, int]] = RULES
) -> tuple[float, Int64, Int64]:
    """(``u``, open elements by rule, believed and wrong elements by rule) of one layer.

    ``replicas`` are as many executions as the greediest rule needs, int8 like ``fault_free``; ``agree`` of a rule is
    more than half of its executions, so at most one value has it.
    """
    opened, wrong = np.zeros((2, len(rules)), np.int64)
    executions, agree = np.array(rules, np.int64).T
    flat = tuple(np.ascontiguousarray(replica).reshape(-1) for replica in replicas)
    differ = _tally(flat, fault_free.reshape(-1), executions.copy(), agree.copy(), opened, wrong)
    return differ / max(1, fault_free.size), opened, wrong


def measure(network: Network, images: UInt8, ber: float, seed: int, iteration: int) -> Iterator[Measured]:
    """Every MAC layer of one batch of uint8 ``images`` (N, H, W, C), on the inputs of the device's own faulty run."""
    device = Simulated(Rates.uniform(ber), seed)
    device.load(network)
    outputs: dict[int, Activation] = {INPUT: network.quantize_images(images)}
    for index, layer, operands in walk(network, outputs):
        fault_free = device.engine.fault_free(index, operands)
        if not isinstance(layer, Conv):
            outputs[index] = fault_free
            continue
        replicas = device.run_replicas(index, operands[0], iteration=iteration, count=MOST)
        u, opened, wrong = tally(replicas, fault_free)
        shape = network.shape_of(layer.inputs[0])
        times = [layer_timing(index, layer, shape, ARRAY, batch=len(images), executions=n) for n, _ in RULES]
        outputs[index] = replicas[0]
        yield Measured(
            network=network.name,
            ber=ber,
            iteration=iteration,
            index=index,
            macs=layer.weight[0].size,
            elements=fault_free.size,
            u=u,
            open=tuple(opened.tolist()),
            wrong=tuple(wrong.tolist()),
            executing_s=tuple(t.forward_s + t.write_back_s + t.tmr_s for t in times),
            once_s=times[0].forward_s + times[0].write_back_s,
        )


def rows(measured: Sequence[Measured]) -> Iterator[str]:
    """A Markdown row for each error rate and bin of ``u``, over the layers whose dot products are long enough for votes.

    By rule: believed elements that are wrong, the share that the referee computes, seconds an iteration.
    """
    for ber in sorted({m.ber for m in measured}):
        runs = len({(m.network, m.iteration) for m in measured if m.ber == ber})
        for low, high in itertools.pairwise(EDGES):
            layers = [m for m in measured if m.ber == ber and m.macs > referee.BRIEF and (low < m.u <= high or m.u == low == 0)]
            if not layers:
                continue
            elements = sum(m.elements for m in layers)
            cells = (
                f"{sum(m.wrong[i] for m in layers):,}; {sum(m.open[i] for m in layers) / elements:.2%}; "
                f"{sum(m.seconds(i) for m in layers) / runs:.3f} s"
                for i in range(len(RULES))
            )
            bin_of_u = f"{100 * low:g}-{100 * high:g} %"
            yield f"| {ber:.0e}, {bin_of_u} | {len(layers)}, {elements / 1e6:.3g} M | {' | '.join(cells)} |"


def summary(measured: Sequence[Measured]) -> Iterator[str]:
    """A Markdown row for each network and error rate: the rules chosen, beside two of them for every layer."""
    for network, ber in sorted({(m.network, m.ber) for m in measured}):
        layers = [m for m in measured if (m.network, m.ber) == (network, ber)]
        runs = len({m.iteration for m in layers})
        found = [m.chosen() for m in layers]
        wrong, spent = sum(w for w, _ in found), sum(s for _, s in found)
        all_three, all_seven = (sum(m.seconds(RULES.index(rule)) for m in layers) for rule in ((3, 3), (7, 6)))
        yield (
            f"| {network} | {ber:.0e} | {runs} | {wrong / runs:.2g} | {spent / runs:.2f} s "
            f"| {all_three / runs:.2f} s | {all_seven / runs:.2f} s |"
        )


def batch(images: UInt8, size: int, iteration: int) -> UInt8:
    """The photos of an iteration, others than of the one before while there are others."""
    places = (iteration * size + np.arange(size)) % len(images)
    return images[places]


def main() -> None:
    """Measures and prints both tables."""
    parser = command.parser(__doc__)
    command.add_shared(parser)
    command.add_cache(parser)
    command.add_networks(parser, [source.zoo for source in FIVE], NETWORKS)
    command.add_rates(parser, BERS)
    parser.add_argument("--batch", type=command.positive, default=16, help="photos in a batch [%(default)s]")
    parser.add_argument(
        "--iterations", type=command.positive, default=4, help="batches, each with other photos and faults [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the faults [%(default)s]")
    given = parser.parse_args()
    images = photos(given.shared)
    measured: list[Measured] = []
    for source in (s for s in FIVE if s.zoo in given.network):
        network = stored(source, given.shared, images, given.cache)
        for ber in given.ber:
            for iteration in range(given.iterations):
                measured += measure(network, batch(images, given.batch, iteration), ber, given.seed, iteration)
    print("Wrong among the believed; share that the referee computes; modelled device seconds an iteration:\n")
    print(HEAD + "\n" + "|---" * (HEAD.count("|") - 1) + "|")
    print("\n".join(rows(measured)))
    print("\nThe rules of edge_agent.core.referee, on HSPA:\n")
    print("| network | BER | iterations | wrong an iteration | device time | 3 of 3 everywhere | 6 of 7 everywhere |")
    print("|---" * 7 + "|")
    print("\n".join(summary(measured)))


if __name__ == "__main__":
    command.run(main)
