"""Networks as people write them: views, in-place operators, arithmetic on shapes, computed weights; shared ones are refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from accelsim.engine import Engine
from accelsim.int8.network import UInt8
from accelsim.lowering import LoweringError, fold, lower, normalise, trace

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


def _images(count: int = 8) -> UInt8:
    coarse = np.random.default_rng(1).integers(0, 256, (count, 3, 3, 3))
    return np.repeat(np.repeat(coarse, 4, 1), 4, 2).astype(np.uint8)


def _conv(i: int, o: int, k: int = 3, **kw: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **{"padding": k // 2, **kw})


def _in_place_shortcut(m: Any, x: Tensor) -> Tensor:
    shortcut = x = m.a(x)
    x = F.relu(x, inplace=True)  # the shortcut sees it too
    out: Tensor = m.b(x) + shortcut
    return out


def _in_place_view(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    x[:, :4].relu_()  # half of the channels, through a view
    out: Tensor = m.b(x)
    return out


def _shift(m: Any, x: Tensor) -> Tensor:
    """Temporal-shift style: channels moved by a pixel, zeros where nothing comes from."""
    x = m.a(x)
    moved = torch.zeros_like(x)
    moved[:, :2, :, 1:] = x[:, :2, :, :-1]
    moved[:, 2:] = x[:, 2:]
    out: Tensor = m.b(moved)
    return out


def _ratio(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    kept = int(x.size(1) * 0.5)
    if x.shape[2] > 8 and len(x) >= 1 and x.dim() == 4:
        x = F.max_pool2d(x, 2)
    rest = x.size(1) - kept
    first, second = x.split([kept, rest], dim=1)
    return torch.cat([second, first], 1).relu()


def _drop_path(m: Any, x: Tensor) -> Tensor:
    y = m.b(F.relu(x := m.a(x)))
    if m.training:
        y = y * torch.bernoulli(torch.full((x.shape[0], 1, 1, 1), 0.8)) / 0.8
    out: Tensor = x + y
    return out


def _pruned() -> nn.Module:
    module = nn.Sequential(_conv(3, 8), nn.ReLU(), _conv(8, 4))
    prune.l1_unstructured(module[0], "weight", 0.5)
    module(torch.zeros(1, 3, 12, 12))  # leaves a weight that copy.deepcopy refuses
    return module


def _old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = nn.Sequential(nn.utils.weight_norm(_conv(3, 8)), nn.ReLU(), _conv(8, 4))
    module(torch.zeros(1, 3, 12, 12))
    return module


LOWERED: dict[str, Callable[[], nn.Module]] = {
    "view": lambda: Fn(
        lambda m, x: m.f(F.max_pool2d(m.a(x).relu(), 2).view(x.size(0), -1)), a=_conv(3, 6), f=nn.Linear(216, 5)
    ),
    "view of a number": lambda: Fn(lambda m, x: m.f(m.a(x).view(-1, 432)), a=_conv(3, 3), f=nn.Linear(432, 5)),
    "reshape": lambda: Fn(lambda m, x: m.f(m.a(x).reshape(x.shape[0], -1)), a=_conv(3, 3), f=nn.Linear(432, 5)),
    "flatten in two": lambda: Fn(lambda m, x: m.f(m.a(x).flatten(2).flatten(1)), a=_conv(3, 3), f=nn.Linear(432, 5)),
    "squeeze": lambda: Fn(lambda m, x: m.f(F.adaptive_avg_pool2d(m.a(x), 1).squeeze()), a=_conv(3, 8), f=nn.Linear(8, 5)),
    "mean of a mean": lambda: Fn(lambda m, x: m.f(m.a(x).mean(3).mean(2)), a=_conv(3, 8), f=nn.Linear(8, 5)),
    "mean of a view": lambda: Fn(lambda m, x: m.f(m.a(x).view(x.size(0), 8, -1).mean(2)), a=_conv(3, 8), f=nn.Linear(8, 5)),
    "sum over the image": lambda: Fn(lambda m, x: m.f(m.a(x).sum((2, 3)) / 100), a=_conv(3, 8), f=nn.Linear(8, 5)),
    "in-place relu ahead of a shortcut": lambda: Fn(_in_place_shortcut, a=_conv(3, 8), b=_conv(8, 8)),
    "in-place through a view": lambda: Fn(_in_place_view, a=_conv(3, 8), b=_conv(8, 4)),
    "in-place module": lambda: nn.Sequential(nn.ReLU(inplace=True), _conv(3, 8), nn.ReLU6(inplace=True), _conv(8, 4)),
    "written into zeros": lambda: Fn(_shift, a=_conv(3, 8), b=_conv(8, 4)),
    "channels of two layers": lambda: Fn(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)[:, 2:7]), a=_conv(3, 4), b=_conv(3, 4), c=_conv(5, 4)
    ),
    "zeros in a concat": lambda: Fn(
        lambda m, x: m.b(torch.cat([y := m.a(x), torch.zeros(x.size(0), 3, 12, 12), y.mul(0)], 1)),
        a=_conv(3, 4),
        b=_conv(11, 4),
    ),
    "arithmetic and branches on shapes": lambda: Fn(_ratio, a=_conv(3, 8)),
    "expanded gate": lambda: Fn(
        lambda m, x: (y := m.a(x)) * m.g(y.mean((2, 3))).sigmoid().view(-1, 8, 1, 1).expand_as(y),
        a=_conv(3, 8),
        g=nn.Linear(8, 8),
    ),
    "stochastic depth by hand": lambda: Fn(_drop_path, a=_conv(3, 8), b=_conv(8, 8)),
    "dropout of every kind": lambda: nn.Sequential(
        _conv(3, 8), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.Dropout(inplace=True), nn.ReLU()
    ),
    "prelu of one slope": lambda: nn.Sequential(_conv(3, 8), nn.PReLU()),
    "pruned": _pruned,
    "weight norm, old": _old_weight_norm,
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(_conv(3, 8)), nn.ReLU(), _conv(8, 4)),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(_conv(3, 8)), nn.ReLU(), _conv(8, 4)),
    "casts": lambda: Fn(lambda m, x: m.a(x.float()).to(x.dtype).type_as(x).contiguous().detach().clone(), a=_conv(3, 4)),
    "data parallel": lambda: nn.DataParallel(nn.Sequential(_conv(3, 8), nn.ReLU())),
    "one relu twice": lambda: Fn(lambda m, x: m.r(m.b(m.r(m.a(x)))), a=_conv(3, 8), b=_conv(8, 4), r=nn.ReLU(inplace=True)),
}


@pytest.mark.parametrize("case", LOWERED)
def test_a_network_as_people_write_it_lowers(case: str) -> None:
    torch.manual_seed(3)
    module, images = LOWERED[case]().eval(), _images()
    network = lower(module, images, MEAN, STD, "test")
    with torch.no_grad():
        want = module(normalise(images, MEAN, STD))
    got = Engine(network).run(network.quantize_images(images))[-1] * np.float32(network.layers[-1].scale)
    want = want.permute(0, 2, 3, 1) if want.dim() == 4 else want
    error = got.reshape(-1) - want.reshape(-1).numpy()
    assert 10 * np.log10((want.numpy() ** 2).sum() / (error**2).sum()) > 22


def _tied() -> nn.Module:
    module = Fn(lambda m, x: m.b(m.a(x).relu()), a=_conv(3, 3), b=_conv(3, 3))
    module.b.weight = module.a.weight
    return module


def _tied_biases() -> nn.Module:
    module = Fn(lambda m, x: m.b(F.relu(m.a(x))), a=_conv(3, 8), b=_conv(8, 8))
    module.b.bias = module.a.bias
    return module


def _class_token(m: Any, x: Tensor) -> Tensor:
    tokens = m.a(x).flatten(2).transpose(1, 2)
    return torch.cat([torch.ones(x.size(0), 1, 8), tokens], 1)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a layer applied twice": (
        lambda: Fn(lambda m, x: m.b(m.b(m.a(x)).relu()), a=_conv(3, 8), b=_conv(8, 8)),
        r"^b\.weight is the weight of 2 layers \(b, b\.2\).*pull them apart.*deepcopy",
    ),
    "a linear applied twice": (
        lambda: Fn(lambda m, x: m.f(m.f(x.mean((2, 3)))), f=nn.Linear(3, 3)),
        r"^f\.weight is the weight of 2 layers",
    ),
    "tied biases": (_tied_biases, r"^a\.bias is the bias of 2 layers \(a, b\).*a bias a layer"),
    "tied weights": (_tied, r"^a\.weight is the weight of 2 layers \(a, b\)"),
    "a pruned layer applied twice": (
        lambda: Fn(lambda m, x: m.b(m.b(x)), b=prune.l1_unstructured(_conv(3, 3), "weight", 0.3)),
        r"^b\.weight_orig is the weight of 2",
    ),
    "item": (lambda: Fn(lambda m, x: x * m.a(x)[0, 0, 0, 0].item(), a=_conv(3, 3)), r"^item: a Python number.*values"),
    "branch": (
        lambda: Fn(lambda m, x: y if (y := m.a(x))[0, 0, 0, 0] > 0 else x, a=_conv(3, 3)),
        r"^gt: a comparison.*shapes may",
    ),
    "class token": (lambda: Fn(_class_token, a=_conv(3, 8)), r"dimension 1|class token|only images"),
    "constant in a concat": (
        lambda: Fn(lambda m, x: torch.cat([m.a(x), torch.ones(2, 1, 12, 12)], 1), a=_conv(3, 8)),
        r"^cat: .*not zero.*class token.*only convolutional",
    ),
    "two inputs": (lambda: nn.Bilinear(3, 3, 2), r"^input input2: a network has one input.*input1, input2"),
    "a module that fails": (
        lambda: Fn(lambda m, x: m.absent(x)),
        r"^Fn: forward\(\) fails on images of 12x12x3: AttributeError",
    ),
    "attention": (
        lambda: Fn(
            lambda m, x: m.t(y := m.a(x).flatten(2).transpose(1, 2), y, y)[0], a=_conv(3, 8), t=nn.MultiheadAttention(8, 2)
        ),
        r"^t: MultiheadAttention.*only convolutional",
    ),
    "half": (lambda: Fn(lambda m, x: m.a(x).half(), a=_conv(3, 8)), r"^half: a cast to torch.float16.*float32"),
    "noise": (lambda: Fn(lambda m, x: m.a(x) + torch.rand(1).item(), a=_conv(3, 3)), r"other outputs when it runs again"),
    "spatial gate": (
        lambda: Fn(lambda m, x: m.a(x) * m.b(x).sigmoid(), a=_conv(3, 8), b=_conv(3, 1)),
        r"a product of \(12, 12, 8\).*\(1, 1, C\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_has_the_reason_and_the_node(case: str) -> None:
    make, text = REFUSED[case]
    torch.manual_seed(0)
    with pytest.raises(LoweringError, match=text):
        lower(make().eval(), _images(), MEAN, STD)


def test_a_classifier_gives_numbers() -> None:
    with pytest.raises(LoweringError, match=r"image of 12x12 pixels and 10 channels.*pooling"):
        lower(_conv(3, 10), _images(), MEAN, STD, classifier=True)


def test_normalised_images_are_contiguous_and_right() -> None:
    images = _images(2)
    x = normalise(images, MEAN, STD)
    assert x.is_contiguous()
    want = (images.astype(np.float64) / 255 - MEAN) / STD
    np.testing.assert_allclose(x.permute(0, 2, 3, 1).numpy(), want, atol=1e-6)


class _Branches(nn.Module):
    """RepVGG's block in training form: 3x3, 1x1 and identity, each with batch norm."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.large = nn.Sequential(_conv(channels, channels, 3, groups=groups, bias=False), nn.BatchNorm2d(channels))
        self.small = nn.Sequential(_conv(channels, channels, 1, groups=groups, bias=False), nn.BatchNorm2d(channels))
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.large(x) + self.small(x) + self.identity(x))


@pytest.mark.parametrize("groups", [1, 2])
def test_parallel_convolutions_become_one(groups: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(_conv(3, 8), nn.ReLU(), _Branches(8, groups), _Branches(8, groups), _conv(8, 4)).eval()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_var, 0.5, 2.0)
            nn.init.normal_(m.running_mean, 0, 0.2)
    lowered = fold(trace(module, (12, 12, 3)))
    assert [(type(n).__name__, n.name) for n in lowered.nodes] == [("Conv", p) for p in ("0", "2.large.0", "3.large.0", "4")]
    assert [n.low for n in lowered.nodes] == [0, 0, 0, -np.inf]
    x = normalise(_images(4), MEAN, STD)
    with torch.no_grad():
        *_, (_, got) = lowered.run(x)
        torch.testing.assert_close(got, module(x), rtol=1e-4, atol=1e-5)


def test_convolutions_that_differ_in_place_stay_apart() -> None:
    torch.manual_seed(0)
    wide = _conv(3, 4, dilation=2, padding=2)
    module = Fn(lambda m, x: m.a(x) + m.b(x) + m.c(x), a=_conv(3, 4), b=wide, c=_conv(3, 4, bias=False)).eval()
    lowered = fold(trace(module, (12, 12, 3)))
    assert [type(n).__name__ for n in lowered.nodes] == ["Conv", "Conv", "Add"]
    x = normalise(_images(4), MEAN, STD)
    with torch.no_grad():
        *_, (_, got) = lowered.run(x)
        torch.testing.assert_close(got, module(x), rtol=1e-4, atol=1e-5)


def test_a_module_is_not_changed_by_lowering() -> None:
    module = _pruned()
    before = copy.deepcopy(module.state_dict())
    lower(module, _images(), MEAN, STD)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module[1:])


class OneWeight(nn.Module):
    """One parameter of two layers, reached without a module: as it is called, ``how`` says what of it each layer takes."""

    def __init__(self, how: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.w = nn.Parameter(0.1 * torch.randn(16, 8, 3, 3))
        self.how = how
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.how(self.w)
        x = torch.relu(F.conv2d(self.first(x), one, padding=1))
        return self.last(torch.relu(F.conv2d(x, other, padding=1)).mean((2, 3)))


@pytest.mark.parametrize(
    ("how", "shared"),
    [
        (lambda w: (w[:8], w[:8]), True),
        (lambda w: (w[:8], w[4:12]), True),
        (lambda w: (w[:8] * 0.9, w[:8] * 1.1), True),
        (lambda w: (w[:8], w[:8].transpose(0, 1)), True),
        (lambda w: (w[:8], w[8:]), False),
        (lambda w: w.chunk(2), False),
        (lambda w: (w[:8] * 0.9, w[8:] * 0.9), False),
    ],
)
def test_one_weight_behind_two_layers_is_found_however_it_is_reached(
    how: Callable[[Tensor], tuple[Tensor, Tensor]], shared: bool
) -> None:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    module = OneWeight(how).eval()
    if shared:
        with pytest.raises(LoweringError, match=r"w is the weight of 2 layers \(conv2d, conv2d_1\)"):
            lower(module, images, (0.5,) * 3, (0.5,) * 3)
    else:
        assert sum(1 for _ in lower(module, images, (0.5,) * 3, (0.5,) * 3).convs()) == 4
