"""A small network for scikit-learn's digits (8x8x1): the demo's.

It is built like the networks that the paper runs on such devices: depthwise convolutions, 1x1 convolutions and residual
adds. So few products meet in one output that an error stays in few outputs even at a high bit error rate.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, BLOCKS = 16, 3


class Block(nn.Module):
    """A depthwise and a 1x1 convolution beside a shortcut; (N, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        y = F.relu6(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(y)) + x)


class DigitsCNN(nn.Module):
    """(N, 1, 8, 8) to (N, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.blocks = nn.Sequential(*[Block(WIDTH) for _ in range(BLOCKS)])
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1, groups=WIDTH, bias=False)
        self.bn2 = nn.BatchNorm2d(WIDTH)
        self.pointwise = nn.Conv2d(WIDTH, 2 * WIDTH, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * WIDTH)
        self.fc = nn.Linear(2 * WIDTH * 2 * 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) to logits (N, num_classes)."""
        x = self.blocks(F.relu(self.bn1(self.stem(x))))
        x = F.relu6(self.bn2(self.depthwise(x)))
        x = F.max_pool2d(F.relu(self.bn3(self.pointwise(x))), 2)
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def digits_cnn(num_classes: int = 10) -> DigitsCNN:
    """Nine convolutions (four of them depthwise), three residual adds and a linear layer; 3,610 parameters."""
    return DigitsCNN(num_classes)
