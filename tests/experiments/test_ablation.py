"""The ablation: its arithmetic, and that steps differ by what their names say."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import ablation
from experiments.ablation import CLEAN, FIRST, STEPS
from experiments.common import style
from experiments.common.figure import Point
from experiments.common.retraining import Accuracy


def point(method: str, mean: float | None, ber: float = 1e-4) -> Point:
    value = None if mean is None else Accuracy(mean, 0.5, 5)
    return Point("squeezenet1_1", method, ber, ber, "top5", 200, value, 0, 0.0)


POINTS = [point(FIRST, 70.0), point(CLEAN, 90.0), point("a", 85.0), point("b", 60.0), point("c", None)]


def test_shares_are_of_what_signed_arithmetic_lost() -> None:
    found = {method: share for (_, _, method), share in ablation.recovered(POINTS).items()}
    assert found == {FIRST: 0.0, CLEAN: 1.0, "a": 0.75, "b": -0.5}


def test_the_table_has_all_steps_also_harmful_ones() -> None:
    lines = ablation.table(POINTS).splitlines()
    assert lines[0] == "| step | squeezenet1_1 0.0001 |"
    assert lines[2:] == [
        f"| {FIRST} | 70.0 ± 0.5 |", f"| {CLEAN} | 90.0 ± 0.5 |", "| a | 85.0 ± 0.5 (75 %) |", "| b | 60.0 ± 0.5 (-50 %) |",
        "| c | X |",
    ]  # fmt: skip


def test_the_bars_are_the_shares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    monkeypatch.setattr(style, "save", lambda made, path: drawn.append(made))
    ablation.draw(POINTS, tmp_path / "a.png")
    (axis,) = drawn[0].axes
    assert [float(bar.get_width()) for bar in axis.patches] == [75.0, -50.0]
    assert [text.get_text() for text in axis.texts] == ["X"]


def test_every_step_is_measured_alike() -> None:
    wanted = ablation.wanted({"resnet20": (5e-4, 1e-3)}, False, 5, "report")
    assert len(wanted) == 2 * (len(STEPS) + 1)
    assert {(w.cell.part, w.cell.seeds, w.cell.images) for w in wanted} == {("report", 5, 1000)}
    assert {w.cell.deployed for w in wanted if w.method != CLEAN} == {(5e-4,), (1e-3,)}
    assert len({w.cell for w in wanted}) == len(wanted) - 1  # without faults it is the same at both rates
    for w in wanted:
        assert ("not retrained" in w.method or w.method == CLEAN) == (w.cell.trained is None)
        assert ("signed" in w.method) == (dict(w.cell.recipe).get("activations") == "signed")
