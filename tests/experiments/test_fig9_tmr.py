"""Fig. 9: what is written, printed and drawn is what was measured."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from experiments import fig9_tmr as fig9
from experiments.common import runner
from experiments.common.cells import Agreed, Agreement
from experiments.common.retraining import Accuracy

FOUND = [
    (
        Agreement(network="resnet20", ber=ber, redundancy=way),
        Agreed(voted=Accuracy(shift + 90.0 - 1e5 * ber, 1.0, 5), single=Accuracy(50.0 - 1e5 * ber, 2.0, 5)),
    )
    for ber in (1e-5, 1e-4)
    for way, shift in (("layer", 5.0), ("network", 0.0))
]


def test_shares_are_by_way_and_rate() -> None:
    found = fig9.shares(FOUND)
    assert found["resnet20", "layer-wise", 1e-4].mean == 85.0
    assert found["resnet20", "network-wise", 1e-4].mean == 80.0
    assert found["resnet20", "once", 1e-4].mean == 40.0
    assert "| resnet20 | 1e-05 | 94.0 ± 1.0 | 89.0 ± 1.0 | 49.0 ± 2.0 |" in fig9.table(found)


def test_the_curves_are_the_shares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    monkeypatch.setattr(fig9.style, "save", lambda made, path: drawn.append(made))
    fig9.draw(fig9.shares(FOUND), tmp_path / "a.png")
    curves = {c.get_label(): [list(map(float, v)) for v in c.lines[0].get_data()] for c in drawn[0].axes[0].containers}
    assert curves == {
        "layer-wise": [[1e-5, 1e-4], [94.0, 85.0]],
        "network-wise": [[1e-5, 1e-4], [89.0, 80.0]],
        "once": [[1e-5, 1e-4], [49.0, 40.0]],
    }


def test_the_program_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def run(measure: object, cells: list[Agreement], *_: object, **__: object) -> list[Agreed]:
        asked.extend(cells)
        return [Agreed(voted=Accuracy(80.0, 1.0, 5), single=Accuracy(50.0, 2.0, 5)) for _ in cells]

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(sys, "argv", ["fig9", "--network", "resnet20", "--out", str(tmp_path)])
    fig9.main()
    assert len(asked) == 2 * len(fig9.RATES)
    with (tmp_path / "fig9_tmr.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3 * len(fig9.RATES)
    assert (tmp_path / "fig9_tmr.png").read_bytes().startswith(b"\x89PNG")
    assert "80.0 ± 1.0" in capsys.readouterr().out
