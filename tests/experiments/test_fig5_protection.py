"""Fig. 5: which budgets and searches, and the gains beside the paper's."""

from __future__ import annotations

import pytest

from experiments import fig5_protection as fig5
from experiments.common.figure import Point
from experiments.common.retraining import Accuracy


@pytest.mark.parametrize("full", [False, True])
def test_budgets_and_searches(full: bool) -> None:
    wanted = fig5.wanted(["squeezenet1_1"], full, 5)
    found = {w.method: w.cell for w in wanted if w.x == 1e-4}
    assert list(found) == (
        ["Base", "DRM", "TCLP-20%", "TCLP-50%", "TCLP-200%", "ours", "ours-20%", "ours-50%"]
        if full
        else ["Base", "DRM", "TCLP-50%", "TCLP-200%", "ours", "ours-50%"]
    )
    assert [cell.budget for cell in found.values()] == (
        [0, 0, 0.2, 0.5, 2.0, 0, 0.2, 0.5] if full else [0, 0, 0.5, 2.0, 0, 0.5]
    )
    assert {found[name].search for name in found if name.startswith("TCLP")} == {"algorithm1"}
    assert {found[name].search for name in found if name.startswith("ours")} == {"estimated"}
    assert {cell.trained for name, cell in found.items() if name != "Base"} == {1e-4}


def test_gains_are_at_the_papers_rate() -> None:
    def point(network: str, method: str, ber: float, mean: float) -> Point:
        return Point(network, method, ber, ber, "top5", 40, Accuracy(mean, 0.0, 5), 0, 0.0)

    points = [
        point("squeezenet1_1", "Base", 1e-4, 70.0), point("squeezenet1_1", "TCLP-200%", 1e-4, 86.0),
        point("squeezenet1_1", "Base", 5e-5, 10.0), point("squeezenet1_1", "TCLP-200%", 5e-5, 90.0),
        point("resnet20", "Base", 1e-3, 60.0), point("resnet20", "TCLP-200%", 1e-3, 70.0),
    ]  # fmt: skip
    said = fig5.finding(points)
    assert "TCLP-200% above Base: +13.00; the paper's +13.73" in said
    assert "TCLP-50%" not in said
