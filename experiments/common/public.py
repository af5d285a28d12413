"""Public networks that nobody here tuned for: EfficientNet-Lite0, RepVGG-A0, MobileNetV3-Large and Inception v3.

Float modules for (N, 3, 224, 224) images and 1000 classes, as their papers draw them, with torch's random weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kernel = int | tuple[int, int]


def _norm(
    inputs: int, outputs: int, kernel: Kernel, stride: int = 1, groups: int = 1, act: nn.Module | None = None,
    padding: Kernel | None = None,
) -> nn.Sequential:  # fmt: skip
    if padding is None:
        padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([] if act is None else [act]))


class Gate(nn.Module):
    """Squeeze and excite, with a hard sigmoid; (N, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(8, (channels // 4 + 4) // 8 * 8)
        inner += 8 if inner < 0.9 * (channels // 4) else 0
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        y = F.relu(self.down(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.up(y))


class Inverted(nn.Module):
    """Expand, depthwise, gate, project, with a shortcut where the shapes agree."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, act: type[nn.Module], gate: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [] if hidden == inputs else [_norm(inputs, hidden, 1, act=act())]
        layers.append(_norm(hidden, hidden, kernel, stride, hidden, act()))
        layers += [Gate(hidden)] if gate else []
        self.layers = nn.Sequential(*layers, _norm(hidden, outputs, 1))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.shortcut else y


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 (Liu, 2020): no gates, ReLU6; 4.65 million parameters."""
    layers: list[nn.Module] = [_norm(3, 32, 3, 2, act=nn.ReLU6())]
    inputs = 32
    for expansion, outputs, count, stride, kernel in (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ):  # fmt: skip
        for i in range(count):
            layers.append(Inverted(inputs, inputs * expansion, outputs, kernel, stride if i == 0 else 1, nn.ReLU6, False))
            inputs = outputs
    head = [_norm(320, 1280, 1, act=nn.ReLU6()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, *head)


def mobilenet_v3_large() -> nn.Module:
    """MobileNetV3-Large (Howard et al., 2019): gates and hard swish; 5.48 million parameters."""
    layers: list[nn.Module] = [_norm(3, 16, 3, 2, act=nn.Hardswish())]
    inputs = 16
    for kernel, hidden, outputs, gate, act, stride in (
        (3, 16, 16, False, nn.ReLU, 1), (3, 64, 24, False, nn.ReLU, 2), (3, 72, 24, False, nn.ReLU, 1),
        (5, 72, 40, True, nn.ReLU, 2), (5, 120, 40, True, nn.ReLU, 1), (5, 120, 40, True, nn.ReLU, 1),
        (3, 240, 80, False, nn.Hardswish, 2), (3, 200, 80, False, nn.Hardswish, 1), (3, 184, 80, False, nn.Hardswish, 1),
        (3, 184, 80, False, nn.Hardswish, 1), (3, 480, 112, True, nn.Hardswish, 1), (3, 672, 112, True, nn.Hardswish, 1),
        (5, 672, 160, True, nn.Hardswish, 2), (5, 960, 160, True, nn.Hardswish, 1), (5, 960, 160, True, nn.Hardswish, 1),
    ):  # fmt: skip
        layers.append(Inverted(inputs, hidden, outputs, kernel, stride, act, gate))
        inputs = outputs
    head = [_norm(160, 960, 1, act=nn.Hardswish()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(960, 1280), nn.Hardswish()]
    return nn.Sequential(*layers, *head, nn.Dropout(0.2), nn.Linear(1280, 1000))


class Branches(nn.Module):
    """RepVGG's block as it trains: 3x3, 1x1 and, where the shape stays, the identity, each with batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.large, self.small = _norm(inputs, outputs, 3, stride), _norm(inputs, outputs, 1, stride)
        self.identity = nn.BatchNorm2d(inputs) if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.large(x) + self.small(x)
        return F.relu(y if self.identity is None else y + self.identity(x))


def repvgg_a0() -> nn.Module:
    """RepVGG-A0 (Ding et al., 2021) in training form: 9.11 million parameters."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, count in ((48, 1), (48, 2), (96, 4), (192, 14), (1280, 1)):
        for i in range(count):
            layers.append(Branches(inputs, outputs, 2 if i == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


def _relu(
    inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | None = None
) -> nn.Sequential:
    return _norm(inputs, outputs, kernel, stride, act=nn.ReLU(inplace=True), padding=padding)


class Pooled(nn.Module):
    """A mean over 3x3 and a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = _relu(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        y: Tensor = self.conv(F.avg_pool2d(x, 3, stride=1, padding=1))
        return y


class Beside(nn.Module):
    """Branches of one tensor, side by side in channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs of all, H', W')."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception_v3() -> nn.Module:
    """Inception v3 (Szegedy et al., 2015) without the auxiliary head: 23.8 million parameters."""

    def a(i: int, pool: int) -> nn.Module:
        double = nn.Sequential(_relu(i, 64, 1), _relu(64, 96, 3), _relu(96, 96, 3))
        return Beside(_relu(i, 64, 1), nn.Sequential(_relu(i, 48, 1), _relu(48, 64, 5)), double, Pooled(i, pool))

    def b(i: int) -> nn.Module:
        double = nn.Sequential(_relu(i, 64, 1), _relu(64, 96, 3), _relu(96, 96, 3, 2, 0))
        return Beside(_relu(i, 384, 3, 2, 0), double, nn.MaxPool2d(3, 2))

    def c(m: int) -> nn.Module:
        single = nn.Sequential(_relu(768, m, 1), _relu(m, m, (1, 7)), _relu(m, 192, (7, 1)))
        double = [_relu(768, m, 1), _relu(m, m, (7, 1)), _relu(m, m, (1, 7)), _relu(m, m, (7, 1)), _relu(m, 192, (1, 7))]
        return Beside(_relu(768, 192, 1), single, nn.Sequential(*double), Pooled(768, 192))

    def d() -> nn.Module:
        last = [_relu(768, 192, 1), _relu(192, 192, (1, 7)), _relu(192, 192, (7, 1)), _relu(192, 192, 3, 2, 0)]
        return Beside(nn.Sequential(_relu(768, 192, 1), _relu(192, 320, 3, 2, 0)), nn.Sequential(*last), nn.MaxPool2d(3, 2))

    def e(i: int) -> nn.Module:
        def split() -> nn.Module:
            return Beside(_relu(384, 384, (1, 3)), _relu(384, 384, (3, 1)))

        double = nn.Sequential(_relu(i, 448, 1), _relu(448, 384, 3), split())
        return Beside(_relu(i, 320, 1), nn.Sequential(_relu(i, 384, 1), split()), double, Pooled(i, 192))

    stem = [_relu(3, 32, 3, 2, 0), _relu(32, 32, 3, 1, 0), _relu(32, 64, 3), nn.MaxPool2d(3, 2), _relu(64, 80, 1),
            _relu(80, 192, 3, 1, 0), nn.MaxPool2d(3, 2)]  # fmt: skip
    body = [a(192, 32), a(256, 64), a(288, 64), b(288), c(128), c(160), c(160), c(192), d(), e(1280), e(2048)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(2048, 1000))


PUBLIC: dict[str, Callable[[], nn.Module]] = {
    build.__name__: build for build in (efficientnet_lite0, repvgg_a0, mobilenet_v3_large, inception_v3)
}
"""Builders by name"""
