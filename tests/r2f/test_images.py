"""Whole runs of networks whose output is an image: a generator over the bus, and what is refused before anything runs."""

from __future__ import annotations

import dataclasses
import json
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

import r2f
from accelsim.datasets import Dataset, load
from accelsim.datasets.dataset import DataError
from r2f import float_training, folders, prepare, report, tables
from r2f.display import Display
from r2f.settings import SettingsError, parse
from services.trainer.core import job as jobs
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.fleet import Fleet
from tests.services.trainer.core import images

MODULES = Path(__file__).parent


class Generator(nn.Module):
    """(N, 6, 1, 1) to (N, 3, 8, 8), -1 black and 1 white."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.ConvTranspose2d(6, 16, 4), nn.ConvTranspose2d(16, 3, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.relu(self.first(z))))


class Upside(nn.Module):
    """An image network (N, 3, 8, 8) to the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def weights(module: nn.Module, path: Path) -> str:
    save_file(module.state_dict(), path)
    return str(path)


@pytest.fixture
def generator(tmp_path: Path) -> str:
    torch.manual_seed(0)
    module = Generator()
    with torch.no_grad():
        module.second.weight.mul_(6.0)
    return weights(module, tmp_path / "generator.safetensors")


def test_a_generator_is_retrained_over_the_bus_against_its_own_fault_free_images(generator: str, tmp_path: Path) -> None:
    found = r2f.retrain(
        out=tmp_path / "runs", quiet=True, network="test_images:Generator", modules=str(MODULES), weights=generator,
        data="latents:6:64", ber=2e-3, iterations=6, batch=8, selection_samples=8, corrections=1, eval_seeds=2, eval_samples=12,
    )  # fmt: skip
    folder = Path(found.folder)
    assert (found.metric, found.against, found.sheet) == ("psnr", "fault-free outputs", "samples.png")
    assert jobs.read(folder).output_range == (-1.0, 1.0)
    # Without faults the network from before is what it is measured against.
    assert found.accuracy.int8.mean == pytest.approx(58.92, abs=0.01)
    assert 5 < found.accuracy.faulty_before.mean < found.accuracy.float_.mean < 58
    assert found.fidelity.mismatched == 0
    with Image.open(folder / found.sheet) as sheet:
        assert min(sheet.size) > 500
    text = printed(found)
    assert "PSNR" in text
    assert "dB" in text
    assert "there is no ground truth" in text
    (row,) = folders.all_runs(tmp_path / "runs")
    assert (row.metric, row.before) == ("psnr", pytest.approx(found.accuracy.faulty_before.mean))
    again = json.loads((folder / "report.json").read_text())
    assert again["metric"] == "psnr"


def printed(found: report.Report) -> str:
    written = StringIO()
    Console(width=120, file=written).print(tables.table(found))
    return written.getvalue()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metric": "top1"}, "--metric top1: means nothing for outputs of 8x8x3; .* can have psnr, ssim, miou"),
        ({"labels": "device"}, "--labels device: targets that are images do not cross the link"),
        ({"labels": "server"}, "--labels server: latents:6:64 has no targets"),
        ({"loss": "cross-entropy", "metric": "psnr"}, "--loss cross-entropy: does not lead to a better PSNR; give l1 or l2"),
    ],
)
def test_what_a_generator_cannot_have(given: dict[str, Any], said: str, generator: str, tmp_path: Path) -> None:
    settings = parse(
        {"network": "test_images:Generator", "modules": str(MODULES), "weights": generator, "data": "latents:6:64", **given}
    )
    with Display(Console(quiet=True)) as say, pytest.raises(SettingsError, match=said):
        prepare.prepare(settings, tmp_path / "run", say)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metric": "psnr"}, "--metric psnr: means nothing for outputs of 1x1x10; network digits_cnn can have top1, top5"),
        ({"metric": "miou"}, "--metric miou: means nothing for outputs of 1x1x10"),
        ({"loss": "l2"}, "--loss l2: does not lead to a better top-1; give cross-entropy"),
        ({"network": "shapes_unet", "data": "shapes", "metric": "psnr"}, "has masks as targets, which allow miou"),
        ({"network": "shapes_unet", "data": "shapes", "metric": "top1"}, "--metric top1: means nothing for outputs of 64x64x4"),
        ({"network": "crops_sr2x", "data": "crops2x", "metric": "miou"}, "--metric miou: crops2x has images as targets"),
    ],
)
def test_what_does_not_fit_a_network_is_said_before_it_is_trained(
    given: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(prepare.float_training, "from_nothing")
    state = torch.random.get_rng_state()
    with Display(Console(quiet=True)) as say, pytest.raises(SettingsError, match=said):
        prepare.prepare(parse(given), tmp_path / "run", say)
    assert not (tmp_path / "run").exists()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_does_not_fit_trained_weights_is_said_before_they_are_quantised(
    generator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(prepare, "lowered")
    given = {"network": "test_images:Generator", "modules": str(MODULES), "weights": generator, "data": "latents:6:64"}
    with Display(Console(quiet=True)) as say, pytest.raises(SettingsError, match="--metric top5: means nothing"):
        prepare.prepare(parse({**given, "metric": "top5"}), tmp_path / "run", say)


def test_targets_of_another_size_are_refused(tmp_path: Path) -> None:
    small = np.zeros((32, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "pairs.npz", train_images=small, train_targets=np.zeros((32, 16, 16, 3), np.uint8))
    path = weights(Upside(), tmp_path / "upside.safetensors")
    settings = parse(
        {"network": "test_images:Upside", "modules": str(MODULES), "weights": path, "data": str(tmp_path / "pairs.npz")}
    )
    with (
        Display(Console(quiet=True)) as say,
        pytest.raises(DataError, match=r"train_targets are 16x16x3, network test_images:Upside gives 8x8x3; targets have"),
    ):
        prepare.prepare(settings, tmp_path / "run", say)


def test_a_classifier_on_targets_and_an_untrained_network_on_other_data_are_refused(weights: str, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "pairs.npz",
        train_images=np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8),
        train_targets=np.zeros((64, 8, 8, 1), np.uint8),
    )
    with Display(Console(quiet=True)) as say:
        with pytest.raises(DataError, match="has images as targets, network digits_cnn gives 1x1x10"):
            prepare.prepare(parse({"weights": weights, "data": str(tmp_path / "pairs.npz")}), tmp_path / "run", say)
        with pytest.raises(SettingsError, match="shapes_unet is trained here on masks as targets, as --data shapes has"):
            prepare.prepare(parse({"network": "shapes_unet"}), tmp_path / "run", say)


def test_other_commands_refuse_targets_by_name() -> None:
    """Those that know classes alone: ``Dataset.check`` takes image networks only where it is told to."""
    network = prepare.lowered(parse({}), pairs(), Upside())
    with pytest.raises(DataError, match="images as targets, network digits_cnn gives 12x12x3; this needs images with"):
        pairs().check(network)
    pairs().check(network, images=True)


def pairs() -> Dataset:
    return images.data("images")


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ([20.0, 21.0], [20.5, 21.5], "better"),
        ([20.5, 21.5], [20.0, 21.0], "worse"),
        ([20.0, 21.0], [21.5, 20.0], "within error"),
    ],
)
def test_the_verdict_on_images_pairs_seeds_and_images(before: list[float], after: list[float], wanted: str) -> None:
    gain = np.mean(after) - np.mean(before)
    own = np.linspace(10, 30, 40)
    one = Evaluation(samples=40, psnr=before, images=own.tolist())
    other = Evaluation(samples=40, psnr=after, images=(own + gain).tolist())
    assert report.judged("psnr", one, other) == wanted
    noisy = msgspec.structs.replace(other, images=(own + gain + np.tile([9.0, -9.0], 20)).tolist())
    assert report.judged("psnr", one, noisy) == "within error"


def test_training_images_from_nothing_learns_and_is_the_same_again() -> None:
    """A network of one layer learns a colour's half."""
    data = load("latents:3:64")
    targets = np.repeat(np.repeat(data.train_images[..., :3] // 2, 2, 1), 2, 2)

    paired = dataclasses.replace(data, latents=False, train_targets=targets, test_targets=targets[:4])

    def build() -> nn.Module:
        return nn.ConvTranspose2d(3, 3, 2, 2)

    one = float_training.train_images(build, paired, epochs=60)
    again = float_training.train_images(build, paired, epochs=60)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    given = one(float_training.normalised(paired.train_images, paired))
    error = (given - torch.from_numpy(targets).permute(0, 3, 1, 2) / 255).square().mean()
    untrained = build()(float_training.normalised(paired.train_images, paired))
    assert error < 0.1 * (untrained - torch.from_numpy(targets).permute(0, 3, 1, 2) / 255).square().mean()
    with pytest.raises(ValueError, match="has no targets to train"):
        float_training.train_images(build, data)


@pytest.mark.parametrize("sharing", ["own", "common"])
def test_each_of_several_devices_has_the_targets_that_it_is_evaluated_with(sharing: Any, tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "pairs.npz", train_images=small, train_targets=small)
    given = {"network": "test_images:Upside", "modules": str(MODULES), "data": str(tmp_path / "pairs.npz"), "batch": 4}
    settings = parse({**given, "weights": weights(Upside(), tmp_path / "upside.safetensors"), "fleet": sharing})
    with Display(Console(quiet=True)) as say:
        prepare.prepare(settings, tmp_path / "run", say, Fleet(devices=("a", "b"), sharing=sharing))
    for device in "ab":
        np.testing.assert_array_equal(np.load(tmp_path / "run" / device / jobs.TARGETS), small[3::4])
