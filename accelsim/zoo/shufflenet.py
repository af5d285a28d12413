"""ShuffleNetV2 (Ma et al., 2018), with torchvision's state-dict names."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels)]


class Unit(nn.Module):
    """Half of the channels pass untouched (or through a branch of their own where the size changes), then a shuffle."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.split = stride == 1
        self.branch1 = nn.Sequential() if self.split else nn.Sequential(*_depthwise(inputs, 2), *_pointwise(inputs, half))
        self.branch2 = nn.Sequential(
            *_pointwise(half if self.split else inputs, half), *_depthwise(half, stride), *_pointwise(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        left, right = x.chunk(2, 1) if self.split else (x, x)
        y = torch.cat((self.branch1(left), self.branch2(right)), 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class ShuffleNetV2(nn.Module):
    """(N, 3, 224, 224) to (N, num_classes); other sizes from 32 work too."""

    def __init__(self, widths: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        inputs = widths[0]
        self.conv1 = nn.Sequential(nn.Conv2d(3, inputs, 3, 2, 1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for stage, count, outputs in zip((2, 3, 4), (4, 8, 4), widths[1:4], strict=True):
            units = [Unit(inputs, outputs, 2), *(Unit(outputs, outputs, 1) for _ in range(count - 1))]
            self.add_module(f"stage{stage}", nn.Sequential(*units))
            inputs = outputs
        self.conv5 = nn.Sequential(*_pointwise(inputs, widths[4]))
        self.fc = nn.Linear(widths[4], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.conv1(x))
        for stage in ("stage2", "stage3", "stage4"):
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.fc(self.conv5(x).mean((2, 3)))
        return logits


def shufflenet_v2_x0_5(num_classes: int = 1000) -> ShuffleNetV2:
    """ShuffleNetV2 at half width: 56 convolutions and a linear layer, 1.4 million parameters."""
    return ShuffleNetV2((24, 48, 96, 192, 1024), num_classes)


def shufflenet_v2_x1_0(num_classes: int = 1000) -> ShuffleNetV2:
    """ShuffleNetV2 at full width: 56 convolutions and a linear layer, 2.3 million parameters."""
    return ShuffleNetV2((24, 116, 232, 464, 1024), num_classes)
