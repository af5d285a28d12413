"""ResNet-18 and ResNet-50 for ImageNet, and ResNet-20 and ResNet-56 for CIFAR (He et al., 2015).

State-dict names are those of torchvision (ImageNet) and of akamaster/pytorch_resnet_cifar10 (CIFAR).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an identity, for ImageNet."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride, as in torchvision), 1x1 around an identity."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, 4 * width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """The ImageNet network: (N, 3, 224, 224) to (N, num_classes); other sizes from 32 work too."""

    def __init__(self, block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for stage, depth in enumerate(depths):
            width = 64 << stage
            blocks = []
            for i in range(depth):
                stride = 2 if i == 0 and stage > 0 else 1
                downsample = None
                if stride != 1 or inputs != width * block.expansion:
                    downsample = nn.Sequential(
                        nn.Conv2d(inputs, width * block.expansion, 1, stride, bias=False),
                        nn.BatchNorm2d(width * block.expansion),
                    )
                blocks.append(block(inputs, width, stride, downsample))
                inputs = width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class CifarBlock(nn.Module):
    """Two 3x3 convolutions; where the size changes the shortcut is option A: every second pixel, zeros for new channels."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.new = width - inputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride != 1 or self.new:
            half = self.new // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new - half))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """The CIFAR network: (N, 3, 32, 32) to (N, num_classes)."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, depth)
        self.layer2 = self._stage(16, 32, 2, depth)
        self.layer3 = self._stage(32, 64, 2, depth)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(inputs: int, width: int, stride: int, depth: int) -> nn.Sequential:
        first = CifarBlock(inputs, width, stride)
        return nn.Sequential(first, *(CifarBlock(width, width, 1) for _ in range(depth - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def resnet18(num_classes: int = 1000) -> ResNet:
    """ResNet-18: 20 convolutions, 11.7 million parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet50(num_classes: int = 1000) -> ResNet:
    """ResNet-50: 53 convolutions, 25.6 million parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)


def resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20 for CIFAR: 19 convolutions and a linear layer."""
    return CifarResNet(3, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """ResNet-56 for CIFAR: 55 convolutions and a linear layer."""
    return CifarResNet(9, num_classes)
