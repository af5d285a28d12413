"""MQTT 3.1.1 by hand, over TLS: what no well-behaved client would send."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from broker import certificates


def context(home: Path | None, ca: Path) -> ssl.SSLContext:
    """TLS with an identity, or with none; whatever name the broker's certificate has."""
    made = ssl.create_default_context(cafile=str(ca))
    made.check_hostname = False
    if home is not None:
        made.load_cert_chain(home / certificates.CERTIFICATE, home / certificates.KEY)
    return made


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2, "big") + data


def packet(kind: int, body: bytes, length: int | None = None) -> bytes:
    """A packet; ``length``: what it says of itself, where that is not true."""
    left, head = len(body) if length is None else length, bytearray([kind])
    while True:
        left, digit = left >> 7, left & 127
        head.append(digit | (128 if left else 0))
        if not left:
            return bytes(head) + body


def connect(identifier: str, will: str | None = None, *, clean: bool = True, user: str | None = None) -> bytes:
    flags = (2 if clean else 0) | (0x2C if will else 0) | (0x80 if user else 0)
    body = text("MQTT") + bytes([4, flags]) + (60).to_bytes(2, "big") + text(identifier)
    return packet(0x10, body + (text(will) + text("will") if will else b"") + (text(user) if user else b""))


def publish(topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, number: int = 1) -> bytes:
    counted = number.to_bytes(2, "big") if qos else b""
    return packet(0x30 | qos << 1 | retain, text(topic) + counted + payload)


def subscribe(*patterns: str) -> bytes:
    return packet(0x82, (1).to_bytes(2, "big") + b"".join(text(pattern) + b"\1" for pattern in patterns))


@contextlib.asynccontextmanager
async def opened(
    host: str, port: int, tls: ssl.SSLContext, hello: bytes
) -> AsyncIterator[tuple[int | None, asyncio.StreamReader, asyncio.StreamWriter]]:  # fmt: skip
    """A connection after its CONNECT: the broker's return code, None where it hung up. It ends without a goodbye."""
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        writer.write(hello)
        async with asyncio.timeout(30):
            try:
                code = (await reader.readexactly(4))[3]
            except (asyncio.IncompleteReadError, OSError):
                code = None
        yield code, reader, writer
    finally:
        writer.transport.abort()


async def drained(reader: asyncio.StreamReader) -> int:
    """Bytes until the broker hangs up."""
    count = 0
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            count += len(data)
    return count
