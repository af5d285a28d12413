"""The shaping proxy against the clock, and what it does when an end is away."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from broker.launch import launch
from broker.link.clock import transfer_s
from broker.link.profiles import PROFILES, Direction, Profile
from broker.link.proxy import shape
from services.bus import Bus, encoding
from services.bus.messages import Ack, Outputs

ROOT = Path(__file__).resolve().parents[3]


def outputs(nbytes: int) -> Outputs:
    array = np.random.default_rng(nbytes).integers(-128, 128, (nbytes, 1, 1, 1), np.int8)
    return Outputs(session="s", iteration=1, attempt=0, outputs=encoding.inline(array), labels=None)


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_the_proxy_keeps_time_with_the_clock(direction: Direction) -> None:
    """Within 5 %; the machine may be busy, so the best of ten counts."""
    slow = Profile("slow", 2e6, 4e6)
    nbytes = 250_000 if direction == "up" else 500_000
    async with launch() as running, shape(slow, (running.host, running.port)) as shaped:
        near = Bus(f"mqtt://{shaped.host}:{shaped.port}", "codec", "d", link_bits_per_s=slow.rate(direction))
        far = Bus(running.url(), "trainer", "d", link_bits_per_s=slow.rate(direction))
        async with near, far:
            sender, receiver = (near, far) if direction == "up" else (far, near)
            await receiver.subscribe("up/outputs")
            ratios = []
            for _ in range(10):
                message = outputs(nbytes)
                expected = transfer_s(sender.topic("up/outputs"), len(encoding.encode(message)), slow, direction)
                start = time.perf_counter()
                await sender.publish("up/outputs", message)
                _, received = await receiver.receive(60)
                ratios.append((time.perf_counter() - start) / expected)
                assert received == message
                if abs(ratios[-1] - 1) < 0.05:
                    break
            assert min(abs(ratio - 1) for ratio in ratios) < 0.05, ratios


async def test_latency_delays_and_does_not_narrow() -> None:
    far_away = Profile("satellite", 20e6, 20e6, 0.1)
    async with (
        launch() as running,
        shape(far_away, (running.host, running.port)) as shaped,
        Bus(f"mqtt://{shaped.host}:{shaped.port}", "agent", "d") as agent,
        Bus(running.url(), "trainer", "d") as trainer,
    ):
        await trainer.subscribe("up/ack")
        took = []
        while len(took) < 10 and (not took or min(took) >= 1.0):  # the machine may be busy
            start = time.perf_counter()
            for i in range(20):
                await agent.publish("up/ack", Ack(session="s", of="mode", seq=i, ok=True))
            for _ in range(20):
                await trainer.receive(60)
            took.append(time.perf_counter() - start)
        assert 0.1 <= min(took) < 1.0  # one after the other they would take two seconds


async def test_a_large_message_on_a_slow_link_starves_neither_the_keepalive_nor_the_small_ones() -> None:
    """In one packet it would: the broker hears nothing whole for longer than the keepalive and sends the last will."""
    slow = Profile("slow", 400e3, 400e3)
    async with launch() as running, shape(slow, (running.host, running.port)) as shaped:
        url = f"mqtt://{shaped.host}:{shaped.port}"
        async with (
            Bus(url, "codec", "d", link_bits_per_s=slow.up / 10, keepalive_s=1) as codec,
            Bus(running.url(), "trainer", "d") as trainer,
        ):
            await trainer.subscribe("up/outputs", "up/ack", "state/codec")
            sending = asyncio.create_task(codec.publish("up/outputs", outputs(150_000)))
            await asyncio.sleep(0.5)
            await codec.publish("up/ack", Ack(session="s", of="mode", seq=1, ok=True))
            got = [type(message).__name__ for _, message in [await trainer.receive(60) for _ in range(3)]]
            await sending
            assert got == ["State", "Ack", "Outputs"]
            assert codec.counts["reconnected"] == 0


async def test_the_proxy_outlives_a_broker_that_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    async with launch() as running:
        port = running.port
    async with shape(PROFILES["lte"], ("127.0.0.1", port)) as shaped:
        reader, writer = await asyncio.open_connection(shaped.host, shaped.port)
        assert await reader.read() == b""
        writer.close()
        assert "Connect call failed" in capsys.readouterr().err
        async with launch(port), Bus(f"mqtt://{shaped.host}:{shaped.port}", "agent", "d") as agent:
            await agent.flush()


async def test_the_command_line_is_the_same_proxy() -> None:
    command = [sys.executable, "-m", "broker.link", "--profile", "lte", "--latency-ms", "1", "--listen", "127.0.0.1:0"]
    async with launch() as running:
        proxy = await asyncio.create_subprocess_exec(
            *command, "--connect", f"{running.host}:{running.port}", stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        assert proxy.stdout is not None
        name, _, address = (await proxy.stdout.readline()).decode().split()
        assert name == "lte"
        async with Bus(f"mqtt://{address}", "agent", "d") as agent:
            await agent.flush()
        proxy.terminate()
        await proxy.wait()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "5g"], "invalid choice"),
        (["--profile", "lte", "--listen", "nowhere"], "'nowhere' is no host:port"),
        (["--profile", "lte", "--listen", "127.0.0.1:99999"], "'99999' is no port"),
        (["--profile", "lte", "--connect", "::1:1883"], "'::1:1883' is no host:port"),
        (["--profile", "lte", "--latency-ms", "-5"], "'-5' is no latency"),
        (["--profile", "lte", "--latency-ms", "nan"], "'nan' is no latency"),
        (["--profile", "lte", "--listen", "192.0.2.1:1"], "link: "),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "broker.link", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert process.returncode != 0
    assert said in process.stderr.splitlines()[-1]
