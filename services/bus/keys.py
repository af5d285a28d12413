"""Keys by which services know one another's messages, a line ``DEVICE HEX`` each.

A device's services have a file with its line, the server's services one with the lines of all their devices.
``python -m services.bus.make_keys FILE DEVICE...`` makes them.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services import devices

VARIABLE: Final = "R2F_SIGNING_KEY_FILE"
OPTION: Final = f"{VARIABLE}, or a service's --signing-key-file"
KEY_BYTES: Final = 32
MOST_BYTES: Final = 1 << 20
_HEX = re.compile(rf"[0-9a-fA-F]{{{2 * KEY_BYTES}}}")


class Keys:
    """The keys of a file, by device; false where there are none."""

    def __init__(self, path: Path, keys: Mapping[str, bytes]) -> None:
        self.path = path
        self._keys = dict(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __contains__(self, device: object) -> bool:
        return device in self._keys

    def of(self, device: str) -> bytes:
        """A device's key. Raises ValueError where the file has none."""
        if device not in self._keys:
            raise ValueError(
                f"{self.path}: has no key of device {device}; add it: python -m services.bus.make_keys {self.path} {device}"
            )
        return self._keys[device]

    def name(self, device: str) -> str:
        """By which two sides see that they have the same key of a device, without showing it; empty where there is none."""
        if device not in self._keys:
            return ""
        return hashlib.sha256(b"r2f-key-name\0" + self._keys[device]).hexdigest()[:8]


NONE: Final = Keys(Path(), {})


def keys_of(path: Path | None) -> Keys:
    """The keys in a file, else in that of $R2F_SIGNING_KEY_FILE; none where neither is named. Raises what ``read`` does."""
    named = path if path is not None else Path(os.environ.get(VARIABLE, ""))
    return NONE if named == Path() else read(named)


def read(path: Path) -> Keys:
    """The keys in a file. Raises ValueError that names the file and line for what is none, OSError where it cannot be read."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # a pipe may have no writer
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise ValueError(f"{path}: is no plain file")
        if info.st_mode & 0o077:
            raise ValueError(f"{path}: others can read it (mode {stat.S_IMODE(info.st_mode):04o}); chmod 600 {path}")
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path}: more than {MOST_BYTES} bytes is no file of keys")
    keys: dict[str, bytes] = {}
    for number, line in enumerate(data.decode("ascii", "replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not devices.LEVEL.fullmatch(words[0]) or not _HEX.fullmatch(words[1]):
            raise ValueError(f"{path}: line {number}: expected a device and {2 * KEY_BYTES} hexadecimal digits")
        if words[0] in keys:
            raise ValueError(f"{path}: line {number}: device {words[0]} is there twice")
        keys[words[0]] = bytes.fromhex(words[1])
    if not keys:
        raise ValueError(f"{path}: no key is in it; python -m services.bus.make_keys {path} DEVICE makes one")
    return Keys(path, keys)
