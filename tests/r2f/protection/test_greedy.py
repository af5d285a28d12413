"""Algorithm 1 on values that are known."""

from __future__ import annotations

from r2f.protection.greedy import greedy
from r2f.protection.units import Unit

A, B, C, D = (Unit(index) for index in range(4))
WORTH = {A: 10.0, B: 6.0, C: 5.0, D: 1.0}


def total(chosen: frozenset[Unit]) -> float:
    return sum(WORTH[unit] for unit in chosen)


def test_where_the_best_does_not_fit_it_ends_with_those_that_do() -> None:
    """As printed, A is added, removed and found again for ever."""
    costs = {A: 1.0, B: 0.2, C: 0.2, D: 0.2}
    assert greedy(costs, 0.5, total) == [B, C]
    assert greedy(costs, 0.1, total) == []


def test_an_exact_budget_is_used_up() -> None:
    assert greedy({A: 0.1, B: 0.2, C: 0.7, D: 1.0}, 0.1 + 0.2, total) == [A, B]


def test_all_that_fit_are_taken_without_measuring() -> None:
    asked: list[frozenset[Unit]] = []

    def value(chosen: frozenset[Unit]) -> float:
        asked.append(chosen)
        return total(chosen)

    assert set(greedy(dict.fromkeys(WORTH, 0.5), 2.0, value)) == set(WORTH)
    assert asked == []


def test_evaluations_are_those_of_the_paper() -> None:
    """Of L layers, s rounds measure L + (L - 1) + ... sets."""
    asked: list[frozenset[Unit]] = []

    def value(chosen: frozenset[Unit]) -> float:
        asked.append(chosen)
        return total(chosen)

    assert greedy(dict.fromkeys(WORTH, 0.5), 1.0, value) == [A, B]
    assert len(asked) == 4 + 3


def test_of_equals_the_cheaper_then_the_earlier_one() -> None:
    assert greedy({A: 0.2, B: 0.1, C: 0.1}, 0.1, lambda chosen: 0.0) == [B]
