"""The benchmark's numbers: which time is divided by which, and that each row does what its name says."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from accelsim.accelerators import Simulated
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.lowering import lower, normalise
from benchmarks import accelerator, chained_step, peers

MS = {"torch_float32": 100.0, "forward": 40.0, "faulty": 50.0, "chained": 90.0, "onnxruntime_int8": 400.0, "pytorchfi": 1500.0}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU()).eval()


def test_ratios_divide_what_they_say() -> None:
    assert accelerator.ratios(MS) == {
        "forward_vs_torch": 0.4, "faulty_vs_forward": 1.25, "chained_vs_forward": 2.25, "vs_pytorchfi": 30.0,
        "forward_vs_onnxruntime": 0.1,
    }  # fmt: skip
    without = accelerator.ratios({name: MS[name] for name in ("torch_float32", "forward", "faulty", "chained")})
    assert without["vs_pytorchfi"] is without["forward_vs_onnxruntime"] is None


def test_the_table_shows_them_beside_what_they_must_be() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(accelerator.table("net", accelerator.ratios(MS) | {"vs_pytorchfi": None}, 612.3, MS))
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in out.getvalue().splitlines() if line.startswith("│")
    ]
    assert rows[:6] == [
        ["forward_vs_torch", "0.4", "<= 1.0", "<= 0.5"],
        ["faulty_vs_forward", "1.25", "<= 1.5", "<= 1.15"],
        ["chained_vs_forward", "2.25", "<= 3.0", "<= 2.0"],
        ["vs_pytorchfi", "-", ">= 5", ">= 20"],
        ["forward_vs_onnxruntime", "0.1", "", ""],
        ["peak_mb", "612.3", "<= 1500", "<= 800"],
    ]
    assert [row[:2] for row in rows[6:]] == [[f"{name} ms", f"{value:.4g}"] for name, value in MS.items()]


def test_each_row_is_its_fastest_round_and_the_second_call_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    costs = {"a": iter([9, 3, 9, 2, 9, 4]), "b": iter([1, 7, 1, 8, 1, 6])}
    order: list[str] = []

    def row(name: str) -> None:
        nonlocal now
        now += next(costs[name])
        order.append(name)

    monkeypatch.setattr(accelerator.time, "perf_counter", lambda: now)
    assert accelerator.fastest({"a": lambda: row("a"), "b": lambda: row("b")}, 3) == {"a": 2000.0, "b": 6000.0}
    assert order == ["a", "a", "b", "b"] * 3


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.fx itself
def test_every_row_does_its_own_work(monkeypatch: pytest.MonkeyPatch) -> None:
    module = small()
    images = accelerator.photos(None, 4, 16)
    network = lower(module, images, accelerator.IMAGENET_MEAN, accelerator.IMAGENET_STD, "small")
    rows: dict[str, peers.Run] = {}
    monkeypatch.setattr(accelerator, "fastest", lambda given, rounds: rows.update(given) or dict.fromkeys(given, 1.0))
    found = accelerator.measure(network, module, images, 1e-2, 1, fi=False)
    assert set(found) == {"torch_float32", "forward", "faulty", "chained", "onnxruntime_int8"}
    x = network.quantize_images(images)
    with torch.no_grad():
        want = module(normalise(images, accelerator.IMAGENET_MEAN, accelerator.IMAGENET_STD))
    torch.testing.assert_close(rows["torch_float32"](), want, rtol=1e-4, atol=1e-4)
    clean = Engine(network).run(x)[-1]
    np.testing.assert_array_equal(rows["forward"]()[-1], clean)
    device = Simulated(Rates.uniform(1e-2))
    device.load(network)
    # Every call has faults of its own.
    for iteration in (1, 2):
        faulty = rows["faulty"]()[-1]
        np.testing.assert_array_equal(faulty, device.run(x, iteration=iteration)[-1])
        assert (faulty != clean).any()
    np.testing.assert_array_equal(rows["chained"]()[-1], device.run(x, iteration=3)[-1])
    steps = rows["onnxruntime_int8"]()[-1].transpose(0, 2, 3, 1).astype(int) - clean
    assert np.abs(steps).max() <= 1


def test_a_chained_step_votes_on_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    images = accelerator.photos(None, 2, 16)
    network = lower(small(), images, accelerator.IMAGENET_MEAN, accelerator.IMAGENET_STD, "small")
    device = Simulated(Rates.uniform(1e-3))
    device.load(network)
    votes = []
    monkeypatch.setattr(chained_step, "vote", lambda replicas, kind: votes.append((len(replicas), kind)))
    chained_step.chained(device, network.quantize_images(images), 1)
    assert set(votes) == {(3, "median")}
    assert len(votes) >= len(list(network.convs()))


def test_the_peak_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = accelerator.photos(None, 4, 16)
    network = lower(small(), images, accelerator.IMAGENET_MEAN, accelerator.IMAGENET_STD, "small")
    storage.save(network, tmp_path / "n.safetensors")
    np.savez(tmp_path / "i.npz", val_images=images)
    # Interpreter, torch and the kernels, and nothing of what this process holds.
    ballast = np.ones(500_000_000, np.uint8)
    found = accelerator.peak_mb(tmp_path / "n.safetensors", tmp_path / "i.npz", 1e-3, 1)
    held = int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024 / 1e6
    assert 100 < found < held - 200 < held
    assert ballast[-1] == 1


@pytest.fixture
def program() -> typer.Typer:
    app = typer.Typer()
    app.command()(accelerator.main)
    return app


def test_the_program_writes_what_it_measured(program: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "warm", lambda: None)
    monkeypatch.setattr(accelerator, "peak_mb", lambda *given: 612.5)
    monkeypatch.setattr(accelerator, "measure", lambda *given: MS)
    given = [
        "--network",
        "resnet20",
        "--side",
        "32",
        "--json",
        str(tmp_path / "a.json"),
        "--threads",
        str(torch.get_num_threads()),
    ]
    done = CliRunner().invoke(program, given)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "a.json").read_bytes())
    assert report == report | accelerator.ratios(MS) | {"peak_mb": 612.5, "ms": MS, "network": "resnet20", "batch": 16}
    assert "612.5" in done.output


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--rounds", "0"], "'--rounds'"),
        (["--ber", "2"], "'--ber'"),
        (["--threads", "0"], "'--threads'"),
        (["--weights", "absent.safetensors"], "'--weights'"),
        (["--data", "absent.npz"], "'--data'"),
        (["--network", "resnet99"], "resnet99"),
    ],
)
def test_an_argument_that_means_nothing(program: typer.Typer, given: list[str], says: str) -> None:
    done = CliRunner().invoke(program, given)
    assert done.exit_code == 2
    assert says in done.output


def test_a_peer_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorchfi.core", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    reason = peers.pytorchfi(small(), torch.zeros(1, 3, 8, 8), 1, 1)
    assert isinstance(reason, str)
    assert "pip install --no-deps pytorchfi" in reason
    network = lower(small(), accelerator.photos(None, 2, 16), accelerator.IMAGENET_MEAN, accelerator.IMAGENET_STD, "small")
    assert isinstance(peers.onnxruntime_int8(network, network.quantize_images(accelerator.photos(None, 2, 16))), str)
