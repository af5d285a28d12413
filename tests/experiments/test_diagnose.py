"""The diagnosis' table on small arrays: what it counts, and the bound."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from experiments import diagnose


def test_the_bound_is_the_logarithm_of_how_many_maps_there_are() -> None:
    assert diagnose.bound_bytes(8, 0) == 0
    assert diagnose.bound_bytes(8, 2) == pytest.approx(math.log2(28 * 80**2) / 8)


def test_a_table_of_small_chips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    asked = ["diagnose", "--side", "8", "--share", "0.05", "--ber", "0", "--chips", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", asked)
    assert diagnose.main() == 0
    (row,) = json.loads(path.read_text())
    # 3 of 64 elements, and all answers through both ends of a link that leaves most of them out.
    assert (row["faulty"], row["found"], row["false"], row["exact"], row["unexplained"]) == (3, 3, 0, 1, 0)
    assert row["up"] < row["answers"]
    assert row["bound"] < row["up"]
    assert "| 8x8 | 5 % | 0 | 1 | 3 | 100.00 % | 0 | 1 |" in capsys.readouterr().out
