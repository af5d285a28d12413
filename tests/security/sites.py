"""A server's broker and one beside each device, as ``broker.pair`` makes them, on loopback addresses of their own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiomqtt

from broker import certificates, pair
from broker.config import LIMITS, Limits
from broker.ending import stop
from broker.launch import find_mosquitto, free_port
from broker.link.profiles import Profile
from broker.link.proxy import Shaped, shape
from services.bus import Tls

SERVER = "127.0.0.1"
WIRE = Profile("wire", 1e9, 1e9, 0.0)
"""A link that is in nobody's way; it counts bytes."""


@dataclass
class Site:
    """Brokers that run. ``links``: what passed between each device's broker and the server's."""

    folder: Path
    port: int
    hosts: dict[str, str]
    links: dict[str, Shaped] = field(default_factory=dict)
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    def tls(self, name: str) -> Tls:
        """The files of an identity."""
        return files(self.folder / name)

    def url(self, broker: str = "server") -> str:
        """Where clients connect: the server's broker, or that beside a device."""
        return f"mqtts://{self.hosts[broker]}:{self.port}"

    def client(self, name: str, broker: str = "server", **options: object) -> aiomqtt.Client:
        """A bare client with an identity, as whoever has its files may write one."""
        return aiomqtt.Client(
            self.hosts[broker], self.port, tls_params=self.tls(name).parameters(), **options  # type: ignore[arg-type]
        )  # fmt: skip


def files(home: Path) -> Tls:
    return Tls(*(str(home / name) for name in (certificates.CA, certificates.CERTIFICATE, certificates.KEY)))


@contextlib.asynccontextmanager
async def running(folder: Path, devices: Mapping[str, str], limits: Limits = LIMITS) -> AsyncIterator[Site]:
    """Brokers of these devices, to the address of each one's, and of a server, bridged through links that count."""
    program = find_mosquitto()
    assert program is not None
    port = free_port()
    configs = pair.write(folder, SERVER, port, devices, limits)
    site = Site(folder, port, {"server": SERVER, **devices})
    async with contextlib.AsyncExitStack() as stack:
        for name in devices:
            site.links[name] = await stack.enter_async_context(shape(WIRE, (SERVER, port), (SERVER, 0)))
        for broker, path in configs.items():
            name = broker.removesuffix("-broker")
            text = path.read_text().replace(f"listener {port} 0.0.0.0", f"listener {port} {site.hosts[name]}")
            if name in site.links:
                text = text.replace(f"address {SERVER}:{port}", f"address {SERVER}:{site.links[name].port}")
            path.write_text(text)
            with (folder / f"{broker}.log").open("wb") as log:
                process = await asyncio.create_subprocess_exec(program, "-c", str(path), stdout=log, stderr=log)
            site.processes[name] = process
            stack.push_async_callback(stop, process)
        for name in site.hosts:
            await _listening(site, name)
        for name in devices:
            await _bridged(site, name)
        yield site
    if not any(process.returncode not in (0, -15) for process in site.processes.values()):
        return
    raise AssertionError({name: process.returncode for name, process in site.processes.items()})


async def _listening(site: Site, broker: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            _, writer = await asyncio.open_connection(site.hosts[broker], site.port)
        except OSError:
            assert time.monotonic() < deadline, (site.folder / f"{broker}-broker.log").read_text()
            await asyncio.sleep(0.02)
            continue
        writer.close()
        return


async def _bridged(site: Site, device: str) -> None:
    """Wait until what a device says arrives at the server's broker."""
    topic = f"r2f/v1/{device}/event/probe"
    async with site.client("watch") as there, site.client(device, device) as here, asyncio.timeout(60):
        await there.subscribe(topic)
        seen = asyncio.create_task(anext(aiter(there.messages)))  # type: ignore[arg-type]
        while not seen.done():
            await here.publish(topic, b"", qos=1)
            await asyncio.wait([seen], timeout=0.1)


def copied(made: Path, folder: Path) -> Path:
    """Identities that were made once, for a test of its own."""
    shutil.copytree(made, folder)
    return folder
