"""The five networks: where their weights come from, and that a random one is as spread as a trained one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from accelsim import zoo
from accelsim.int8 import storage
from experiments.common import networks
from experiments.common.command import InputError
from experiments.common.networks import FIVE, Source, float_weights, int8_network, photos, stored

SMALL = Source("Small", "resnet20", None)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)


def test_the_papers_five() -> None:
    assert [source.paper for source in FIVE] == ["ResNet18", "ResNet50", "MobileNet", "ShuffleNet", "SqueezeNet"]
    assert [source.paper for source in FIVE if source.weights] == ["MobileNet", "SqueezeNet"]


def test_lowered_once_and_then_read(images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stored(SMALL, tmp_path / "absent", images, tmp_path / "cache")
    monkeypatch.setattr(networks, "int8_network", None)
    again = stored(SMALL, tmp_path / "absent", images, tmp_path / "cache")
    assert storage.digest(again) == storage.digest(first)


def test_random_weights_are_the_same_float_and_int8(images: np.ndarray, tmp_path: Path) -> None:
    path = float_weights(SMALL, tmp_path / "absent", images, tmp_path)
    before = path.stat().st_mtime_ns
    assert float_weights(SMALL, tmp_path / "absent", images, tmp_path) == path
    assert path.stat().st_mtime_ns == before
    torch.manual_seed(0)
    fresh = zoo.build("resnet20").state_dict()
    written = load_file(path)
    assert all(torch.equal(written[name], value) for name, value in fresh.items() if "conv" in name)
    means = [name for name in fresh if name.endswith("running_mean")]
    assert means
    assert not any(torch.equal(written[name], fresh[name]) for name in means)  # the images' own
    assert storage.digest(int8_network("resnet20", path, images)) == storage.digest(int8_network("resnet20", None, images))


def test_what_is_missing_is_named(images: np.ndarray, tmp_path: Path) -> None:
    given = Source("Given", "resnet20", "given.safetensors")
    for work in (
        lambda: stored(given, tmp_path, images, tmp_path / "cache"),
        lambda: float_weights(given, tmp_path, images, tmp_path / "cache"),
    ):
        with pytest.raises(InputError, match=r"weights/given.safetensors: not found\. This experiment reads real photos"):
            work()
    with pytest.raises(InputError, match=r"data/imagenet224.npz: not found"):
        photos(tmp_path)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "imagenet224.npz", train_images=images)
    np.testing.assert_array_equal(photos(tmp_path), images)
