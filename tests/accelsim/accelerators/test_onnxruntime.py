"""ONNX Runtime behind the protocol: a step away from ours at most, exact where the processor is, faults around it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'r2f[onnx]' for the second accelerator")

from accelsim.accelerators import Accelerator, Simulated  # noqa: E402
from accelsim.accelerators.onnxruntime import OnnxAccelerator, layer_model, network_model  # noqa: E402
from accelsim.engine import Engine  # noqa: E402
from accelsim.faults import Rates  # noqa: E402
from accelsim.int8.network import INPUT, Conv, Int8, Network  # noqa: E402
from accelsim.lowering import lower  # noqa: E402
from accelsim.zoo import build  # noqa: E402
from tests.quick import few_rounds  # noqa: E402

SHAPES = {"digits_cnn": (8, 8, 1), "resnet20": (32, 32, 3)}


class Mixed(nn.Module):
    """What the zoo does not have: tables, a gate, a crop with zeros, pools with padding, a sum of three scales."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.c, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8 * 5 * 5, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.a(x))
        y = nn.functional.avg_pool2d(self.b(x), 3, 2, 1) + nn.functional.max_pool2d(x, 3, 2, 1) * 0.3
        y = y * torch.sigmoid(self.c(y.mean((2, 3), keepdim=True)))
        y = nn.functional.pad(y[:, :, 1:, :4], (0, 1, 2, 0))[:, :, 1:6]
        out: torch.Tensor = self.fc(y.flatten(1))
        return out


@functools.cache  # several tests look at the same ones
def _lowered(name: str) -> tuple[Network, Int8]:
    torch.manual_seed(2)
    shape = SHAPES.get(name, (12, 12, 3) if name == "mixed" else (48, 48, 3))
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)
    module = Mixed() if name == "mixed" else build(name, 10)
    with few_rounds():
        network = lower(module, images, (0.5,) * shape[2], (0.25,) * shape[2], name)
    return network, network.quantize_images(images)


@pytest.mark.parametrize("name", ["digits_cnn", "resnet20", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "mixed"])
def test_every_layer_is_a_step_away_at_most(name: str) -> None:
    network, x = _lowered(name)
    accelerator, engine = OnnxAccelerator(), Engine(network)
    accelerator.load(network)
    outputs = accelerator.run(x)
    assert len(outputs) == len(network.layers)
    differing = total = 0
    for index, layer in enumerate(network.layers):
        operands = [x if i == INPUT else outputs[i] for i in layer.inputs]
        want = engine.fault_free(index, operands)
        assert outputs[index].dtype == layer.dtype
        assert outputs[index].shape == want.shape
        assert outputs[index].flags.c_contiguous
        distance = np.abs(outputs[index].astype(np.int16) - want.astype(np.int16))
        if isinstance(layer, Conv):
            assert distance.max() <= 1
            differing, total = differing + int((distance > 0).sum()), total + distance.size
            assert np.array_equal(accelerator.run_layer(index, operands[0]), outputs[index])
        else:
            assert not distance.any()
    assert differing <= 0.02 * total


def test_it_is_an_accelerator() -> None:
    accelerator: Accelerator = OnnxAccelerator()
    with pytest.raises(RuntimeError, match="load"):
        accelerator.run_layer(0, np.zeros((1, 8, 8, 1), np.int8))


def test_soft_errors_are_those_of_the_simulated_accelerator() -> None:
    """On the same keys, so that experiments can swap the device and keep the faults."""
    network, x = _lowered("resnet20")
    rates = Rates.uniform(1e-3)
    ours, theirs = Simulated(rates, 5, "d"), OnnxAccelerator(rates, 5, "d")
    ours.load(network)
    theirs.load(network)
    a, b = (device.run_replicas(0, x, iteration=3, count=3) for device in (ours, theirs))
    exact = Engine(network).fault_free(0, [x])
    for y, z in zip(a, b, strict=True):
        assert (y != exact).mean() > 0.01
        assert (y != z).mean() < 0.02 * (y != exact).mean() + 1e-4
    assert not np.array_equal(b[0], b[1])
    assert np.array_equal(theirs.run_layer(0, x, iteration=3, replica=2), b[2])
    outputs = theirs.run(x, iteration=3)
    assert np.array_equal(outputs[0], b[0])
    assert len(outputs) == len(network.layers)


def test_accumulators_are_out_of_reach() -> None:
    network, x = _lowered("digits_cnn")
    accelerator = OnnxAccelerator(Rates(accumulator=1e-3))
    accelerator.load(network)
    with pytest.raises(ValueError, match="accumulator"):
        accelerator.run_layer(0, x)


def test_only_mac_layers_have_models() -> None:
    network, _ = _lowered("digits_cnn")
    index = next(i for i, layer in enumerate(network.layers) if not isinstance(layer, Conv))
    with pytest.raises(ValueError, match=f"layer {index}"):
        layer_model(network, index)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "squeezenet1_1", "mixed"])
def test_the_fast_export_is_the_same_network(name: str) -> None:
    network, x = _lowered(name)
    session = onnxruntime.InferenceSession(network_model(network, exact=False), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2))})
    want = Engine(network).run(x)[-1].reshape(len(x), -1)
    assert np.abs(y.reshape(len(x), -1).astype(np.int16) - want).max() <= 6
