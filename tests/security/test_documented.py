"""The two brokers of docs/security.md, started as it says: what a device says on its own arrives at the server's."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker import certificates, child
from broker.certificates import Identity
from broker.launch import find_mosquitto
from services.bus import Bus, BusError
from services.bus.messages import Ack
from tests.security.sites import files

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: only it can bridge")


@contextlib.asynccontextmanager
async def started(words: list[str], folder: Path) -> AsyncIterator[str]:
    """A broker's command in a folder; yields where it listens."""
    process = await asyncio.create_subprocess_exec(
        *child.python(*words), cwd=folder, env=child.environment(), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            said = await process.stdout.readline()
        yield said.decode().split()[-1]
    finally:
        process.terminate()
        await process.wait()


async def test_the_brokers_of_the_page(tmp_path: Path) -> None:
    block = re.search(r"```sh\n(python -m broker --host.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    hub, device = (line.split()[2:] for line in block[1].splitlines())
    assert (hub[4], device[2]) == ("8883", "1883")
    hub[4] = device[2] = "0"
    identities = tmp_path / "identities"
    certificates.issue(identities, Identity("hub", "broker", "+", ["127.0.0.1"]))
    certificates.issue(identities, Identity("server", "server"))
    certificates.issue(identities, Identity("edge-0", "device", "edge-0"))
    async with started(hub, tmp_path) as at:
        assert at.startswith("mqtts://0.0.0.0:")
        plain = at.replace("mqtts://0.0.0.0", "mqtt://127.0.0.1")
        with pytest.raises(BusError, match=r"unreachable for 0\.5 s: .*; a broker that takes TLS alone may do that: mqtts://"):
            async with Bus(plain, "trainer", "edge-0", give_up_s=0.5):
                pass
        device = [word.replace("hub.example:8883", f"127.0.0.1:{at.rpartition(':')[2]}") for word in device]
        async with (
            started(device, tmp_path) as beside,
            Bus(at.replace("0.0.0.0", "127.0.0.1"), "trainer", "edge-0", tls=files(identities / "server")) as trainer,
            Bus(beside, "agent", "edge-0") as agent,
        ):
            assert beside.startswith("mqtt://127.0.0.1:")
            await trainer.subscribe("up/ack")
            await agent.publish("up/ack", Ack(session="s", of="mode", seq=1, ok=True))
            _, message = await trainer.receive(60)
            assert isinstance(message, Ack)
