"""Fig. 1: what a point is, and that line, file and picture show the points they were given."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from accelsim import zoo
from accelsim.engine import Engine
from accelsim.lowering import lower
from experiments import fig1_ber_sweep
from experiments.fig1_ber_sweep import BATCH, Point, draw, line, measure


def test_a_point_is_the_devices_accuracy() -> None:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    network = lower(zoo.build("digits_cnn"), images, (0.5,), (0.25,), "digits_cnn")
    scores = Engine(network).run(network.quantize_images(images))[-1].reshape(40, 10).astype(np.float32)
    labels = scores.argmax(1)
    assert len(images) > 2 * BATCH  # the last batch is a part of one
    clean = measure(network, images, labels, 0.0, 0)
    assert clean == Point("digits_cnn", 0.0, 0, 40, 100.0, 100.0)
    faulty = [measure(network, images, labels, 1e-2, seed) for seed in (1, 1, 2)]
    assert faulty[0] == faulty[1]
    assert faulty[0].top1 < 90
    assert (faulty[0].top1, faulty[0].top5) != (faulty[2].top1, faulty[2].top5)


def test_the_picture_has_both_panels(tmp_path: Path) -> None:
    path = tmp_path / "fig.png"
    draw([Point(name, ber, 0, 10, 50.0, 80.0) for name in ("resnet20", "squeezenet1_1") for ber in (0.0, 1e-6, 1e-4)], path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    coloured = (np.ptp(pixels, axis=2) > 60).any(0)
    middle = pixels.shape[1] // 2
    assert coloured[:middle].any()
    assert coloured[middle:].any()


def points(name: str, ber: float, *found: tuple[float, float]) -> list[Point]:
    return [Point(name, ber, seed, 40, *both) for seed, both in enumerate(found)]


def test_a_line_is_the_mean_and_deviation_over_seeds() -> None:
    found = points("resnet20", 1e-4, (10.0, 50.0), (20.0, 90.0))
    assert line(found) == "resnet20       BER 1e-04  top-1  15.0 ± 5.0  top-5  70.0 ± 20.0  (40 images)"


def test_the_curves_are_the_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    monkeypatch.setattr(fig1_ber_sweep.style, "save", lambda figure, path: drawn.append(figure))
    cifar = points("resnet20", 0.0, (90.0, 99.0)) + points("resnet20", 1e-5, (80.0, 98.0), (70.0, 97.0))
    draw(cifar + points("squeezenet1_1", 1e-3, (10.0, 30.0)), tmp_path / "a.png")
    left, right = drawn[0].axes
    assert [axis.get_title(loc="left") for axis in (left, right)] == ["CIFAR-10, top-1", "ImageNet, top-5"]
    curve = left.containers[0]
    assert curve.get_label() == "resnet20, 40 images"
    assert [list(map(float, values)) for values in curve.lines[0].get_data()] == [[1e-5], [75.0]]
    assert [float(end.get_ydata()[0]) for end in curve.lines[1]] == [70.0, 80.0]
    assert left.lines[-1].get_ydata()[0] == 90.0  # without faults
    assert [list(map(float, values)) for values in right.containers[0].lines[0].get_data()] == [[1e-3], [30.0]]


def test_the_program_takes_images_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sorted by class as image folders are, the first 8 would be of one class."""
    labels = np.repeat(np.arange(4), 10)
    seen = []

    def measured(network: object, images: np.ndarray, labels: np.ndarray, ber: float, seed: int) -> Point:
        seen.append(np.bincount(labels).tolist())
        return Point("resnet20", ber, seed, len(images), 50.0, 75.0)

    monkeypatch.setattr(fig1_ber_sweep, "lowered", lambda name, shared: None)
    monkeypatch.setattr(fig1_ber_sweep, "images_of", lambda name, shared, part: (labels, labels))
    monkeypatch.setattr(fig1_ber_sweep, "measure", measured)
    given = ["--network", "resnet20", "--images", "8", "--ber", "0", "1e-3", "--seeds", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["fig1", *given])
    fig1_ber_sweep.main()
    assert seen == [[2, 2, 2, 2]] * 3
    assert len([text for text in capsys.readouterr().out.splitlines() if "(8 images)" in text]) == 2
    with (tmp_path / "fig1_ber_sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["ber"], row["seed"], row["images"], row["top1"], row["top5"]) for row in rows] == [
        ("0.0", "0", "8", "50.0", "75.0"), ("0.001", "0", "8", "50.0", "75.0"), ("0.001", "1", "8", "50.0", "75.0"),
    ]  # fmt: skip
    assert (tmp_path / "fig1_ber_sweep.png").is_file()
