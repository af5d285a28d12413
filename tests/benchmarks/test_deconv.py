"""Times of transposed convolutions: all rows, ratios of the right ones, and no time of ways that differ."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from accelsim.int8 import network as net
from benchmarks import deconv

SMALL = deconv.Layer(5, 3, 3, 1, 1, 4)


def test_all_rows_are_timed() -> None:
    ms = deconv.measure(SMALL, 2, 1)
    assert list(ms) == [*deconv.WAYS, deconv.TORCH]
    assert min(ms.values()) > 0
    found = deconv.ratios({"zero-padded": 8.0, "split": 4.0, "phases": 2.0, "merged": 1.0, deconv.TORCH: 5.0})
    assert found == {
        "phases_vs_zero_padded": 0.25, "merged_vs_zero_padded": 0.125, "split_vs_zero_padded": 0.5, "phases_vs_torch": 0.4,
        "merged_vs_torch": 0.2,
    }  # fmt: skip


def test_ways_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = deconv.networks(SMALL)
    conv = next(layer for layer in made["merged"].layers if isinstance(layer, net.Conv))
    wrong = replace(conv, bias=conv.bias + 2**20)
    layers = tuple(wrong if layer is conv else layer for layer in made["merged"].layers)
    monkeypatch.setattr(deconv, "networks", lambda layer: {**made, "merged": replace(made["merged"], layers=layers)})
    with pytest.raises(ValueError, match="merged gives other integers"):
        deconv.measure(SMALL, 2, 1)


def test_the_json_has_every_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(deconv, "LAYERS", {"faces 4x4, 64 to 3": SMALL})
    arguments = ["--json", str(tmp_path / "times.json"), "--batch", "1", "--rounds", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["deconv", *arguments])
    app = typer.Typer()
    app.command()(deconv.main)
    app(arguments, standalone_mode=False)
    written = json.loads((tmp_path / "times.json").read_text())
    assert set(written["layers"]["faces 4x4, 64 to 3"]) == {"ms", *deconv.RATIOS}
    assert "faces 4x4" in capsys.readouterr().out
