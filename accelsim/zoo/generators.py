"""Generators: a latent vector to an image (DCGAN, SNGAN, ArtGAN, GP-GAN's blending network).

The shapes are those of Xu et al. 2019 ("Accelerating Generative Neural Networks on Unmodified Deep Learning Processors"): the
multiplications of the transposed convolutions are the paper's. A latent vector is an image of one pixel, (N, z, 1, 1); the
dense layer that makes the first image of it is a transposed convolution of that pixel, as in PyTorch's DCGAN.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


def up(inputs: int, outputs: int, kernel: int, activation: Activation = nn.ReLU) -> list[nn.Module]:
    """Twice the size: a transposed convolution of stride 2, batch norm and ``activation``."""
    padding = (kernel - 1) // 2
    extra = 2 + 2 * padding - kernel
    conv = nn.ConvTranspose2d(inputs, outputs, kernel, 2, padding, extra, bias=False)
    return [conv, nn.BatchNorm2d(outputs), activation()]


def _project(latent: int, outputs: int, side: int, activation: Activation = nn.ReLU) -> list[nn.Module]:
    """A dense layer from the latent vector to an image of ``side`` x ``side``."""
    return [nn.ConvTranspose2d(latent, outputs, side, bias=False), nn.BatchNorm2d(outputs), activation()]


def _image(inputs: int, kernel: int) -> list[nn.Module]:
    """The last layer: twice the size, three channels in -1..1."""
    return [up(inputs, 3, kernel)[0], nn.Tanh()]


class Generator(nn.Module):
    """(N, z, 1, 1) to (N, 3, H, W) in -1..1."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.main = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The layers one after another."""
        image: Tensor = self.main(x)
        return image


def dcgan(width: int = 64) -> Generator:
    """DCGAN (Radford et al. 2016) as Xu et al. have it: 100 -> 8x8x256, 5x5 to 128, 64 and 3 channels, 64x64 pixels."""
    layers = [*_project(100, 4 * width, 8), *up(4 * width, 2 * width, 5), *up(2 * width, width, 5)]
    return Generator([*layers, *_image(width, 5)])


def dcgan_faces(width: int = 64) -> Generator:
    """DCGAN of PyTorch's tutorial: 100 -> 4x4x512, 4x4 to 256, 128, 64 and 3 channels, 64x64 pixels; has real weights."""
    layers = [*_project(100, 8 * width, 4), *up(8 * width, 4 * width, 4), *up(4 * width, 2 * width, 4)]
    return Generator([*layers, *up(2 * width, width, 4), *_image(width, 4)])


def sngan(width: int = 64) -> Generator:
    """SNGAN (Miyato et al. 2018, table 3) for 32x32: 128 -> 4x4x512, 4x4 to 256, 128, 64 channels, a 3x3 convolution."""
    layers = [*_project(128, 8 * width, 4), *up(8 * width, 4 * width, 4), *up(4 * width, 2 * width, 4)]
    return Generator([*layers, *up(2 * width, width, 4), nn.Conv2d(width, 3, 3, 1, 1), nn.Tanh()])


def artgan(width: int = 64) -> Generator:
    """ArtGAN (Tan et al. 2017) for 128x128: 100 and 10 classes -> 4x4x1024, five times 4x4 to 32 channels.

    The layers of the authors' 128x128 generator, twice as wide at the first image, and transposed convolutions in place of
    repetition and a 3x3 convolution. Xu et al. count its 3x3 convolution between two of them as a deconvolution too.
    """
    layers = _project(110, 16 * width, 4, _leaky)
    for wide in (16, 8, 4, 2):
        layers += up(wide * width, wide * width // 2, 4, _leaky)
    layers += [nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), _leaky()]
    layers += up(width, width // 2, 4, _leaky)
    return Generator([*layers, nn.Conv2d(width // 2, 3, 3, 1, 1), nn.Tanh()])


def gp_gan(width: int = 64, bottleneck: int = 4000) -> Generator:
    """GP-GAN's blending network (Wu et al. 2019): 64x64x3, four 4x4 convolutions down, 4000 numbers, 4x4 up to 64x64x3."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), _leaky()]
    for wide in (1, 2, 4):
        conv = nn.Conv2d(wide * width, 2 * wide * width, 4, 2, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(2 * wide * width), _leaky()]
    layers += [nn.Conv2d(8 * width, bottleneck, 4, bias=False), nn.BatchNorm2d(bottleneck), _leaky()]
    layers += [*_project(bottleneck, 8 * width, 4), *up(8 * width, 4 * width, 4), *up(4 * width, 2 * width, 4)]
    return Generator([*layers, *up(2 * width, width, 4), *_image(width, 4)])
