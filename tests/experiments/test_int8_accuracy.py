"""The tables of int8 accuracy: by hand on a small network, and JPEG inputs on the trained CIFAR-10 network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from experiments import int8_accuracy
from experiments.common.command import InputError
from experiments.common.trained import float_logits, int8_logits, lowered


def test_jpeg_rows_compare_with_lossless(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = int8_accuracy.images_of
    monkeypatch.setattr(int8_accuracy, "images_of", lambda *where: tuple(part[:60] for part in whole(*where)))
    lossless, fine, rough = (
        [cell.strip() for cell in row.strip("| ").split("|")]
        for row in int8_accuracy.jpeg_rows("resnet20", shared_dir, 32, [95, 10])
    )
    assert [row[1] for row in (lossless, fine, rough)] == ["lossless", "JPEG 95", "JPEG 10"]
    assert lossless[5] == "100.0 / 100.0"
    shares = [float(row[2].split()[0]) for row in (lossless, fine, rough)]
    assert shares == sorted(shares, reverse=True)
    top1 = [np.array(row[3].split(" / ") + row[4].split(" / "), float)[::2] for row in (lossless, fine, rough)]
    assert (top1[0] > 80).all()
    # At quality 10 a 32x32 image has hardly anything left.
    assert (top1[2] < top1[1] - 20).all()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """An untrained network, and images whose labels are the float network's answers but for every fourth."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10)]
    module = nn.Sequential(*layers).eval()
    data = {
        part: np.random.default_rng(number).integers(0, 256, (count, 32, 32, 3), np.uint8)
        for number, (part, count) in enumerate((("train", 72), ("test", 40)))
    }
    labels = {}
    for part, images in data.items():
        labels[part] = float_logits(module, images).argmax(1)
        labels[part][::4] = (labels[part][::4] + 1) % 10
    monkeypatch.setattr(int8_accuracy, "module_of", lambda name, shared: module)
    monkeypatch.setattr(int8_accuracy, "images_of", lambda name, shared, part: (data[part], labels[part]))
    return module, data


def test_a_row_compares_int8_with_float(
    small: tuple[torch.nn.Module, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, data = small
    kept = []
    true = int8_accuracy.int8_logits
    monkeypatch.setattr(int8_accuracy, "int8_logits", lambda network, images: kept.append(images) or true(network, images))
    row = [cell.strip() for cell in int8_accuracy.row("resnet20", Path(), 32, training=False).strip("|").split("|")]
    assert row[:2] == ["resnet20", "40"]
    assert row[2].startswith("75.0 / ")
    np.testing.assert_array_equal(kept[0], data["test"])
    monkeypatch.setattr("experiments.common.trained.module_of", lambda name, shared: module)
    monkeypatch.setattr("experiments.common.trained.images_of", int8_accuracy.images_of)
    rough = int8_logits(lowered("resnet20", Path(), 32), data["test"]).argmax(1)
    exact = float_logits(module, data["test"]).argmax(1)
    right = exact.copy()
    right[::4] = (right[::4] + 1) % 10
    assert row[3].startswith(f"{100 * (rough == right).mean():.1f} / ")
    assert row[4] == f"{100 * (rough == exact).mean():.1f} %"
    seen = [cell.strip() for cell in int8_accuracy.row("resnet20", Path(), 32, training=True).strip("|").split("|")]
    assert seen[1] == "40"
    np.testing.assert_array_equal(kept[1], data["train"][32:])
    with pytest.raises(InputError, match="calibration takes all 72 training images of resnet20"):
        int8_accuracy.row("resnet20", Path(), 72, training=True)
