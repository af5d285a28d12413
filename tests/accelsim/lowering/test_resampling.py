"""Other sizes, padding with what is inside and slopes a channel: int8 against float, and the engine against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from accelsim.engine import Engine, reference
from accelsim.int8 import network as net
from accelsim.int8.network import INPUT, Network, UInt8
from accelsim.lowering import lower

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(channels, 4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.b(self.function(self.a(x)))


def images(h: int = 12, w: int = 10) -> UInt8:
    coarse = np.random.default_rng(1).integers(0, 256, (8, (h + 2) // 3, (w + 2) // 3, 3))
    return np.repeat(np.repeat(coarse, 3, 1), 3, 2)[:, :h, :w].astype(np.uint8)


def lowered(module: nn.Module, x: UInt8) -> tuple[Network, list[Any], float]:
    """The network, what its layers give, each by the engine and the reference alike, and the output's signal to noise, dB."""
    network = lower(module.eval(), x, MEAN, STD)
    pixels = network.quantize_images(x)
    found = Engine(network).run(pixels)
    for y, want in zip(found, reference.run(network, pixels), strict=True):
        assert np.array_equal(y, want)
    with torch.no_grad():
        scaled = (torch.from_numpy(x).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        want = module(scaled.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    got = found[-1] * np.float32(network.layers[-1].scale)
    return network, found, float(10 * np.log10(np.square(want).mean() / np.square(want - got).mean()))


def slopes(x: Tensor) -> Tensor:
    return F.prelu(x, torch.linspace(-0.3, 0.9, x.shape[1]))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), ["Resample"]),
    "bilinear, corners": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True), ["Resample"]),
    "bilinear to a size": (lambda x: F.interpolate(x, (17, 23), mode="bilinear"), ["Resample"]),
    "bilinear, smaller": (lambda x: F.interpolate(x, (7, 4), mode="bilinear", align_corners=True), ["Resample"]),
    "bilinear by 1.3": (lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear"), ["Resample"]),
    "bilinear by 1.3, of sizes": (
        lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear", recompute_scale_factor=True), ["Resample"],
    ),
    "bilinear, sides differ": (lambda x: F.interpolate(x, scale_factor=(3, 1), mode="bilinear"), ["Resample"]),
    "bilinear, relu behind": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear").relu(), ["Resample", "Table"]),
    "nearest, no whole factor": (lambda x: F.interpolate(x, scale_factor=1.5), ["Resample"]),
    "nearest to a size": (lambda x: F.interpolate(x, (7, 23)), ["Resample"]),
    "nearest, exact": (lambda x: F.interpolate(x, (7, 23), mode="nearest-exact"), ["Resample"]),
    "nearest, relu behind": (lambda x: F.interpolate(x, (7, 23)).relu(), ["Resample"]),
    "area": (lambda x: F.interpolate(x, (7, 4), mode="area"), ["Resample"]),
    "reflection": (nn.ReflectionPad2d((1, 2, 3, 0)), ["Resample"]),
    "replication": (nn.ReplicationPad2d((1, 2, 3, 0)), ["Resample"]),
    "round and round": (nn.CircularPad2d((1, 2, 3, 0)), ["Resample"]),
    "replication, then zeros": (lambda x: F.pad(F.pad(x, (1, 2, 3, 0), mode="replicate"), (1, 0, 2, 1)), ["Resample", "Slice"]),
    "mirrored": (lambda x: x.flip(2).flip(3), ["Resample"]),
    "some rows of some channels": (
        lambda x: F.pad(x[:, [3, 1, 0, 2]].index_select(2, torch.tensor([4, 0, 0])), (0,) * 4 + (0, 4)),
        ["Channels", "Resample", "Slice"],
    ),
    "unshuffle": (lambda x: F.pixel_unshuffle(x[:, :2], 2), ["Slice"] * 8 + ["Concat"]),
    "slopes": (slopes, ["Table"]),
    "slopes between functions": (lambda x: slopes(torch.sigmoid(slopes(x) * 2) - 0.5), ["Table"]),
    "slopes times their operand": (lambda x: slopes(x) * x, ["Table"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_function_computes_what_torch_does(case: str) -> None:
    function, kinds = FUNCTIONS[case]
    network, _, ratio = lowered(Between(function), images())
    assert [type(layer).__name__ for layer in network.layers[1:-1]] == kinds
    assert ratio > 28


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_convolutions_padding_mode(mode: Any) -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 5, padding=2, padding_mode=mode), nn.ReLU(), nn.Conv2d(6, 4, 3))
    assert lowered(module, images())[2] > 28


def test_instance_norm_of_constants_is_folded() -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        nn.init.uniform_(value, 0.5, 1.5)
    network, _, ratio = lowered(nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 1)), images())
    assert [type(layer).__name__ for layer in network.layers] == ["Conv", "Conv"]
    assert ratio > 28


def test_padding_moves_integers_as_they_are() -> None:
    network, found, _ = lowered(Between(nn.ReflectionPad2d((1, 2, 3, 0))), images())
    padded = np.pad(found[0], ((0, 0), (3, 0), (1, 2), (0, 0)), mode="reflect")
    assert np.array_equal(found[1], padded)
    assert network.layers[1].scale == network.layers[0].scale


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from(["bilinear", "corners", "area", "nearest", "nearest-exact"]), st.booleans(),
)  # fmt: skip
def test_any_size_is_torchs_mean_to_half_a_step(size: tuple[int, int], to: tuple[int, int], mode: str, signed: bool) -> None:
    class Only(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x if signed else x.relu()
            corners = {"mode": "bilinear", "align_corners": True}
            return F.interpolate(x, to, **(corners if mode == "corners" else {"mode": mode})) * 1.0

    x = images(*size)
    network = lower(Only().eval(), x, MEAN, STD)
    pixels = network.quantize_images(x)
    found, wanted = Engine(network).run(pixels), reference.run(network, pixels)
    for index, layer in enumerate(network.layers):
        assert np.array_equal(found[index], wanted[index])
        if isinstance(layer, net.Resample):
            source = pixels if layer.inputs[0] == INPUT else found[layer.inputs[0]]
            real = torch.from_numpy(source).permute(0, 3, 1, 2).double()
            shares = {"mode": "bilinear", "align_corners": True} if mode == "corners" else {"mode": mode}
            mean = F.interpolate(real.float() if mode.startswith("nearest") else real, to, **shares).permute(0, 2, 3, 1)
            assert np.abs(found[index] - mean.numpy()).max() <= 0.5 + 1e-4
