"""``python -m tests.security.device URL NAME``: a device's three services in one process, which starts the sooner."""

from __future__ import annotations

import asyncio
import sys

from accelsim import accelerators, datasets, faults
from accelsim.timing import Array
from services.bus import Bus, service
from services.codec.device_side import DeviceCodec
from services.edge_agent.agent import Agent, Device
from services.voter import voter

READERS = {"agent": ("voter", "codec-device"), "voter": ("codec-device", "agent"), "codec-device": ("agent",)}


async def main(url: str, name: str) -> None:
    factory = accelerators.build("simulated:auto", faults.build("soft"), None)
    device = Device(datasets.open(datasets.spec_of("digits")), factory, Array(), "auto")
    common = service.Common(url, name)
    async with asyncio.TaskGroup() as tasks:

        async def serve(kind: str) -> None:
            async with service.bus_of(kind, common, name, arena_mb=64, readers=READERS[kind]) as bus:
                await _serving(kind, bus, device)

        for kind in READERS:
            tasks.create_task(serve(kind))


async def _serving(kind: str, bus: Bus, device: Device) -> None:
    if kind == "agent":
        await Agent(bus, device).serve()
    elif kind == "voter":
        await voter.serve(bus)
    else:
        await DeviceCodec(bus, "auto", 64 << 20).serve()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
