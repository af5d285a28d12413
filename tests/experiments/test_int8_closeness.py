"""Closeness of int8 to float: the measure, the public networks' sizes, and that they lower."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from accelsim.lowering import fold, trace
from experiments import int8_closeness
from experiments.common.public import PUBLIC
from experiments.int8_closeness import closeness, weights_rounded

PARAMETERS = {
    "efficientnet_lite0": 4_652_008,
    "repvgg_a0": 9_108_968,
    "mobilenet_v3_large": 5_483_032,
    "inception_v3": 23_834_568,
}
LAYERS = {"efficientnet_lite0": 50, "repvgg_a0": 23, "mobilenet_v3_large": 64, "inception_v3": 95}
"""MAC layers: RepVGG's three branches are one"""


@pytest.mark.parametrize("name", list(PUBLIC))
def test_public_networks_have_their_papers_sizes_and_lower_to_what_they_are_drawn_with(name: str) -> None:
    module = PUBLIC[name]().eval()
    assert sum(p.numel() for p in module.parameters()) == PARAMETERS[name]
    nodes = fold(trace(module, (96, 96, 3))).nodes
    assert sum(type(node).__name__ == "Conv" for node in nodes) == LAYERS[name]


def test_closeness_is_the_cosine_of_what_differs_from_the_mean() -> None:
    exact = torch.tensor([[5.0, 1.0], [5.0, -1.0]]).double()
    assert closeness(exact, exact * 3 + 7) == pytest.approx(1)
    assert closeness(exact, -exact) == pytest.approx(-1)
    assert closeness(exact, torch.tensor([[0.0, 0.0], [0.0, 0.0]]).double()) == 0
    turned = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    assert closeness(exact, turned) == pytest.approx(0)


def test_rounded_weights_are_255_steps_a_channel() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3))
    before = module[0].weight.detach().clone()
    after = weights_rounded(module)[0].weight.detach()
    step = before.flatten(1).abs().amax(1) / 127
    steps = after / step[:, None, None, None]
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert float(((after - before).abs() / step[:, None, None, None]).max()) <= 0.501
    assert not torch.equal(after, before)


def test_a_row_says_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network of one layer all three are near 1, and int8 is not exact."""
    tiny = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    monkeypatch.setitem(PUBLIC, "tiny", lambda: tiny)
    images = np.random.default_rng(0).integers(0, 256, (24, 12, 12, 3)).astype(np.uint8)
    (row,) = int8_closeness.rows(["tiny"], images[:16], images)
    name, *cells, seconds = (cell.strip() for cell in row.strip("|").split("|"))
    assert name == "tiny"
    assert len(cells) == 4
    assert all(0.9 < float(cell) <= 1 for cell in cells)
    assert seconds.endswith(" s")
