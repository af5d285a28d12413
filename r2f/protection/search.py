"""A plan for one network: by Algorithm 1, or by estimates that a handful of evaluations check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from accelsim.datasets import spread
from accelsim.int8 import storage
from accelsim.int8.network import Network, UInt8
from accelsim.timing import Array
from r2f.protection import estimate
from r2f.protection.estimate import Harm
from r2f.protection.greedy import SLACK, greedy
from r2f.protection.judge import Judge, Score
from r2f.protection.plan import Choice, Plan, Sensitivity
from r2f.protection.units import Unit, costs, overhead, scheme_of, units
from r2f.protection.words import Cost, Grain, Search
from services.scheme import Scheme, Vote
from services.voter.core.ballot import TMR

PARTS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of a budget that may go to units, the rest to uncertain images."""
CHECKED = 2
"""Candidates of a budget that are evaluated: the ones that are estimated best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How to search."""

    budgets: tuple[float, ...] = (0.2, 0.5, 2.0)
    search: Search = "estimated"
    units: Grain = "layers"
    cost: Cost = "cycles"
    uncertain: bool = True
    """Whether images may be run again of which the outputs are close. Of search ``estimated``."""
    vote: Vote = "median"
    array: Array = field(default_factory=Array)
    estimates: float = 2.0
    """What estimates may take, in evaluations: few images will do, as these look at outputs and not just at answers."""


def search(judge: Judge, how: How, watch: Callable[[int, int], None] | None = None) -> Plan:
    """The plan. ``watch`` gets how far the estimates are, ``judge`` has a callback of its own.

    Raises ValueError where costs in MACs are asked for ports.
    """
    network = judge.network
    priced = costs(network, units(network, how.units), how.array, judge.batch, how.cost)
    base = Scheme(vote=how.vote)
    judge.start()
    bare = judge(base)
    harm = estimate.measure(
        network,
        _some(judge, how),
        judge.rates,
        judge.seeds[0],
        by_site=how.units == "sites",
        vote=how.vote,
        path=judge.path,
        watch=watch,
    )  # fmt: skip
    judge.start()
    if how.search == "algorithm1":
        found = [_algorithm1(judge, base, priced, budget) for budget in sorted(how.budgets)]
        spent = float(judge.count)
    else:
        found = [_estimated(judge, base, harm, priced, budget, how) for budget in sorted(how.budgets)]
        spent = judge.count + harm.passes / (len(judge.images) * len(judge.seeds))
    return Plan(
        network=network.name,
        sha256=storage.digest(network),
        rates=judge.rates,
        vote=how.vote,
        search=how.search,
        units=how.units,
        cost=how.cost,
        batch=judge.batch,
        images=len(judge.images),
        seeds=judge.seeds,
        unprotected=bare.agreement,
        evaluations=round(spent, 2),
        sensitivities=sensitivities(network, harm, priced),
        choices=tuple(found),
    )


def joined(found: Sequence[tuple[float, Plan, Judge]], how: How) -> Plan:
    """One plan of those for several networks: for each budget the choice of the one that is then most like the right answers.

    ``found`` has the share of the error rates that a network is quantised for, its plan, and its judge, which was told the
    right answers where there are several; the first is the one of the plan's sha256, and the choice among equal ones.
    """

    def likeness(of: tuple[Choice, Judge]) -> float:
        choice, judge = of
        return judge(choice.applied(Scheme(vote=how.vote))).likeness or 0.0

    choices = []
    for place in range(len(how.budgets)):
        one_each = [
            (msgspec.structs.replace(plan.choices[place], quantised_for=share, sha256=plan.sha256), judge)
            for share, plan, judge in found
        ]
        choices.append(max(one_each, key=likeness)[0] if len(found) > 1 else one_each[0][0])
    evaluations = round(sum(plan.evaluations for _, plan, _ in found), 2)
    share, plan, _ = found[0]
    return msgspec.structs.replace(plan, quantised_for=share, choices=tuple(choices), evaluations=evaluations)


def _some(judge: Judge, how: How) -> UInt8:
    """The images for the estimates: as many as may be, evenly over the judge's, and a batch of them at least."""
    by_site, layers = how.units == "sites", sum(1 for _ in judge.network.convs())
    passes = estimate.passes(layers, by_site=by_site)
    count = int(how.estimates * len(judge.images) * len(judge.seeds) / passes)
    chosen: UInt8 = judge.images[spread(max(estimate.BATCH, count), len(judge.images))]
    return chosen


def sensitivities(network: Network, harm: Harm, priced: Mapping[Unit, float]) -> tuple[Sensitivity, ...]:
    """What each layer and each site does alone, in the order of ``priced``."""
    none = harm.loss(np.zeros_like(harm.outputs))
    found = []
    for unit, cost in priced.items():
        sites = (unit.site,) if unit.site else harm.sites
        change = sum((harm.alone[unit.layer, site] for site in sites), np.zeros_like(harm.outputs))
        found.append(
            Sensitivity(
                layer=unit.layer,
                name=network.layers[unit.layer].name,
                site=unit.site,
                cost=cost,
                agreement=harm.agreement(change),
                loss=harm.loss(change) - none,
            )
        )
    return tuple(found)


def _algorithm1(judge: Judge, base: Scheme, priced: Mapping[Unit, float], budget: float) -> Choice:
    chosen = greedy(priced, budget, lambda protected: judge(scheme_of(protected, base)).mean)
    return _choice(budget, chosen, overhead(chosen, priced), judge(scheme_of(chosen, base)))


def _choice(budget: float, chosen: Sequence[Unit], cost: float, score: Score, scheme: Scheme | None = None) -> Choice:
    plain = Scheme() if scheme is None else scheme
    return Choice(
        budget=budget,
        overhead=round(cost, 6),
        layers=tuple(unit.layer for unit in chosen if not unit.site),
        ports=scheme_of(chosen, Scheme()).ports,
        tmr=plain.tmr,
        uncertain=plain.uncertain,
        agreement=score.agreement,
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    chosen: list[Unit]
    spent: float
    """By the units."""
    estimated: float
    """Agreement in per cent."""
    again: bool
    """What is left of the budget is for uncertain images."""


def _estimated(judge: Judge, base: Scheme, harm: Harm, priced: Mapping[Unit, float], budget: float, how: How) -> Choice:
    candidates: list[_Candidate] = []
    for part in PARTS if how.uncertain else PARTS[:1]:
        again = how.uncertain and part < 1
        for per_cost in (True, False):
            chosen = estimate.choose(harm, priced, part * budget, per_cost=per_cost)
            if any(set(chosen) == set(one.chosen) and again == one.again for one in candidates):
                continue
            spent = overhead(chosen, priced)
            candidates.append(_Candidate(chosen, spent, _agreement(harm, chosen, budget - spent if again else 0.0), again))
    candidates.sort(key=lambda candidate: -candidate.estimated)
    best: tuple[float, Choice] | None = None
    for candidate in candidates[:CHECKED]:
        scheme = scheme_of(candidate.chosen, base)
        cost = candidate.spent
        if candidate.again:
            threshold, share = _threshold(judge(scheme), budget - cost)
            if threshold:
                scheme = msgspec.structs.replace(scheme, tmr="layer", uncertain=threshold)
                cost += TMR * share
        score = judge(scheme)
        if best is None or score.mean > best[0]:
            best = score.mean, _choice(budget, candidate.chosen, cost, score, scheme)
    assert best is not None
    return best[1]


def _agreement(harm: Harm, chosen: Sequence[Unit], left: float) -> float:
    """Estimated agreement, in per cent, where what is left of the budget runs the closest images again, in layer-wise TMR."""
    outputs = harm.outputs + harm.change(chosen)
    count = int((left + SLACK) / TMR * len(outputs))
    if count:
        top = np.partition(outputs, -2, axis=1)
        closest = np.argsort(top[:, -1] - top[:, -2], kind="stable")[:count]
        layers = {layer for layer, _ in harm.alone}
        outputs[closest] = (harm.outputs + harm.change([Unit(layer) for layer in layers]))[closest]
    return float(100 * np.mean(outputs.argmax(axis=1) == harm.outputs.argmax(axis=1)))


def _threshold(score: Score, left: float) -> tuple[int, float]:
    """The largest margin below which images can be run again for what is left of the budget, and their share; 0 for none."""
    fits = [(margin, share) for margin, share in score.margins if share * TMR <= left + SLACK]
    return fits[-1] if fits else (0, 0.0)
