"""What one device's link carries, and how much a client may take of a broker."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import aiomqtt
import pytest

from broker.config import Limits
from broker.launch import find_mosquitto
from tests.security import raw, sites

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: only it can bridge")
DEVICES = {"a": "127.0.0.11", "b": "127.0.0.12", "c": "127.0.0.13"}
COUNT, SIZE = 20, 50_000


async def test_a_link_carries_its_own_device_alone(tmp_path: Path) -> None:
    """A megabyte up from one device, and a megabyte down to another."""
    async with sites.running(tmp_path / "identities", DEVICES) as site:
        before = {name: (link.up_bytes, link.down_bytes) for name, link in site.links.items()}
        async with site.client("server") as server, site.client("a", "a") as a, site.client("b", "b") as b:
            await server.subscribe("r2f/v1/+/up/#", qos=1)
            await b.subscribe("r2f/v1/+/down/#", qos=1)
            for _ in range(COUNT):
                await a.publish("r2f/v1/a/up/layers", bytes(SIZE), qos=1)
                await server.publish("r2f/v1/b/down/model", bytes(SIZE), qos=1)
            for receiver, topic in ((server, "r2f/v1/a/up/layers"), (b, "r2f/v1/b/down/model")):
                async with asyncio.timeout(60):
                    for _ in range(COUNT):
                        assert str((await anext(aiter(receiver.messages))).topic) == topic
        passed = {
            name: (link.up_bytes - before[name][0], link.down_bytes - before[name][1]) for name, link in site.links.items()
        }
    print("bytes up and down:", passed)
    whole = COUNT * SIZE
    assert whole < passed["a"][0] < 1.1 * whole
    assert whole < passed["b"][1] < 1.1 * whole
    # Acknowledgements go the other way; of each other they carry nothing.
    assert max(passed["a"][1], passed["b"][0], *passed["c"]) < 0.05 * whole


# Of connections that are hung up on during the handshake a socket is left to the garbage collector.
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_connections_are_counted(tmp_path: Path) -> None:
    async with sites.running(tmp_path / "identities", {"a": "127.0.0.11"}, Limits(connections=8)) as site:
        tls = raw.context(site.folder / "a", site.folder / "a" / "ca.pem")
        async with contextlib.AsyncExitStack() as stack:
            codes = []
            for _ in range(16):
                with contextlib.suppress(OSError):  # hung up on during the handshake
                    code, _, _ = await stack.enter_async_context(raw.opened(sites.SERVER, site.port, tls, raw.connect("")))
                    codes.append(code)
        assert 0 < codes.count(0) <= 9, "Mosquitto now and then lets in one more"
        async with asyncio.timeout(60):
            while True:  # there is room again, once it has seen them go
                with contextlib.suppress(aiomqtt.MqttError):
                    async with site.client("server"):
                        break
                await asyncio.sleep(0.1)


async def test_who_hoards_ends_at_the_limit_of_memory_and_others_go_on(tmp_path: Path) -> None:
    """Queues of clients that read nothing, up to what the broker may have; then its own connections are what fails."""
    async with sites.running(tmp_path / "identities", {"a": "127.0.0.11"}, Limits(memory_mb=64)) as site:
        tls = raw.context(site.folder / "a", site.folder / "a" / "ca.pem")
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(10):
                _, _, writer = await stack.enter_async_context(raw.opened(sites.SERVER, site.port, tls, raw.connect("")))
                writer.write(raw.subscribe("r2f/v1/a/#"))
                writer.transport.pause_reading()  # type: ignore[attr-defined]
            ended = 0
            for _ in range(20):
                with contextlib.suppress(OSError):
                    async with raw.opened(sites.SERVER, site.port, tls, raw.connect("")) as (_, _, writer):
                        for number in range(100):
                            writer.write(raw.publish("r2f/v1/a/edge/replicas", os.urandom(100_000), qos=1, number=number + 1))
                            await writer.drain()
                    continue
                ended += 1
            status = Path(f"/proc/{site.processes['server'].pid}/status").read_text()
            resident = int(status.split("VmHWM:")[1].split()[0]) // 1024
            print("MiB at most:", resident, "publishers ended:", ended)
            assert resident < 64 + 64
        async with site.client("server") as server, site.client("a", "a") as a, asyncio.timeout(60):
            await server.subscribe("r2f/v1/a/up/#", qos=1)
            await a.publish("r2f/v1/a/up/ack", b"still here", qos=1)
            async for message in server.messages:
                if message.payload == b"still here":
                    break
        assert site.processes["server"].returncode is None
