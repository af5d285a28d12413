"""Accuracy of the networks with weights at hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from accelsim.datasets import IMAGENET_MEAN, IMAGENET_STD
from accelsim.lowering import lower, normalise
from experiments.common.trained import float_logits, int8_logits, top


def test_top_counts_labels_and_breaks_ties_by_the_lower_class() -> None:
    scores = np.array([[9, 8, 7, 6, 5, 4], [1, 1, 0, 0, 0, 0], [0, 5, 5, 5, 5, 5]], np.int8)
    assert top(scores, np.array([0, 0, 5])) == pytest.approx((200 / 3, 100))
    assert top(scores, np.array([5, 1, 0])) == pytest.approx((0, 100 / 3))
    assert top(scores[:, None, None].astype(np.float32), np.array([0, 0, 5])) == pytest.approx((200 / 3, 100))
    # Five of five: any answer is among them.
    assert top(scores[:, :5], np.array([4, 4, 4])) == pytest.approx((0, 100))


def test_logits_are_of_each_image_whatever_the_batches() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7)
    ).eval()
    images = np.random.default_rng(0).integers(0, 256, (45, 16, 16, 3), np.uint8)
    with torch.no_grad():
        want = module(normalise(images, IMAGENET_MEAN, IMAGENET_STD)).numpy()
    found = float_logits(module, images)
    assert found.shape == (45, 7)
    np.testing.assert_allclose(found, want, atol=1e-5)
    network = lower(module, images, IMAGENET_MEAN, IMAGENET_STD, "small")
    steps = int8_logits(network, images)
    assert (steps.shape, steps.dtype) == ((45, 7), np.dtype(np.int8))
    assert np.abs(network.layers[-1].scale * steps - want).max() < 0.2 * np.abs(want).max()
