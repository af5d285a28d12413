"""Fig. 1: what a point is, and that the picture shows the points it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from accelsim import zoo
from accelsim.engine import Engine
from accelsim.lowering import lower
from experiments.fig1_ber_sweep import BATCH, Point, draw, measure
from experiments.int8_accuracy import top


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


def test_top_k_counts_labels_and_breaks_ties_by_the_lower_class() -> None:
    scores = np.array([[3, 1, 2], [1, 1, 0], [0, 5, 5]], np.float32)
    assert top(scores, np.array([0, 1, 2]), 1) == pytest.approx(100 / 3)
    assert top(scores, np.array([0, 1, 2]), 2) == 100.0
    assert top(scores, np.array([1, 2, 0]), 2) == 0.0


def test_the_picture_has_both_panels(tmp_path: Path) -> None:
    path = tmp_path / "fig.png"
    draw([Point(name, ber, 0, 10, 50.0, 80.0) for name in ("resnet20", "squeezenet1_1") for ber in (0.0, 1e-6, 1e-4)], path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    coloured = (np.ptp(pixels, axis=2) > 60).any(0)
    middle = pixels.shape[1] // 2
    assert coloured[:middle].any()
    assert coloured[middle:].any()
