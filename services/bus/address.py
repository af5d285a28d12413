"""Where the broker is, and what a person may say of it: address, credentials, certificates, the link's rate."""

from __future__ import annotations

import math
import os
import ssl
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import aiomqtt


class BusError(Exception):
    """The bus cannot be used: broker unreachable, credentials refused, name taken, subscription not allowed."""


class Address(NamedTuple):
    """A broker's, and who asks. ``shown`` is the URL without its password, for messages."""

    host: str
    port: int
    user: str | None
    password: str | None
    secure: bool
    shown: str


class Tls(NamedTuple):
    """PEM files; None takes $R2F_CA_FILE, $R2F_CERT_FILE, $R2F_KEY_FILE, else the system's authorities and no certificate."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def parameters(self) -> aiomqtt.TLSParameters:
        """As aiomqtt takes them; the broker's certificate is always checked."""
        return aiomqtt.TLSParameters(
            ca_certs=self.ca_file or os.environ.get("R2F_CA_FILE"),
            certfile=self.cert_file or os.environ.get("R2F_CERT_FILE"),
            keyfile=self.key_file or os.environ.get("R2F_KEY_FILE"),
            cert_reqs=ssl.CERT_REQUIRED,
        )


def broker_address(url: str) -> Address:
    """Address of ``mqtt[s]://[user:password@]host[:port]``, or of ``host[:port]`` alone.

    User and password are else $R2F_USERNAME and $R2F_PASSWORD. Raises BusError.
    """
    parts = urlsplit(url if "://" in url else f"mqtt://{url}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == 0:
        raise BusError(f"{hidden(url)} is no broker; write mqtt://host:port or mqtts://user:password@host:port")
    secure = parts.scheme == "mqtts"
    user = unquote(parts.username) if parts.username else os.environ.get("R2F_USERNAME")
    password = unquote(parts.password) if parts.password else os.environ.get("R2F_PASSWORD")
    return Address(parts.hostname, port or (8883 if secure else 1883), user, password, secure, hidden(url))


def hidden(url: str) -> str:
    """The URL without its password, for messages."""
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://…@{tail}" if at else url


def link_rate() -> float | None:
    """Bits a second of $R2F_LINK_BITS_PER_S, None where it is not set. Raises BusError where it is no rate."""
    return _number("R2F_LINK_BITS_PER_S", "the link's bits a second", math.inf)


def packet_limit() -> int | None:
    """Bytes of $R2F_PACKET_BYTES, the largest packet that the broker takes; None where it is not set. Raises BusError."""
    found = _number("R2F_PACKET_BYTES", "the bytes of the largest packet that the broker takes, 1024 or more", 2.0**30)
    if found is not None and found < 1024:
        raise BusError(f"R2F_PACKET_BYTES is {found:g}; set it to 1024 or more")
    return None if found is None else int(found)


def _number(name: str, what: str, below: float) -> float | None:
    text = os.environ.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < below:
        raise BusError(f"{name} is {text!r}; set it to {what}")
    return value
