from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console
from torch import nn

from accelsim.datasets import Dataset, load
from accelsim.engine import reference
from accelsim.faults import Rates
from accelsim.int8 import storage
from r2f import float_training, run
from r2f.display import Display
from services.trainer.core import job

SETTINGS = run.Settings(network=run.DEMO_NETWORK, rates=Rates(weight=1e-3), iterations=2, seed=5, evaluation_samples=64)


def test_a_folder_holds_all_that_a_run_needs(tmp_path: Path, trained: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def train(build: Callable[[], nn.Module], data: Dataset, *, seed: int) -> nn.Module:
        asked.append(seed)
        assert type(build()) is type(trained)
        return trained

    monkeypatch.setattr(float_training, "train", train)
    folder = tmp_path / "run"
    with Display(Console(quiet=True)) as live:
        run.prepare(msgspec.structs.replace(SETTINGS, labels="server"), folder, live)
    assert asked == [5], "the demo's network is trained here where no weights are given"
    assert run.read_settings(folder) == msgspec.structs.replace(SETTINGS, labels="server")
    assert job.read(folder).session == "run"
    data = load("digits")
    np.testing.assert_array_equal(np.load(folder / "train_labels.npy"), data.train_labels)
    network = storage.load(folder / job.NETWORK)
    answers = reference.run(network, network.quantize_images(data.test_images[:64]))[-1].reshape(64, -1).argmax(axis=1)
    assert np.mean(answers == data.test_labels[:64]) > 0.9


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.json is missing"):
        run.read_settings(tmp_path)
    (tmp_path / run.FILE).write_text('{"network": 3}')
    with pytest.raises(ValueError, match=r"run\.json: .*network"):
        run.read_settings(tmp_path)


def test_new_folders_have_names_that_are_not_taken(tmp_path: Path) -> None:
    first = run.new_folder(tmp_path, "mine:build/it")
    assert first.name.endswith("-mine-build-it")
    first.mkdir()
    assert run.new_folder(tmp_path, "mine:build/it") != first
