"""Where the broker is, and what a person may say of it: address, credentials, certificates, the link's rate."""

from __future__ import annotations

import math
import os
import ssl
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import aiomqtt

from services import passwords
from services.passwords import hidden

IDENTITY_FILES = {"R2F_CA_FILE": "ca.pem", "R2F_CERT_FILE": "certificate.pem", "R2F_KEY_FILE": "key.pem"}
"""Variable to the file of the folder $R2F_IDENTITY that stands in for it."""


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
    """PEM files; None takes $R2F_CA_FILE, $R2F_CERT_FILE, $R2F_KEY_FILE, else those of the folder $R2F_IDENTITY that
    ``r2f provision`` made, else the system's authorities and no certificate."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def parameters(self, *, bus: bool = True) -> aiomqtt.TLSParameters:
        """As aiomqtt takes them; the broker's certificate is always checked. Who is not the ``bus`` is not shown an identity
        of it, nor checked by its authority. Raises BusError where $R2F_IDENTITY is no folder of that kind."""
        given = (self.ca_file, self.cert_file, self.key_file)
        ca, cert, key = (
            mine or os.environ.get(name) or (_of_identity(file) if bus else None)
            for mine, (name, file) in zip(given, IDENTITY_FILES.items(), strict=True)
        )
        return aiomqtt.TLSParameters(ca_certs=ca, certfile=cert, keyfile=key, cert_reqs=ssl.CERT_REQUIRED)


def _of_identity(file: str) -> str | None:
    """A file of the folder $R2F_IDENTITY, None where that is not set. Raises BusError where it cannot be read."""
    folder = os.environ.get("R2F_IDENTITY")
    if not folder:
        return None
    path = os.path.join(folder, file)
    if not os.access(path, os.R_OK):
        raise BusError(f"R2F_IDENTITY is {folder!r}: {path} cannot be read; r2f provision makes such a folder")
    return path


def broker_address(url: str) -> Address:
    """Address of ``mqtt[s]://[user:password@]host[:port]``, or of ``host[:port]`` alone.

    User and password are else $R2F_USERNAME, and what is in the file $R2F_PASSWORD_FILE or $R2F_PASSWORD. Raises BusError.
    """
    parts = urlsplit(url if "://" in url else f"mqtt://{url}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == 0:
        raise BusError(f"{hidden(url)} is no broker; write mqtt://host:port or mqtts://user@host:port")
    secure = parts.scheme == "mqtts"
    try:
        password = unquote(parts.password) if parts.password else passwords.found()
    except ValueError as error:
        raise BusError(str(error)) from None
    user = unquote(parts.username) if parts.username else os.environ.get("R2F_USERNAME")
    return Address(parts.hostname, port or (8883 if secure else 1883), user, password, secure, hidden(url))


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
