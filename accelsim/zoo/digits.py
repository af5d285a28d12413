"""A small network for scikit-learn's digits (8x8x1): the demo's, with a residual add and a depthwise layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """(N, 1, 8, 8) to (N, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False)
        self.bn3 = nn.BatchNorm2d(16)
        self.pointwise = nn.Conv2d(16, 32, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(32)
        self.fc = nn.Linear(32 * 2 * 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) to logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + x)
        x = F.relu6(self.bn3(self.depthwise(x)))
        x = F.max_pool2d(F.relu(self.bn4(self.pointwise(x))), 2)
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def digits_cnn(num_classes: int = 10) -> DigitsCNN:
    """Four convolutions (one depthwise) and a linear layer, 4,554 parameters."""
    return DigitsCNN(num_classes)
