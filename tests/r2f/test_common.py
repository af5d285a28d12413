"""One model that learns from several devices: what it is, with nobody late and with somebody; who comes and who goes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from rich.console import Console

from accelsim.datasets import load
from accelsim.engine import Engine
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.parameters import dequantize, quantize
from broker.child import environment, python
from broker.launch import find_mosquitto, launch
from r2f import inprocess, prepare, run
from r2f.devices import choosing
from r2f.devices import inprocess as of_devices
from r2f.devices.report import FleetReport
from r2f.display import Display
from r2f.pipeline import Pipeline
from r2f.settings import Settings
from services.bus import Bus
from services.bus.messages import Progress, State
from services.trainer.core import common, labels, ledger
from services.trainer.core import fleet as fleets
from services.trainer.core import job as jobs
from services.trainer.core import result as results
from services.trainer.core.course import Batch, Deploy
from services.trainer.core.replay import replay
from services.trainer.core.step import Received
from services.trainer.core.task import PAPER, Recipe, Sgd
from tests.r2f.watching import Watching

pytestmark = [
    pytest.mark.timeout(280),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed (apt-get install mosquitto)"),
]

SETTINGS = Settings(
    network="digits_cnn",
    rates=Rates(input=1e-3, weight=1e-3, output=1e-3),
    device="a,b,c",
    sharing="common",
    iterations=8,
    batch=8,
    sgd=Sgd(rate=0.02),
    recipe=Recipe(corrections=2, selection=64, shift=1),
    evaluation_seeds=2,
    evaluation_samples=64,
    checkpoint_every=2,
    hosts=3,
    codecs=1,
)
TOGETHER = replace(SETTINGS, hosts=1)
"""The same run with one process of each service, where it is not one device's that is killed."""
DIGITS = load("digits")
DATA = dict.fromkeys("abc", DIGITS)


@pytest.fixture(scope="module")
def make(weights: str) -> Callable[[Settings, Path], None]:
    """Makes the folder of a run of several devices."""

    def made(settings: Settings, folder: Path) -> None:
        with Display(Console(quiet=True)) as live:
            settings = replace(settings, weights=weights)
            prepare.prepare(settings, folder, live, choosing.fleet_of(settings))

    return made


@pytest.fixture(scope="module")
def prepared(make: Callable[[Settings, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "common"
    make(SETTINGS, folder)
    return folder


@pytest.fixture(scope="module")
def peer(prepared: Path) -> of_devices.Common:
    """The same run in one process."""
    return of_devices.retrain(storage.load(prepared / jobs.NETWORK), DATA, jobs.read(prepared))


def execute(prepared: Path, folder: Path, display: Watching, settings: Settings = SETTINGS) -> None:
    shutil.copytree(prepared, folder)
    asyncio.run(run.execute(settings, folder, display))


def test_nobody_late(prepared: Path, peer: of_devices.Common, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    execute(prepared, folder, Watching(), TOGETHER)
    steps = fleets.steps(folder)
    there = [(i, ("a", "b", "c"), (), {}) for i in range(8)]
    assert [(one.iteration, one.devices, one.late, one.lost) for one in steps] == there
    assert [one.loss for one in steps] == peer.loss
    found = results.read(folder)
    assert found.selection == peer.selection
    assert found.model_sha256 == storage.digest(peer.network) == storage.digest(storage.load(folder / results.RETRAINED))
    assert peer.selection is not None
    assert [one.name for one in peer.selection.candidates] == ["before", "corrected", "iteration 5", "iteration 8"]
    assert peer.selection.samples == 3 * 64, "all devices choose"
    report = run.finish(SETTINGS, folder)
    assert isinstance(report, FleetReport)
    assert {row.model_sha256 for row in report.devices} == {found.model_sha256}
    assert all(row.before is not None and row.after is not None for row in report.devices)


def test_killed_trainer_goes_on(prepared: Path, peer: of_devices.Common, tmp_path: Path) -> None:
    victims = [9, 17]

    def each(pipeline: Pipeline, message: Progress) -> None:
        if victims and message.step >= victims[0]:
            victims.pop(0)
            os.kill(pipeline.pids["trainer"], signal.SIGKILL)

    display = Watching(each)
    execute(prepared, tmp_path / "run", display, TOGETHER)
    assert display.restarts == ["trainer", "trainer"]
    assert results.read(tmp_path / "run").model_sha256 == storage.digest(peer.network)
    assert [one.iteration for one in fleets.steps(tmp_path / "run")] == list(range(8))


def test_gradients_are_averaged_over_the_devices(prepared: Path) -> None:
    """Plain descent, written out: the naive sum of what each device's batch teaches, and one step by it."""
    network = storage.load(prepared / jobs.NETWORK)
    job = replace(jobs.read(prepared), recipe=PAPER, labels="device", iterations=3, sgd=Sgd(rate=0.05, clip=1e6, momentum=0.5))
    data = {"a": DIGITS, "b": DIGITS}
    plans = {name: common.member(job, name, len(DIGITS.train_images)) for name in data}
    loops = {name: inprocess.Loop(plan.job, DIGITS, inprocess.build("simulated"), "auto") for name, plan in plans.items()}
    weights = {(i, k): pair[k].copy() for i, pair in dequantize(network).items() for k in (0, 1)}
    velocity = {key: np.zeros_like(weight) for key, weight in weights.items()}
    model = network
    for iteration in range(3):
        sums = {key: np.zeros(weight.shape) for key, weight in weights.items()}
        images = 0
        engine = Engine(model)
        for name in ("a", "b"):
            loops[name].carry(Deploy(model, iteration + 1, iteration))
            got = loops[name].carry(Batch(iteration, plans[name].samples(iteration), job.rates, None))
            assert isinstance(got, Received)
            truth = labels.choose(job, network, device=got.device_labels, server=None, teacher=None)
            found = replay(model, model.quantize_images(got.images), got.activations, truth, engine.fault_free)
            images += len(got.images)
            for i, pair in found.gradients.items():
                for k in (0, 1):
                    sums[i, k] += len(got.images) * pair[k].numpy().astype(np.float64)
        for key, weight in weights.items():
            mean = torch.from_numpy((sums[key] / images).astype(np.float32))
            velocity[key] = (torch.from_numpy(velocity[key]) * 0.5 + mean).numpy()
            weights[key] = torch.from_numpy(weight).add(torch.from_numpy(velocity[key]), alpha=-0.05).numpy()
        model = quantize(model, {i: (weights[i, 0], weights[i, 1]) for i, _ in weights})
    assert storage.digest(model) == storage.digest(of_devices.retrain(network, data, job).network)
    orders = [plans[name].samples(0).tolist() for name in ("a", "b")]
    assert orders[0] != orders[1], "each device photographs in an order of its own"


def test_one_late_device_stops_nobody(prepared: Path, tmp_path: Path) -> None:
    """An agent that hangs is left out; when it runs again it takes part again."""
    settings = replace(SETTINGS, iterations=40)
    folder = tmp_path / "run"
    shutil.copytree(prepared, folder)
    jobs.write(folder, replace(jobs.read(folder), iterations=40))
    fleets.write(folder, fleets.Fleet(sharing="common", devices=("a", "b", "c"), wait_s=2.0))
    hung: list[int] = []

    def each(pipeline: Pipeline, message: Progress) -> None:
        seen = len(fleets.steps(folder))
        if not hung and seen >= 5:
            hung.append(pipeline.pids["agent-2"])
            os.kill(hung[0], signal.SIGSTOP)
        elif len(hung) == 1 and any(one.late for one in fleets.steps(folder)):
            os.kill(hung[0], signal.SIGCONT)
            hung.append(0)

    asyncio.run(run.execute(settings, folder, Watching(each)))
    steps = fleets.steps(folder)
    assert [one.iteration for one in steps] == list(range(40)), "the others went on"
    late = [one.iteration for one in steps if one.late]
    assert late
    assert all(one.late == ("c",) and one.devices == ("a", "b") for one in steps if one.late)
    assert steps[-1].devices == ("a", "b", "c"), "it is back"
    rows = ledger.read(folder / "c" / results.PROGRESS)
    assert {row.iteration for row in rows} == {one.iteration for one in steps if "c" in one.devices}
    assert results.read(folder).model_sha256


async def device(url: str, name: str) -> list[asyncio.subprocess.Process]:
    """The services of a device, or of several with commas, on a broker that is there."""
    found = []
    for module, *options in (
        ("services.edge_agent", "--data", "digits"),
        ("services.voter",),
        ("services.codec", "--side", "device"),
    ):
        command = python(module, *options, "--device", name, "--broker", url, "--log-level", "error")
        found.append(await asyncio.create_subprocess_exec(*command, env=environment()))
    return found


async def up(url: str, name: str) -> None:
    """Waits until all services of a device are there."""
    missing = {"agent", "voter", "codec-device"}
    async with Bus(url, "look", name, passive=True) as bus:
        await bus.subscribe("state/#")
        while missing:
            _, message = await bus.receive(100)
            if isinstance(message, State) and message.online:
                missing.discard(message.service)


async def gone(processes: list[asyncio.subprocess.Process], number: signal.Signals) -> None:
    for process in processes:
        process.send_signal(number)
    await asyncio.gather(*(process.wait() for process in processes))


def test_who_comes_later_takes_part_and_who_dies_is_lost(make: Callable[[Settings, Path], None], tmp_path: Path) -> None:
    """Devices of their own on a broker of their own; the run starts the server's side for whoever matches."""
    folder = tmp_path / "run"

    async def scenario() -> None:
        async with launch() as running, asyncio.timeout(250):
            url = running.url()
            first = {name: await device(url, name) for name in ("fleet-1,fleet-3", "fleet-2")}
            later: dict[str, list[asyncio.subprocess.Process]] = {}
            settings = replace(
                SETTINGS,
                device="fleet-*",
                broker=url,
                launch=False,
                codecs=2,
                iterations=100,
                wait_s=1.0,
                checkpoint_every=50,
                sgd=Sgd(rate=1e-3),
            )
            while len((await choosing.look(url)).agents) < 3:  # noqa: ASYNC110  (they say so on the broker alone)
                await asyncio.sleep(0.2)
            await asyncio.to_thread(make, settings, folder)
            assert fleets.read(folder) == fleets.Fleet(
                sharing="common", devices=("fleet-1", "fleet-2", "fleet-3"), pattern="fleet-*", wait_s=1.0
            )
            display = Watching()
            work = asyncio.create_task(run.execute(settings, folder, display))

            async def until(what: Callable[[], bool]) -> None:
                while not what():
                    assert not work.done(), work.exception() if work.done() else None
                    await asyncio.sleep(0.1)

            async def come(name: str) -> list[asyncio.subprocess.Process]:
                """A device, while the trainer stands still: however long it takes to start, no iteration passes meanwhile."""
                assert display.pipeline is not None
                trainer = display.pipeline.pids["trainer"]
                os.kill(trainer, signal.SIGSTOP)
                try:
                    services = await device(url, name)
                    await up(url, name)
                finally:
                    os.kill(trainer, signal.SIGCONT)
                return services

            try:
                await until(lambda: len(fleets.steps(folder)) > 5)
                later["fleet-4"] = await come("fleet-4")
                await until(lambda: any("fleet-4" in one.devices for one in fleets.steps(folder)))
                assert any("fleet-4" in one.joined for one in fleets.steps(folder))
                await gone(first.pop("fleet-2"), signal.SIGKILL)
                await until(lambda: any("fleet-2" in one.lost for one in fleets.steps(folder)))
                assert len(fleets.steps(folder)) < 80, "there is time left to come back"
                first["fleet-2"] = await come("fleet-2")
                await until(lambda: "fleet-2" in fleets.steps(folder)[-1].devices)
                await work
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                for processes in (*first.values(), *later.values()):
                    await gone(processes, signal.SIGTERM)

    asyncio.run(scenario())
    report = run.finish(replace(SETTINGS, device="fleet-*"), folder)
    assert isinstance(report, FleetReport)
    assert [(row.device, row.state) for row in report.devices] == [(f"fleet-{i}", "done") for i in (1, 2, 3, 4)]
    assert len({row.model_sha256 for row in report.devices}) == 1
    late = next(row for row in report.devices if row.device == "fleet-4")
    assert late.before is None
    assert late.after is not None
    assert 0 < late.iterations < 100
