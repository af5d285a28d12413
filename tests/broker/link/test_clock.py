"""The link's clock against a count of its own, and against the bytes that really pass."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from broker.launch import launch
from broker.link import clock
from broker.link.clock import WireBytes
from broker.link.profiles import PROFILES, Profile, profile
from broker.link.proxy import shape
from services.bus import Bus, encoding
from services.bus.chunks import CHUNK, chunk_size, split
from services.bus.messages import Message, Outputs


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
        profile("5g")


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
    assert clock.packet_bytes("r2f/v1/d/up/ack", payload, qos) == len(made[0])


def test_headers_by_hand() -> None:
    # One segment: 11 of MQTT's, 10 of payload, 25 of the stamp, 52 of TCP/IP's; back an ACK and a PUBACK in a segment.
    assert clock.packet_bytes("topic", 10) == 1 + 1 + 2 + 5 + 2 + 10
    assert clock.wire_bytes("topic", 10) == WireBytes(11 + 10 + 25 + 52, 52 + 4 + 52)
    assert clock.stream_bytes(1448) == WireBytes(1448 + 52, 52)
    assert clock.stream_bytes(1449) == WireBytes(1449 + 104, 52)
    assert clock.stream_bytes(3 * 1448) == WireBytes(3 * 1500, 104)
    assert clock.seconds(50_000 // 8, PROFILES["lora"], "up") == 1.0
    assert clock.seconds(21_100_000 // 8, Profile("x", 1.0, 21.1e6, 0.25), "down") == 1.25


@pytest.mark.parametrize("nbytes", [CHUNK - 100, CHUNK, CHUNK + 1, 10 * CHUNK, 1_000_000])
def test_chunks_are_counted_as_the_bus_cuts_them(nbytes: int) -> None:
    payload = bytes(nbytes)
    counted = clock.frames(nbytes, CHUNK, "session")
    made: list[Message] = list(split("session", payload, CHUNK)) if nbytes > CHUNK else []
    for n, message in enumerate(made, 1):
        message.origin, message.n = "0" * 12, n
    cut = [len(encoding.encode(message)) for message in made] or [nbytes + clock.STAMP]
    assert len(counted) == len(cut)
    # Numbers are counted as long as they get: some bytes more for the first of them.
    assert all(0 <= more - less <= 6 for more, less in zip(counted, cut, strict=True))


async def test_the_clock_counts_the_bytes_that_pass() -> None:
    wide = Profile("wide", 1e9, 1e9)
    async with launch() as running, shape(wide, (running.host, running.port)) as shaped:
        url = f"mqtt://{shaped.host}:{shaped.port}"
        async with Bus(running.url(), "trainer", "d") as trainer, Bus(url, "agent", "d") as agent:
            await trainer.subscribe("up/outputs")
            await agent.publish("up/outputs", outputs(0))
            await trainer.receive(60)
            await agent.flush()
            for nbytes in (100, 70_000, 400_000):
                before = -1
                while before != shaped.up_bytes:  # until nothing else is on its way
                    before = shaped.up_bytes
                    await asyncio.sleep(0.2)
                message = outputs(nbytes)
                await agent.publish("up/outputs", message)
                await trainer.receive(60)
                await agent.flush()
                lengths = clock.frames(len(encoding.encode(message)), CHUNK, "s")
                counted = sum(clock.packet_bytes(agent.topic("up/outputs"), length) for length in lengths)
                # Numbers are counted as if they had three bytes.
                assert 0 <= counted - (shaped.up_bytes - before) <= 4 * len(lengths)


@pytest.mark.parametrize("rate", [50e3, 800e3], ids=["lora", "802.15.4g"])
async def test_messages_are_counted_as_they_pass_in_the_chunks_of_the_link(rate: float) -> None:
    """What the experiments count, against the packets of a real exchange over a proxy that has the link's chunks alone."""
    wide, narrow = Profile("wide", 1e9, 1e9), Profile("narrow", rate, rate)
    async with launch() as running, shape(wide, (running.host, running.port)) as shaped:
        url = f"mqtt://{shaped.host}:{shaped.port}"
        async with (
            Bus(running.url(), "trainer", "edge-0") as server,
            Bus(url, "agent", "edge-0", link_bits_per_s=narrow.up) as device,
        ):
            await server.subscribe("up/outputs")
            await device.publish("up/outputs", outputs(0))
            await server.receive(60)
            await device.flush()
            for nbytes in (100, 12_000, 60_000, 300_000):
                before = -1
                while before != shaped.up_bytes:  # until nothing else is on its way
                    before = shaped.up_bytes
                    await asyncio.sleep(0.2)
                message = outputs(nbytes)
                payload = len(encoding.encode(message))
                await device.publish("up/outputs", message)
                await server.receive(60)
                await device.flush()
                passed = shaped.up_bytes - before
                packets = 1 if payload <= chunk_size(rate) else 1 + -(-payload // chunk_size(rate))
                # Each packet is a burst of its own, so the last segment of each is not full.
                headers = sum(
                    -(-part // clock.MSS) * clock.SEGMENT_HEADERS
                    for part in [chunk_size(rate)] * (payload // chunk_size(rate)) + [payload % chunk_size(rate)]
                )
                counted = clock.message_bytes("up/outputs", payload, narrow)
                assert abs(counted - passed - headers) <= packets * (clock.SEGMENT_HEADERS + 4)
                assert counted > passed


def test_a_message_is_counted_under_its_whole_topic_and_the_rate_of_its_direction() -> None:
    # 23 bytes of topic.
    assert (
        clock.message_bytes("up/layers", 10) == clock.wire_bytes("r2f/v1/edge-0/up/layers", 10).forward == 23 + 6 + 10 + 25 + 52
    )
    slow_up = Profile("slow up", 50e3, 1e9)
    assert clock.message_bytes("up/model", 50_000, slow_up) > clock.message_bytes("down/model", 50_000, slow_up)
    assert clock.message_bytes("down/model", 50_000, slow_up) == clock.message_bytes("down/model", 50_000)


def test_chunks_are_two_seconds_of_the_link() -> None:
    assert chunk_size(None) == CHUNK
    assert chunk_size(50e3) == 12_500
    assert chunk_size(1e9) == CHUNK
    assert chunk_size(10) == 256
