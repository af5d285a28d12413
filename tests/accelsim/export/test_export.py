"""A network as a file for other programs: each format run by a program that is not ours, against the engine's integers."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from accelsim.engine import Engine, reference
from accelsim.export import c_header, program
from accelsim.export.c_header import identifier
from accelsim.int8 import network as net
from accelsim.int8.network import INPUT, Activation, Conv, Network, UInt8
from accelsim.lowering import lower
from accelsim.zoo import build
from tests.quick import few_rounds

SHAPES = {
    "digits_cnn": (8, 8, 1),
    "resnet20": (32, 32, 3),
    "mixed": (12, 12, 3),
    "generator": (5, 4, 3),
    "resampled": (9, 8, 3),
}
SMALL = ["digits_cnn", "mixed", "generator", "resampled"]
"""Every operator between them."""
LARGE = ["resnet20", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1"]
"""A kind each: sums, depthwise layers, shuffles and splits, concats; deep, so that what is wrong adds up. What they are made of
is tried in signed arithmetic in the small ones, and in the one that has most kinds of layers."""
SIGNED = [*SMALL, "shufflenet_v2_x0_5"]


class Mixed(nn.Module):
    """What the zoo does not have: tables, a gate, a crop with zeros, pools with padding, a bounded sum, an even kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.c, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8 * 5 * 5, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.a(x))
        y = nn.functional.avg_pool2d(self.b(x), 3, 2, 1) + nn.functional.max_pool2d(x, 3, 2, 1) * 0.3
        y = y * torch.sigmoid(self.c(y.mean((2, 3), keepdim=True)))
        y = nn.functional.relu6(nn.functional.pad(y[:, :, 1:, :4], (0, 1, 2, 0))[:, :, 1:6])
        out: torch.Tensor = self.fc(y.flatten(1))
        return out


class Generator(nn.Module):
    """Transposed convolutions whose phases differ, and places that no phase reaches; a shuffle, repetition."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.ConvTranspose2d(3, 6, 5, 3, 2, output_padding=1), nn.ConvTranspose2d(6, 8, 2, 3, bias=False)
        self.three = nn.Conv2d(2, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.pixel_shuffle(torch.relu(self.two(nn.functional.leaky_relu(self.one(x), 0.2))), 2)
        out: torch.Tensor = torch.tanh(self.three(nn.functional.interpolate(x[:, :, :20, :20], scale_factor=2)))
        return out


class Resampled(nn.Module):
    """Other sizes, padding with what is inside, a slope a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")
        self.two, self.three = nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)
        self.slopes = nn.PReLU(6)
        with torch.no_grad():
            self.slopes.weight.copy_(torch.linspace(-0.3, 0.9, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.interpolate(self.slopes(self.one(x)), scale_factor=2, mode="bilinear")
        x = nn.functional.interpolate(torch.relu(self.two(x)), size=(9, 20), mode="bilinear", align_corners=True)
        out: torch.Tensor = self.slopes(self.three(nn.functional.pad(x, (2, 1, 0, 3), mode="replicate")))
        return out


def bounded() -> tuple[Network, UInt8, Activation]:
    """A bound a channel, far below what the layer would give."""
    high = np.array([5, 255, 40, 0], np.int32)
    layer = Conv(
        name="conv", inputs=(INPUT,), shape=(1, 1, 4), scale=0.5, signed=False, low=0, high=high, bias=np.zeros(4, np.int32),
        weight=np.full((4, 3, 2, 2), 100, np.int8), weight_scale=np.full(4, 0.01, np.float32),
        multiplier=net.multiplier(1.0, np.full(4, 0.01, np.float32), 0.5),
    )  # fmt: skip
    return made(layer, (2, 2, 3))


def cancelling() -> tuple[Network, UInt8, Activation]:
    """Sums that pass 2^24 on the way to a small one: in float32 they would lose their last bits."""
    weight = np.concatenate([np.full(4096, 127), np.full(4096, -127), np.full(8, 1)]).astype(np.int8).reshape(1, -1, 1, 1)
    layer = Conv(
        name="conv", inputs=(INPUT,), shape=(1, 1, 1), scale=1.0, bias=np.zeros(1, np.int32), weight=weight,
        weight_scale=np.full(1, 0.125, np.float32), multiplier=net.multiplier(1.0, np.full(1, 0.125, np.float32), 1.0),
    )  # fmt: skip
    return made(layer, (1, 1, weight.size))


def made(layer: Conv, shape: tuple[int, int, int]) -> tuple[Network, UInt8, Activation]:
    table = np.tile((np.arange(256) - 128).astype(np.int8), (shape[2], 1))
    network = Network(name="made", input_shape=shape, input_scale=1.0, input_table=table, layers=(layer,))
    images = np.random.default_rng(1).integers(200, 256, (5, *shape), dtype=np.uint8)
    return network, images, reference.run(network, network.quantize_images(images))[-1]


MADE = {"bounded": bounded, "cancelling": cancelling}
OURS = {"mixed": Mixed, "generator": Generator, "resampled": Resampled}


def ways(signed: Sequence[str] = SIGNED, auto: Sequence[str] = (*SMALL, *LARGE)) -> pytest.MarkDecorator:
    """Parameters ``name`` and ``activations``."""
    pairs = [(name, "auto") for name in auto] + [(name, "signed") for name in signed]
    return pytest.mark.parametrize(("name", "activations"), pairs)


@functools.cache  # each format takes the same ones
def lowered(name: str, activations: str = "auto") -> tuple[Network, UInt8, Activation]:
    """(network, images (5, H, W, C), the engine's outputs)"""
    if name in MADE:
        return MADE[name]()
    torch.manual_seed(2)
    shape = SHAPES.get(name, (48, 48, 3))
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    module = OURS[name]() if name in OURS else build(name, 10)
    mean, std = (0.5, 0.4, 0.45)[: shape[2]], (0.25, 0.2, 0.3)[: shape[2]]
    with few_rounds():
        network = lower(module, images, mean, std, name, activations=activations)  # type: ignore[arg-type]
    return network, images, Engine(network).run(network.quantize_images(images))[-1]


@ways([*SIGNED, *MADE], [*SMALL, *LARGE])
def test_onnx_gives_our_integers(name: str, activations: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'r2f[onnx]' for ONNX files")
    from accelsim.accelerators.onnx_models import pixels_model

    network, images, want = lowered(name, activations)
    session = onnxruntime.InferenceSession(pixels_model(network), providers=["CPUExecutionProvider"])
    outputs, values = session.run(["outputs", "values"], {"images": images})
    assert outputs.dtype == want.dtype
    assert np.array_equal(outputs, want)
    assert np.array_equal(values, want.astype(np.float32) * np.float32(network.layers[-1].scale))


@pytest.mark.parametrize("optimised", [True, False])
@ways()
def test_qdq_is_steps_away_at_most(name: str, activations: str, optimised: bool) -> None:
    """As ONNX Runtime fuses it into quantised operators, and as it stands, in float."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'r2f[onnx]' for ONNX files")
    from accelsim.export.qdq import qdq_model

    network, images, want = lowered(name, activations)
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(qdq_model(network), options, providers=["CPUExecutionProvider"])
    mean, std = (0.5, 0.4, 0.45)[: images.shape[3]], (0.25, 0.2, 0.3)[: images.shape[3]]
    pixels = ((images / 255.0 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    (y,) = session.run(None, {"input": pixels})
    steps = np.rint(y.transpose(0, 2, 3, 1) / network.layers[-1].scale)
    assert np.abs(steps - want).max() <= 6
    assert np.abs(steps - want).mean() < 1.0


def test_qdq_has_bounds_a_channel() -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'r2f[onnx]' for ONNX files")
    from accelsim.export.qdq import qdq_model

    network, images, want = bounded()
    session = onnxruntime.InferenceSession(qdq_model(network), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"input": (images.astype(np.float32) - 128).transpose(0, 3, 1, 2)})
    assert np.abs(y.transpose(0, 2, 3, 1) / 0.5 - want).max() <= 1
    assert want[..., 0].max() == 5 < want[..., 2].max() == 40


@ways(["digits_cnn", "mixed", "generator", "shufflenet_v2_x0_5", *MADE], ["digits_cnn", "mixed", "generator", *LARGE[2:]])
def test_torch_program_gives_our_integers(name: str, activations: str, tmp_path: Path) -> None:
    network, images, want = lowered(name, activations)
    (tmp_path / "model.pt2").write_bytes(program.to_bytes(network))
    loaded = torch.export.load(str(tmp_path / "model.pt2")).module()
    for part in (slice(0, 5), slice(1, 2)):
        values = loaded(torch.from_numpy(images[part])).numpy()
        assert np.array_equal(values, want[part].astype(np.float32) * np.float32(network.layers[-1].scale))


MAIN = r"""
#include <stdio.h>
#include "model.h"
int main(void)
{
    static uint8_t pixels[INPUTS];
    static BYTE outputs[OUTPUTS];
    while (fread(pixels, 1, sizeof pixels, stdin) == sizeof pixels) {
        RUN(pixels, outputs);
        fwrite(outputs, 1, sizeof outputs, stdout);
    }
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (apt-get install gcc libc6-dev)")
@ways([*SIGNED, *MADE], [*SMALL, *LARGE])
def test_c_header_gives_our_integers(name: str, activations: str, tmp_path: Path) -> None:
    network, images, want = lowered(name, activations)
    (tmp_path / "model.h").write_text(c_header.c_header(network))
    (tmp_path / "main.c").write_text(MAIN)
    of = identifier(network.name)
    defined = [f"-DINPUTS={of.upper()}_INPUTS", f"-DOUTPUTS={of.upper()}_OUTPUTS", f"-DRUN={of}_run"]
    byte = "-DBYTE=int8_t" if network.layers[-1].signed else "-DBYTE=uint8_t"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2"]
    command = ["cc", *flags, *defined, byte, "main.c", "-o", "model", "-lm"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[:2000]
    ran = subprocess.run(["./model"], cwd=tmp_path, input=images.tobytes(), capture_output=True, check=True)
    assert np.array_equal(np.frombuffer(ran.stdout, want.dtype).reshape(want.shape), want)


def test_names_are_what_c_allows() -> None:
    assert identifier("my.module:build") == "my_module_build"
    assert identifier("3d-net") == "n_3d_net"
    assert identifier("日本") == "network"


def test_activations_share_memory_and_never_overlap() -> None:
    network, _, _ = lowered("squeezenet1_1")
    size = {index: int(np.prod(network.shape_of(index))) for index in range(-1, len(network.layers))}
    places, total = c_header.plan(network, size)
    assert total < 0.5 * sum(size.values())
    from accelsim.int8.walk import last_uses

    last = last_uses(network)
    for i in size:
        for j in range(i + 1, min(last.get(i, len(network.layers)), len(network.layers) - 1) + 1):
            apart = places[i] + size[i] <= places[j] or places[j] + size[j] <= places[i]
            assert apart, (i, j)
