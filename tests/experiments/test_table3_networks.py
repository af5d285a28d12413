"""Table III: the paper's numbers beside ours."""

from __future__ import annotations

import csv
from pathlib import Path

from experiments import table3_networks as table3
from experiments.common.sizes import Measured, Size, measured


def test_squeezenet_is_the_papers() -> None:
    found = measured(Size(network="squeezenet1_1"), Path("/nowhere"))
    assert round(found.bytes / 1e6, 1) == 1.2
    assert found.layers == 26
    # Multiplications of SqueezeNet 1.1 on 224 x 224, by its authors' 0.35 G.
    assert 0.34e9 < found.macs < 0.36e9
    assert found.cycles > found.macs / 32**2


def test_rows_are_in_the_papers_order(tmp_path: Path) -> None:
    found = [Measured(bytes=int(1e6) * i, layers=i, macs=i * 10**6, cycles=i * 10**4) for i in range(1, 6)]
    rows = table3.rows(found)
    assert [row[0] for row in rows] == list(table3.REPORTED)
    assert rows[1] == ["ResNet50", "resnet50", "2.0", "24.3", "2", "53", "2", "0.02"]
    table3.write(found, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        assert next(csv.DictReader(file))["paper_layers"] == "20"
