"""Table I from the server's side: the documentation's example as it stands, and devices that do not answer."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from accelsim.faults import Rates
from broker.launch import free_port, launch
from services.bus import Bus
from services.bus.messages import Ack, SetMode
from services.trainer.remote import DeviceError
from services.trainer.table1 import Mode, serving

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.timeout(180)


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        try:
            yield running
        finally:
            running.terminate()


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with process("broker", "--port", "0", "--embedded") as running:
        assert running.stdout is not None
        yield running.stdout.readline().split()[-1]


def test_the_example_of_the_documentation_runs(broker: str) -> None:
    text = (ROOT / "docs/api.md").read_text()
    blocks = re.findall(r"```(sh|python)\n(.*?)```", text, re.S)
    services = [line.split()[2:] for line in blocks[0][1].splitlines() if "broker" not in line]
    example = blocks[1][1].replace("mqtt://127.0.0.1:1883", broker)
    with ExitStack() as stack:
        for service in services:
            stack.enter_context(process(*service, "--broker", broker))
        done = subprocess.run(
            [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=150, check=False
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 5
    assert all("(16, " in line for line in lines)


async def test_a_device_that_is_not_there_is_named_with_what_is_missing(broker: str) -> None:
    async with Bus(broker, service="trainer", device="edge-9") as bus, serving(bus, session="s") as server:
        with pytest.raises(DeviceError, match=r"'edge-9'.* agent, codec-device, codec-server, voter .*--device edge-9"):
            await server.ready("edge-9", within_s=0.5)


async def test_a_device_that_never_answers_is_given_up(broker: str) -> None:
    async with (
        Bus(broker, service="trainer", device="edge-8") as bus,
        serving(bus, session="s", patience=0.2, attempts=2) as server,
    ):
        with pytest.raises(DeviceError, match="'edge-8': no answer to mode training after 2 attempts"):
            await server.set_mode("edge-8", Mode.TRAINING, rates=Rates(), seed=0)


async def test_a_broker_that_is_away_for_longer_than_all_attempts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.bus.connection.LONGEST_PAUSE_S", 0.2)
    port = free_port()

    async def answering(device: Bus) -> None:
        async for _, message in device:
            if isinstance(message, SetMode):
                await device.publish("up/ack", Ack(session="s", of="mode", seq=message.seq, ok=True))

    async with contextlib.AsyncExitStack() as stack:
        async with launch(port):
            bus = await stack.enter_async_context(Bus(f"127.0.0.1:{port}", service="trainer", device="d", give_up_s=120))
            device = await stack.enter_async_context(Bus(f"127.0.0.1:{port}", service="agent", device="d", give_up_s=120))
            await device.subscribe("down/mode")
            task = asyncio.create_task(answering(device))
            server = await stack.enter_async_context(serving(bus, session="s", patience=3.0, attempts=1))
            await server.set_mode("d", Mode.TRAINING, rates=Rates(), seed=0)
        setting = asyncio.create_task(server.set_mode("d", Mode.INFERENCE, rates=Rates(), seed=0))
        await asyncio.sleep(4.0)  # one attempt of three seconds is all that a silent device is given
        assert not setting.done()
        async with launch(port):
            await setting
            task.cancel()
            await stack.aclose()


async def test_data_needs_a_model(broker: str) -> None:
    async with Bus(broker, service="trainer", device="edge-7") as bus, serving(bus, session="s") as server:
        with pytest.raises(DeviceError, match="deploy_model"):
            await server.get_data("edge-7", iteration=0, split="train", samples=[0])
        await asyncio.sleep(0)
