"""What figures share: every number that is written, printed and drawn is a point's."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from experiments.common import figure, style
from experiments.common.figure import Point
from experiments.common.retraining import Accuracy


def point(method: str, x: float, mean: float | None, *, network: str = "a", std: float = 1.0) -> Point:
    value = None if mean is None else Accuracy(mean, std, 5)
    return Point(network, method, x, x, "top1", 40, value, iterations=7, overhead=0.25)


POINTS = [
    point("Base", 0.0, 90.0), point("Base", 1e-5, 80.0), point("Base", 1e-4, 60.0),
    point("DRM", 1e-5, 82.0, std=2.0), point("DRM", 1e-4, None),
    point("Base", 1e-4, 50.0, network="b"), point("DRM", 1e-4, 53.0, network="b"),
]  # fmt: skip


def test_the_table_has_a_row_a_network_and_x() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in figure.table(POINTS, "ber").splitlines()]
    assert rows[0] == ["network", "BER", "Base", "DRM"]
    assert rows[2:] == [
        ["a", "0", "90.0 ± 1.0", ""],
        ["a", "1e-05", "80.0 ± 1.0", "82.0 ± 2.0"],
        ["a", "0.0001", "60.0 ± 1.0", "X"],
        ["b", "0.0001", "50.0 ± 1.0", "53.0 ± 1.0"],
    ]
    assert "| network | BER | batch | Base | DRM |" in figure.table(POINTS, "batch")


def test_gains_are_where_both_have_an_accuracy() -> None:
    assert figure.gains(POINTS, "DRM", "Base") == [2.0, 3.0]
    assert figure.gains(POINTS, "ours", "Base") == []


def test_the_csv_has_every_point(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.csv"
    figure.write(POINTS, path, "batch")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(POINTS)
    assert rows[3] == {
        "network": "a", "method": "DRM", "batch": "1e-05", "ber": "1e-05", "metric": "top1", "images": "40", "mean": "82.0",
        "std": "2.0", "n": "5", "iterations": "7", "overhead": "0.25",
    }  # fmt: skip
    assert (rows[4]["mean"], rows[4]["n"]) == ("", "0")


def test_curves_are_the_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    monkeypatch.setattr(style, "save", lambda made, path: drawn.append(made))
    figure.panels(POINTS, tmp_path / "a.png", "bit error rate")
    left, right = drawn[0].axes
    assert [axis.get_title(loc="left") for axis in (left, right)] == [f"{n}, top-1 of 40 images, %" for n in "ab"]
    base, drm = left.containers
    assert [list(map(float, values)) for values in base.lines[0].get_data()] == [[1e-5, 1e-4], [80.0, 60.0]]
    assert [list(map(float, values)) for values in drm.lines[0].get_data()] == [[1e-5], [82.0]]
    assert [float(end.get_ydata()[0]) for end in drm.lines[1]] == [80.0, 84.0]
    crosses = [line for line in left.lines if line.get_marker() == "x"]
    assert [list(map(float, line.get_xdata())) for line in crosses] == [[1e-4]]
    assert any(list(line.get_ydata()) == [90.0, 90.0] for line in left.lines)
    # The same method looks the same in all panels, and no two alike without colour.
    looks = [(c.lines[0].get_marker(), c.lines[0].get_linestyle()) for c in (*left.containers, *right.containers)]
    assert looks[:2] == looks[2:]
    assert looks[0] != looks[1]


def test_bars_are_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ((axis,),) = style.panels(1, 1, (3, 3))
    figure.bars(axis, POINTS[1:5], ["Base", "DRM"])
    base, drm = (container for container in axis.containers if hasattr(container, "patches"))
    assert [float(bar.get_height()) for bar in base.patches] == [80.0, 60.0]
    assert [float(bar.get_height()) for bar in drm.patches] == [82.0]
    assert base.patches[0].get_hatch() != drm.patches[0].get_hatch()
    cross = next(line for line in axis.lines if line.get_marker() == "x" and len(line.get_xdata()))
    assert float(cross.get_xdata()[0]) == pytest.approx(1.2)
