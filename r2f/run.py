"""One retraining run from data and weights to a report: prepare its folder, run the pipeline on it, report.

A run is its folder. ``run.json`` holds what the user asked for, ``job.json`` what the trainer is to do; everything else
in it is made from those two, so that a run can be resumed, or handed to another machine, as a folder.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from rich.console import Group

from accelsim import zoo
from accelsim.datasets import DIGITS, Dataset, load
from accelsim.faults import Rates
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from broker.launch import find_mosquitto, free_port
from broker.link import profile
from r2f import float_training, pipeline, plots, report
from r2f.display import Display
from r2f.memory import MB, Shares, live_bytes, shares
from r2f.pipeline import PipelineError, Program
from services.bus import Bus, BusError
from services.bus.messages import Progress, Timing
from services.scheme import CHAINED, Scheme
from services.trainer import waiting
from services.trainer.core import job as jobs
from services.trainer.core.job import Job
from services.trainer.core.labels import Source
from services.trainer.core.optimiser import Sgd

FILE = "run.json"
PREPARED = "prepared.json"
DEMO_NETWORK = "digits_cnn"
EVALUATION_BATCH = 128


class Settings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the user asked for: the options of ``r2f retrain``."""

    network: str
    weights: str | None = None
    data: str = DIGITS
    rates: Rates
    scheme: Scheme = CHAINED
    iterations: int = 100
    batch: int = 16
    sgd: Sgd = Sgd()
    labels: Source = "device"
    seed: int = 0
    evaluation_seeds: int = 5
    evaluation_samples: int = 1000
    checkpoint_every: int = 10
    link: str | None = None
    live: bool = False
    """Make the link real: two brokers joined by a bridge through a shaping proxy."""
    accelerator: Literal["simulated", "onnxruntime"] = "simulated"
    array: str | None = None
    device: str = "edge-0"
    broker: str | None = None
    """A broker that is there already; None starts one."""
    launch: bool = True
    """Start the device's and the codec's services; False where they run elsewhere."""
    trainer: bool = True
    """Start the trainer; False where one waits for runs below the folder that this run's is in."""
    embedded: bool = False
    """Start the embedded broker even where Mosquitto is installed."""
    image_size: tuple[int, int, int] | None = None
    device_memory_mb: int = 1024


class Prepared(msgspec.Struct, kw_only=True):
    """``prepared.json``: what preparing found out."""

    float_top1: float
    """Of the float network on the held-out images, in per cent."""
    classes: int
    memory: Shares
    """Of the device."""


def prepare(settings: Settings, folder: Path, say: Display) -> None:
    """Make the run's folder: data checked, float network trained or loaded, lowered to int8, job written.

    Raises ValueError (DataError, LoweringError) that names what does not fit.
    """
    if settings.link is not None:
        profile(settings.link)
    data = load(settings.data, shape=settings.image_size)
    network, float_top1 = _network(settings, data, say)
    data.check(network)
    images = data.train_images.nbytes + data.test_images.nbytes
    memory = shares(settings.device_memory_mb, network, settings.batch, images)
    folder.mkdir(parents=True, exist_ok=False)
    storage.save(network, folder / jobs.NETWORK)
    prepared = Prepared(float_top1=float_top1, classes=data.classes, memory=memory)
    (folder / PREPARED).write_bytes(msgspec.json.encode(prepared))
    if settings.labels == "server":
        np.save(folder / "train_labels.npy", data.train_labels)
    at_once = max(1, min(EVALUATION_BATCH, memory.agent * MB // live_bytes(network)))
    jobs.write(folder, job_of(settings, folder.name, at_once))
    (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(settings)) + b"\n")


def read_settings(folder: Path) -> Settings:
    """The settings of a run's folder. Raises ValueError that names the file where it is none."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Settings)
    except FileNotFoundError:
        raise ValueError(f"{folder}: no run to resume: {FILE} is missing") from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error


async def execute(settings: Settings, folder: Path, say: Display) -> None:
    """Run the pipeline on a prepared folder until the trainer is done. Everything started here is stopped again.

    Raises PipelineError with the last word of whatever failed, BusError where the broker is out of reach.
    """
    async with AsyncExitStack() as stack:
        programs, device_broker, server_broker = _brokers(settings)
        if settings.launch:
            programs += _services(settings, _prepared(folder).memory, device_broker, server_broker)
        if not settings.trainer:
            (folder / waiting.FAILED).unlink(missing_ok=True)
        trainer = Program("trainer", "services.trainer", ("--run", str(folder)), {"R2F_BROKER": server_broker})
        running = await stack.enter_async_context(pipeline.running(programs, folder / "logs", say.restarted))
        say.started(running)
        watcher = asyncio.create_task(_watch(server_broker, settings.device, say))
        try:
            await (running.watch(trainer) if settings.trainer else _elsewhere(folder))
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])


async def _elsewhere(folder: Path) -> None:
    """Until the trainer that waits for runs has done this one. Raises PipelineError with its reason if it gave up."""
    while (reason := waiting.outcome(folder)) is None:  # noqa: ASYNC110  (the other end is a file)
        await asyncio.sleep(waiting.POLL_S)
    if reason:
        raise PipelineError(f"trainer: {reason}")


def finish(settings: Settings, folder: Path) -> Group:
    """``report.json`` and the plots of a run that is done; returns the table for people."""
    prepared = _prepared(folder)
    link = None if settings.link is None else profile(settings.link)
    found = report.collect(folder, network=settings.network, link=link, float_accuracy=prepared.float_top1)
    report.write(folder, found)
    plots.draw(folder, found)
    return report.table(found)


def _prepared(folder: Path) -> Prepared:
    path = folder / PREPARED
    try:
        return msgspec.json.decode(path.read_bytes(), type=Prepared)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error


def _brokers(settings: Settings) -> tuple[list[Program], str, str]:
    """The brokers to start, and the addresses of the device's and the server's. Live, a shaping proxy is between them."""
    if settings.broker is not None:
        return [], settings.broker, settings.broker
    server = free_port()
    at = f"mqtt://127.0.0.1:{server}"
    kind = ("--embedded",) if settings.embedded else ()
    brokers = [Program("broker", "broker", ("--port", str(server), *kind))]
    if not settings.live:
        return brokers, at, at
    if settings.link is None:
        raise ValueError("--live needs --link: lora, 802.15.4g, hspa or lte")
    if settings.embedded or find_mosquitto() is None:
        raise ValueError("--live joins two brokers by a bridge, which only Mosquitto can: apt-get install mosquitto")
    device, proxy = free_port(), free_port()
    ends = ("--listen", f"127.0.0.1:{proxy}", "--connect", f"127.0.0.1:{server}")
    brokers.append(Program("link", "broker.link", ("--profile", settings.link, *ends)))
    bridged = ("--port", str(device), "--bridge-to", f"127.0.0.1:{proxy}")
    brokers.append(Program("device-broker", "broker", bridged))
    return brokers, f"mqtt://127.0.0.1:{device}", at


def _services(settings: Settings, memory: Shares, device_broker: str, server_broker: str) -> list[Program]:
    named = ("--device", settings.device)
    agent = ["--data", settings.data, "--accelerator", settings.accelerator, "--arena-mb", str(memory.agent)]
    codec = ("--arena-mb", str(memory.codec), "--keep-mb", str(memory.keep))
    if settings.array is not None:
        agent += ["--array", settings.array]
    if settings.image_size is not None:
        agent += ["--image-size", "x".join(map(str, settings.image_size))]
    # Addresses may hold passwords, which everybody on the host would see among the arguments.
    on_device, up, down = ({"R2F_BROKER": broker} for broker in (device_broker, device_broker, server_broker))
    # On a real link, chunks are no longer than two seconds of its rate, and senders wait for credit as long as it takes.
    if settings.live and settings.link is not None:
        link = profile(settings.link)
        up["R2F_LINK_BITS_PER_S"], down["R2F_LINK_BITS_PER_S"] = str(link.up), str(link.down)
    return [
        Program("agent", "services.edge_agent", (*named, *agent), up),
        Program("voter", "services.voter", (*named, "--arena-mb", str(memory.voter)), on_device),
        Program("codec-device", "services.codec", ("--side", "device", *named, *codec), up),
        Program("codec-server", "services.codec", ("--side", "server", *named), down),
    ]


async def _watch(broker: str, device: str, say: Display) -> None:
    """Feed the live display from the events. A display that lost its broker is no reason to stop."""
    while True:
        try:
            async with Bus(broker, service="watch", device=device, passive=True, give_up_s=3600.0) as bus:
                await bus.subscribe("event/#")
                async for _, message in bus:
                    if isinstance(message, Progress):
                        say.progress(message)
                    elif isinstance(message, Timing):
                        say.timing(message)
        except BusError as error:
            say.note(str(error))
            await asyncio.sleep(1.0)


def _network(settings: Settings, data: Dataset, say: Display) -> tuple[Network, float]:
    """The int8 network and the float one's top-1 on the held-out images, in per cent."""
    if settings.network == DEMO_NETWORK and settings.weights is None:
        with say.step("training the float network"):
            module = float_training.train(lambda: zoo.build(DEMO_NETWORK, data.classes), data, seed=settings.seed)
    else:
        if settings.weights is None:
            raise ValueError(f"network {settings.network}: give its trained weights with --weights FILE")
        module = zoo.load(settings.network, settings.weights)
    with say.step("quantising to int8"):
        # Every image counts the same whatever the order of the file: take them evenly.
        chosen = np.linspace(0, len(data.train_images) - 1, min(256, len(data.train_images))).astype(int)
        network = lower(module, data.train_images[chosen], data.mean, data.std, name=settings.network, classifier=True)
    with say.step("accuracy of the float network"):
        top1 = float_training.accuracy(
            module,
            data.test_images[: settings.evaluation_samples],
            data.test_labels[: settings.evaluation_samples],
            data,
        )
    return network, top1


def job_of(settings: Settings, session: str, evaluation_batch: int = EVALUATION_BATCH) -> Job:
    """The trainer's half of the settings."""
    uplink = 0.0 if settings.link is None else profile(settings.link).up
    return Job(
        session=session,
        device=settings.device,
        rates=settings.rates,
        scheme=msgspec.structs.replace(settings.scheme, uplink_bits_per_s=uplink),
        iterations=settings.iterations,
        batch=settings.batch,
        sgd=settings.sgd,
        labels=settings.labels,
        seed=settings.seed,
        evaluation_seeds=tuple(settings.seed + 1001 + i for i in range(settings.evaluation_seeds)),
        evaluation_samples=settings.evaluation_samples,
        evaluation_batch=evaluation_batch,
        checkpoint_every=settings.checkpoint_every,
    )


def new_folder(parent: Path, network: str) -> Path:
    """``runs/{date}-{time}-{network}``, a name that is not taken."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{network.replace(':', '-').replace('/', '-')[:40]}"
    folder, number = parent / stem, 1
    while folder.exists():
        number += 1
        folder = parent / f"{stem}-{number}"
    return folder
