"""Policies by hand on made-up chips, and the whole program on digits, small."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from experiments import reduce
from experiments.common import chips, command, splits
from experiments.common.chip_policies import BOTH, FIXED, MAP, NONE, POLICIES, RATE, UNTIL, at, policies
from experiments.common.chips import ChipCell, Measured
from r2f.reduce.amounts import Table
from r2f.reduce.course import Course, Point
from services.trainer.core.job import Job

STOPS = (0, 4, 10, 20)


def course(rate: float, *accuracies: float) -> Course:
    points = tuple(Point(iterations=s, accuracy=a, error=0.0) for s, a in zip(STOPS, accuracies, strict=True))
    return Course(chip="c", name=f"{rate}", rate=rate, damage=rate, points=points)


TABLE = Table(
    network="n", sha256="0", rows=32, columns=32, mapping=False, job=Job(session="s", device="d", iterations=20), an_epoch=10,
    images=5, clean=95.0,
    courses=(
        course(0.01, 91, 92, 93, 94), course(0.02, 80, 91, 91, 92), course(0.05, 50, 80, 91, 92), course(0.09, 9, 9, 80, 90),
    ),
)  # fmt: skip


def test_every_policy_by_hand() -> None:
    """The target is 90 on the images that choose and 88 on the others."""
    fleet = [
        Measured(chosen=course(0.01, 90, 91, 92, 93), reported=course(0.01, 87, 88, 89, 90)),
        Measured(chosen=course(0.02, 70, 89, 90, 92), reported=course(0.02, 60, 87.9, 88, 89)),
        Measured(chosen=course(0.04, 40, 60, 80, 91), reported=course(0.04, 40, 60, 80, 87)),
        Measured(chosen=course(0.12, 1, 2, 3, 4), reported=course(0.12, 1, 2, 3, 4)),
    ]
    found = {policy.name: policy for policy in policies(TABLE, fleet, 5.0, 93.0, first=4)}
    assert tuple(found) == POLICIES
    none, fixed, rate, by_map, until = (found[name] for name in (NONE, FIXED, RATE, MAP, UNTIL))
    assert (none.amounts, none.iterations, none.reached) == ((0, 0, 0, 0), 0, 0)
    assert (fixed.amounts, fixed.iterations, fixed.epochs, fixed.reached) == ((20, 20, 20, 20), 80, 8.0, 2)
    assert fixed.share_of_fixed == 1
    assert (rate.amounts, rate.beyond) == ((4, 4, 10, None), 1)
    assert (rate.iterations, rate.share_of_fixed, rate.reached) == (18, 0.225, 1)
    # The first is good enough at once, and has its biases corrected all the same; the second lies between the table's 91 and
    # 80; the third is worse than 80.
    assert by_map.amounts == (4, 10, 20, None)
    assert by_map.reached == 2
    assert (until.amounts, until.reached) == ((4, 10, 20, 20), 2)
    assert until.judged == (2 + 3 + 4 + 4) / 4
    assert found[BOTH].amounts == (4, 10, 20, None)
    assert found[BOTH].judged == (2 + 3 + 4 + 2) / 4
    assert (by_map.iterations, found[BOTH].iterations) == (38, 38)
    assert none.worst == 1
    assert fixed.mean == pytest.approx((90 + 89 + 87 + 4) / 4)


def test_a_stop_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"chip 0\.01: it was not judged at 7 iterations"):
        at(TABLE.courses[0], 7)


def test_the_chips_are_others_than_the_tables_and_within_the_rates() -> None:
    healthy, *table = reduce.for_table("resnet20", 3, False)
    fleet = reduce.for_amounts(healthy, 100, 70)
    assert healthy.rate == 0
    assert {cell.stops for cell in fleet} == {(0, 4, 16, 32, 48, 64)}
    assert {cell.largest for cell in (*table, *fleet)} == {256}
    assert len(table) == 3 * len(reduce.RATES)
    assert len(fleet) == 100
    assert not {cell.seed for cell in table} & {cell.seed for cell in fleet}
    assert all(0.01 <= cell.rate <= 0.1 for cell in fleet)
    assert len({cell.seed for cell in fleet}) == 100
    assert reduce.for_amounts(healthy, 6, 70) == fleet[:6]


def test_the_halves_share_no_image(tmp_path: Path) -> None:
    _, _, data, _ = chips.subject("digits_cnn", (), 4, tmp_path)
    first, second = splits.halved(data)
    assert len(first.test_images) + len(second.test_images) == len(data.test_images)
    assert (first.test_images[0] == data.test_images[0]).all()
    assert (second.test_images[0] == data.test_images[1]).all()
    assert first.train_images is data.train_images


def test_a_cell_judges_both_halves(tmp_path: Path) -> None:
    cell = ChipCell(network="digits_cnn", rate=0.05, seed=1, mapping=True, stops=(0, 4), largest=4)
    found = chips.measured(cell, tmp_path)
    assert [p.iterations for p in found.chosen.points] == [0, 4]
    assert found.chosen.chip == found.reported.chip
    assert found.chosen.damage == found.reported.damage > 0
    assert found.chosen.points != found.reported.points
    healthy = chips.measured(ChipCell(network="digits_cnn", rate=0.0, seed=0, mapping=True, stops=(0, 4), largest=4), tmp_path)
    assert healthy.chosen.points[0].accuracy > 95
    assert healthy.chosen.points[0].error == 0
    assert len(healthy.chosen.points) == 1


def test_the_program_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(reduce, "STOPS", (0, 4, 12))
    monkeypatch.setattr(reduce, "RATES", (0.02, 0.1))
    out, file = tmp_path / "figures", tmp_path / "new" / "reduce.json"
    options = ["--network", "digits_cnn", "--maps", "2", "--chips", "3", "--jobs", "1", "--lost", "10", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["reduce", *options, "--cache", str(tmp_path / "cells"), "--json", str(file)])
    reduce.main()
    found, mapped = json.loads(file.read_text())
    assert (mapped["network"], mapped["mapping"], mapped["target"]) == ("digits_cnn", True, found["target"])
    assert mapped["rates"] == found["rates"]
    for policy in mapped["policies"]:
        assert policy["share_of_fixed"] == pytest.approx(policy["iterations"] / (3 * found["fixed"]), abs=1e-4)
    assert (found["network"], found["maps"], found["array"]) == ("digits_cnn", 2, [32, 32])
    assert sum(found["images"]) == 445
    assert found["target"] == pytest.approx(found["clean"] - 10, abs=1e-3)
    assert [policy["name"] for policy in found["policies"]] == list(POLICIES)
    assert len(found["cells"]) == 6
    fixed = found["policies"][1]
    assert fixed["iterations"] == 3 * fixed["amounts"][0] > 0
    with (out / "reduce.csv").open(newline="") as rows:
        assert [row["policy"] for row in csv.DictReader(rows)] == 2 * list(POLICIES)
    with Image.open(out / "reduce.png") as picture:
        assert picture.size[0] > 1000
    assert "| digits_cnn | until met |" in capsys.readouterr().out


def test_a_loss_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["reduce", "--lost", "0"])
    with pytest.raises(command.InputError, match="--lost 0: expected points of accuracy"):
        reduce.main()
