"""Networks whose output is an image, small enough to be trained here in minutes: one that segments, one that enlarges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNET_WIDTH, SR_WIDTH = 12, 24


class Double(nn.Sequential):
    """Two 3x3 convolutions with batch norm and ReLU; (N, I, H, W) to (N, O, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """Of two levels (Ronneberger et al. 2015): (N, 3, H, W) to a number a class and pixel (N, K, H, W); H and W are
    multiples of 4."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        one, two, four = UNET_WIDTH, 2 * UNET_WIDTH, 4 * UNET_WIDTH
        self.down1, self.down2, self.bottom = Double(3, one), Double(one, two), Double(two, four)
        self.up2, self.up1 = nn.ConvTranspose2d(four, two, 2, 2), nn.ConvTranspose2d(two, one, 2, 2)
        self.join2, self.join1 = Double(four, two), Double(two, one)
        self.head = nn.Conv2d(one, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, K, H, W)."""
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        bottom = self.bottom(F.max_pool2d(second, 2))
        second = self.join2(torch.cat([second, self.up2(bottom)], 1))
        logits: Tensor = self.head(self.join1(torch.cat([first, self.up1(second)], 1)))
        return logits


class Enlarge(nn.Module):
    """Convolutions at the small size and a transposed one (Dong et al. 2016): (N, 3, H, W) to (N, 3, 2H, 2W), of which 0 is
    black and 1 white."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, SR_WIDTH, 5, padding=2), nn.ReLU(),
            nn.Conv2d(SR_WIDTH, SR_WIDTH, 3, padding=1), nn.ReLU(),
            nn.Conv2d(SR_WIDTH, SR_WIDTH, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.up = nn.ConvTranspose2d(SR_WIDTH, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3, 2H, 2W)."""
        image: Tensor = self.up(self.body(x))
        return image


def shapes_unet(num_classes: int = 4) -> UNet:
    """The U-Net of the data set ``shapes``."""
    return UNet(num_classes)


def crops_sr2x() -> Enlarge:
    """The super-resolution network of the data set ``crops2x``."""
    return Enlarge()
