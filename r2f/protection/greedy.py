"""Algorithm 1 of the paper (section V.B), with its termination repaired."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from r2f.protection.units import Unit

SLACK = 1e-9
"""Costs are sums of floats: a budget of 200 % is to hold TMR of everything."""


def greedy(costs: Mapping[Unit, float], budget: float, value: Callable[[frozenset[Unit]], float]) -> list[Unit]:
    """The units to protect, in the order in which they were chosen: again and again the one with which ``value`` is largest.

    ``costs`` are shares of an unprotected run, and ``budget`` is what they may add up to. As printed, the algorithm adds the
    best candidate, removes it where it does not fit, and then finds the same one again, for ever; here only those that fit
    are candidates, and where none does it ends. Where all that are left fit they are taken unmeasured. Of equal values the
    cheaper unit wins, then the earlier one.
    """
    chosen: list[Unit] = []
    spent = 0.0
    while True:
        left = [unit for unit in costs if unit not in chosen]
        fits = [unit for unit in left if spent + costs[unit] <= budget + SLACK]
        if not fits:
            return chosen
        if len(fits) == len(left) and spent + sum(costs[unit] for unit in left) <= budget + SLACK:
            return chosen + left
        values = {unit: value(frozenset((*chosen, unit))) for unit in fits}
        best = max(fits, key=lambda unit: (values[unit], -costs[unit], -unit.layer))
        chosen.append(best)
        spent += costs[best]
