"""Generative networks: sizes and multiplications of their papers, and real weights that do what they are for."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accelsim import zoo
from accelsim.zoo.generative import GENERATIVE, INPUTS

OUTPUTS = {
    "dcgan": (3, 64, 64),
    "sngan": (3, 32, 32),
    "artgan": (3, 128, 128),
    "gp_gan": (3, 64, 64),
    "monodepth": (2, 256, 512),
    "fast_style_transfer": (3, 256, 256),
    "unet": (2, 256, 256),
    "dcgan_faces": (3, 64, 64),
    "waifu2x": (3, 284, 284),
}
# Millions of multiplications of the transposed convolutions that enlarge, the six by Xu et al. 2019, table 1. ArtGAN's 822.08
# has the 3x3 convolution between two of them in it, 64 * 64 * 9 * 64 * 64.
ENLARGING = {
    "dcgan": 109.77, "sngan": 100.66, "artgan": 822.08 - 150.99, "gp_gan": 103.81, "monodepth": 849.35,
    "fast_style_transfer": 603.98, "unet": 2147.48, "dcgan_faces": 103.81, "waifu2x": 254.80,
}  # fmt: skip
KERNELS = {
    "dcgan": {5}, "sngan": {4}, "artgan": {4}, "gp_gan": {4}, "monodepth": {3}, "fast_style_transfer": {3}, "unet": {2},
    "dcgan_faces": {4}, "waifu2x": {4},
}  # fmt: skip


@pytest.mark.parametrize("name", list(GENERATIVE))
def test_shapes_and_multiplications_are_the_papers(name: str) -> None:
    found: list[tuple[int, int]] = []

    def count(module: nn.Module, given: tuple[Tensor], _: Tensor) -> None:
        assert isinstance(module, nn.ConvTranspose2d)
        if module.stride != (1, 1):
            found.append((module.kernel_size[0], module.weight.numel() * given[0].shape[2] * given[0].shape[3]))

    with torch.device("meta"), torch.no_grad():
        module = zoo.build(name).eval()
        for part in module.modules():
            if isinstance(part, nn.ConvTranspose2d):
                part.register_forward_hook(count)
        h, w, c = INPUTS[name]
        assert module(torch.zeros(1, c, h, w)).shape[1:] == OUTPUTS[name]
    assert sum(macs for _, macs in found) / 1e6 == pytest.approx(ENLARGING[name], abs=0.006)
    assert {kernel for kernel, _ in found} == KERNELS[name]


@pytest.mark.parametrize("name", list(GENERATIVE))
def test_each_comes_smaller(name: str) -> None:
    assert "width" in inspect.signature(GENERATIVE[name]).parameters
    small, whole = GENERATIVE[name](width=4), GENERATIVE[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in whole().parameters()) / 2


def test_an_encoders_and_decoders_scales_meet() -> None:
    """Skips join images of one size, however small the network."""
    with torch.no_grad():
        assert GENERATIVE["monodepth"](width=2).eval()(torch.zeros(1, 3, 128, 256)).shape == (1, 2, 128, 256)
        assert GENERATIVE["unet"](num_classes=5, width=2).eval()(torch.zeros(1, 3, 32, 48)).shape == (1, 5, 32, 48)


def test_a_generator_has_no_classes() -> None:
    assert zoo.build("sngan", 7).state_dict().keys() == zoo.build("sngan").state_dict().keys()
    last = zoo.build("unet", 7).state_dict()["last.weight"]
    assert last.shape == (7, 64, 1, 1)


def test_faces_load_and_differ_by_latent(shared_dir: Path) -> None:
    module = zoo.load("dcgan_faces", shared_dir / "weights" / "dcgan_faces64.safetensors")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        faces = module(torch.randn(8, 100, 1, 1, generator=generator))
    assert float(faces.abs().max()) <= 1
    assert float(faces.std()) > 0.2
    # A trained generator is smooth: neighbours differ much less than pixels taken anywhere.
    assert float((faces[..., 1:] - faces[..., :-1]).abs().mean()) < 0.3 * float((faces - faces.flip(0)).abs().mean())


def test_waifu2x_is_better_than_bicubic(shared_dir: Path) -> None:
    module = zoo.load("waifu2x", shared_dir / "weights" / "waifu2x_photo_up2x.safetensors")
    with np.load(shared_dir / "data" / "imagenet224.npz") as data:
        photos = torch.from_numpy(data["val_images"][:4]).permute(0, 3, 1, 2).float() / 255
    small = F.interpolate(photos, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        made = module(F.pad(small, (7, 7, 7, 7), mode="replicate")).clamp(0, 1)
    bicubic = F.interpolate(small, scale_factor=2, mode="bicubic").clamp(0, 1)

    def psnr(images: Tensor) -> float:
        return float((-10 * (images - photos).square().mean((1, 2, 3)).log10()).mean())

    assert made.shape == photos.shape
    assert psnr(made) > psnr(bicubic) + 0.5
