"""The stand-in is as strict as ThingsBoard: what its transport does with right and wrong packets, in MQTT 3.1.1 and 5."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.services.thingsboard.standin import MAX, Standin

pytestmark = pytest.mark.timeout(30)

DEV, GW = "v1/devices/me", "v1/gateway"


class Raw:
    """MQTT by hand: packets that a client's library would not send."""

    def __init__(self, r: asyncio.StreamReader, w: asyncio.StreamWriter, v: int) -> None:
        self.r, self.w, self.v = r, w, v

    async def read(self) -> tuple[int, bytes]:
        """The next packet; (0, b"") at the connection's end."""
        try:
            head = (await asyncio.wait_for(self.r.readexactly(1), 5))[0]
            length = shift = 0
            while True:
                byte = (await self.r.readexactly(1))[0]
                length |= (byte & 127) << shift
                shift += 7
                if not byte & 128:
                    return head, await self.r.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, b""

    def send(self, head: int, body: bytes) -> None:
        rest, length = len(body), b""
        while True:
            length += bytes([(rest & 127) | (128 if rest > 127 else 0)])
            rest >>= 7
            if not rest:
                break
        self.w.write(bytes([head]) + length + body)

    def publish(self, topic: str, payload: bytes, qos: int = 1) -> None:
        body = text(topic) + (struct.pack("!H", 7) if qos else b"") + (b"\0" if self.v == 5 else b"") + payload
        self.send(0x30 | qos << 1, body)

    async def acknowledged(self) -> int | None:
        """The reason of a PUBACK, None where the session ended instead."""
        head, body = await self.read()
        if head == 0:
            return None
        assert head == 0x40
        return body[2] if len(body) > 2 else 0

    async def subscribe(self, topic: str, qos: int = 1) -> int:
        self.send(0x82, struct.pack("!H", 9) + (b"\0" if self.v == 5 else b"") + text(topic) + bytes([qos]))
        head, body = await self.read()
        assert head == 0x90
        return body[-1]

    async def received(self) -> tuple[str, Any]:
        head, body = await self.read()
        assert head >> 4 == 3
        length = struct.unpack("!H", body[:2])[0]
        start = 2 + length + (2 if head & 6 else 0) + (self.v == 5)
        return body[2 : 2 + length].decode(), json.loads(body[start:])


def text(value: str) -> bytes:
    return struct.pack("!H", len(value)) + value.encode()


@contextlib.asynccontextmanager
async def connected(tb: Standin, token: str = "TOKEN", v: int = 5, will: bool = False) -> AsyncIterator[tuple[Raw, int]]:
    """A session, and the code of its CONNACK."""
    r, w = await asyncio.open_connection("127.0.0.1", tb.port)
    raw = Raw(r, w, v)
    after = (b"\0" if v == 5 else b"") + text("will") + text("gone") if will else b""
    flags = 0x82 | (0x24 if will else 0)
    raw.send(0x10, text("MQTT") + bytes([v, flags, 0, 60]) + (b"\0" if v == 5 else b"") + text("") + after + text(token))
    head, body = await raw.read()
    assert head == 0x20
    try:
        yield raw, body[1]
    finally:
        w.close()


@pytest.mark.parametrize(("v", "code"), [(4, 5), (5, 0x87)])
async def test_a_bad_token(v: int, code: int, tb: Standin) -> None:
    async with connected(tb, "WRONG", v) as (raw, told):
        assert told in (code, 0x86)
        assert await raw.read() == (0, b"")


@pytest.mark.parametrize(("v", "reason"), [(4, None), (5, 0x99)])
@pytest.mark.parametrize("payload", [b"{", b"7", b'"text"', b'{"a":NaN}', b"\xff"])
async def test_bad_json(v: int, reason: int | None, payload: bytes, tb: Standin) -> None:
    async with connected(tb, v=v) as (raw, _):
        raw.publish(f"{DEV}/telemetry", payload)
        assert await raw.acknowledged() == reason


@pytest.mark.parametrize("over", [0, 1])
async def test_one_byte_more_than_the_limit_ends_the_session(over: int, tb: Standin) -> None:
    async with connected(tb) as (raw, _):
        topic = f"{DEV}/telemetry"
        room = MAX - len(text(topic)) - 3
        raw.publish(topic, b'{"a":"' + b"x" * (room - 8 + over) + b'"}')
        assert await raw.acknowledged() == (None if over else 0)


@pytest.mark.parametrize(("v", "reason"), [(4, 0), (5, 0x90)])
async def test_a_topic_that_is_none(v: int, reason: int, tb: Standin) -> None:
    async with connected(tb, v=v) as (raw, _):
        raw.publish("r2f/v1/edge-0/event/progress", b"{}")
        assert await raw.acknowledged() == reason


@pytest.mark.parametrize(("v", "code"), [(4, 0x80), (5, 0x8F)])
async def test_filters(v: int, code: int, tb: Standin) -> None:
    async with connected(tb, v=v) as (raw, _):
        assert await raw.subscribe("#") == code
        assert await raw.subscribe("v2/fw/response/+") == code
        assert await raw.subscribe(f"{GW}/rpc", 2) == 1


async def test_a_plain_device_is_not_answered_on_the_gateways_topics(tb: Standin) -> None:
    tb.add("plain", "PLAIN")
    async with connected(tb, "PLAIN") as (raw, _):
        raw.publish(f"{GW}/connect", b'{"device":"edge-0"}')
        raw.publish(f"{DEV}/telemetry", b'{"a":1}')
        assert await raw.acknowledged() == 0  # of the second alone
        assert "edge-0" not in tb.devices


async def test_qos_0_and_telemetry_that_is_no_list_on_the_gateways_topics(tb: Standin) -> None:
    async with connected(tb) as (raw, _):
        raw.publish(f"{GW}/telemetry", b'{"edge-0":{"a":1}}')
        assert await raw.acknowledged() == 0x99
        raw.publish(f"{GW}/telemetry", b'{"edge-0":[{"a":1}]}', 0)
        assert await raw.read() == (0, b"")


async def test_how_values_are_stored(tb: Standin) -> None:
    async with connected(tb) as (raw, _):
        raw.publish(
            f"{DEV}/attributes", b'{"a":0.012345678901234567,"b":"12","c":null,"d":1e2,"e":"1.5x","f":9223372036854775808}'
        )
        assert await raw.acknowledged() == 0
    assert tb.devices["gateway"].client == {
        "a": "0.012345678901234567",
        "b": 12,
        "d": 100,
        "e": "1.5x",
        "f": "9223372036854775808",
    }


async def test_a_will_is_read_and_ignored_and_nothing_retained(tb: Standin) -> None:
    async with connected(tb, will=True) as (raw, code):
        assert code == 0
        raw.send(0x33, text(f"{DEV}/telemetry") + struct.pack("!H", 3) + b"\0" + b'{"a":1}')
        assert await raw.acknowledged() == 0
    async with connected(tb) as (raw, _):
        assert await raw.subscribe(f"{DEV}/attributes") == 1
        raw.send(0xC0, b"")
        assert await raw.read() == (0xD0, b"")


async def test_calls_of_who_is_not_there_and_of_who_does_not_answer(tb: Standin) -> None:
    tb.child("edge-0")
    with pytest.raises(ConnectionError):
        await tb.rpc("edge-0", "m", {})
    async with connected(tb) as (raw, _):
        raw.publish(f"{GW}/connect", b'{"device":"edge-0"}')
        assert await raw.acknowledged() == 0
        with pytest.raises(TimeoutError):
            await tb.rpc("edge-0", "m", {}, timeout=0.1)


async def test_shared_attributes_asked_for_changed_and_deleted(tb: Standin) -> None:
    tb.child("edge-0").shared = {"ber": 0.5, "seed": 3}
    async with connected(tb) as (raw, _):
        for asked, told in (
            ({"key": "ber"}, {"value": 0.5}),
            ({"keys": ["ber", "seed", "x"]}, {"values": {"ber": 0.5, "seed": 3}}),
        ):
            raw.publish(
                f"{GW}/attributes/request", json.dumps({"id": 1, "device": "edge-0", "client": False, **asked}).encode()
            )
            assert await raw.received() == (f"{GW}/attributes/response", {"id": 1, "device": "edge-0", **told})
            assert await raw.acknowledged() == 0
        await tb.set_shared("edge-0", ber=1)
        assert await raw.received() == (f"{GW}/attributes", {"device": "edge-0", "data": {"ber": 1}})
        await tb.delete_shared("edge-0", "ber")
        assert await raw.received() == (f"{GW}/attributes", {"device": "edge-0", "data": {"deleted": ["ber"]}})


@pytest.mark.parametrize(("size", "chunks"), [("", 1), ("16384", 4)])
async def test_firmware_whole_and_in_chunks(size: str, chunks: int, tb: Standin) -> None:
    data = bytes(50_000)
    tb.assign("gateway", "net", "1", data)
    async with connected(tb) as (raw, _):
        found = b""
        for index in range(chunks):
            raw.publish(f"v2/fw/request/1/chunk/{index}", size.encode())
            assert await raw.acknowledged() == 0
            _, body = await raw.read()
            found += body[2 + len(f"v2/fw/response/1/chunk/{index}") + 3 :]
        assert found == data


@pytest.mark.parametrize(("size", "assigned"), [(b"65537", True), (b"100", False)])
async def test_firmware_that_does_not_come(size: bytes, assigned: bool, tb: Standin) -> None:
    if assigned:
        tb.assign("gateway", "net", "1", bytes(10))
    async with connected(tb) as (raw, _):
        raw.publish("v2/fw/request/1/chunk/0", size)
        head, body = await raw.read()
        assert head >> 4 == 3
        assert b"v2/fw/error" in body
        assert await raw.read() == (0, b"")


async def test_the_newer_of_two_sessions_has_the_token(tb: Standin) -> None:
    async with connected(tb) as (first, _), connected(tb) as (second, code):
        assert code == 0
        assert await first.read() == (0xE0, b"\x8e")
        assert await first.read() == (0, b"")
        second.send(0xC0, b"")
        assert await second.read() == (0xD0, b"")
