"""Lowering against the float module: every operator, the folding, the zoo, and what cannot be lowered."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from accelsim.engine import Engine
from accelsim.int8 import network as net
from accelsim.int8.network import Network, UInt8
from accelsim.lowering import LoweringError, fold, lower, normalise, trace
from accelsim.zoo import NETWORKS, build
from accelsim.zoo.generative import GENERATIVE
from tests.quick import few_rounds

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Fn(nn.Module):
    """A module of a function and the layers that it uses."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def _images(shape: tuple[int, int, int] = (12, 12, 3), count: int = 8, seed: int = 1) -> UInt8:
    """Smooth random images, uint8 (N, H, W, C): neighbouring pixels are alike, as in photographs."""
    rng = np.random.default_rng(seed)
    h, w, c = shape
    coarse = rng.integers(0, 256, (count, (h + 3) // 4, (w + 3) // 4, c))
    fine = np.repeat(np.repeat(coarse, 4, 1), 4, 2)[:, :h, :w] + rng.integers(-20, 21, (count, h, w, c))
    return np.clip(fine, 0, 255).astype(np.uint8)


def _randomise(module: nn.Module) -> nn.Module:
    """Batch norm that does something, as after training."""
    torch.manual_seed(11)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(m.running_mean, 0, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.2)
    return module.eval()


def _sqnr(network: Network, module: nn.Module, images: UInt8) -> float:
    """Signal over quantisation noise of the output, in dB."""
    with torch.no_grad():
        want = module.eval()(normalise(images, MEAN[: images.shape[3]], STD[: images.shape[3]]))
    got = Engine(network).run(network.quantize_images(images))[-1].astype(np.float32) * network.layers[-1].scale
    if want.dim() == 4:
        want = want.permute(0, 2, 3, 1)
    error = got.reshape(-1) - want.reshape(-1).numpy()
    return float(10 * np.log10((want.numpy() ** 2).sum() / max((error**2).sum(), 1e-30)))


IMAGES = {"shapes_unet": (32, 32, 4), "crops_sr2x": (64, 64, 3)}
"""Networks that give an image for one of 32x32, and what."""


def _lower(module: nn.Module, images: UInt8, **how: Any) -> Network:
    channels = images.shape[3]
    return lower(module, images, MEAN[:channels], STD[:channels], "test", **how)


def _conv(i: int, o: int, k: int = 3, **kw: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **{"padding": k // 2, **kw})


def _shuffle_view(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def _gate(m: Any, x: Tensor) -> Tensor:
    y = m.c(x).relu()
    return y * torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1)))))


OPERATORS: dict[str, Callable[[], nn.Module]] = {
    "plain convolution": lambda: _conv(3, 8),
    "strided": lambda: _conv(3, 8, stride=2),
    "dilated": lambda: _conv(3, 8, dilation=2, padding=2),
    "uneven": lambda: nn.Conv2d(3, 8, (1, 3), stride=(2, 1), padding=(0, 1), dilation=(1, 2)),
    "padding same": lambda: nn.Conv2d(3, 8, 3, padding="same"),
    "padding same, even kernel": lambda: nn.Conv2d(3, 8, 4, padding="same"),
    "padding valid": lambda: nn.Conv2d(3, 8, 3, padding="valid"),
    "grouped": lambda: nn.Sequential(_conv(3, 8), nn.ReLU(), _conv(8, 12, groups=4)),
    "depthwise, two filters a channel": lambda: nn.Sequential(_conv(3, 8), nn.ReLU(), _conv(8, 16, groups=8)),
    "batch norm": lambda: nn.Sequential(_conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
    "batch norm first": lambda: nn.Sequential(nn.BatchNorm2d(3), _conv(3, 8), nn.ReLU()),
    "batch norm after relu": lambda: nn.Sequential(_conv(3, 8), nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU(), _conv(8, 4)),
    "batch norm twice": lambda: nn.Sequential(_conv(3, 8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 7)),
    "linear with batch norm": lambda: nn.Sequential(
        _conv(3, 4, stride=2), nn.Flatten(), nn.Linear(144, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)
    ),
    "dropout": lambda: nn.Sequential(_conv(3, 8), nn.Dropout(0.5), nn.Identity(), nn.ReLU()),
    "add": lambda: Fn(lambda m, x: F.relu(m.a(x) + m.b(x)), a=_conv(3, 8), b=_conv(3, 8)),
    "add in place": lambda: Fn(lambda m, x: F.relu(m.a(x).add_(m.b(x))), a=_conv(3, 8), b=_conv(3, 8)),
    "subtract": lambda: Fn(lambda m, x: m.a(x) - m.b(x), a=_conv(3, 8), b=_conv(3, 8)),
    "concat": lambda: Fn(lambda m, x: torch.cat([m.a(x), m.b(x).relu(), x], 1), a=_conv(3, 8), b=_conv(3, 5)),
    "max pool": lambda: nn.Sequential(_conv(3, 8), nn.MaxPool2d(3, 2, 1), nn.ReLU()),
    "max pool, ceil": lambda: nn.Sequential(_conv(3, 8), nn.MaxPool2d(3, 2, ceil_mode=True)),
    "max pool, dilated": lambda: nn.Sequential(_conv(3, 8), nn.MaxPool2d(2, 1, dilation=3)),
    "max pool, function": lambda: Fn(lambda m, x: F.max_pool2d(m.a(x), 2), a=_conv(3, 8)),
    "mean pool": lambda: nn.Sequential(_conv(3, 8), nn.AvgPool2d(3, 2, 1), nn.ReLU()),
    "mean pool by size": lambda: Fn(lambda m, x: F.avg_pool2d(y := m.a(x), y.size()[3]), a=_conv(3, 8)),
    "adaptive mean": lambda: nn.Sequential(_conv(3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d((3, 2))),
    "adaptive max": lambda: nn.Sequential(_conv(3, 8), nn.AdaptiveMaxPool2d(1)),
    "mean over the image": lambda: Fn(lambda m, x: m.f(m.a(x).relu().mean((2, 3))), a=_conv(3, 8), f=nn.Linear(8, 4)),
    "mean, dimensions kept": lambda: Fn(lambda m, x: m.a(x).mean([-1, -2], keepdim=True), a=_conv(3, 8)),
    "shuffle": lambda: Fn(lambda m, x: _shuffle_view(m.a(x), 2), a=_conv(3, 8)),
    "shuffle module": lambda: nn.Sequential(_conv(3, 8), nn.ChannelShuffle(4), nn.ReLU()),
    "chunk": lambda: Fn(lambda m, x: torch.cat([m.b(m.a(x).chunk(2, 1)[1]), x], 1), a=_conv(3, 8), b=_conv(4, 4)),
    "split": lambda: Fn(lambda m, x: m.b(torch.split(m.a(x), [3, 5], 1)[1]), a=_conv(3, 8), b=_conv(5, 4)),
    "slice": lambda: Fn(lambda m, x: m.b(m.a(x)[:, 2:5, 1:-1, ::2]), a=_conv(3, 8), b=_conv(3, 4)),
    "flip of channels": lambda: Fn(lambda m, x: m.a(x).flip(1).relu(), a=_conv(3, 8)),
    "slice, then flatten": lambda: Fn(
        lambda m, x: m.f(m.a(x)[:, 1:4, 2:6, ::3].flatten(1)), a=_conv(3, 8), f=nn.Linear(3 * 4 * 4, 5)
    ),
    "shuffle, then flatten": lambda: nn.Sequential(
        _conv(3, 8, stride=3), nn.ChannelShuffle(4), nn.Flatten(), nn.Linear(128, 5)
    ),
    "crop, then pad": lambda: Fn(
        lambda m, x: m.b(F.pad(m.a(x)[:, 2:6, 1:, :4], (0, 1, 2, 0, 1, 2))[:, :, 1:6]), a=_conv(3, 8), b=_conv(7, 4)
    ),
    "zero padding": lambda: nn.Sequential(_conv(3, 4), nn.ReLU(), nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(4, 4, 3)),
    "option A": lambda: Fn(
        lambda m, x: F.relu(m.a(y := m.s(x).relu()) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))),
        s=_conv(3, 4),
        a=_conv(4, 8, stride=2),
    ),
    "squeeze and excite": lambda: Fn(_gate, c=_conv(3, 8), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1)),
    "product": lambda: Fn(lambda m, x: m.a(x) * m.b(x), a=_conv(3, 8), b=_conv(3, 8)),
    "hardswish": lambda: nn.Sequential(_conv(3, 8), nn.Hardswish(), _conv(8, 4)),
    "hardswish by hand": lambda: Fn(lambda m, x: (y := m.a(x)) * F.relu6(y + 3) / 6, a=_conv(3, 8)),
    "sigmoid": lambda: nn.Sequential(_conv(3, 8), nn.Sigmoid()),
    "gelu": lambda: Fn(lambda m, x: F.gelu(m.a(x), approximate="tanh"), a=_conv(3, 8)),
    "silu": lambda: nn.Sequential(_conv(3, 8), nn.SiLU(inplace=True)),
    "tanh": lambda: Fn(lambda m, x: torch.tanh(m.a(x)), a=_conv(3, 8)),
    "leaky relu": lambda: Fn(lambda m, x: F.leaky_relu(m.a(x), 0.2), a=_conv(3, 8)),
    "elu": lambda: nn.Sequential(_conv(3, 8), nn.ELU()),
    "hardtanh": lambda: nn.Sequential(_conv(3, 8), nn.Hardtanh(-0.3, 0.5)),
    "clamp": lambda: Fn(lambda m, x: m.a(x).clamp(min=-0.2), a=_conv(3, 8)),
    "scalar arithmetic": lambda: Fn(lambda m, x: 1 - (m.a(x) * 2 + 1) / 4, a=_conv(3, 8)),
    "relu beside its input": lambda: Fn(lambda m, x: (y := m.a(x)) + m.b(y.relu()), a=_conv(3, 8), b=_conv(8, 8)),
}


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel:UserWarning")
@pytest.mark.parametrize("case", OPERATORS)
def test_an_operator_computes_what_the_module_does(case: str) -> None:
    torch.manual_seed(7)
    module = _randomise(OPERATORS[case]())
    images = _images()
    network = _lower(module, images)
    assert _sqnr(network, module, images) > 26


def test_a_hand_written_network_of_everything() -> None:
    """MobileNetV3's block: expand, depthwise 5x5, squeeze-excite with hard sigmoid, hardswish, project, residual."""

    class Block(nn.Module):
        def __init__(self, c: int, hidden: int) -> None:
            super().__init__()
            self.expand = nn.Sequential(nn.Conv2d(c, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
            self.dw = nn.Sequential(
                nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish()
            )
            self.pool, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, 8, 1), nn.Conv2d(8, hidden, 1)
            self.gate = nn.Hardsigmoid()
            self.project = nn.Sequential(nn.Conv2d(hidden, c, 1, bias=False), nn.BatchNorm2d(c))

        def forward(self, x: Tensor) -> Tensor:
            y = self.dw(self.expand(x))
            y = self.gate(self.fc2(F.relu(self.fc1(self.pool(y))))) * y
            out: Tensor = self.project(y) + x
            return out

    torch.manual_seed(5)
    module = _randomise(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.Hardswish(), Block(16, 32), Block(16, 48), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, 32), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(32, 10),
        )
    )  # fmt: skip
    images = _images((24, 24, 3))
    network = _lower(module, images)
    kinds = [type(layer) for layer in network.layers]
    assert net.Mul in kinds
    assert kinds.count(net.Table) == 8
    assert _sqnr(network, module, images) > 20


SIGNED = ("resnet18", "resnet50", "resnet56", "shufflenet_v2_x1_0")
"""Networks that are larger ones of a family, lowered in signed arithmetic, which without depthwise layers has no gains to look
for."""


@functools.cache
def _zoo(name: str) -> tuple[nn.Module, UInt8, Network]:
    torch.manual_seed(1)
    shape = {"digits_cnn": (8, 8, 1), "resnet20": (32, 32, 3), "resnet56": (32, 32, 3)}.get(name, (64, 64, 3))
    module, images = build(name, 10).eval(), _images(shape, 4)
    with few_rounds():
        return module, images, _lower(module, images, activations="signed" if name in SIGNED else "auto")


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in (*GENERATIVE, *IMAGES)])
def test_the_zoo_lowers(name: str) -> None:
    module, images, network = _zoo(name)
    macs = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in module.modules())
    assert sum(1 for _ in network.convs()) == macs
    assert {layer.name for _, layer in network.convs()} == {
        n for n, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    }
    assert network.layers[-1].shape == (1, 1, 10)
    assert _sqnr(network, module, images) > 15


@pytest.mark.parametrize("name", IMAGES)
def test_the_zoos_networks_for_images_lower(name: str) -> None:
    torch.manual_seed(1)
    module = build(name).eval()
    images = _images((32, 32, 3), 4)
    network = _lower(module, images)
    assert network.layers[-1].shape == IMAGES[name]
    assert _sqnr(network, module, images) > 15


def test_the_zoos_graphs_are_as_small_as_they_can_be() -> None:
    """ReLU, batch norm and dropout are gone; what is left is the layers that the network is drawn with."""

    def kinds(name: str) -> dict[str, int]:
        shape = (32, 32, 3) if name == "resnet20" else (64, 64, 3)
        nodes = fold(trace(build(name).eval(), shape)).nodes
        names = [type(node).__name__ for node in nodes]
        return {kind: names.count(kind) for kind in sorted(set(names))}

    assert kinds("resnet20") == {"Add": 9, "Conv": 20, "MeanPool": 1, "Slice": 2}
    assert kinds("resnet18") == {"Add": 8, "Conv": 21, "MaxPool": 1, "MeanPool": 1}
    assert kinds("mobilenet_v2") == {"Add": 10, "Conv": 53, "MeanPool": 1}
    assert kinds("squeezenet1_1") == {"Concat": 8, "Conv": 26, "MaxPool": 3, "MeanPool": 1}
    # A unit that splits moves channels twice (each half of the shuffled one); others shuffle once.
    shuffled = kinds("shufflenet_v2_x0_5")
    assert (shuffled["Concat"], shuffled["Conv"], shuffled["Channels"]) == (16, 57, 29)


def test_squeezenets_concats_only_move_integers() -> None:
    _, _, network = _zoo("squeezenet1_1")
    concats = [layer for layer in network.layers if isinstance(layer, net.Concat)]
    assert len(concats) == 8
    assert all(layer.multipliers == (1.0, 1.0) for layer in concats)


@pytest.mark.parametrize("activations", ["auto", "signed"])
def test_relu_and_relu6_are_bounds(activations: Literal["auto", "signed"]) -> None:
    """Behind a ReLU6 each channel's bound is 6 in its own steps; the largest integer where that lies beyond."""
    module = nn.Sequential(_conv(3, 8), nn.ReLU6(), _conv(8, 8), nn.ReLU(), _conv(8, 4))
    with torch.no_grad():
        module[0].weight.mul_(30)
    module.eval()
    network = lower(module, _images(), MEAN, STD, activations=activations)
    first, second, third = network.layers
    assert isinstance(first, net.Conv)
    assert isinstance(second, net.Conv)
    assert isinstance(third, net.Conv)
    top = 127 if activations == "signed" else 255
    assert [layer.signed for layer in network.layers] == [top == 127, top == 127, True]
    channel = (first.weight * first.weight_scale[:, None, None, None]).reshape(8, -1)
    exact = module[0].weight.detach().numpy().reshape(8, -1)
    gain = (channel * exact).sum(1) / (exact * exact).sum(1)
    assert first.low == second.low == 0
    assert np.abs(first.high - np.minimum(top, 6 * gain / first.scale)).max() <= 0.02 * top
    assert set(second.high) == {top}
    assert (third.low, set(third.high)) == (-128, {127})


def test_relu_behind_a_shuffle_or_pool_moves_to_the_convolution() -> None:
    module = nn.Sequential(_conv(3, 8), nn.MaxPool2d(2), nn.ChannelShuffle(2), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
    nodes = fold(trace(module.eval(), (12, 12, 3))).nodes
    assert [type(n).__name__ for n in nodes] == ["Conv", "MaxPool", "Channels", "Flatten", "Conv"]
    assert nodes[0].low == 0


def test_flatten_keeps_torchs_order() -> None:
    """Weights of a linear behind Flatten are the module's, column for column, but for a gain a channel of the image."""
    module = nn.Sequential(_conv(3, 4), nn.Flatten(), nn.Linear(4 * 12 * 12, 2))
    network = _lower(module.eval(), _images())
    linear = network.layers[-1]
    assert isinstance(linear, net.Conv)
    real = (linear.weight[:, :, 0, 0].astype(np.float32) * linear.weight_scale[:, None]).reshape(2, 4, 144)
    want = module[2].weight.detach().numpy().reshape(2, 4, 144)
    for channel in range(4):
        assert np.corrcoef(real[:, channel].ravel(), want[:, channel].ravel())[0, 1] > 0.998


def test_a_shared_shuffle_is_one_layer() -> None:
    module = Fn(lambda m, x: m.b(z := _shuffle_view(m.a(x), 2)) + m.c(z), a=_conv(3, 8), b=_conv(8, 4), c=_conv(8, 4))
    names = [type(layer).__name__ for layer in _lower(module.eval(), _images()).layers]
    assert names.count("Channels") == 1


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.integers(1, 4), stride=st.integers(1, 3), padding=st.integers(0, 3), dilation=st.integers(1, 2),
    size=st.integers(8, 15), groups=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_convolutions_of_all_shapes(kernel: int, stride: int, padding: int, dilation: int, size: int, groups: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups), nn.ReLU()
    ).eval()  # fmt: skip
    images = _images((size, size + 1, 3), 4)
    assert _sqnr(_lower(module, images), module, images) > 22


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "softmax": (lambda: nn.Sequential(_conv(3, 8), nn.Softmax(1)), r"^1: Softmax.*leave it out"),
    "group norm": (lambda: nn.Sequential(_conv(3, 8), nn.GroupNorm(2, 8)), r"^1: GroupNorm.*BatchNorm2d"),
    "transposed, dilated": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 2, dilation=2)),
        r"dilation \(2, 2\).*=1 works",
    ),
    "transposed, weight computed": (
        lambda: Fn(lambda m, x: F.conv_transpose2d(x, m.a(x)[:1, :3]), a=_conv(3, 3)),
        r"weight is computed from an activation",
    ),
    "upsample, cubic": (lambda: nn.Sequential(_conv(3, 4), nn.Upsample(scale_factor=2, mode="bicubic")), r"bicubic.*bilinear"),
    "upsample, antialias": (
        lambda: Fn(lambda m, x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)),
        r"bilinear' with antialias cannot.*nearest",
    ),
    "upsample by what is no fraction": (
        lambda: Fn(lambda m, x: F.interpolate(x, scale_factor=1.2345, mode="bilinear")),
        r"interpolate of 12 rows or columns to 14.*steps",
    ),
    "instance norm": (
        lambda: nn.Sequential(_conv(3, 8), nn.InstanceNorm2d(8)),
        r"^1: instance norm by the statistics of each image.*track_running_stats=True.*BatchNorm2d",
    ),
    "slopes that do not fit": (
        lambda: Fn(lambda m, x: F.prelu(m.a(x), torch.ones(4)), a=_conv(3, 3)),
        r"4 slopes on 3 channels",
    ),
    "slopes computed": (
        lambda: Fn(lambda m, x: F.prelu(m.a(x), m.b(x).mean((0, 2, 3))), a=_conv(3, 3), b=_conv(3, 3)),
        r"computed from an activation|mean over dim",
    ),
    "padding with ones": (lambda: Fn(lambda m, x: F.pad(m.a(x), (1, 1, 1, 1), value=1.0), a=_conv(3, 3)), r"value 1.0.*zeros"),
    "zeros between rows": (
        lambda: Fn(
            lambda m, x: m.b(torch.zeros_like(y := m.a(x)).index_copy_(2, torch.tensor([0, 3]), y[:, :, :2])),
            a=_conv(3, 3),
            b=_conv(3, 3),
        ),
        r"index_copy",
    ),
    "matmul": (lambda: Fn(lambda m, x: x @ x), r"matmul.*nn.Linear"),
    "linear on an image": (lambda: nn.Linear(12, 4), r"linear layer on 4 dimensions.*flatten"),
    "concat of rows": (lambda: Fn(lambda m, x: torch.cat([m.a(x), x], 2), a=_conv(3, 3)), r"dimension 2.*channels"),
    "pool with ceil": (lambda: nn.AvgPool2d(5, 4, ceil_mode=True), r"partial windows.*ceil_mode=False"),
    "pool without padding": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), r"count_include_pad=True"),
    "adaptive, uneven": (lambda: nn.AdaptiveAvgPool2d(5), r"\(12, 12\) to \(5, 5\).*divides"),
    "division": (lambda: Fn(lambda m, x: x / m.a(x), a=_conv(3, 3)), r"division by an activation.*constant"),
    "mean of channels": (lambda: Fn(lambda m, x: x.mean(1)), r"mean over dimensions 1.*\(2, 3\)"),
    "two outputs": (lambda: Fn(lambda m, x: (m.a(x), x), a=_conv(3, 3)), r"one tensor, not tuple"),
    "identity": (nn.Identity, r"computes nothing"),
    "branch on values": (
        lambda: Fn(lambda m, x: x if x.sum() > 0 else -x),
        r"^sum: .*shapes may.*values.*may not",
    ),
    "transposed image": (lambda: Fn(lambda m, x: m.a(x.transpose(2, 3)), a=_conv(3, 3)), r"moves elements"),
    "batch mixed": (lambda: Fn(lambda m, x: m.a(x.flip(0)), a=_conv(3, 3)), r"mixes the images"),
    "shapes that differ": (lambda: Fn(lambda m, x: m.a(x) + m.b(x), a=_conv(3, 3), b=_conv(3, 1)), r"one shape"),
    "image too small": (lambda: nn.Sequential(nn.Conv2d(3, 8, 14)), r"^0: gives an empty image.*larger images"),
    "image too small to pool": (lambda: nn.Sequential(_conv(3, 8), nn.MaxPool2d(20)), r"^1: .*too small"),
    "too many channels": (lambda: nn.Sequential(_conv(4, 8)), r"^0: a convolution of 3 channels.*wants 4"),
    "not a number": (lambda: Fn(lambda m, x: torch.log(m.a(x) - 1e9), a=_conv(3, 3)), r"nan"),
    "dropout left on": (
        lambda: Fn(lambda m, x: F.dropout(m.a(x), 0.5, True), a=_conv(3, 3)),
        r"^dropout: .*stays on.*self.training",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_lowered_says_so_and_what_can(case: str) -> None:
    make, text = REFUSED[case]
    torch.manual_seed(0)
    with pytest.raises(LoweringError, match=text):
        _lower(make().eval(), _images())


def test_bad_calibration_images_are_refused() -> None:
    module = _conv(3, 4)
    with pytest.raises(LoweringError, match="uint8"):
        lower(module, np.zeros((2, 8, 8, 3), np.float32), MEAN, STD)  # type: ignore[arg-type]
    with pytest.raises(LoweringError, match="uint8"):
        lower(module, np.zeros((0, 8, 8, 3), np.uint8), MEAN, STD)
    with pytest.raises(LoweringError, match="3 values"):
        lower(module, np.zeros((2, 8, 8, 3), np.uint8), (0.5,), (0.5,))


def test_the_module_is_left_as_it_was() -> None:
    module = build("digits_cnn").train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    _lower(module, _images((8, 8, 1)))
    assert module.training
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
