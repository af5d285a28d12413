"""Fig. 2: at which rates each method is trained and deployed."""

from __future__ import annotations

from experiments import fig2_matching as fig2
from experiments.common import methods
from experiments.common.figure import Point
from experiments.common.retraining import Accuracy


def test_rates_are_the_papers_and_tenfold_for_small_images() -> None:
    wanted = fig2.wanted(["squeezenet1_1", "resnet20"], False, 5)
    found = {(w.cell.network, w.method, w.x): w.cell for w in wanted}
    assert found["squeezenet1_1", "UR-F", 5e-5].trained == 1e-6
    assert found["squeezenet1_1", "UR-C", 5e-5].trained == 4.5e-5
    assert found["resnet20", "UR-C", 5e-4].trained == 4.5e-4
    for (network, method, x), cell in found.items():
        assert cell.deployed == (x,), network
        assert (cell.trained is None) == (method == "Base")
        if method == "MR":
            assert cell.trained == x
        if method != "Base":
            assert cell.recipe[:-1] == methods.papers(network)


def test_the_finding_is_the_average_gain() -> None:
    def point(method: str, x: float, mean: float) -> Point:
        return Point("a", method, x, x, "top1", 40, Accuracy(mean, 0.0, 5), 0, 0.0)

    points = [point("Base", 1e-6, 80.0), point("Base", 5e-5, 60.0), point("MR", 1e-6, 81.0), point("MR", 5e-5, 65.0)]
    said = fig2.finding(points)
    assert "MR: +3.00" in said
    assert "UR-F:" not in said.partition("the paper")[0]
