"""Outputs that are images, quantised for faults: bounded where they are pixels, placed where they are classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accelsim.engine import reference
from accelsim.int8 import storage
from accelsim.int8.network import Conv, Network
from accelsim.lowering import Holds, black_and_white, lower

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)


class Enlarge(nn.Module):
    """(N, 3, 8, 8) to (N, 3, 16, 16), mostly within 0..1, some beyond."""

    def __init__(self, shift: float = 0.5, *, shuffled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last: nn.Module = nn.ConvTranspose2d(8, 3, 4, 2, 1)
        if shuffled:
            self.last = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))
        with torch.no_grad():
            conv = self.last[0] if isinstance(self.last, nn.Sequential) else self.last
            conv.weight.mul_(4.0)
            conv.bias.fill_(shift)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(x)))
        return out


def made(module: nn.Module, image: Holds, ber: float = 1e-3, activations: str = "auto") -> Network:
    return lower(module.eval(), IMAGES, (0.0,) * 3, (1.0,) * 3, ber=ber, image=image, activations=activations)  # type: ignore[arg-type]


def outputs(network: Network) -> np.ndarray:
    return reference.run(network, network.quantize_images(IMAGES))[-1] * np.float32(network.layers[-1].scale)


@pytest.mark.parametrize("shuffled", [False, True])
def test_pixels_are_bounded_and_their_steps_halved(shuffled: bool) -> None:
    module = Enlarge(shuffled=shuffled)
    free, bounded = made(module, None), made(module, (0.0, 1.0))
    wanted = module(torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255).permute(0, 2, 3, 1).detach().numpy()
    assert wanted.min() < -0.1
    assert wanted.max() > 1.1
    got = outputs(bounded)
    assert (got.min(), got.max() <= 1.001) == (0, True)
    last = bounded.layers[-1]
    assert (last.dtype, free.layers[-1].dtype) == (np.uint8, np.int8)
    assert last.scale <= 1.1 / 255 < free.layers[-1].scale / 2
    error = np.sqrt(np.mean((got - np.clip(wanted, 0, 1)) ** 2))
    assert error < 0.05
    # Bounds, not a ReLU that the network has: the layer's own, at no layer more.
    assert [type(layer) for layer in bounded.layers] == [type(layer) for layer in free.layers]


def test_what_is_black_and_white_follows_from_the_outputs() -> None:
    assert (black_and_white(-0.25), black_and_white(-0.26)) == ((0.0, 1.0), (-1.0, 1.0))
    dark, grey = made(Enlarge(0.0), "pixels"), made(Enlarge(2.0), "pixels")
    assert outputs(dark).min() < -0.5
    assert outputs(dark).min() >= -1.01
    assert outputs(grey).min() >= 0


@pytest.mark.parametrize(("ber", "activations"), [(0.0, "auto"), (1e-3, "signed")])
def test_without_faults_and_in_the_papers_arithmetic_nothing_changes(ber: float, activations: str) -> None:
    module = Enlarge()
    plain, bounded = (storage.digest(made(module, image, ber, activations)) for image in (None, (0.0, 1.0)))
    assert plain == bounded
    assert plain == storage.digest(made(module, "classes", ber, activations))


def test_of_masks_only_the_order_stays() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    torch.manual_seed(2)
    for layer in (module[0], module[2]):
        nn.init.normal_(layer.weight)
    network = made(module, "classes")
    last = network.layers[-1]
    assert isinstance(last, Conv)
    assert (last.dtype, last.shape) == (np.uint8, (8, 8, 4))
    wanted = module(torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255).argmax(1).numpy()
    assert np.mean(outputs(network).argmax(-1) == wanted) > 0.85
    # The largest lies high, where no flip lifts another over it.
    assert outputs(network).max(-1).mean() > 0.5 * 255 * last.scale


def test_a_vector_is_no_image() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    assert storage.digest(made(module, (0.0, 1.0))) == storage.digest(made(module, None))
