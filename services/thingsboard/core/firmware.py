"""A released model as ThingsBoard's firmware: what its attributes announce, and the chunks as they come."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

CHUNK_BYTES: Final = 16_384
MOST_BYTES: Final = 64 << 20
"""Of a model; ThingsBoard takes 50 MB unless told otherwise."""
KEYS: Final = ("fw_title", "fw_version", "fw_size", "fw_checksum", "fw_checksum_algorithm")
RESPONSE: Final = re.compile(r"v2/fw/response/(\d{1,9})/chunk/(\d{1,9})")

Name = Annotated[str, Meta(min_length=1, max_length=255)]


class Firmware(msgspec.Struct, frozen=True):
    """What is announced. ``fw_checksum`` is the SHA256 of the file; the network's own digest is the same."""

    fw_title: Name
    fw_version: Name
    fw_size: Annotated[int, Meta(ge=1, le=MOST_BYTES)]
    fw_checksum: Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}$")]
    fw_checksum_algorithm: Literal["SHA256"]


def announced(shared: Mapping[str, Any]) -> Firmware | None:
    """The firmware of the gateway's shared attributes, None where there is none. Raises ValueError naming the attribute."""
    if not any(key in shared for key in KEYS):
        return None
    # A version of digits alone arrives as a number.
    read = {key: str(value) if key in KEYS[:2] and type(value) in (int, float) else value for key, value in shared.items()}
    try:
        return msgspec.convert(read, Firmware, strict=True)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"firmware: {error}; assign an OTA package with a SHA256 checksum to the gateway") from None


@dataclass(slots=True)
class Download:
    """One firmware on its way, chunk by chunk in order."""

    of: Firmware
    request: int
    """By which its chunks are known."""
    data: bytearray = field(default_factory=bytearray)

    @property
    def topic(self) -> str:
        """Where the next chunk is asked for; the payload is its size in ASCII."""
        return f"v2/fw/request/{self.request}/chunk/{len(self.data) // CHUNK_BYTES}"

    def take(self, request: int, index: int, chunk: bytes) -> bool:
        """Adds the chunk that was asked for; whether it was. Raises ValueError for one of the wrong size."""
        if request != self.request or index * CHUNK_BYTES != len(self.data):
            return False  # of a download that was given up, or come twice
        wanted = min(CHUNK_BYTES, self.of.fw_size - len(self.data))
        if len(chunk) != wanted:
            raise ValueError(f"firmware {self.of.fw_title}: chunk {index} has {len(chunk)} bytes; {wanted} were to come")
        self.data += chunk
        return True

    @property
    def done(self) -> bool:
        """Whether every byte is there."""
        return len(self.data) == self.of.fw_size

    def verified(self) -> bytes:
        """The file. Raises ValueError where it is not what was announced."""
        found = hashlib.sha256(self.data).hexdigest()
        if found != self.of.fw_checksum.lower():
            raise ValueError(f"firmware {self.of.fw_title}: SHA256 is {found}, {self.of.fw_checksum} was announced")
        return bytes(self.data)
