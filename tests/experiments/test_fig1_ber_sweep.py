"""Fig. 1: which points, and what is lost beside the paper's."""

from __future__ import annotations

from experiments import fig1_ber_sweep as fig1
from experiments.common import methods
from experiments.common.figure import Point
from experiments.common.retraining import Accuracy


def point(method: str, ber: float, mean: float) -> Point:
    return Point("squeezenet1_1", method, ber, ber, "top5", 200, Accuracy(mean, 0.1, 5), 0, 0.0)


def test_nothing_is_retrained_and_both_ways_have_the_same_rates() -> None:
    wanted = fig1.wanted(["resnet20", "squeezenet1_1"], False, 3)
    assert {w.cell.trained for w in wanted} == {None}
    assert {w.cell.seeds for w in wanted} == {3}
    rates = {(w.cell.network, w.method): [] for w in wanted}
    for w in wanted:
        assert w.cell.deployed == (w.x,)
        assert w.cell.recipe == fig1.METHODS[w.method]
        rates[w.cell.network, w.method].append(w.x)
    assert len(rates) == 4
    assert all(tuple(found) == fig1.RATES for found in rates.values())
    assert dict(methods.BASE)["activations"] == "signed"
    assert len(fig1.wanted(["resnet20"], True, 3)) == 2 * len(fig1.FULL_RATES)


def test_the_loss_is_at_the_papers_rate() -> None:
    points = [point("Base", 0.0, 87.0), point("Base", 5e-5, 80.5), point("Base", 1e-4, 70.0)]
    said = fig1.finding(points)
    assert "squeezenet1_1, Base: 6.50" in said
    assert "the paper's SqueezeNet: 6.04" in said
