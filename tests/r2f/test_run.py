from __future__ import annotations

import stat
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
from r2f import float_training, folders, prepare, run
from r2f import settings as settings_file
from r2f.display import Display
from r2f.settings import DEMO_NETWORK, Settings
from services.trainer.core import job

SETTINGS = Settings(network=DEMO_NETWORK, rates=Rates(weight=1e-3), iterations=2, seed=5, evaluation_samples=64)


def test_a_folder_holds_all_that_a_run_needs(tmp_path: Path, trained: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def train(build: Callable[[], nn.Module], data: Dataset, *, seed: int) -> nn.Module:
        asked.append(seed)
        assert type(build()) is type(trained)
        return trained

    monkeypatch.setattr(float_training, "train", train)
    folder = tmp_path / "run"
    settings = msgspec.structs.replace(SETTINGS, labels="server")
    with Display(Console(quiet=True)) as display:
        prepare.prepare(settings, folder, display)
    assert asked == [5], "the demo's network is trained here where no weights are given"
    assert run.read_settings(folder) == settings
    assert stat.S_IMODE((folder / settings_file.FILE).stat().st_mode) == 0o600
    assert job.read(folder).session == "run"
    data = load("digits")
    assert job.read(folder).data == data.digest()
    np.testing.assert_array_equal(np.load(folder / "train_labels.npy"), data.train_labels)
    network = storage.load(folder / job.NETWORK)
    answers = reference.run(network, network.quantize_images(data.test_images[:64]))[-1].reshape(64, -1).argmax(axis=1)
    assert np.mean(answers == data.test_labels[:64]) > 0.9
    prepared = prepare.read(folder)
    places = np.linspace(0, len(data.test_images) - 1, 64).astype(int)
    expected = float_training.evaluate(trained, data.test_images[places], data.test_labels[places], data)
    assert prepared.float_accuracy == expected, "the float row is of the images of the other rows"
    assert (expected.samples, prepared.mean, prepared.std) == (64, data.mean, data.std)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run is there: run\.toml is missing"):
        run.read_settings(tmp_path)
    (tmp_path / settings_file.FILE).write_text("network = 3")
    with pytest.raises(ValueError, match=r"run\.toml: --network 3"):
        run.read_settings(tmp_path)


def test_new_folders_have_names_that_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    with folders.new(tmp_path, "mine:build/it") as first, folders.new(tmp_path, "mine:build/it") as second:
        assert first.is_dir()
        assert (first.name, second.name) == ("20260101-000000-mine-build-it", "20260101-000000-mine-build-it-2")
        settings_file.write(second, SETTINGS)
    assert not first.exists(), "nothing came of it"
    assert second.is_dir()


def test_nothing_is_left_of_a_run_that_never_began(tmp_path: Path) -> None:
    with folders.new(tmp_path / "a" / "b", "x") as folder:
        (folder / "network.safetensors").write_bytes(b"half")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with folders.new(tmp_path / "mine", "x"):
        pass
    assert (tmp_path / "mine").is_dir(), "it was there before"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file: run folders cannot be made there"), folders.new(tmp_path / "file", "x"):
        pass


def test_a_folder_is_not_prepared_twice(tmp_path: Path) -> None:
    settings_file.write(tmp_path, SETTINGS)
    with Display(Console(quiet=True)) as display, pytest.raises(ValueError, match="a run is there already"):
        prepare.prepare(SETTINGS, tmp_path, display)


def test_two_on_one_folder(tmp_path: Path) -> None:
    assert not folders.is_running(tmp_path)
    with folders.locked(tmp_path):
        assert folders.is_running(tmp_path)
        with pytest.raises(ValueError, match="another r2f works on this run"), folders.locked(tmp_path):
            pass
        assert folders.is_running(tmp_path), "the first one is untouched"
    assert not folders.is_running(tmp_path)


def test_the_broker_of_the_newest_running_run_is_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run is going on"):
        folders.newest_running(tmp_path)
    for name in ("1", "2", "3"):
        (tmp_path / name).mkdir()
        settings_file.write(tmp_path / name, msgspec.structs.replace(SETTINGS, device=f"edge-{name}"))
        (tmp_path / name / folders.BROKER).write_text(f"mqtt://127.0.0.1:{name}\n")
    with folders.locked(tmp_path / "1"), folders.locked(tmp_path / "2"):
        assert folders.newest_running(tmp_path) == tmp_path / "2"
        assert folders.broker_of(tmp_path / "2") == ("mqtt://127.0.0.1:2", "edge-2")
        assert folders.broker_of(tmp_path / "1") == ("mqtt://127.0.0.1:1", "edge-1")
    with pytest.raises(ValueError, match="not going on"):
        folders.broker_of(tmp_path / "1")
    states = {one.folder.name: one.state for one in folders.all_runs(tmp_path)}
    assert states == dict.fromkeys("123", "stopped")
    (tmp_path / "3" / settings_file.FILE).write_text("lr = -1")
    assert folders.look(tmp_path / "3").state == "damaged"
