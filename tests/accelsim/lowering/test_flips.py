"""How much further flips travel than small errors: not at all through what is linear, much further into a max-pool."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from accelsim.datasets import IMAGENET_MEAN as MEAN
from accelsim.datasets import IMAGENET_STD as STD
from accelsim.int8.network import INPUT
from accelsim.lowering import fold, normalise, trace
from accelsim.lowering.balance import widest
from accelsim.lowering.flips import further
from accelsim.lowering.harm import feel
from accelsim.lowering.pixels import input_scale
from accelsim.lowering.ranges import watch
from accelsim.lowering.signs import levels, unsigned


def _further(module: nn.Module, ber: float = 1e-3) -> dict[int, float]:
    images = np.random.default_rng(3).integers(0, 256, (8, 24, 24, 3)).astype(np.uint8)
    x = normalise(images, MEAN, STD)
    graph = fold(trace(module.eval(), (24, 24, 3)))
    tensors = levels(graph, unsigned(graph))
    with torch.no_grad():
        seen, felt = watch(graph, x), feel(graph, x, draws=8)
        scales = widest(seen, tensors, input_scale(MEAN, STD))
        steps = {i: torch.full((graph.shape_of(i)[2],), scale, dtype=torch.float64) for i, scale in scales.items()}
        return further(graph, x, felt, steps, tensors, ber)


def test_through_what_is_linear_a_flip_does_what_its_square_says() -> None:
    torch.manual_seed(0)
    found = _further(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(200, 5)))
    assert found.keys() == {INPUT, 0, 1, 3}  # the image, what convolutions give, and what the last one reads
    assert all(1 <= value < 1.8 for value in found.values())


def test_a_max_pool_takes_what_a_flip_makes_large() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU()
    after = nn.Flatten(), nn.Linear(8 * 49, 5)
    pooled = _further(nn.Sequential(*layers, nn.MaxPool2d(3, 3), *after))
    mean = _further(nn.Sequential(*layers, nn.AvgPool2d(3, 3), *after))
    assert pooled[0] > 2 * mean[0]
    assert mean[0] < 1.8


def test_it_is_the_same_again() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert _further(module) == pytest.approx(_further(module), rel=1e-5)
