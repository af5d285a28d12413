"""What a user meets on the command line when something is wrong: one clear line, exit 1, and no run folder."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from accelsim import zoo
from r2f.cli import app

SMALL = ["--iterations", "1", "--eval-seeds", "1"]


def retrain(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["retrain", "--out", str(tmp_path / "runs"), *SMALL, *arguments])


def said(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("r2f: ")
    assert "Traceback" not in result.output
    for word in words:
        assert word in line, line


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), np.arange(24) % 10
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:8], test_labels=labels[:8])
    return str(path)


def test_an_unknown_network_is_named_with_what_there_is(tmp_path: Path) -> None:
    said(retrain(tmp_path, "--network", "resnet19"), "resnet19", "resnet20")
    assert not (tmp_path / "runs").exists()


def test_a_network_without_weights(tmp_path: Path, cifar: str) -> None:
    said(retrain(tmp_path, "--network", "resnet20", "--data", cifar), "--weights")


def test_weights_that_are_not_there(tmp_path: Path, cifar: str) -> None:
    said(retrain(tmp_path, "--network", "resnet20", "--data", cifar, "--weights", "none.safetensors"), "none.safetensors")


def test_weights_with_a_missing_and_a_misshaped_name(tmp_path: Path, cifar: str) -> None:
    tensors = {name: value.clone().contiguous() for name, value in zoo.build("resnet20").state_dict().items()}
    first = next(iter(tensors))
    path = tmp_path / "weights.safetensors"
    save_file({name: value for name, value in tensors.items() if name != first}, path)
    said(retrain(tmp_path, "--network", "resnet20", "--data", cifar, "--weights", str(path)), first)
    save_file(tensors | {first: torch.zeros(3, 1)}, path)
    said(retrain(tmp_path, "--network", "resnet20", "--data", cifar, "--weights", str(path)), first, "3")


def test_data_of_the_wrong_shape(tmp_path: Path, cifar: str) -> None:
    path = tmp_path / "weights.safetensors"
    state = zoo.build("squeezenet1_1").state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    result = retrain(tmp_path, "--network", "digits_cnn", "--data", str(tmp_path / "absent.npz"))
    said(result, "absent.npz")
    bad = tmp_path / "float.npz"
    np.savez(bad, train_images=np.zeros((4, 8, 8, 1), np.float32), train_labels=np.zeros(4, np.int64))
    said(retrain(tmp_path, "--data", str(bad)), "float.npz", "float32")


def test_an_operator_that_cannot_be_lowered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "with_response_norm.py").write_text(
        "from torch import nn\n"
        "def build(num_classes=10):\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(144, num_classes))\n"
    )
    weights = tmp_path / "weights.safetensors"
    monkeypatch.chdir(tmp_path)
    module = zoo.build("with_response_norm:build", 10)
    save_file(module.state_dict(), weights)
    said(retrain(tmp_path, "--network", "with_response_norm:build", "--weights", str(weights)), "1", "LocalResponseNorm")


def test_a_broker_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"mqtt://127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(app, ["tap", "--broker", url])
    said(result, url, "unreachable")


def test_resuming_what_is_no_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["retrain", "--resume", str(tmp_path)])
    said(result, str(tmp_path), "run.json")


def test_rates_out_of_range(tmp_path: Path) -> None:
    for option, value in (("--ber", "1.5"), ("--replicas", "4")):
        result = retrain(tmp_path, option, value)
        assert result.exit_code == 2
        assert option in result.output


def test_layers_that_are_no_numbers(tmp_path: Path) -> None:
    result = retrain(tmp_path, "--protect", "conv1")
    assert result.exit_code == 2
    assert "conv1" in result.output


@pytest.mark.parametrize("command", [[], ["demo"], ["retrain"], ["tap"], ["doctor"]])
def test_help_names_what_there_is(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output
