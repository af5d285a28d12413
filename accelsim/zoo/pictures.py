"""Networks from image to image: depth (monodepth), fast style transfer, segmentation (U-Net), super-resolution (waifu2x)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accelsim.zoo.generators import up


class _Down(nn.Module):
    """monodepth's block of the encoder: a convolution, and one of stride 2, ELU behind each."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel, 2, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / 2, W / 2)."""
        return F.elu(self.conv2(F.elu(self.conv1(x))))


class Monodepth(nn.Module):
    """(N, 3, H, W) to the disparities of left and right view (N, 2, H, W) in 0..0.3; H and W are multiples of 128."""

    def __init__(self, width: int) -> None:
        super().__init__()
        encoder = [width * times for times in (1, 2, 4, 8, 16, 16, 16)]
        decoder = [width * times // 2 for times in (1, 2, 4, 8, 16, 32, 32)]
        ends = zip([3, *encoder], encoder, (7, 5, 3, 3, 3, 3, 3), strict=False)
        self.down = nn.ModuleList(_Down(inputs, outputs, kernel) for inputs, outputs, kernel in ends)
        self.up = nn.ModuleList()
        self.join = nn.ModuleList()
        self.disparity = nn.ModuleList()
        before = encoder[-1]
        for level in reversed(range(7)):
            outputs = decoder[level]
            joined = outputs + (encoder[level - 1] if level else 0) + (2 if level < 3 else 0)
            self.up.append(nn.ConvTranspose2d(before, outputs, 3, 2, 1, 1))
            self.join.append(nn.Conv2d(joined, outputs, 3, 1, 1))
            self.disparity.append(nn.Conv2d(outputs, 2, 3, 1, 1) if level < 4 else nn.Identity())
            before = outputs

    def forward(self, x: Tensor) -> Tensor:
        """The disparity at the input's own size; those at an eighth to a half of it go into the next larger one."""
        ends = [x]
        for block in self.down:
            ends.append(block(ends[-1]))
        y, disparity = ends[-1], None
        for level, enlarge, join, see in zip(reversed(range(7)), self.up, self.join, self.disparity, strict=True):
            parts = [F.elu(enlarge(y))] + ([ends[level]] if level else [])
            if disparity is not None:
                parts.append(F.interpolate(disparity, scale_factor=2))
            y = F.elu(join(torch.cat(parts, 1)))
            if level < 4:
                disparity = 0.3 * torch.sigmoid(see(y))
        assert disparity is not None
        return disparity


def monodepth(width: int = 32) -> Monodepth:
    """monodepth with the VGG encoder (Godard et al. 2017), 256x512, with transposed convolutions (an option of its code)."""
    return Monodepth(width)


class _Residual(nn.Module):
    """Two 3x3 convolutions and the identity around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to the same."""
        y: Tensor = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return x + y


def fast_style_transfer(width: int = 32) -> nn.Sequential:
    """Fast style transfer (Johnson et al. 2016), 256x256: 9x9, two of stride 2, five residual blocks, two transposed 3x3, 9x9.

    Batch norm, as its authors first had it; instance norm, which came later, cannot be lowered. Zeros around the images.
    """

    def conv(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
        made = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return [made, nn.BatchNorm2d(outputs), nn.ReLU()]

    down = [*conv(3, width, 9, 1), *conv(width, 2 * width, 3, 2), *conv(2 * width, 4 * width, 3, 2)]
    blocks = [_Residual(4 * width) for _ in range(5)]
    return nn.Sequential(
        *down, *blocks, *up(4 * width, 2 * width, 3), *up(2 * width, width, 3), nn.Conv2d(width, 3, 9, 1, 4), nn.Tanh()
    )


class _Twice(nn.Sequential):
    """Two 3x3 convolutions, batch norm and ReLU behind each."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip


class UNet(nn.Module):
    """(N, 3, H, W) to scores (N, num_classes, H, W); H and W are multiples of 16."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        sizes = [width << level for level in range(5)]
        self.down = nn.ModuleList(_Twice(inputs, outputs) for inputs, outputs in zip([3, *sizes], sizes, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, 2) for size in reversed(sizes[:-1]))
        self.join = nn.ModuleList(_Twice(2 * size, size) for size in reversed(sizes[:-1]))
        self.last = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Four times down, four times up, each joined with the image of its size on the way down."""
        ends: list[Tensor] = []
        for block in self.down:
            x = block(self.pool(x) if ends else x)
            ends.append(x)
        for enlarge, join, end in zip(self.up, self.join, reversed(ends[:-1]), strict=True):
            x = join(torch.cat((end, enlarge(x)), 1))
        scores: Tensor = self.last(x)
        return scores


def unet(num_classes: int = 2, width: int = 64) -> UNet:
    """U-Net (Ronneberger et al. 2015), 256x256, with zeros around the images so that sizes stay, and batch norm."""
    return UNet(num_classes, width)


class Waifu2x(nn.Module):
    """(N, 3, H + 14, W + 14), the photo in 0..1 with its edge repeated 7 times, to (N, 3, 2 H, 2 W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [3, *(width * times for times in (1, 2, 4, 8, 8, 16))]
        convs: list[nn.Module] = [nn.Conv2d(a, b, 3) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.ModuleList([*convs, nn.ConvTranspose2d(sizes[-1], 3, 4, 2, 3)])

    def forward(self, x: Tensor) -> Tensor:
        """Six convolutions, LeakyReLU behind each, and the transposed one."""
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.1)
        image: Tensor = self.layers[-1](x)
        return image


def waifu2x(width: int = 16) -> Waifu2x:
    """waifu2x's upconv_7 for photos: twice the size of a 142x142 photo, of which it takes 156x156; weights are public.

    Its own padding repeats the edge, which is done outside: ``numpy.pad(photo, ((0, 0), (7, 7), (7, 7), (0, 0)), "edge")``.
    """
    return Waifu2x(width)
