"""The quantiser's parts, alone and together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from experiments import quantiser


def test_a_row_for_each_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a small network with a channel of half the others' range; each row is of its own choice."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 6)).eval()
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3)).astype(np.uint8)
    monkeypatch.setattr(quantiser, "module_of", lambda *_: module)
    monkeypatch.setattr(quantiser, "images_of", lambda *_: (images, np.zeros(40, np.int64)))
    monkeypatch.setitem(quantiser.RATES, "resnet20", (1e-3,))
    rows = list(quantiser.rows("resnet20", tmp_path, 8, range(2)))
    assert [row.split("|")[2].strip() for row in rows] == list(
        quantiser.aims(quantiser.fold(quantiser.trace(module, (12, 12, 3))), 0)
    )
    for row in rows:
        clean, one, five = row.split("|")[4:7]
        assert float(clean.split("/")[0]) >= 75
        assert 0 < float(one.split("±")[0]) <= float(five.split("±")[0]) <= 100
