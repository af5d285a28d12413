"""Small networks whose outputs are images, and their data, for several tests."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import nn

from accelsim.datasets import Dataset
from accelsim.int8.network import Network
from accelsim.lowering import lower

SIDE = 12
KINDS = ("images", "masks", "classes", "nothing")


def data(kind: Literal["images", "masks", "classes", "nothing"], train: int = 40, test: int = 16) -> Dataset:
    """Noise, and what it should become: itself the other way up, or which of three channels is largest."""
    random = np.random.default_rng(5)
    images = random.integers(0, 256, (train + test, SIDE, SIDE, 3), dtype=np.uint8)
    targets = {"images": images[:, ::-1].copy(), "masks": images.argmax(axis=3).astype(np.uint8)}.get(kind)
    labels = random.integers(0, 3, train + test) if kind == "classes" else np.zeros(train + test, np.int64)
    labels[:3] = (0, 1, 2) if kind == "classes" else 0
    return Dataset(
        name="noise", train_images=images[:train], train_labels=labels[:train], test_images=images[train:],
        test_labels=labels[train:], train_targets=None if targets is None else targets[:train],
        test_targets=None if targets is None else targets[train:], latents=kind == "nothing", mean=(0.0,) * 3, std=(1.0,) * 3,
    )  # fmt: skip


def network(*, vector: bool = False, signed: bool = False) -> Network:
    """Two convolutions to three channels, 0..1 as they are, or some -1..1; or one more to a vector."""
    torch.manual_seed(3)
    last: list[nn.Module] = [nn.Conv2d(8, 3, 3, padding=1)]
    last += [nn.Tanh()] if signed else []
    last += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)] if vector else []
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *last)
    with torch.no_grad():
        module[2].weight.mul_(12.0 if signed else 0.3)
        module[2].bias.fill_(0.0 if signed else 0.5)
    of = data("images")
    return lower(module.eval(), of.train_images, of.mean, of.std, name="small", classifier=None)
