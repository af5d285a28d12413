"""Curves that stay short: what is kept of many iterations is their mean, in order."""

from __future__ import annotations

from statistics import fmean

import pytest

from services.monitor.core import curve
from services.monitor.core.curve import MOST, STAGES, Curve, Point
from services.trainer.core.ledger import LayerRow, Row


def made(iteration: int, errors: float | None = None) -> Point:
    return Point(
        iteration, float(iteration), 50.0, 2.0 * iteration, 1, 1, 1, 0, 0.5, errors, None, [1.0 * iteration] * 9, [0.0] * 9
    )


@pytest.mark.parametrize("count", [1, MOST - 1, MOST, MOST + 1, 5 * MOST + 7])
def test_it_is_bounded_and_means_the_same(count: int) -> None:
    found = Curve()
    for iteration in range(count):
        found.add(made(iteration))
    points = found.all()
    assert len(points) <= MOST
    # The naive way: all of them, and then means of so many.
    naive = [range(count)[i : i + found.stride] for i in range(0, count, found.stride)]
    assert [p.iteration for p in points] == [part[-1] for part in naive]
    assert [p.loss for p in points] == pytest.approx([fmean(part) for part in naive])
    assert [p.up for p in points] == pytest.approx([2 * fmean(part) for part in naive])
    assert [p.host_s[3] for p in points] == pytest.approx([fmean(part) for part in naive])


def test_the_mean_of_what_is_not_known_is_of_what_is() -> None:
    assert curve.mean([made(0), made(1, 8.0)]).errors == 8.0
    assert curve.mean([made(0), made(1)]).errors is None


def test_a_row_as_a_point() -> None:
    layers = [LayerRow(0, 100, 3, 90, 4), LayerRow(2, 300, 1, 300, 12, 7)]
    row = Row(
        iteration=4, loss=0.5, accuracy=75.0, grad_norm=1.0, wall_s=0.2, attempts=1, elements=400, mismatched=0,
        mismatched_layers=0, input_bytes=60, host_s={"forward": 0.1}, device_s={"tmr": 0.3}, layers=layers,
        uplink_inputs=10, uplink_layers=20, uplink_repairs=3, downlink=7,
    )  # fmt: skip
    point = curve.point(row, 1000)
    assert (point.up, point.up_direct, point.down, point.down_direct, point.repairs) == (33, 460, 7, 1000, 3)
    assert point.errors == pytest.approx(1e6 * 16 / 400)
    assert point.agreed == 90, "of the layers that ran more than once"
    assert (point.host_s[STAGES.index("forward")], point.device_s[STAGES.index("tmr")], sum(point.host_s)) == (0.1, 0.3, 0.1)
