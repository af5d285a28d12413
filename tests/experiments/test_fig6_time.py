"""Fig. 6: its arithmetic and every number that it prints, on costs that are easy to check by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from experiments import fig6_time
from experiments.common.costs import BERS, EVALUATED, Cost


def cells(table: str) -> list[list[str]]:
    """Those of each row of a Markdown table, the head first."""
    lines = [line for line in table.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def slower(costs: list[Cost], network: str, method: str, ber: float, factor: float) -> list[Cost]:
    """The same with one network's stages slower by one method at one rate."""

    def times(cost: Cost) -> Cost:
        if (cost.network, cost.method, cost.ber) != (network, method, ber):
            return cost
        stages = {stage: value * factor for stage, value in msgspec.structs.asdict(cost.stages).items()}
        return msgspec.structs.replace(cost, stages=msgspec.structs.replace(cost.stages, **stages))

    return [times(cost) for cost in costs]


def test_reductions_are_shares_of_directs_time(costs: list[Cost]) -> None:
    found = fig6_time.reductions(costs, ("hspa",))
    assert found["APRM-60%"][1e-5] == pytest.approx(0.5)
    assert found["ours"][1e-4] == pytest.approx(0.96)
    assert found["ours, JPEG 95, overlapped"][1e-6] == pytest.approx(0.982)
    assert found["ours, samples known"][1e-6] == pytest.approx(0.99)


def test_every_network_counts_the_same(costs: list[Cost]) -> None:
    """B takes three times as long by ours at 1e-5: 12 % there, 4 % for A, whatever their seconds are."""
    found = fig6_time.reductions(slower(costs, "B", "lossless", 1e-5, 3), ("hspa", "lora"))
    assert found["ours"] == pytest.approx({1e-6: 0.96, 1e-5: 0.92, 1e-4: 0.96})


def test_the_table_says_what_it_is_an_average_of(costs: list[Cost]) -> None:
    table = fig6_time.reduction_table(slower(costs, "B", "lossless", 1e-5, 3), EVALUATED)
    assert table.startswith("Less retraining time than direct on 802.15.4g and HSPA, average over 2 networks: A, B:\n")
    head, *rows = cells(table)
    assert head == ["method", "1e-06", "1e-05", "0.0001"]
    assert rows == [
        ["paper, reported", "88%", "73%", "38%"],
        ["goal", "98%", "97%", "90%"],
        ["APRM-60%", "50.00%", "50.00%", "50.00%"],
        ["APRM-60%, overlapped", "55.00%", "55.00%", "55.00%"],
        ["ours", "96.00%", "92.00%", "96.00%"],
        ["ours, overlapped", "96.40%", "92.80%", "96.40%"],
        ["ours, JPEG 95", "98.00%", "98.00%", "98.00%"],
        ["ours, JPEG 95, overlapped", "98.20%", "98.20%", "98.20%"],
        ["ours, samples known", "99.00%", "99.00%", "99.00%"],
        ["ours, samples known, overlapped", "99.10%", "99.10%", "99.10%"],
    ]
    table = fig6_time.reduction_table([c for c in costs if c.network == "A"], ("lora",))
    assert table.startswith("Less retraining time than direct on LoRa, A alone:\n")
    assert len(cells(table)) == 1 + 8  # the paper's are for other links


def test_the_seconds_table_adds_up(costs: list[Cost]) -> None:
    head, *rows = cells(fig6_time.seconds_table(costs))
    assert len(rows) == 2 * len(BERS) * len(EVALUATED)
    found = dict(zip(head, next(row for row in rows if row[:2] == ["B 1e-05", "HSPA"]), strict=True))
    # B's direct is 200 s; ours 4 % of it, JPEG 2 %. In MB, 2000 bytes are nothing: see below.
    assert found == {
        "network, BER": "B 1e-05", "link": "HSPA", "outputs MB": "0.00", "inputs MB": "0.00", "FP + TMR + referee": "0.7",
        "coding": "0.2", "uplink": "5.6", "BP": "0.8", "total": "8.0", "overlapped": "7.2", "JPEG 95": "4.0",
        "JPEG 95, overlapped": "3.6", "direct": "200",
    }  # fmt: skip
    large = [msgspec.structs.replace(c, layers_bytes=1_230_000, input_bytes=4_560_000) for c in costs]
    assert cells(fig6_time.seconds_table(large))[1][2:4] == ["1.23", "4.56"]


def test_the_csv_has_every_cost_and_its_stages(costs: list[Cost]) -> None:
    head, *rows = fig6_time.csv_rows(costs)
    assert len(rows) == len(costs)
    row = dict(zip(head, next(r for r in rows if r[:5] == ["B", False, 1e-4, "lte", "aprm80"]), strict=True))
    assert [row[stage] for stage in fig6_time.STAGES] == ["8", "1", "2", "3", "70", "10", "6"]
    assert (row["total_s"], row["overlapped_s"], row["of_direct"]) == ("100", "90", "0.5")


def test_the_program_writes_all_of_it(
    costs: list[Cost], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = tmp_path / "measured.json"
    measured.write_bytes(msgspec.json.encode(costs))
    monkeypatch.setattr("sys.argv", ["fig6_time", "--measured", str(measured), "--out", str(tmp_path / "out")])
    fig6_time.main()
    printed = capsys.readouterr().out
    assert printed.count("2 networks") == 5  # the two links together, and each of four
    with (tmp_path / "out" / "fig6_time.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(costs)
    written = json.loads((tmp_path / "out" / "fig6_reduction.json").read_bytes())
    assert written["networks"] == ["A", "B"]
    assert written["hspa"]["ours"] == pytest.approx({"1e-06": 0.96, "1e-05": 0.96, "0.0001": 0.96})
    assert written["reported"] == {"1e-06": 0.88, "1e-05": 0.73, "0.0001": 0.38}


def test_the_bars_are_as_high_as_their_stages(costs: list[Cost], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    monkeypatch.setattr(fig6_time.style, "save", lambda figure, path: drawn.append(figure))
    fig6_time.draw(costs, tmp_path / "a.png")
    axes = drawn[0].axes
    assert [axis.get_title(loc="left") for axis in axes] == [
        "802.15.4g / A (random weights)", "802.15.4g / B", "HSPA / A (random weights)", "HSPA / B",
    ]  # fmt: skip
    bars = axes[3].patches
    assert len(bars) == len(BERS) * len(fig6_time.METHODS) * len(fig6_time.STAGES)
    # The first bar is the paper's method, half of direct: 8, 1, 2, 3, 70, 10 and 6 % of that.
    assert [bar.get_height() for bar in bars[:7]] == pytest.approx([0.04, 0.005, 0.01, 0.015, 0.35, 0.05, 0.03])
    assert [bar.get_y() for bar in bars[:7]] == pytest.approx([0, 0.04, 0.045, 0.055, 0.07, 0.42, 0.47])
    assert "50.0%" in {label.get_text() for label in axes[3].texts}
    assert {axis.get_yscale() for axis in axes} == {"linear"}


def test_the_picture_is_drawn(costs: list[Cost], tmp_path: Path) -> None:
    fig6_time.draw(costs, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert (np.ptp(np.asarray(image.convert("RGB")), axis=2) > 60).any()
