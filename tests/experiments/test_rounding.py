"""Devices that round otherwise: nothing is wrong on the server, and what it costs is what was counted."""

from __future__ import annotations

import numpy as np
import pytest

from accelsim.accelerators import Simulated
from accelsim.engine import reference

pytest.importorskip("onnxruntime", reason="pip install 'r2f[onnx]' for the device that is not ours")

from experiments import rounding


def test_rounding_down_is_rounding_down() -> None:
    network, data = rounding.random("resnet20")
    x = network.quantize_images(data.test_images[:2])
    device = rounding.Truncating()
    device.load(network)
    (index, layer), *_ = network.convs()
    want = np.floor(reference.accumulators(layer, x).astype(np.float64) * layer.multiplier).clip(layer.low, layer.high)
    assert (device.run_layer(index, x) == want).mean() > 0.97, "a bias is rounded, too"
    assert isinstance(device, Simulated)


def test_differences_cost_bytes_and_nothing_else() -> None:
    rows = {row["accelerator"]: row for row in rounding.measured(*rounding.digits())}
    assert [row["wrong"] for row in rows.values()] == [0, 0, 0]
    assert float(rows["simulated"]["layers"]) < 100
    assert 0.05 < float(rows["rounding down"]["layers"]) / float(rows["rounding down"]["raw"]) < 0.2
