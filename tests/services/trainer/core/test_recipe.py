"""What comes when in a run."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from accelsim.faults import Rates
from services.trainer.core.job import Job
from services.trainer.core.recipe import plan
from services.trainer.core.task import PAPER, Recipe

RATES = Rates(input=1e-3, output=0.4)


def job(**changes: object) -> Job:
    return Job(**{"session": "s", "device": "d", "rates": RATES, "batch": 8, "recipe": PAPER, "seed": 5} | changes)


def test_every_sample_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    found = plan(job(), 30)
    assert found.an_epoch == 4
    epochs = [[found.samples(4 * epoch + i) for i in range(4)] for epoch in range(3)]
    orders = [np.concatenate(epoch) for epoch in epochs]
    for epoch, order in zip(epochs, orders, strict=True):
        assert {len(samples) for samples in epoch} == {7, 8}
        assert sorted(order) == list(range(30))
    assert not np.array_equal(orders[0], orders[1])
    np.testing.assert_array_equal(plan(job(), 30).samples(6), found.samples(6))
    assert not np.array_equal(plan(job(seed=6), 30).samples(6), found.samples(6))


def test_what_is_kept_for_selection_is_not_learnt_from() -> None:
    found = plan(job(recipe=replace(PAPER, selection=10)), 100)
    assert len(found.selection) == 10
    assert not set(found.selection) & {int(i) for k in range(found.an_epoch) for i in found.samples(k)}
    assert sorted([*found.pool, *found.selection]) == list(range(100))
    assert len(plan(job(recipe=replace(PAPER, selection=999)), 100).selection) == 25
    assert len(plan(job(recipe=replace(PAPER, selection=999)), 10).selection) == 2  # a batch must be left
    with pytest.raises(ValueError, match=r"'d' has 7 training samples, .* a batch of 8; .*--batch"):
        plan(job(), 7)


def test_iterations_are_epochs_and_corrections_or_as_many_as_are_given() -> None:
    def counts(**changes: object) -> tuple[int, int, int]:
        found = plan(job(**changes), 30)
        return found.corrections, found.learning, found.iterations

    recipe = replace(PAPER, epochs=3, corrections=2)
    assert counts(recipe=recipe) == (2, 12, 14)
    assert counts(recipe=recipe, iterations=6) == (2, 4, 6)
    assert counts(recipe=recipe, iterations=1) == (1, 0, 1)
    assert counts(recipe=recipe, method="correct") == (2, 0, 2)
    assert counts(recipe=recipe, method="correct", iterations=5) == (5, 0, 5)
    assert counts(method="correct") == (1, 0, 1)
    assert plan(job(iterations=7, recipe=replace(PAPER, accumulate=3)), 30).updates == 3


def test_views_have_a_seed_an_iteration_and_corrections_see_the_images_as_they_are() -> None:
    found = plan(job(iterations=9, recipe=replace(PAPER, flip=True, shift=2, corrections=3)), 30)
    views = [found.view(i) for i in range(9)]
    assert views[:3] == [None] * 3
    assert len({view.seed for view in views[3:] if view is not None}) == 6
    assert all(view is not None and view.flip and view.shift == 2 for view in views[3:])
    assert plan(job(recipe=Recipe(corrections=0)), 30).view(0) is None


def test_error_rates_rise_to_their_factor_and_are_probabilities() -> None:
    found = plan(job(iterations=10, recipe=replace(PAPER, corrections=2, rate_factor=2.5, curriculum=0.5)), 30)
    inputs = [found.rates(i).input for i in range(10)]
    assert inputs == pytest.approx([1e-3, 1e-3, *(2.5e-3 * k / 4 for k in (1, 2, 3, 4)), *[2.5e-3] * 4])
    assert found.rates(9).output == 1.0
    assert plan(job(), 30).rates(0) is RATES


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    found = plan(job(iterations=20, recipe=replace(PAPER, schedule="cosine", warmup=0.25)), 30)
    slopes = [found.slope(update) for update in range(20)]
    assert slopes[:5] == pytest.approx([k / 6 for k in (1, 2, 3, 4, 5)])
    assert slopes[5] == 1
    assert slopes[5:] == sorted(slopes[5:], reverse=True)
    assert 0 < slopes[-1] < 0.02
    assert plan(job(), 30).slope(99) == 1


def test_checks_are_spread_evenly_and_the_last_is_the_end() -> None:
    found = plan(job(iterations=11, recipe=replace(PAPER, corrections=2, checks=3)), 30)
    assert [done for done in range(12) if found.is_check(done)] == [5, 8, 11]
