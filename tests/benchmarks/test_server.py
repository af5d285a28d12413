"""The benchmark's numbers: what is divided by what, and that its server does an iteration's work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from accelsim.int8.parameters import quantize
from benchmarks import server
from tests.benchmarks.test_accelerator import small


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    rounds = [dict.fromkeys(server.STAGES, second / len(server.STAGES)) for second in (1.0, 2.0, 9.0)]
    found = server.report(rounds, {"torch": [2.0, 10.0, 3.0]})
    assert found["server_vs_torch"] == pytest.approx(0.5)
    assert found["ms"]["server"] == pytest.approx(2000)
    assert found["ms"]["torch"] == pytest.approx(3000)


def test_a_step_trains_on_what_the_device_computed() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    network = server.lowering.lower(pooled(), images, (0.5,) * 3, (0.25,) * 3, "small")
    made = server.Server(network, images, np.arange(8) % 4, 1e-3)
    assert set(made.step()) == set(server.STAGES)
    first = {index: weight.copy() for index, (weight, _) in made.trained.items()}
    made.step()
    for index, (weight, _) in made.trained.items():
        assert not np.array_equal(weight, made.parameters[index][0]), "the optimiser moved nothing"
        assert np.array_equal(weight, first[index]), "a step does not start from the same parameters"
    assert quantize(made.network, made.parameters).layers[0].weight.tobytes() == made.network.layers[0].weight.tobytes()


def pooled():
    return torch.nn.Sequential(small(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, where the float network is folded
def test_the_command_writes_its_numbers(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(server.main)
    file = tmp_path / "server.json"
    options = ["--network", "resnet20", "--side", "32", "--batch", "2", "--rounds", "1", "--json", str(file)]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text())
    assert report["batch"] == 2
    assert report["weights"] == "random"
    for name in ("server_vs_torch", "server_vs_torch_folded"):
        assert report[name] > 0
    assert report["ms"]["server"] > report["ms"]["replay"] > 0
