"""The link's clock against a count of its own, against the bytes that really pass, and against the proxy."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from broker import link
from broker.launch import launch
from broker.link import PROFILES, Profile, WireBytes
from services.bus import Bus, encoding
from services.bus.chunks import CHUNK, chunk_size, split
from services.bus.messages import Ack, Message, Outputs

ROOT = Path(__file__).resolve().parents[2]


def outputs(nbytes: int) -> Outputs:
    array = np.random.default_rng(nbytes).integers(-128, 128, (nbytes, 1, 1, 1), np.int8)
    return Outputs(session="s", iteration=1, attempt=0, outputs=encoding.inline(array), labels=None)


def test_the_profiles_are_table_2() -> None:
    rates = {name: (p.up, p.down) for name, p in PROFILES.items()}
    assert rates == {
        "lora": (50e3, 50e3),
        "802.15.4g": (800e3, 800e3),
        "hspa": (5.76e6, 21.1e6),
        "lte": (50e6, 150e6),
    }
    with pytest.raises(ValueError, match="there are lora"):
        link.profile("5g")


@pytest.mark.parametrize("payload", [0, 1, 100, 120, 121, 122, 16000, 16380, 2_000_000, 2_097_140, 3_000_000])
@pytest.mark.parametrize("qos", [0, 1])
def test_a_packet_is_what_paho_makes_of_it(payload: int, qos: int) -> None:
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    client = paho.Client(CallbackAPIVersion.VERSION2)
    made: list[bytes] = []
    client._packet_queue = lambda command, packet, *_: made.append(bytes(packet))  # type: ignore[assignment,method-assign]
    client._sock = object()  # type: ignore[assignment]
    client._send_publish(7, b"r2f/v1/d/up/ack", bytes(payload), qos)
    client._sock = None
    assert link.packet_bytes("r2f/v1/d/up/ack", payload, qos) == len(made[0])


def test_headers_by_hand() -> None:
    # One segment: 11 of MQTT's, 10 of payload, 25 of the stamp, 52 of TCP/IP's; back an ACK and a PUBACK in a segment.
    assert link.packet_bytes("topic", 10) == 1 + 1 + 2 + 5 + 2 + 10
    assert link.wire_bytes("topic", 10) == WireBytes(11 + 10 + 25 + 52, 52 + 4 + 52)
    assert link.stream_bytes(1448) == WireBytes(1448 + 52, 52)
    assert link.stream_bytes(1449) == WireBytes(1449 + 104, 52)
    assert link.stream_bytes(3 * 1448) == WireBytes(3 * 1500, 104)
    assert link.seconds(50_000 // 8, PROFILES["lora"], "up") == 1.0
    assert link.seconds(21_100_000 // 8, Profile("x", 1.0, 21.1e6, 0.25), "down") == 1.25


@pytest.mark.parametrize("nbytes", [CHUNK - 100, CHUNK, CHUNK + 1, 10 * CHUNK, 1_000_000])
def test_chunks_are_counted_as_the_bus_cuts_them(nbytes: int) -> None:
    payload = bytes(nbytes)
    counted = link.frames(nbytes, CHUNK, "session")
    made: list[Message] = list(split("session", payload, CHUNK)) if nbytes > CHUNK else []
    for n, message in enumerate(made, 1):
        message.origin, message.n = "0" * 12, n
    cut = [len(encoding.encode(message)) for message in made] or [nbytes + link.STAMP]
    assert len(counted) == len(cut)
    # Numbers are counted as long as they get: some bytes more for the first of them.
    assert all(0 <= more - less <= 6 for more, less in zip(counted, cut, strict=True))


async def test_the_clock_counts_the_bytes_that_pass() -> None:
    wide = Profile("wide", 1e9, 1e9)
    async with launch() as running, link.shape(wide, (running.host, running.port)) as shaped:
        url = f"mqtt://{shaped.host}:{shaped.port}"
        async with Bus(running.url(), "agent", "d") as agent, Bus(url, "trainer", "d") as trainer:
            await agent.subscribe("up/outputs")
            await trainer.publish("up/outputs", outputs(0))
            await agent.receive(5)
            await trainer.flush()
            for nbytes in (100, 70_000, 400_000):
                before = -1
                while before != shaped.up_bytes:  # until nothing else is on its way
                    before = shaped.up_bytes
                    await asyncio.sleep(0.2)
                message = outputs(nbytes)
                await trainer.publish("up/outputs", message)
                await agent.receive(5)
                await trainer.flush()
                lengths = link.frames(len(encoding.encode(message)), CHUNK, "s")
                counted = sum(link.packet_bytes(trainer.topic("up/outputs"), length) for length in lengths)
                # Numbers are counted as if they had three bytes.
                assert 0 <= counted - (shaped.up_bytes - before) <= 4 * len(lengths)


@pytest.mark.parametrize("rate", [50e3, 800e3], ids=["lora", "802.15.4g"])
async def test_messages_are_counted_as_they_pass_in_the_chunks_of_the_link(rate: float) -> None:
    """What the experiments count, against the packets of a real exchange over a proxy that has the link's chunks alone."""
    wide, narrow = Profile("wide", 1e9, 1e9), Profile("narrow", rate, rate)
    async with launch() as running, link.shape(wide, (running.host, running.port)) as shaped:
        url = f"mqtt://{shaped.host}:{shaped.port}"
        async with (
            Bus(running.url(), "codec", "edge-0") as server,
            Bus(url, "codec", "edge-0", link_bits_per_s=narrow.up) as device,
        ):
            await server.subscribe("up/outputs")
            await device.publish("up/outputs", outputs(0))
            await server.receive(5)
            await device.flush()
            for nbytes in (100, 12_000, 60_000, 300_000):
                before = -1
                while before != shaped.up_bytes:  # until nothing else is on its way
                    before = shaped.up_bytes
                    await asyncio.sleep(0.2)
                message = outputs(nbytes)
                payload = len(encoding.encode(message))
                await device.publish("up/outputs", message)
                await server.receive(10)
                await device.flush()
                passed = shaped.up_bytes - before
                packets = 1 if payload <= chunk_size(rate) else 1 + -(-payload // chunk_size(rate))
                # Each packet is a burst of its own, so the last segment of each is not full.
                headers = sum(
                    -(-part // link.MSS) * link.SEGMENT_HEADERS
                    for part in [chunk_size(rate)] * (payload // chunk_size(rate)) + [payload % chunk_size(rate)]
                )
                counted = link.message_bytes("up/outputs", payload, narrow)
                assert abs(counted - passed - headers) <= packets * (link.SEGMENT_HEADERS + 4)
                assert counted > passed


def test_a_message_is_counted_under_its_whole_topic_and_the_rate_of_its_direction() -> None:
    # 23 bytes of topic.
    assert (
        link.message_bytes("up/layers", 10) == link.wire_bytes("r2f/v1/edge-0/up/layers", 10).forward == 23 + 6 + 10 + 25 + 52
    )
    slow_up = Profile("slow up", 50e3, 1e9)
    assert link.message_bytes("up/model", 50_000, slow_up) > link.message_bytes("down/model", 50_000, slow_up)
    assert link.message_bytes("down/model", 50_000, slow_up) == link.message_bytes("down/model", 50_000)


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_the_proxy_keeps_time_with_the_clock(direction: link.Direction) -> None:
    """Within 5 %; the machine may be busy, so the best of three counts."""
    slow = Profile("slow", 2e6, 4e6)
    nbytes = 250_000 if direction == "up" else 500_000
    async with launch() as running, link.shape(slow, (running.host, running.port)) as shaped:
        near = Bus(f"mqtt://{shaped.host}:{shaped.port}", "codec", "d", link_bits_per_s=slow.rate(direction))
        far = Bus(running.url(), "trainer", "d", link_bits_per_s=slow.rate(direction))
        async with near, far:
            sender, receiver = (near, far) if direction == "up" else (far, near)
            await receiver.subscribe("up/outputs")
            ratios = []
            for _ in range(3):
                message = outputs(nbytes)
                expected = link.transfer_s(sender.topic("up/outputs"), len(encoding.encode(message)), slow, direction)
                start = time.perf_counter()
                await sender.publish("up/outputs", message)
                _, received = await receiver.receive(20)
                ratios.append((time.perf_counter() - start) / expected)
                assert received == message
                if abs(ratios[-1] - 1) < 0.05:
                    break
            assert min(abs(ratio - 1) for ratio in ratios) < 0.05, ratios


async def test_latency_delays_and_does_not_narrow() -> None:
    far_away = Profile("satellite", 20e6, 20e6, 0.1)
    async with (
        launch() as running,
        link.shape(far_away, (running.host, running.port)) as shaped,
        Bus(f"mqtt://{shaped.host}:{shaped.port}", "agent", "d") as agent,
        Bus(running.url(), "trainer", "d") as trainer,
    ):
        await trainer.subscribe("up/ack")
        start = time.perf_counter()
        for i in range(20):
            await agent.publish("up/ack", Ack(session="s", of="mode", seq=i, ok=True))
        for _ in range(20):
            await trainer.receive(5)
        assert 0.1 <= time.perf_counter() - start < 1.0  # one after the other they would take two seconds


async def test_a_large_message_on_a_slow_link_starves_neither_the_keepalive_nor_the_small_ones() -> None:
    """In one packet it would: the broker hears nothing whole for longer than the keepalive and sends the last will."""
    slow = Profile("slow", 400e3, 400e3)
    async with launch() as running, link.shape(slow, (running.host, running.port)) as shaped:
        url = f"mqtt://{shaped.host}:{shaped.port}"
        async with (
            Bus(url, "codec", "d", link_bits_per_s=slow.up / 10, keepalive_s=1) as codec,
            Bus(running.url(), "trainer", "d") as trainer,
        ):
            await trainer.subscribe("up/outputs", "up/ack", "state/codec")
            sending = asyncio.create_task(codec.publish("up/outputs", outputs(150_000)))
            await asyncio.sleep(0.5)
            await codec.publish("up/ack", Ack(session="s", of="mode", seq=1, ok=True))
            got = [type(message).__name__ for _, message in [await trainer.receive(10) for _ in range(3)]]
            await sending
            assert got == ["State", "Ack", "Outputs"]
            assert codec.counts["reconnected"] == 0


async def test_the_proxy_outlives_a_broker_that_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    async with launch() as running:
        port = running.port
    async with link.shape(PROFILES["lte"], ("127.0.0.1", port)) as shaped:
        reader, writer = await asyncio.open_connection(shaped.host, shaped.port)
        assert await reader.read() == b""
        writer.close()
        assert "Connect call failed" in capsys.readouterr().err
        async with launch(port), Bus(f"mqtt://{shaped.host}:{shaped.port}", "agent", "d") as agent:
            await agent.flush()


def test_chunks_are_two_seconds_of_the_link() -> None:
    assert chunk_size(None) == CHUNK
    assert chunk_size(50e3) == 12_500
    assert chunk_size(1e9) == CHUNK
    assert chunk_size(10) == 256


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
        (["--profile", "lte", "--listen", "192.0.2.1:1"], "link: "),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "broker.link", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20, check=False)
    assert process.returncode != 0
    assert said in process.stderr.splitlines()[-1]
