"""Quality of networks that give images: the numbers are those of a second way, and another row would be seen."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from accelsim import datasets, zoo
from accelsim.datasets import Spec
from accelsim.faults import Rates
from accelsim.lowering import lower
from experiments import deconv_quality
from experiments.common import command, image_quality
from experiments.common.image_quality import METHODS, Cell, Found
from r2f import float_training, inprocess
from services.trainer.core.evaluation import Reference


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights of the super-resolution network, and smooth images 8x8 with their targets 16x16, on which it was trained."""
    folder = tmp_path_factory.mktemp("pairs")
    random = np.random.default_rng(0)
    coarse = random.integers(40, 216, (72, 4, 4, 3)).astype(np.float64)
    targets = np.repeat(np.repeat(coarse, 4, 1), 4, 2)
    images = targets.reshape(72, 8, 2, 8, 2, 3).mean((2, 4))
    arrays = {"images": np.rint(images).astype(np.uint8), "targets": np.rint(targets).astype(np.uint8)}
    data = folder / "pairs.npz"
    np.savez(
        data,
        **{
            f"{part}_{name}": a[where]
            for part, where in (("train", slice(64)), ("test", slice(64, 72)))
            for name, a in arrays.items()
        },
    )
    opened = datasets.open(Spec(source=str(data)))
    module = float_training.train_images(lambda: zoo.build("crops_sr2x"), opened, epochs=20)
    weights = folder / "own.safetensors"
    save_file(module.state_dict(), weights)
    return weights, data


@pytest.fixture(scope="module")
def found(pairs: tuple[Path, Path]) -> Found:
    weights, data = pairs
    recipe = (("iterations", "8"), ("selection-samples", "8"), ("corrections", "1"))
    return image_quality.measured(Cell("crops_sr2x", str(weights), "", str(data), 2e-3, 2, 8, recipe=recipe), Path("/nowhere"))


def test_the_numbers_are_those_of_a_second_way(found: Found, pairs: tuple[Path, Path]) -> None:
    weights, source = pairs
    data = datasets.open(Spec(source=str(source)))
    paper = lower(zoo.load("crops_sr2x", weights), data.train_images, data.mean, data.std, activations="signed")
    truth = Reference("psnr", data.test_targets, 1 / 255)  # type: ignore[arg-type]
    psnr = found.values["psnr"]
    for method, ber in (("fault-free", 0.0), ("faulty", 2e-3)):
        again = inprocess.evaluate(paper, data.test_images, truth, Rates.uniform(ber), (1001, 1002), batch=16)
        assert psnr[method] == pytest.approx(again.psnr, abs=1e-9)
    assert list(psnr) == list(found.values["ssim"]) == list(METHODS)
    assert [len(values) for values in psnr.values()] == [1, 2, 2, 2, 1]
    # Bounded outputs in half as large steps: quantised for faults they cost less, before anything is learnt.
    assert np.mean(psnr["faulty"]) + 0.3 < np.mean(psnr["quantised for it"]) < psnr["fault-free"][0]
    assert (found.images, found.iterations) == (8, 8)


def test_voted_weights_cost_little_and_only_the_retrained_network_has_them(pairs: tuple[Path, Path], found: Found) -> None:
    weights, data = pairs
    recipe = (("iterations", "2"), ("selection-samples", "8"), ("corrections", "1"))
    voted = image_quality.measured(Cell("crops_sr2x", str(weights), "", str(data), 2e-3, 2, 8, True, recipe), Path("/nowhere"))
    assert found.overhead == 0 < voted.overhead < 0.2
    for method in METHODS[:3]:
        assert voted.values["psnr"][method] == found.values["psnr"][method]


def test_won_back_is_a_share_of_what_was_lost() -> None:
    values = dict(zip(METHODS, ([30.0], [18.0, 20.0], [23.0, 25.0], [25.0, 27.0], [29.0]), strict=True))
    (row,) = deconv_quality.rows([Cell("a", "", "", "", 1e-3, 2, 4)], [Found({"psnr": values}, 4, 0.0, "last", 8, 9, b"")])
    assert row["won_back"] == pytest.approx((26 - 19) / (30 - 19))
    assert row["by_retraining"] == pytest.approx((26 - 24) / (30 - 24))
    assert (row["faulty_mean"], row["faulty_std"]) == (19, 1)
    (_, _, line) = deconv_quality.table([row]).splitlines()
    assert line.endswith("| 19.00 dB ± 1.00 | 24.00 dB ± 1.00 | 26.00 dB ± 1.00 | 29.00 dB ± 0.00 | 64% | 33% |")
    assert deconv_quality.recovered(values | {"fault-free": [19.0]}, "faulty") is None


def test_writes_everything(pairs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, data = pairs
    given = [
        "--network",
        "crops_sr2x",
        "--weights",
        weights,
        "--data",
        data,
        "--ber",
        "0",
        "2e-3",
        "--seeds",
        "2",
        "--images",
        "4",
    ]
    given += ["--iterations", "2", "--selection-samples", "4", "--corrections", "1", "--jobs", "1"]
    given += ["--cache", tmp_path / "cache", "--out", tmp_path, "--json", tmp_path / "rows.json"]
    monkeypatch.setattr(sys, "argv", ["deconv_quality", *map(str, given)])
    deconv_quality.main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["ber"], row["metric"]) for row in rows] == [(0, "psnr"), (0, "ssim"), (2e-3, "psnr"), (2e-3, "ssim")]
    assert rows[0]["won_back"] is None
    with (tmp_path / "deconv_quality.csv").open(encoding="utf-8") as file:
        assert [float(row["faulty_mean"]) for row in csv.DictReader(file)] == [row["faulty_mean"] for row in rows]
    for name in ("deconv_quality.png", "deconv_quality_crops_sr2x_0.002.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--network", "waifu2x"], "--network waifu2x: give its --weights and --data"),
        (["--weights", "x"], "--weights and --data: give both, with one --network"),
        (["--network", "waifu2x", "--weights", "/absent", "--data", "x.npz"], "--weights /absent: not found"),
        (["--ber", "2"], "argument --ber"),
        (["--images", "0"], "argument --images"),
    ],
)
def test_what_cannot_be_measured(
    given: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["deconv_quality", *given])
    with pytest.raises(SystemExit) as stopped:
        command.run(deconv_quality.main)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_how_pixels_are_normalised_reaches_the_data(
    pairs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, data = pairs
    given = [
        "--network",
        "crops_sr2x",
        "--weights",
        weights,
        "--data",
        data,
        "--ber",
        "0",
        "--jobs",
        "1",
        "--mean",
        "2",
        "--std",
        "1",
    ]
    given += ["--cache", tmp_path / "cache", "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["deconv_quality", *map(str, given)])
    with pytest.raises(SystemExit) as stopped:
        command.run(deconv_quality.main)
    assert stopped.value.code == 2
    assert "mean" in capsys.readouterr().err
