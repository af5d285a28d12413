"""Several devices by name: lists ``a,b,c``, patterns ``fleet-*``, and which of some processes serves which device.

What a device needs of a service (its session, the network it runs, the chain of layers of a pass, the numbers of its messages)
is in one process, so work is shared out by device and not by message (docs/scale.md, "Sharing work").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

MOST: Final = 4096
"""Devices of one run; also of those that a pattern finds."""
LEVEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""A level of a topic, as the name of a device is one."""
_WILD = re.compile(r"[*?]")


def is_pattern(text: str) -> bool:
    """Whether devices are meant that match, and not one of just that name."""
    return _WILD.search(text) is not None


def listed(text: str) -> tuple[str, ...]:
    """The names in ``a,b,c``, in that order. Raises ValueError for one that is none or is there twice."""
    checked(text)
    names = tuple(text.split(","))
    for name in names:
        if is_pattern(name):
            raise ValueError(f"{name!r} is a pattern; here devices are named one by one")
    return names


def checked(text: str) -> str:
    """A list of names or of patterns, as it is. Raises ValueError where a part is neither, or is there twice."""
    parts = text.split(",")
    for part in parts:
        if not LEVEL.fullmatch(_WILD.sub("x", part)):
            raise ValueError(
                f"{part[:80]!r} is no name of a device: expected letters, digits, '_', '.' and '-', beginning with a letter or "
                "a digit, at most 64"
            )
        if parts.count(part) > 1:
            raise ValueError(f"device {part} is listed twice")
    if len(parts) > MOST:
        raise ValueError(f"{len(parts)} devices; one run takes at most {MOST}")
    return text


def matches(text: str, name: str) -> bool:
    """Whether a device is one of ``text``'s: a list of names, of patterns, or of both."""
    return any(fnmatchcase(name, part) for part in text.split(","))


def matching(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those that are of ``text``, by name."""
    return tuple(sorted({name for name in names if matches(text, name)}))


def owner(device: str, processes: int) -> int:
    """Which of ``processes``, from 0, serves a device: the one with the highest hash of both (rendezvous hashing).

    One process more takes over its share of devices, and no other device moves.
    """
    return max(range(processes), key=lambda number: hashlib.sha256(f"{number}/{device}".encode()).digest())
