"""Networks that tell left from right, top from bottom, or a stripe from the next one, decide by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from accelsim.int8.network import Network
from accelsim.lowering import lower
from services.trainer.core.job import Job
from services.trainer.core.task import Recipe
from services.trainer.core.viewing import decided

JOB = Job(session="s", device="d")
SIDE = 32
RNG = np.random.default_rng(0)


def pattern(kind: str) -> np.ndarray:
    """1 where an image (32, 32) of the first class is bright; the second class is its opposite."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return {"left": columns < SIDE // 2, "top": rows < SIDE // 2, "stripes": columns // 2 % 2 == 0}[kind].astype(int)


def photos(kind: str) -> np.ndarray:
    """Images (40, 32, 32, 1) of both classes."""
    bright = np.where(RNG.integers(0, 2, (40, 1, 1)), pattern(kind), 1 - pattern(kind))
    return (180 * bright + RNG.integers(0, 60, bright.shape)).astype(np.uint8)[..., None]


def sees(kind: str, images: np.ndarray) -> Network:
    """A network that tells the two classes apart."""
    conv = nn.Conv2d(1, 2, SIDE, bias=False)
    mask = torch.from_numpy(pattern(kind)).float()
    conv.weight.data = torch.stack([mask, 1 - mask])[:, None] / SIDE
    return lower(nn.Sequential(conv, nn.Flatten()).eval(), images, (0.5,), (0.25,), name=kind)


@pytest.mark.parametrize(("kind", "flip", "shift"), [("top", True, 2), ("left", False, 2), ("stripes", False, 0)])
def test_what_the_network_answers_alike_may_be_done(kind: str, flip: bool, shift: int) -> None:
    images = photos(kind)
    found = decided(JOB, sees(kind, images), images, "portable").recipe
    assert (found.flip, found.shift) == (flip, shift)


@pytest.mark.parametrize("recipe", [Recipe(flip=True, shift=5), Recipe(flip=False, shift=0)])
def test_what_is_said_is_kept(recipe: Recipe) -> None:
    images = photos("left")
    assert decided(replace(JOB, recipe=recipe), sees("left", images), images, "portable").recipe == recipe
