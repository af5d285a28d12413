"""The services of a run in this process, each on a connection of its own, and the trainer's work with them.

A run of processes comes to the same model and results, and takes several seconds of starting them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from accelsim.accelerators import build
from accelsim.datasets import Dataset, load
from accelsim.faults.permanent import FaultMap
from accelsim.timing import Array
from broker.launch import launch
from services.bus import Bus
from services.bus.messages import EncodedInputs, EncodedLayers, EncodedModel, EncodedRepair
from services.codec.device_side import DeviceCodec
from services.codec.server_side import ServerCodec
from services.edge_agent.agent import Agent, Device
from services.trainer import training
from services.trainer.core import job as jobs
from services.trainer.core import result as results
from services.voter import voter

PATH = "auto"

Sizes = dict[int, dict[str, int]]
"""Bytes of the bodies on the link by iteration and kind."""


@asynccontextmanager
async def pipeline(url: str, data: Dataset, worn: FaultMap | None = None, device: str = "d") -> AsyncIterator[None]:
    """Every service but the trainer. ``worn``: permanent faults of the device."""
    factory = build("simulated", permanent=worn)

    served: dict[str, tuple[tuple[str, ...], Callable[[Bus], Coroutine[Any, Any, None]]]] = {
        "agent": (("voter", "codec-device"), lambda bus: Agent(bus, Device(data, factory, Array(), PATH)).serve()),
        "voter": (("codec-device", "agent"), voter.serve),
        "codec-device": (("agent",), lambda bus: DeviceCodec(bus, PATH, 64 << 20).serve()),
        "codec-server": (("trainer",), lambda bus: ServerCodec(bus, PATH).serve()),
    }

    async def serve(name: str) -> None:
        readers, service = served[name]
        async with Bus(url, name, device, arena_bytes=16 << 20, readers=readers) as bus:
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


async def over_the_bus(url: str, folder: Path, device: str = "d") -> Sizes:
    """Do the job of a run's folder on the pipeline that is there."""
    sizes: Sizes = defaultdict(lambda: defaultdict(int))
    async with (
        Bus(url, "watch", device, passive=True) as tap,
        Bus(url, "trainer", device, arena_bytes=16 << 20, readers=("codec-server",)) as bus,
    ):
        await tap.subscribe("up/#", "down/#")
        watching = asyncio.create_task(watch(tap, sizes))
        await training.run(bus, folder, PATH)
        await asyncio.sleep(0.1)
        watching.cancel()
    return sizes


def retrained(folder: Path) -> results.Result:
    """The job of a run's folder on digits, done with a broker of its own, and what it came to."""

    async def work() -> None:
        device = jobs.read(folder).device
        async with launch() as broker, pipeline(broker.url(), load("digits"), device=device), asyncio.timeout(200):
            await over_the_bus(broker.url(), folder, device)

    asyncio.run(work())
    return results.read(folder)
