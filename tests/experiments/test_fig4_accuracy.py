"""Fig. 4: which methods are compared, and the gain at the highest rate that could be retrained."""

from __future__ import annotations

from experiments import fig4_accuracy as fig4
from experiments.common.figure import Point
from experiments.common.retraining import Accuracy


def point(method: str, ber: float, mean: float | None, network: str = "a") -> Point:
    value = None if mean is None else Accuracy(mean, 0.0, 5)
    return Point(network, method, ber, ber, "top1", 40, value, 0, 0.0)


POINTS = [
    point("Base", 1e-5, 80.0), point("Base", 1e-4, 50.0), point("DRM", 1e-5, 81.0), point("DRM", 1e-4, None),
    point("Base", 1e-4, 60.0, "b"), point("DRM", 1e-4, 65.0, "b"), point("Base", 1e-5, 70.0, "b"),
    point("DRM", 1e-5, 79.0, "b"),
]  # fmt: skip


def test_the_gain_is_at_each_networks_highest_rate_that_could_be_retrained() -> None:
    assert fig4.highest(POINTS, "DRM") == [1.0, 5.0]
    said = fig4.finding(POINTS)
    assert "DRM: +3.00" in said
    assert "the paper's DRM: +1.93" in said


def test_every_method_is_trained_where_it_is_deployed_under_the_same_seeds() -> None:
    wanted = fig4.wanted(["resnet20"], True, 3)
    assert {w.method for w in wanted} == {"Base", "DRM", "APRM-80%", "APRM-60%", "APRM-50%", "ours"}
    assert len(wanted) == 1 + 6 * len(fig4.FULL_RATES)
    for w in wanted:
        assert w.cell.deployed == (w.x,)
        assert w.cell.trained == (None if w.method == "Base" else w.x)
        assert w.cell.seeds == 3
    (theta,) = {dict(w.cell.recipe)["theta"] for w in wanted if w.method == "APRM-50%"}
    assert theta == 0.5
    assert {dict(w.cell.recipe).get("activations") for w in wanted if w.method != "ours"} == {"signed"}
