"""The same job in one process and over the bus: the same model, and the same bytes on the link, whatever the settings."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from accelsim.accelerators import Simulated
from accelsim.datasets import Dataset, load
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from accelsim.timing import Array
from r2f import inprocess
from services.bus import Bus
from services.bus.messages import EncodedInputs, EncodedLayers, EncodedModel, EncodedRepair
from services.codec.device_side import DeviceCodec
from services.codec.server_side import ServerCodec
from services.edge_agent.agent import Agent, Device
from services.scheme import Scheme
from services.trainer import training
from services.trainer.core import job as jobs
from services.trainer.core import result as results
from services.trainer.core.job import Job
from services.trainer.core.optimiser import Sgd
from services.voter import voter

ROOT = Path(__file__).resolve().parents[2]
PATH = "auto"
RATES = Rates(input=2e-3, weight=2e-3, output=2e-3)
DIGITS = load("digits")

Sizes = dict[int, dict[str, int]]
"""Bytes of the bodies on the link by iteration and kind."""


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


@asynccontextmanager
async def pipeline(url: str, data: Dataset) -> AsyncIterator[None]:
    """Every service but the trainer, each on a connection of its own."""

    def simulated(rates: Rates, seed: int, device: str) -> Simulated:
        return Simulated(rates, seed, device, PATH)

    served: dict[str, tuple[tuple[str, ...], Callable[[Bus], Coroutine[Any, Any, None]]]] = {
        "agent": (("voter", "codec-device"), lambda bus: Agent(bus, Device(data, simulated, Array(), PATH)).serve()),
        "voter": (("codec-device", "agent"), voter.serve),
        "codec-device": (("agent",), lambda bus: DeviceCodec(bus, PATH, 64 << 20).serve()),
        "codec-server": (("trainer",), lambda bus: ServerCodec(bus, PATH).serve()),
    }

    async def serve(name: str) -> None:
        readers, service = served[name]
        async with Bus(url, name, "d", arena_bytes=16 << 20, readers=readers) as bus:
            await service(bus)

    tasks = [asyncio.create_task(serve(name)) for name in served]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def watch(bus: Bus, sizes: Sizes) -> None:
    """Add up the bodies that cross the link, the repeats of a repeated iteration too."""
    async for _, message in bus:
        match message:
            case EncodedInputs():
                sizes[message.iteration]["inputs"] += len(message.fresh)
            case EncodedLayers():
                sizes[message.iteration]["layers"] += sum(len(layer.body) for layer in message.layers)
            case EncodedRepair():
                sizes[message.iteration]["repairs"] += sum(len(layer.body) for layer in message.layers)
            case EncodedModel() if message.iteration >= 0:
                sizes[message.iteration]["model"] = len(message.body)


async def over_the_bus(url: str, folder: Path) -> Sizes:
    """Do the job of a run's folder on the pipeline that is there."""
    sizes: Sizes = defaultdict(lambda: defaultdict(int))
    async with (
        Bus(url, "watch", "d", passive=True) as tap,
        Bus(url, "trainer", "d", arena_bytes=16 << 20, readers=("codec-server",)) as bus,
    ):
        await tap.subscribe("up/#", "down/#")
        watching = asyncio.create_task(watch(tap, sizes))
        await training.run(bus, folder, PATH)
        await asyncio.sleep(0.1)
        watching.cancel()
    return sizes


def write(folder: Path, network: Network, **settings: Any) -> Job:
    folder.mkdir()
    job = Job(
        **{
            "session": folder.name, "device": "d", "rates": RATES, "iterations": 3, "batch": 8, "sgd": Sgd(rate=0.01),
            "evaluation_seeds": (1001, 1002), "evaluation_samples": 48, "evaluation_batch": 32, "seed": 3,
        } | settings
    )  # fmt: skip
    storage.save(network, folder / jobs.NETWORK)
    jobs.write(folder, job)
    return job


def same(job: Job, network: Network, folder: Path, sizes: Sizes) -> None:
    """One process ends where the bus did, with as many bytes on the way."""
    peer = inprocess.retrain(network, DIGITS, job, path=PATH)
    found = results.read(folder)
    assert found.model_sha256 == storage.digest(peer.network) != storage.digest(network)
    for record in peer.iterations:
        sent = sizes[record.iteration]
        assert (sent["inputs"], sent["layers"], sent["repairs"]) == (
            record.input_bytes, record.layer_bytes, record.repair_bytes,
        )  # fmt: skip
        if record.iteration > 0:  # the first one's model came whole, with no iteration's number
            assert sizes[record.iteration - 1]["model"] == record.model_bytes


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
    "direct": Scheme(codec="direct"),
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
