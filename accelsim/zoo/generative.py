"""The generative networks of the zoo by name, and the images that they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import nn

from accelsim.int8.network import Shape
from accelsim.zoo.generators import artgan, dcgan, dcgan_faces, gp_gan, sngan
from accelsim.zoo.pictures import fast_style_transfer, monodepth, unet, waifu2x

GENERATIVE: Final[dict[str, Callable[..., nn.Module]]] = {
    builder.__name__: builder
    for builder in (dcgan, sngan, artgan, gp_gan, monodepth, fast_style_transfer, unet, dcgan_faces, waifu2x)
}
"""Builders; each takes ``width``, the channels of its narrowest layer but the last: smaller networks of the same make."""
INPUTS: Final[dict[str, Shape]] = {
    "dcgan": (1, 1, 100),
    "sngan": (1, 1, 128),
    "artgan": (1, 1, 110),
    "gp_gan": (64, 64, 3),
    "monodepth": (256, 512, 3),
    "fast_style_transfer": (256, 256, 3),
    "unet": (256, 256, 3),
    "dcgan_faces": (1, 1, 100),
    "waifu2x": (156, 156, 3),
}
"""(H, W, C) of the images that each was made for; a latent vector is one pixel."""
