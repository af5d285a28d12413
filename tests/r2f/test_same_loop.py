"""The same job in one process and over the bus: the same model, and the same bytes on the link, whatever the settings."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from accelsim.accelerators import build
from accelsim.datasets import Dataset, load, spread
from accelsim.faults import Rates, chip
from accelsim.faults.permanent import FaultMap
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from accelsim.timing import Array
from r2f import inprocess
from r2f.diagnosis.drive import over_the_bus as over_the_bus_diagnosed
from services.bus import Bus
from services.scheme import Port, Scheme
from services.trainer import samples
from services.trainer.core import job as jobs
from services.trainer.core import objective, viewing
from services.trainer.core import result as results
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.job import Job
from services.trainer.core.task import PAPER, Recipe, Sgd, Source
from services.trainer.remote import DeviceError
from services.trainer.table1 import serving
from tests.r2f.served import PATH, Sizes, over_the_bus, pipeline
from tests.services.trainer.core import images

ROOT = Path(__file__).resolve().parents[2]
RATES = Rates(input=2e-3, weight=2e-3, output=2e-3)
DIGITS = load("digits")


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-m", "broker", "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


@pytest.fixture(scope="module")
def network(trained: nn.Module) -> Network:
    return lower(trained, DIGITS.train_images[::5], DIGITS.mean, DIGITS.std, name="digits_cnn")


def write(folder: Path, network: Network, **settings: Any) -> Job:
    folder.mkdir()
    job = Job(
        **{
            "session": folder.name, "device": "d", "rates": RATES, "iterations": 3, "batch": 8, "sgd": Sgd(rate=0.01),
            "recipe": PAPER, "labels": "device",
            "evaluation_seeds": (1001, 1002), "evaluation_samples": 48, "evaluation_batch": 32, "seed": 3,
        } | settings
    )  # fmt: skip
    storage.save(network, folder / jobs.NETWORK)
    jobs.write(folder, job)
    return job


def evaluate(
    network: Network, rates: Rates, job: Job, scheme: Scheme, worn: FaultMap | None = None, *, data: Dataset = DIGITS,
    initial: Network | None = None,
) -> Evaluation:  # fmt: skip
    chosen = spread(job.evaluation_samples, len(data.test_images))
    truth = inprocess.reference(job, initial or network, data, chosen, PATH)
    return inprocess.evaluate(
        network, data.test_images[chosen], truth, rates, job.evaluation_seeds, scheme=scheme,
        device=job.device, batch=job.evaluation_batch, path=PATH, accelerator=build("simulated", permanent=worn),
    )  # fmt: skip


def same(
    job: Job, network: Network, folder: Path, sizes: Sizes, worn: FaultMap | None = None, data: Dataset = DIGITS
) -> inprocess.Retrained:  # fmt: skip
    """One process ends where the bus did, with as many bytes on the way."""
    peer = inprocess.retrain(network, data, job, path=PATH, accelerator=build("simulated", permanent=worn))
    found = results.read(folder)
    assert found.model_sha256 == storage.digest(peer.network)
    assert (found.iterations, found.selection) == (len(peer.iterations), peer.selection)
    kept = found.selection is not None and found.selection.deployed == "before"
    assert kept == (storage.digest(peer.network) == storage.digest(network))
    plain = job.scheme.bare
    assert found.clean_before == evaluate(network, Rates(), job, plain, worn, data=data)
    assert found.faulty_before == evaluate(network, job.rates, job, job.scheme, worn, data=data)
    assert found.clean_after == evaluate(peer.network, Rates(), job, plain, worn, data=data, initial=network)
    assert found.faulty_after == evaluate(peer.network, job.rates, job, job.scheme, worn, data=data, initial=network)
    for record in peer.iterations:
        sent = sizes[record.iteration]
        assert sent["inputs"] == record.input_bytes
        if record.repair_bytes and (job.scheme.protected or worn is not None):
            # In segments: the further the device has got when it is asked, the more it has sent that is to be mended.
            assert sent["layers"] + sent["repairs"] > record.layer_bytes
        else:
            assert (sent["layers"], sent["repairs"]) == (record.layer_bytes, record.repair_bytes)
        assert sent["model"] == record.model_bytes
    return peer


SCHEMES = {
    "chained": Scheme(),
    "chained-voted": Scheme(referee=False),
    "chained-bitwise-7": Scheme(referee=False, replicas=7, vote="bitwise"),
    "chained-inexact": Scheme(referee=False, exact=False),
    "chained-lora": Scheme(uplink_bits_per_s=50e3),
    "chained-jpeg": Scheme(jpeg=80),
    "chained-floats": Scheme(float_inputs=True),
    "chained-jpeg-floats": Scheme(jpeg=80, float_inputs=True),
    "chained-protected": Scheme(protected=(0, 2)),
    "chained-protected-voted": Scheme(protected=(0, 2), referee=False),
    "chained-ports": Scheme(ports=(Port(0, "weight"), Port(2, "input"), Port(2, "output"), Port(5, "weight"))),
    "chained-ports-protected": Scheme(protected=(2,), ports=(Port(0, "output"), Port(5, "weight")), referee=False),
    "chained-tmr-layer": Scheme(tmr="layer", vote="bitwise"),
    "chained-uncertain-layer": Scheme(tmr="layer", uncertain=60, ports=(Port(0, "weight"),)),
    "direct": Scheme(codec="direct"),
    "direct-tmr-network": Scheme(codec="direct", tmr="network", protected=(0,), vote="bitwise"),
    "direct-uncertain-network": Scheme(codec="direct", tmr="network", uncertain=60),
    "golden-tmr-network": Scheme(codec="golden", redundancy="network", tmr="network", theta=0.0),
    "direct-jpeg": Scheme(codec="direct", jpeg=80),
    "direct-protected": Scheme(codec="direct", protected=(0,), vote="bitwise"),
    "golden-layer": Scheme(codec="golden", vote="bitwise"),
    "golden-layer-threshold": Scheme(codec="golden", theta=0.8),
    "golden-network": Scheme(codec="golden", redundancy="network", theta=0.0, replicas=5),
    "golden-network-threshold": Scheme(codec="golden", redundancy="network", theta=0.8, float_inputs=True),
}


@pytest.mark.parametrize("name", SCHEMES)
async def test_every_scheme(name: str, broker: str, network: Network, tmp_path: Path) -> None:
    folder = tmp_path / name
    job = write(folder, network, scheme=SCHEMES[name])
    async with pipeline(broker, DIGITS):
        sizes = await over_the_bus(broker, folder)
    same(job, network, folder, sizes)


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(protected=(0, 4)), Scheme(referee=False)])
async def test_at_a_rate_where_votes_are_hardly_believed(scheme: Scheme, broker: str, network: Network, tmp_path: Path) -> None:
    folder = tmp_path / "wild"
    job = write(folder, network, scheme=scheme, rates=Rates(input=2e-2, weight=2e-2, output=2e-2), iterations=2)
    async with pipeline(broker, DIGITS):
        sizes = await over_the_bus(broker, folder)
    same(job, network, folder, sizes)


@pytest.mark.parametrize("labels", ["server", "teacher", "teacher-soft"])
async def test_every_source_of_labels(labels: Source, broker: str, network: Network, tmp_path: Path) -> None:
    folder = tmp_path / labels
    job = write(folder, network, labels=labels)
    np.save(folder / "train_labels.npy", DIGITS.train_labels)
    async with pipeline(broker, DIGITS):
        sizes = await over_the_bus(broker, folder)
    same(job, network, folder, sizes)


RECIPES: dict[str, dict[str, Any]] = {
    "ours": {"sgd": Sgd(), "recipe": Recipe(flip=True, shift=1, corrections=2, selection=64), "iterations": 8},
    "correct": {"method": "correct", "recipe": Recipe(selection=40), "iterations": 2},
    "epochs": {"iterations": None, "batch": 400, "recipe": replace(PAPER, epochs=1, average=0.5, selection=20, checks=2)},
    "gathered": {"iterations": 5, "recipe": replace(PAPER, accumulate=2, clean=0.5, warmup=0.5, schedule="cosine")},
    "hard": {"labels": "teacher-soft", "recipe": replace(PAPER, hard=0.3, temperature=3.0)},
    "rising": {"iterations": 4, "recipe": replace(PAPER, rate_factor=2.0, curriculum=0.5, shift=2)},
    "labelled": {"recipe": replace(PAPER, selection=30), "sgd": Sgd(rate=1e-9)},
}


# Each once; those that move images, gather gradients and try candidates under other codecs and codings of images too.
@pytest.mark.parametrize(
    ("name", "scheme"),
    [(name, "chained") for name in RECIPES]
    + [(name, scheme) for name in ("ours", "gathered") for scheme in ("chained-jpeg", "golden-layer-threshold")],
)
async def test_every_recipe(name: str, scheme: str, broker: str, network: Network, tmp_path: Path) -> None:
    folder = tmp_path / name
    job = write(folder, network, scheme=SCHEMES[scheme], **RECIPES[name])
    async with pipeline(broker, DIGITS):
        sizes = await over_the_bus(broker, folder)
    same(job, network, folder, sizes)
    found = results.read(folder).selection
    assert (found is not None) == (job.recipe.selection > 0)
    if name == "labelled":
        assert found is not None
        assert (found.against, found.deployed) == ("labels", "before")


@pytest.fixture(scope="module", params=["phases", "merged"])
def deconvolving(request: pytest.FixtureRequest) -> Network:
    """A network with a transposed convolution in it, of phases that differ."""
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(6, 5, 5, 2, 2, output_padding=1), nn.ReLU(),
        nn.Conv2d(5, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 10),
    )  # fmt: skip
    return lower(
        module.eval(), DIGITS.train_images[::9], DIGITS.mean, DIGITS.std, name="up", deconvolution=request.param
    )  # fmt: skip


@pytest.mark.parametrize("name", ["chained", "chained-protected-voted", "direct", "golden-layer"])
async def test_transposed_convolutions(name: str, broker: str, deconvolving: Network, tmp_path: Path) -> None:
    folder = tmp_path / name
    recipe = replace(PAPER, corrections=1, selection=16)
    scheme = SCHEMES[name]
    if scheme.protected:
        scheme = replace(scheme, protected=tuple(index for index, _ in deconvolving.convs())[:2])
    job = write(folder, deconvolving, scheme=scheme, iterations=4, recipe=recipe, sgd=Sgd(rate=0.05))
    async with pipeline(broker, DIGITS):
        sizes = await over_the_bus(broker, folder)
    same(job, deconvolving, folder, sizes)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("images", {"labels": "teacher-soft", "loss": "l1"}),
        ("images", {"labels": "server", "metric": "ssim", "recipe": replace(PAPER, selection=8, checks=2)}),
        ("images", {"labels": "server", "recipe": replace(PAPER, chunks=3), "scheme": Scheme(jpeg=90)}),
        ("masks", {"labels": "server"}),
        ("masks", {"labels": "teacher-soft", "recipe": Recipe(selection=8, corrections=1, flip=True)}),
        ("masks", {"labels": "teacher", "scheme": SCHEMES["golden-layer-threshold"]}),
        ("nothing", {"labels": "teacher-soft", "recipe": Recipe(selection=8, corrections=1), "evaluation_batch": 5}),
        ("classes", {"labels": "teacher", "metric": "miou"}),
    ],
)
async def test_outputs_that_are_images(kind: Any, settings: dict[str, Any], broker: str, tmp_path: Path) -> None:
    network, data, folder = images.network(), images.data(kind), tmp_path / "images"
    job = objective.settled(write(folder, network, **{"recipe": PAPER, **settings}), network, data)
    job = viewing.decided(job, network, data.train_images)
    jobs.write(folder, job)
    if data.train_targets is not None and data.test_targets is not None:
        np.save(folder / jobs.OWN["targets"], data.train_targets)
        np.save(folder / jobs.TARGETS, data.test_targets)
    async with pipeline(broker, data):
        sizes = await over_the_bus(broker, folder)
    peer = same(job, network, folder, sizes, data=data)
    assert storage.digest(peer.network) != storage.digest(network) or job.recipe.selection
    assert all(one.mismatched == 0 for one in peer.iterations) or job.scheme.codec == "golden"
    found = results.read(folder)
    assert found.faulty_before is not None
    assert len(found.faulty_before.of(job.metric or "top1")) == len(job.evaluation_seeds)
    assert len(found.faulty_before.images) == len(data.test_images)
    for name in ("clean_before", "faulty_before", "faulty_after"):
        assert samples.read(folder, name, network).shape == (samples.SHOWN, *network.layers[-1].shape)


async def test_targets_that_are_not_the_devices_are_named(broker: str, tmp_path: Path) -> None:
    network, data, folder = images.network(), images.data("images"), tmp_path / "images"
    job = objective.settled(write(folder, network, labels="server"), network, data)
    jobs.write(folder, job)
    async with pipeline(broker, data):
        np.save(folder / jobs.TARGETS, images.data("images", test=5).test_targets)
        with pytest.raises(ValueError, match=r"test_targets.npy: 5 labels, the device has 16 such samples"):
            await over_the_bus(broker, folder)
        np.save(folder / jobs.TARGETS, images.data("masks").test_targets)
        with pytest.raises(ValueError, match=r"test_targets.npy: expected uint8 of shape \(N, 12, 12, 3\)"):
            await over_the_bus(broker, folder)


CHIP = chip.random_map(Array(), 0.02, 1)
"""20 of 1024 elements: half of them have a stuck bit of the weight, half one of the accumulator."""


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known"])
@pytest.mark.parametrize("name", ["chained", "chained-voted", "chained-protected", "chained-ports", "direct", "golden-layer"])
async def test_permanent_faults(name: str, known: bool, broker: str, network: Network, tmp_path: Path) -> None:
    folder = tmp_path / name
    job = write(folder, network, scheme=SCHEMES[name], rates=Rates.uniform(1e-4), known=chip.packed(CHIP) if known else b"")
    async with pipeline(broker, DIGITS, CHIP):
        sizes = await over_the_bus(broker, folder)
    peer = same(job, network, folder, sizes, CHIP)
    assert all(one.mismatched == 0 for one in peer.iterations) or job.scheme.codec == "golden"
    if known and name == "chained":
        assert not any(one.repair_bytes for one in peer.iterations)


async def test_a_diagnosis_finds_the_chip_and_then_a_run_knows_it(broker: str, network: Network, tmp_path: Path) -> None:
    """Soft errors on top; the map that was found is the device's to the bit, so increments are those of soft errors alone."""
    rates = Rates.uniform(1e-5)
    async with pipeline(broker, DIGITS, CHIP):
        async with (
            Bus(broker, "trainer", "d", arena_bytes=16 << 20, readers=("codec-server",)) as bus,
            serving(bus, "diagnosis") as server,
        ):
            await server.ready("d")
            found = await over_the_bus_diagnosed(server, "d", Array(), rates, seed=7)
        assert chip.digest(found.faults) == chip.digest(CHIP)
        folder = tmp_path / "known"
        job = write(folder, network, rates=Rates(), known=chip.packed(found.faults))
        sizes = await over_the_bus(broker, folder)
    peer = same(job, network, folder, sizes, CHIP)
    sound = inprocess.retrain(network, DIGITS, replace(job, known=b""), path=PATH)
    assert [(one.layer_bytes, one.repair_bytes) for one in peer.iterations] == [
        (one.layer_bytes, 0) for one in sound.iterations
    ]


async def test_a_known_map_of_another_array_is_refused(broker: str, network: Network, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    write(folder, network, known=chip.packed(chip.random_map(Array(rows=16, columns=16), 0.02, 1)))
    async with pipeline(broker, DIGITS, CHIP):
        with pytest.raises(DeviceError, match=r"refused mode .* a chip with an array of 16x16, but --array has 32x32"):
            await over_the_bus(broker, folder)


async def test_runs_one_after_another_on_the_same_services(broker: str, network: Network, tmp_path: Path) -> None:
    """One stopped before its first iteration, others of the same network: no run leaves anything for the next."""
    schemes = {
        "stopped": Scheme(), "chained": Scheme(), "golden": Scheme(codec="golden", theta=0.8), "direct": Scheme(codec="direct"),
        "again": Scheme(),
    }  # fmt: skip
    found = {name: write(tmp_path / name, network, scheme=scheme, patience_s=5.0) for name, scheme in schemes.items()}
    async with pipeline(broker, DIGITS):
        stopped = asyncio.create_task(over_the_bus(broker, tmp_path / "stopped"))
        while results.read(tmp_path / "stopped").clean_before is None:  # noqa: ASYNC110  (the other end is a file)
            await asyncio.sleep(0.01)
        stopped.cancel()
        await asyncio.wait([stopped])
        for name in ("chained", "golden", "direct", "again", "stopped"):
            sizes = await over_the_bus(broker, tmp_path / name)
            # What an earlier run had sent need not cross the link again.
            for record in inprocess.retrain(network, DIGITS, found[name], path=PATH).iterations:
                sizes[record.iteration]["inputs"] = record.input_bytes
            same(found[name], network, tmp_path / name, sizes)


async def test_a_device_with_other_data_is_refused(broker: str, network: Network, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    write(folder, network, data="0123456789abcdef")
    async with pipeline(broker, DIGITS):
        with pytest.raises(ValueError, match=r"device 'd' has other classes .*0123456789abcdef; give both the same --classes"):
            await over_the_bus(broker, folder)
    assert results.read(folder) == results.Result()
